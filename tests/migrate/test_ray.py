"""The engine on Ray, here on a Ray of this machine that the tests of a process share."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.migrate.doubles import TruthEncoder, truth
from tests.migrate.test_engine import ROOT, collection, engine_of, in_ranges, numbers
from tests.migrate.workers import TruthModel, as_vector
from tests.waiting import wait_until
from vecferry.cli import main
from vecferry.embeddings import Outputs, TextVectors
from vecferry.encode.loading import EncoderOptions, load_encoder
from vecferry.errors import (
    ArtifactDamaged,
    EngineStalled,
    InvalidText,
    NodeRefused,
    OutOfMemory,
    SettingsError,
    SpaceMismatch,
)
from vecferry.migrate.engines import RaySettings, range_name
from vecferry.migrate.engines.distributed import RayEngine, encode_on_workers
from vecferry.migrate.engines.model_distribution import ShippedArtifact
from vecferry.migrate.engines.ray.pool import Pool
from vecferry.migrate.engines.ray.session import make_token, sweep_folders
from vecferry.migrate.engines.task import RangeTask
from vecferry.migrate.staged_file import NotReadable
from vecferry.migrate.staging import Staging
from vecferry.model.artifact import Artifact
from vecferry.stores.backend import Point
from vecferry.stores.mirror import MirrorStore
from vecferry.stores.values import Row

TWO = RaySettings(workers=2, cpus_per_worker=1)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """Start a Ray of this process; engines find it and leave it."""
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def on_ray(store: MirrorStore, folder: Path, settings: RaySettings = TWO, **model: object) -> RayEngine:
    encoder = TruthEncoder()
    staging = Staging(folder / "staging", encoder.space.key)
    return RayEngine(store, encoder, staging, "uid", 4, made_by_us(folder, **model), settings)


def made_by_us(folder: Path, **model: object) -> TruthModel:
    return TruthModel(folder, driver=os.getpid(), **model)  # type: ignore[arg-type]


def encoded_by(engine: RayEngine) -> Counter[str]:
    assert isinstance(engine.model, TruthModel)
    return engine.model.encoded()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "staging").glob("*/*/*.parquet")}


def folders(folder: Path, *names: str) -> list[Path]:
    made = [folder / name for name in names]
    for each in made:
        each.mkdir()
    return made


def workers_of_ray() -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in listed if line.startswith(("ray::MapWorker", "ray::Conductor"))]


# --- a range as a task ----------------------------------------------------------------------------


def test_a_task_travels_whole() -> None:
    rows = [Row(("a", "b"), "text\n\ud800"), Row(("c",), None)]
    vector = TextVectors(truth("new", "x", 4))
    received = RangeTask.from_bytes(RangeTask(rows, {b"\x00" * 32, b"\xff" * 32}, {b"\n" * 32: vector}).to_bytes())
    assert list(received.rows) == rows
    assert received.elsewhere == {b"\x00" * 32, b"\xff" * 32}
    np.testing.assert_array_equal(received.staged[b"\n" * 32].dense, vector.dense)
    assert RangeTask.from_bytes(RangeTask([], set(), {}).to_bytes()) == RangeTask([], set(), {})


def test_a_file_that_was_damaged_on_its_way_is_not_kept(tmp_path: Path) -> None:
    encoder = TruthEncoder()
    staging = Staging(tmp_path, encoder.space.key)
    file = RangeTask([Row(("1",), "one")], set(), {}).done(encoder, Outputs.DENSE)
    with pytest.raises(NotReadable):
        staging.keep_file("a", file[:-9])
    assert staging.read("a") is None
    assert staging.keep_file("a", file) == {Row(("1",), "one").digest}


# --- the engine -----------------------------------------------------------------------------------

TEXTS = [*(f"t{i % 13}" for i in range(30)), "POISON", "POISON", "NAN", "t1", "HUGE", "t2", "POISON", "HUGE", "last"]


@pytest.mark.slow
def test_the_same_files_as_on_this_machine_and_no_range_twice(ray_here: None, tmp_path: Path) -> None:
    local_folder, ray_folder = folders(tmp_path, "here", "there")
    local, store = collection(local_folder, TEXTS), collection(ray_folder, TEXTS)
    numbers(engine_of(local, local_folder).run(in_ranges(local)))
    engine = on_ray(store, ray_folder)
    assert sorted(numbers(engine.run(in_ranges(store)))) == list(range(1, 11))
    assert files(ray_folder) == files(local_folder)
    once = {text: number for text, number in encoded_by(engine).items() if text.startswith("t")}
    assert once == {f"t{i}": 1 for i in range(13)}
    encoded = encoded_by(engine)
    assert sorted(numbers(on_ray(store, ray_folder).run(in_ranges(store)))) == list(range(1, 11))
    assert encoded_by(engine) == encoded
    store._backend.put("docs", [Point("002", "changed", TextVectors(truth("old", "changed", 8)))])
    assert sorted(numbers(on_ray(store, ray_folder).run(in_ranges(store)))) == list(range(1, 11))
    assert encoded_by(engine) - encoded == {"changed": 1}
    staged = on_ray(store, ray_folder).staging.read(range_name("uid", 1))
    assert staged is not None
    dense = [new.vectors.dense for new in staged.vectors if new.vectors is not None]
    np.testing.assert_array_equal(dense, [truth("new", text, 16) for text in ("t0", "t1", "changed", "t3")])


@pytest.mark.slow
def test_a_run_that_is_closed_early_leaves_no_worker_and_can_go_on(ray_here: None, tmp_path: Path) -> None:
    store = collection(tmp_path, [f"t{i}" for i in range(40)])
    engine = on_ray(store, tmp_path, seconds_each=0.02)
    with closing(engine.run(in_ranges(store))) as ranges:
        first = next(ranges).number
        assert workers_of_ray() != []
    wait_until(lambda: workers_of_ray() == [])
    assert engine.staging.read(range_name("uid", first)) is not None
    assert sorted(numbers(engine.run(in_ranges(store)))) == list(range(1, 11))
    wait_until(lambda: workers_of_ray() == [])


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_its_range_alone_is_done_again(ray_here: None, tmp_path: Path) -> None:
    store = collection(tmp_path, [f"t{i}" for i in range(40)])
    (tmp_path / "die").touch()
    engine = on_ray(store, tmp_path, replace(TWO, workers=1))
    assert sorted(numbers(engine.run(in_ranges(store)))) == list(range(1, 11))
    assert not (tmp_path / "die").exists()
    encoded = encoded_by(engine)
    assert set(encoded) == {f"t{i}" for i in range(40)}
    assert encoded.total() <= 44


@pytest.mark.slow
def test_a_worker_begins_nothing_before_its_last_result_is_kept(ray_here: None, tmp_path: Path) -> None:
    model, numbers = made_by_us(tmp_path), range(4)
    with Pool(replace(TWO, workers=1), model, TruthEncoder(), as_vector) as pool:
        for number in numbers:
            pool.put(number, f"t{number}".encode())
        kept = list[int]()
        for number, _ in pool.results():
            kept.append(number)
            time.sleep(0.5)
            assert model.encoded().total() == len(kept)
    assert sorted(kept) == [*numbers]


@pytest.mark.slow
def test_what_hangs_is_given_up_with_what_was_seen_and_begun_again(ray_here: None, tmp_path: Path) -> None:
    store = collection(tmp_path, ["a", "b"])
    (tmp_path / "stall").touch()
    impatient = on_ray(store, tmp_path, RaySettings(workers=1, cpus_per_worker=1, stall_s=1, tries=2))
    with pytest.raises(EngineStalled, match=r"did nothing in 2 tries: no job was done for 1 s; 1 machine.*1 of 1 jobs"):
        numbers(impatient.run(in_ranges(store)))
    wait_until(lambda: workers_of_ray() == [])
    (tmp_path / "encoded").unlink(missing_ok=True)
    engine = on_ray(store, tmp_path, RaySettings(workers=1, cpus_per_worker=1, stall_s=6, tries=20))

    def go_on_after_the_second_try() -> None:
        wait_until(lambda: encoded_by(engine)["a"] == 2)
        (tmp_path / "stall").unlink()

    thread = threading.Thread(target=go_on_after_the_second_try)
    thread.start()
    assert numbers(engine.run(in_ranges(store))) == [1]
    thread.join()
    wait_until(lambda: workers_of_ray() == [])


@pytest.mark.slow
def test_a_model_that_fails_on_everything_ends_the_run_with_its_own_error(ray_here: None, tmp_path: Path) -> None:
    store = collection(tmp_path, ["HUGE 1", "HUGE 2", "HUGE 3", "HUGE 4"])
    with pytest.raises(OutOfMemory, match="out of memory in the double runtime"):
        numbers(on_ray(store, tmp_path).run(in_ranges(store)))
    other = replace(on_ray(store, tmp_path), encoder=TruthEncoder("old"))
    with pytest.raises(SpaceMismatch, match="the model for the workers"):
        numbers(other.run(in_ranges(store)))


@pytest.mark.slow
def test_a_file_is_encoded_as_without_ray_and_in_its_order(
    ray_here: None, tiny_artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VECFERRY_THREADS", "1")
    lines = [json.dumps({"id": i, "text": f"text {i % 700} of the sea"}) for i in range(2500)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    arguments = ["encode", str(tiny_artifact.path), str(tmp_path / "texts.jsonl"), "--outputs", "dense,sparse,colbert"]
    for out, options in (("here", []), ("there", ["--engine", "ray", "--workers", "3"])):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "-o", str(tmp_path / f"{out}.parquet"), *options])
        assert not ended.value.code
    assert (tmp_path / "here.parquet").read_bytes() == (tmp_path / "there.parquet").read_bytes()


@pytest.mark.slow
def test_a_text_that_cannot_be_encoded_is_named_by_its_place_in_all(
    ray_here: None, tiny_artifact: Artifact, tmp_path: Path
) -> None:
    options = EncoderOptions(artifact=tiny_artifact.path)
    encoder, texts = load_encoder(options).encoder, [*map(str, range(2000)), "\ud800"]
    model = ShippedArtifact.of(options, tmp_path)
    two_waves = replace(TWO, workers=1, wave=1)
    with pytest.raises(InvalidText, match="text 2000 cannot"):
        list(encode_on_workers(two_waves, model, encoder, iter(texts), outputs=Outputs.DENSE, role="passage"))


def test_a_machine_without_a_home_says_what_to_set(tiny_artifact: Artifact, tmp_path: Path) -> None:
    model = ShippedArtifact.of(EncoderOptions(artifact=tiny_artifact.path), Path("~no-such-user/cache"))
    elsewhere = replace(model, options=replace(model.options, artifact=tmp_path / "not-here"))
    with pytest.raises(SettingsError, match=r"HOME= is not valid: expected a folder for the models"):
        elsewhere.missing()


# --- GPUs -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "each", "shared_by"), [(2, 1.0, {"0": 1, "1": 1}), (4, 0.5, {"0": 2, "1": 2})])
def test_each_worker_sees_the_gpu_that_it_was_given(
    workers: int, each: float, shared_by: dict[str, int], tmp_path: Path
) -> None:
    """Ray is told of two GPUs, which this machine need not have: it is Ray that shares them out."""
    program = f"""
