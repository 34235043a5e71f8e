"""A stand-in of the Hugging Face hub's HTTP interface on loopback: as much of it as a download needs.

It is written from huggingface_hub's requests, not from the hub, which cannot be reached from the tests.
`python -m tests.hub SOURCE` opens a source in a fresh process, since huggingface_hub reads its settings
from the environment when it is imported, and prints what came of it as JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from vecferry.errors import VecferryError
from vecferry.model.sources import open_source

COMMIT = "c0ffee" + "0" * 34
LFS_FROM_BYTES = 1000


@dataclass
class Hub:
    """Repositories of one commit each, faults to play, and the requests seen."""

    repositories: dict[str, dict[str, bytes]]
    commits: dict[str, str] = field(default_factory=dict)
    """Revision names and commits -> commit."""
    published: dict[str, str] = field(default_factory=dict)
    """SHA-256 to publish for a file instead of its own."""
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    """For each further request of a file, how many bytes to send before the connection is cut."""
    status: int = 200
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path, Range header."""
    authorizations: set[str | None] = field(default_factory=set)
    url: str = ""

    def downloads(self) -> list[str]:
        """Return the files whose content was requested, in order."""
        matches = (re.search(r"/resolve/[^/]+/(.+)", path) for method, path, _ in self.requests if method == "GET")
        return [match.group(1) for match in matches if match]

    @contextmanager
    def serving(self) -> Iterator[Hub]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        self.hub.authorizations.add(self.headers.get("Authorization"))
        if self.hub.status != 200:
            # A server that says too much.
            return self._send(self.hub.status, {"X-Error-Message": f"denied to {self.headers.get('Authorization')}"})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path)
        if match:
            return self._describe(match[1], match[2] or "revision", match[3] or "main")
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if match:
            return self._resolve(match[1], match[2], match[3], with_body=with_body)
        return self._send(404, {})

    def _describe(self, repo: str, what: str, revision: str) -> None:
        files = self.hub.repositories.get(repo)
        commit = self.hub.commits.get(revision)
        if files is None:
            return self._send(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if commit is None:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        described: Any
        if what == "tree":
            described = [
                {"type": "file", "path": name, "size": len(content), "oid": git_id(content)}
                | ({"lfs": {"oid": self._sha256(name, content), **lfs_sizes(content)}} if is_lfs(content) else {})
                for name, content in files.items()
            ]
        else:
            siblings = [
                {"rfilename": name, "size": len(content), "blobId": git_id(content)}
                | ({"lfs": {"sha256": self._sha256(name, content), **lfs_sizes(content)}} if is_lfs(content) else {})
                for name, content in files.items()
            ]
            described = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "tags": [], "private": False}
        return self._send(200, {"Content-Type": "application/json"}, json.dumps(described).encode())

    def _resolve(self, repo: str, revision: str, name: str, *, with_body: bool) -> None:
        content = self.hub.repositories.get(repo, {}).get(name)
        if content is None:
            return self._send(404, {"X-Error-Code": "EntryNotFound"})
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        etag = self._sha256(name, content) if is_lfs(content) else git_id(content)
        headers = {
            "ETag": f'"{etag}"', "X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content)),
            "X-Repo-Commit": self.hub.commits[revision], "Accept-Ranges": "bytes",
        }  # fmt: skip
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cuts = self.hub.cut_after.get(name, [])
        cut_at = cuts.pop(0) if with_body and cuts else None
        return self._send(206 if start else 200, headers, content[start:], cut_at=cut_at, with_body=with_body)

    def _send(
        self,
        status: int,
        headers: dict[str, str],
        body: bytes = b"",
        *,
        cut_at: int | None = None,
        with_body: bool = True,
    ) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[:cut_at])
        if cut_at is not None:
            self.close_connection = True

    def _sha256(self, name: str, content: bytes) -> str:
        return self.hub.published.get(name) or hashlib.sha256(content).hexdigest()


def is_lfs(content: bytes) -> bool:
    return len(content) >= LFS_FROM_BYTES


def lfs_sizes(content: bytes) -> dict[str, int]:
    return {"size": len(content), "pointerSize": 130}


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\x00" % len(content) + content).hexdigest()


# --- opening a source in a fresh process ----------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """Exactly one of `record` (kind, id, revision, files, folder) and `error` (a class name) is set."""

    record: dict[str, Any]
    error: str
    text: str
    cause: str


def open_in_a_process(source: str, home: Path, *arguments: str, **environment: str) -> Opened:
    """Open a source in a process of its own. home: the hub's cache. environment: HF_ENDPOINT and the like."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))
    }
    finished = subprocess.run(
        [sys.executable, "-m", "tests.hub", source, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parent.parent,
        env=kept
        | {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        | environment,
    )
    assert finished.returncode == 0, finished.stderr
    return Opened(**json.loads(finished.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--revision")
    parser.add_argument("--offline", action="store_true")
    args = parser.parse_args()
    result = {"record": {}, "error": "", "text": "", "cause": ""}
    try:
        checkpoint = open_source(args.source, revision=args.revision, offline=args.offline)
        result["record"] = checkpoint.record().model_dump() | {"folder": str(checkpoint.folder)}
    except VecferryError as exc:
        result |= {"error": type(exc).__name__, "text": str(exc), "cause": repr(exc.__cause__)}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
