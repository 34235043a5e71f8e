"""Where a checkpoint comes from: a folder, an installed package, or the Hugging Face hub.

Whatever the source, the result is a folder on disk in
Hugging Face layout and a record of it; reading the files is spec.py's and weights.py's business.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from vecferry.errors import CheckpointDamaged, DownloadFailed, SourceNotFound
from vecferry.model.artifact import SourceRecord, sha256_of
from vecferry.model.completeness import without_weights
from vecferry.model.layout import MODULES_FILE, Layout, read_layout
from vecferry.model.weights import ADAPTER_FILES, HEADS, adapter_file, head_files, weight_files

BGE_M3 = "BAAI/bge-m3"
PINNED_REVISIONS = {BGE_M3: "5617a9f61b028005a4858fdac845db406aefb181"}
"""Revisions taken where the user names none: the one whose digests and published values are known."""

HEAD_FILES = tuple(f"{name}.pt" for name in HEADS)
ANSWER_TIMEOUT_S = 30.0
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Checkpoint:
    """A folder in Hugging Face layout, and where it came from."""

    folder: Path
    kind: str
    id: str
    revision: str | None

    def record(self) -> SourceRecord:
        """Return the origin, with the SHA-256 of each file that a conversion reads (weights are read whole)."""
        layout = read_layout(self.folder)
        read = [path for name in layout.json_files if (path := self.folder / name).exists()]
        inside = self.folder / layout.transformer
        read += [*weight_files(inside), *filter(None, [adapter_file(inside)]), *head_files(self.folder)]
        digests = {path.relative_to(self.folder).as_posix(): sha256_of(path) for path in read}
        return SourceRecord.model_validate(
            {"kind": self.kind, "id": self.id, "revision": self.revision, "files": digests}
        )


def open_source(source: str, *, revision: str | None = None, offline: bool = False) -> Checkpoint:
    """Open a checkpoint: a folder, `package:NAME`, or a hub id `owner/name`.

    revision: a commit, tag or branch of a hub id; it is resolved to a commit, which is recorded.
    offline: only what the hub's cache holds.
    Raises SourceNotFound, DownloadFailed, CheckpointIncomplete, CheckpointDamaged.
    """
    if source.startswith("package:"):
        return Checkpoint(_package_folder(source), "package", source.removeprefix("package:"), None)
    folder = Path(source)
    if source and folder.is_dir():
        return Checkpoint(folder.resolve(), "folder", str(folder.resolve()), None)
    if HUB_ID.fullmatch(source):
        return _from_hub(source, revision or PINNED_REVISIONS.get(source, "main"), offline=offline)
    raise SourceNotFound(source, "there is no such folder and it is not a hub id")


def reopen(record: SourceRecord) -> Checkpoint:
    """Open the checkpoint that a manifest names, without going to the network. Raises SourceNotFound."""
    if record.kind == "hub":
        return _from_hub(record.id, record.revision or "main", offline=True)
    return open_source(f"package:{record.id}" if record.kind == "package" else record.id)


def _package_folder(source: str) -> Path:
    name = source.removeprefix("package:")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise SourceNotFound(source, f"no installed package {name!r} (pip install {name.replace('_', '-')})")
    configs = (path for root in spec.submodule_search_locations for path in Path(root).rglob("config.json"))
    models = sorted({_with_modules(path.parent) for path in configs if weight_files(path.parent)})
    if len(models) != 1:
        raise SourceNotFound(source, f"the package holds {len(models)} checkpoints, expected 1")
    return models[0]


def _with_modules(folder: Path) -> Path:
    """Return the folder whose modules.json names this one as its transformer's, or else this one."""
    parents = (folder.parents[0], folder.parents[1])
    return next((above for above in parents if above / read_layout(above).transformer == folder), folder)


def _from_hub(repo: str, revision: str, *, offline: bool) -> Checkpoint:
    """Download from the hub. Each file that arrived whole stays in its cache, so a repeat fetches only the others."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of the client that it is built on
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if HF_HUB_CACHE.startswith("~"):  # which nothing could expand
        reason = "this user has no home directory, where the hub's cache would be: set HF_HOME to a folder"
        raise SourceNotFound(f"{repo}@{revision}", reason)
    try:
        if offline:
            cached = snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[MODULES_FILE])
            return _from_cache(Path(cached), repo, revision)
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=ANSWER_TIMEOUT_S)
        published = {file.rfilename: file.lfs.sha256 if file.lfs else None for file in info.siblings or ()}
        folder = Path(snapshot_download(repo, revision=info.sha, allow_patterns=[MODULES_FILE]))
        layout = read_layout(folder)
        wanted = files_to_fetch(list(published), layout)
        if not any(name.endswith((".safetensors", ".bin")) for name in wanted):
            raise without_weights(Path(repo), published)
        snapshot_download(repo, revision=info.sha, allow_patterns=wanted)
    except OfflineModeIsEnabled:
        return _from_hub(repo, revision, offline=True)
    except (RepositoryNotFoundError, RevisionNotFoundError) as exc:
        raise SourceNotFound(f"{repo}@{revision}", "the hub does not have it, or not for you (hf auth login)") from exc
    except HFValidationError as exc:
        raise SourceNotFound(repo, "it is not a hub id") from exc
    except LocalEntryNotFoundError as exc:
        if offline:
            raise SourceNotFound(f"{repo}@{revision}", "offline, and the hub's cache does not hold it whole") from exc
        raise DownloadFailed(repo, _reason(exc)) from exc
    except (HTTPError, OSError) as exc:
        raise DownloadFailed(repo, _reason(exc)) from exc
    _compare_digests(folder, {name: published[name] for name in wanted})
    return Checkpoint(folder, "hub", repo, info.sha)


def _from_cache(folder: Path, repo: str, revision: str) -> Checkpoint:
    """Refuse a cached folder that lacks files: another program that filled it may not have needed them."""
    heads = [name for name in HEAD_FILES if repo == BGE_M3 and not (folder / name).exists()]
    weights = weight_files(folder / read_layout(folder).transformer)
    missing = heads if weights else ["weights", *heads]
    if missing:
        raise SourceNotFound(f"{repo}@{revision}", f"the hub's cache holds it without {', '.join(missing)}")
    return Checkpoint(folder, "hub", repo, folder.name)


def _reason(exc: Exception) -> str:
    """Return the first line of a foreign error, without what could be a token or a signed address."""
    first = (str(exc).splitlines() or [""])[0].strip() or type(exc).__name__
    return re.sub(r"Bearer \S+|hf_\w+|\?\S+", "…", first).rstrip(".")


def files_to_fetch(names: list[str], layout: Layout) -> list[str]:
    """Return the files of a repository that a conversion reads: one form of the weights, an adapter, heads, JSON."""
    adapters = [str(layout.transformer / name) for name in ADAPTER_FILES]
    chosen = [name for name in names if name in (*layout.json_files, *HEAD_FILES, *adapters)]
    inside = re.escape(str(layout.transformer / "_").removesuffix("_"))
    for pattern in (r"model\.safetensors", r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
                    r"pytorch_model\.bin", r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?"):  # fmt: skip
        weights = [name for name in names if re.fullmatch(inside + pattern, name)]
        if weights:
            return chosen + weights
    return chosen


def _compare_digests(folder: Path, published: dict[str, str | None]) -> None:
    """Remove a file that is not as published from the cache, so that it is fetched anew."""
    for name, digest in published.items():
        path = folder / name
        if digest is not None and sha256_of(path) != digest:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise CheckpointDamaged(path, f"its SHA-256 was not the published {digest[:12]}…, so it was removed")