import json, os, ray
from functools import partial
from pathlib import Path
from tests.migrate.doubles import TruthEncoder
from tests.migrate.workers import TruthModel, gpus_seen
from vecferry.migrate.engines import RaySettings
from vecferry.migrate.engines.ray.pool import Pool
ray.init(address="local", num_cpus=5, num_gpus=2, include_dashboard=False, log_to_driver=False)
settings = RaySettings(workers={workers}, cpus_per_worker=1, gpus_per_worker={each})
folder = Path({str(tmp_path)!r})
model = TruthModel(folder, driver=os.getpid(), device="cuda")
with Pool(settings, model, TruthEncoder(), partial(gpus_seen, folder=folder, workers={workers})) as pool:
    for number in range({workers}):
        pool.put(number, b"")
    print(json.dumps([json.loads(result) for _, result in pool.results()]))
ray.shutdown()
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    seen = dict(json.loads(run.stdout.splitlines()[-1]))
    assert Counter(seen.values()) == shared_by


def test_a_model_for_gpus_is_refused_where_workers_get_none(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gpus_per_worker=0 is not valid: expected 1\.0.*VECFERRY_DEVICE=cuda"):
        Pool(TWO, made_by_us(tmp_path, device="cuda"), TruthEncoder(), as_vector)


# --- machines -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_machine_of_another_kind_is_refused_if_its_vectors_are_not_the_same(ray_here: None, tmp_path: Path) -> None:
    store = collection(tmp_path, ["a"])
    engine = on_ray(store, tmp_path, kind_of_workers="of another kind", disturbed=True)
    with pytest.raises(NodeRefused, match=r"differ from the driver's by 0\.01, and 0\.0001 is allowed"):
        numbers(engine.run(in_ranges(store)))
    assert numbers(on_ray(store, tmp_path, kind_of_workers="of another kind").run(in_ranges(store))) == [1]


@pytest.mark.slow
def test_a_machine_with_a_damaged_artifact_is_refused(ray_here: None, tiny_artifact: Artifact, tmp_path: Path) -> None:
    encoder = load_encoder(EncoderOptions(artifact=tiny_artifact.path)).encoder
    copy = shutil.copytree(tiny_artifact.path, tmp_path / "copy")
    model = ShippedArtifact.of(EncoderOptions(artifact=copy), tmp_path / "cache")
    damage(copy / "model.onnx.data")
    with pytest.raises(NodeRefused, match=r"copy is damaged: model\.onnx\.data has SHA-256"):
        list(encode_on_workers(TWO, model, encoder, ["a"], outputs=Outputs.DENSE, role="passage"))


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_an_artifact_that_is_not_there_is_received_whole_once_and_verified(
    tiny_artifact: Artifact, tmp_path: Path
) -> None:
    sender = ShippedArtifact.of(EncoderOptions(artifact=tiny_artifact.path), tmp_path / "cache")
    receiver = replace(sender, options=replace(sender.options, artifact=tmp_path / "not on this machine"))
    assert "no converted model" in receiver.missing()
    threads = [threading.Thread(target=receiver.receive, args=(list(sender.pieces()),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert receiver.missing() == ""
    received = tmp_path / "cache" / tiny_artifact.manifest.space.key
    assert {path.name for path in received.iterdir()} == {"manifest.json", *tiny_artifact.manifest.files}
    assert receiver.load(1).fingerprint == tiny_artifact.fingerprint
    damage(received / "model.onnx.data")
    assert "model.onnx.data has SHA-256" in receiver.missing()
    receiver.receive(sender.pieces())
    assert receiver.missing() == ""
    (received / "manifest.json").write_text("no manifest")  # so that nothing says that the folder is ours but its place
    receiver.receive(sender.pieces())
    assert receiver.missing() == ""


def test_an_artifact_that_is_damaged_on_its_way_leaves_nothing(tiny_artifact: Artifact, tmp_path: Path) -> None:
    sender = ShippedArtifact.of(EncoderOptions(artifact=tiny_artifact.path), tmp_path / "cache")
    receiver = replace(sender, options=replace(sender.options, artifact=tmp_path / "not on this machine"))
    pieces = [(name, piece[:-1] + b"!" if name == "model.onnx.data" else piece) for name, piece in sender.pieces()]
    with pytest.raises(ArtifactDamaged, match=r"model\.onnx\.data has SHA-256"):
        receiver.receive(pieces)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


# --- a Ray of its own -----------------------------------------------------------------------------

ALONE = """
import sys
from pathlib import Path
from tests.migrate.test_engine import collection, in_ranges, numbers
from tests.migrate.test_ray import on_ray
from vecferry.errors import VecferryError
from vecferry.migrate.engines import RaySettings
folder = Path(sys.argv[1])
store = collection(folder, ["a", "b", "c"])
for address in ("127.0.0.1:9", "ray://head:10001"):
    try:
        numbers(on_ray(store, folder, RaySettings(address=address)).run(in_ranges(store)))
    except VecferryError as exc:
        print(type(exc).__name__, address)
print(numbers(on_ray(store, folder, RaySettings()).run(in_ranges(store))))
"""


@pytest.mark.slow
def test_a_ray_of_its_own_ends_with_the_run_and_a_wrong_address_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", ALONE, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0
    assert out.splitlines() == ["EngineUnreachable 127.0.0.1:9", "SettingsError ray://head:10001", "[1]"]
    assert list(Path("/tmp").glob(f"vecferry-ray-{process.pid}-*")) == []
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"vecferry-ray-{process.pid}-" not in listed


HELD = """
import sys
from vecferry.migrate.engines import RaySettings
from vecferry.migrate.engines.ray.session import RaySession
session = RaySession(RaySettings(workers=1))
try:
    print("up", flush=True)
    sys.stdin.read()
finally:
    session.close()
"""


def listeners() -> set[str]:
    """Return the addresses that are listened to, as /proc writes them."""
    rows = [row.split() for kind in ("tcp", "tcp6") for row in Path(f"/proc/net/{kind}").read_text().splitlines()]
    return {row[1] for row in rows if row[3] == "0A"}


@pytest.mark.slow
def test_a_ray_of_its_own_listens_on_loopback_alone_and_leaves_nothing_after_sigterm(tmp_path: Path) -> None:
    before = listeners()
    environment = os.environ | {"HOME": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", HELD]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        added = listeners() - before
        (folder,) = Path("/tmp").glob(f"vecferry-ray-{process.pid}-*")
        assert folder.stat().st_mode & 0o777 == 0o700
        token = tmp_path / ".ray/auth_token"
        assert (token.stat().st_mode & 0o777, len(token.read_text())) == (0o600, 64)
        process.terminate()
    assert len(added) > 3
    assert {address.partition(":")[0] for address in added} <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert not folder.exists()


def test_folders_of_processes_that_are_gone_are_removed() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    left, kept = (Path(f"/tmp/vecferry-ray-{pid}-test") for pid in (gone.pid, os.getpid()))
    for folder in (left, kept):
        (folder / "r").mkdir(parents=True)
    sweep_folders()
    assert (left.exists(), kept.exists()) == (False, True)
    shutil.rmtree(kept)


@pytest.mark.parametrize("said", [None, "0" * 64])
def test_a_token_is_its_owners_alone_and_one_that_is_there_is_kept(
    said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray/auth_token"
    if said is not None:
        token.parent.mkdir()
        token.write_text(said)
        token.chmod(0o644)
    make_token()
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text() == said or (said is None and len(token.read_text()) == 64)


def test_settings_that_cannot_be_are_named() -> None:
    for wrong in ({"workers": 0}, {"cpus_per_worker": 0}, {"gpus_per_worker": -1}, {"wave": 0}, {"stall_s": 0}):
        with pytest.raises(SettingsError, match=next(iter(wrong))):
            RaySettings(**wrong)  # type: ignore[arg-type]
