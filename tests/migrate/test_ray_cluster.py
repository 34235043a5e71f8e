"""The engine on Ray with several machines, and with faults; each test starts a Ray of its own."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from tests.migrate import live
from tests.migrate.faults import fill_up, small_disk
from tests.migrate.live import NEW, STABLE, Application, fill, following_in_a_thread, go
from tests.migrate.test_engine import ROOT, collection, in_ranges, numbers
from tests.migrate.test_live import assert_faultless
from tests.migrate.test_ray import made_by_us, on_ray, workers_of_ray
from tests.migrate.workers import TruthModel
from tests.stores.backends_chroma import free_port
from tests.stores.collections import Collection, PgCollection
from tests.waiting import wait_until
from vecferry.embeddings import Outputs
from vecferry.encode.loading import EncoderOptions, load_encoder
from vecferry.errors import OutputWriteFailed
from vecferry.migrate import Migration, State
from vecferry.migrate.engines import Engine, RaySettings
from vecferry.migrate.engines.distributed import RayEngine, encode_on_workers
from vecferry.migrate.engines.model_distribution import ShippedArtifact
from vecferry.migrate.staging import Staging
from vecferry.model.artifact import Artifact
from vecferry.stores.ledger import MigrationRecord
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.protocol import Store

pytestmark = pytest.mark.slow

ROWS, ROWS_PER_RANGE = 120, 4
FORTY = [f"t{i}" for i in range(40)]
SETTINGS = RaySettings(workers=2, cpus_per_worker=1)
BIN = Path(sys.executable).parent


@contextmanager
def two_machines() -> Iterator[Any]:
    """Yield a cluster of two machines with one worker's CPU each, as far as Ray knows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        try:
            yield cluster
        finally:
            cluster.shutdown()


def processes_of(folder: Path) -> set[str]:
    """Return the processes of the workers that encoded something."""
    return {line.partition(" ")[0] for line in (folder / "encoded").read_text().splitlines()}


# --- machines -------------------------------------------------------------------------------------


def test_both_machines_of_a_cluster_work_and_one_that_is_lost_loses_nothing(tmp_path: Path) -> None:
    with two_machines() as cluster:
        store = collection(tmp_path, FORTY)
        settings = replace(SETTINGS, address=cluster.address)
        engine = on_ray(store, tmp_path, settings, seconds_each=0.1)
        assert sorted(numbers(engine.run(in_ranges(store)))) == list(range(1, 11))
        assert len(processes_of(tmp_path)) == 2
        assert made_by_us(tmp_path).encoded() == dict.fromkeys(FORTY, 1)
        again = tmp_path / "again"
        again.mkdir()
        store = collection(again, FORTY)
        with closing(on_ray(store, again, settings, seconds_each=0.1).run(in_ranges(store))) as ranges:
            numbers_done = numbers(islice(ranges, 1))
            cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
            numbers_done += numbers(ranges)
        assert sorted(numbers_done) == list(range(1, 11))
        encoded = made_by_us(again).encoded()
        assert set(encoded) == set(FORTY)
        assert encoded.total() <= len(FORTY) + ROWS_PER_RANGE


@dataclass(frozen=True)
class NotShared(ShippedArtifact):
    """A model as on machines that do not see the driver's folder."""

    driver: int = 0

    def _is_ours(self, folder: Path) -> bool:
        return super()._is_ours(folder) and (os.getpid() == self.driver or folder.parent == self.cache)


def test_an_artifact_that_the_machines_do_not_see_comes_to_them_through_ray(
    tiny_artifact: Artifact, tmp_path: Path
) -> None:
    options = EncoderOptions(artifact=tiny_artifact.path, threads=1)
    encoder = load_encoder(options).encoder
    made = ShippedArtifact.of(options, tmp_path / "cache")
    model = NotShared(made.options, made.key, made.manifest, made.cache, os.getpid())
    texts = [f"text {i}" for i in range(100)]
    with two_machines() as cluster:
        settings = replace(SETTINGS, address=cluster.address)
        (embeddings,) = encode_on_workers(settings, model, encoder, texts, outputs=Outputs.DENSE, role="passage")
    np.testing.assert_allclose(embeddings.dense, encoder.encode(texts).dense, atol=1e-6)  # another number of threads
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [made.key]


@contextmanager
def ray_start(log: Path, env: Mapping[str, str], *options: str) -> Iterator[None]:
    """Begin a machine of a cluster by its command."""
    with log.open("w") as out:
        process = subprocess.Popen([BIN / "ray", "start", "--block", *options], env=env, stdout=out, stderr=out)
    try:
        wait_until(lambda: "Ray runtime started" in log.read_text())
        yield
    finally:
        process.terminate()
        process.wait()


def test_a_cluster_of_ray_start_is_used_by_its_address_with_its_token(tiny_artifact: Artifact, tmp_path: Path) -> None:
    texts, address = tmp_path / "texts.jsonl", f"127.0.0.1:{free_port()}"
    texts.write_text("\n".join(json.dumps({"id": i, "text": f"text {i} of the sea"}) for i in range(2500)))
    arguments = ["encode", str(tiny_artifact.path), str(texts), "--outputs", "dense,sparse,colbert"]
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    without |= {"VECFERRY_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    token = without | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

    def vecferry(env: Mapping[str, str], out: Path, *options: str) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [BIN / "vecferry", *arguments, "-o", str(out), *options]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)

    head = ("--head", "--port", address.partition(":")[2], "--num-cpus", "0", "--include-dashboard=false")
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as short,
        ray_start(tmp_path / "head.log", token, *head, "--temp-dir", short),
        ray_start(tmp_path / "other.log", token, "--address", address, "--num-cpus", "3"),
    ):
        on_cluster = ("--engine", "ray", "--workers", "2", "--ray-address", address)
        assert vecferry(token, tmp_path / "there.parquet", *on_cluster).returncode == 0
        refused = vecferry(without, tmp_path / "refused.parquet", *on_cluster)
    assert refused.returncode != 0
    assert f"no Ray cluster can be used at '{address}'" in refused.stderr
    assert "RAY_AUTH_MODE" in refused.stderr
    assert vecferry(without, tmp_path / "here.parquet").returncode == 0
    assert (tmp_path / "there.parquet").read_bytes() == (tmp_path / "here.parquet").read_bytes()


# --- under load -----------------------------------------------------------------------------------


def ray_engine(folder: Path, settings: RaySettings = SETTINGS, seconds_each: float = 0.0) -> live.EngineFor:
    model = TruthModel(folder, dimension=NEW.dimension, seconds_each=seconds_each, driver=os.getpid())

    def made(store: Store, staging: Staging, record: MigrationRecord) -> Engine:
        return RayEngine(store, NEW, staging, record.spec.uid, ROWS_PER_RANGE, model, settings)

    return made


def test_under_load_nothing_fails_and_every_row_is_there_once_and_true(collection: Collection, tmp_path: Path) -> None:
    fill(collection.store, STABLE + 20)
    application = Application(collection.store, STABLE + 20, writes_per_s=3)
    with two_machines() as cluster:
        engine = ray_engine(tmp_path, replace(SETTINGS, address=cluster.address))
        with following_in_a_thread(collection, tmp_path, engine) as follow:
            load_report = go(collection, application, tmp_path, follow, query_threads=1)
    assert_faultless(load_report, writes=10, queries=50)


# --- faults ---------------------------------------------------------------------------------------

START = """
import sys
from pathlib import Path
from tests.migrate.test_ray_cluster import start
start(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
"""


def start(url: str, folder: Path, seconds_each: float = 0.0) -> None:
    with PgVectorStore.connect(url, "docs", "body", "embedding") as store:
        options = replace(live.options(folder), rows_per_range=ROWS_PER_RANGE)
        Migration(store, new=NEW, options=options).start(engine=ray_engine(folder, seconds_each=seconds_each))


def assert_all_true(rows: PgCollection, url: str, folder: Path) -> None:
    with PgVectorStore.connect(url, "docs", "body", "embedding") as store:
        migration = Migration(store, new=NEW, options=live.options(folder))
        assert migration.status().state is State.CATCHING_UP
        assert migration.verify(sample=ROWS, override="no gate in this test").passed
        migration.cutover()
    served = rows.serving()
    assert len(served) == ROWS
    for (key,), (text, vector) in served.items():
        assert text == f"text {key}"
        np.testing.assert_allclose(vector, NEW.truth(text), atol=1e-6)  # type: ignore[arg-type]


@pytest.fixture
def rows(connection: psycopg.Connection, database_url: str) -> Iterator[PgCollection]:
    made = PgCollection(connection, database_url)
    fill(made.store, ROWS)
    yield made
    made.store.close()


def test_kill_9_of_the_driver_leaves_no_ray_and_repeats_one_range_a_worker_at_most(
    rows: PgCollection, database_url: str, tmp_path: Path
) -> None:
    """A range takes a fifth of the second after which workers learn of it: one that began more would be seen."""
    command = [sys.executable, "-W", "ignore", "-c", START, database_url, str(tmp_path), "0.05"]
    driver = subprocess.Popen(command, cwd=ROOT)
    notes = TruthModel(tmp_path)
    wait_until(lambda: notes.encoded().total() >= ROWS // 4)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    wait_until(lambda: not workers_of_ray() and f"vecferry-ray-{driver.pid}-" not in listed())
    staged = len([*(tmp_path / "staging").glob("*/*/*.parquet")])
    assert 0 < staged < ROWS / ROWS_PER_RANGE
    start(database_url, tmp_path)
    assert_all_true(rows, database_url, tmp_path)
    assert notes.encoded().total() <= ROWS + SETTINGS.workers * ROWS_PER_RANGE
    shutil.rmtree(next(Path("/tmp").glob(f"vecferry-ray-{driver.pid}-*")))


def listed() -> str:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_workers_that_are_killed_at_any_time_are_replaced(
    rows: PgCollection, database_url: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", START, database_url, str(tmp_path), "0.05"]
    driver = subprocess.Popen(command, cwd=ROOT)
    notes, killed = TruthModel(tmp_path), 0
    while driver.poll() is None:
        if killed < 3 and notes.encoded().total() >= (killed + 1) * ROWS // 5:
            pid = int((tmp_path / "encoded").read_text().splitlines()[-1].partition(" ")[0])
            os.kill(pid, signal.SIGKILL)
            killed += 1
        time.sleep(0.05)
    assert (driver.returncode, killed) == (0, 3)
    assert_all_true(rows, database_url, tmp_path)
    assert notes.encoded().total() <= ROWS + 3 * ROWS_PER_RANGE


def test_a_full_disk_under_the_staging_ends_the_run_by_name_and_it_goes_on(
    rows: PgCollection, database_url: str, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "small", kib=1024) as disk:
        ballast = fill_up(disk, leave_kib=24)
        options = replace(live.options(tmp_path), rows_per_range=ROWS_PER_RANGE, staging=disk / "staging")
        with PgVectorStore.connect(database_url, "docs", "body", "embedding") as store:
            with pytest.raises(OutputWriteFailed, match="the disk is full"):
                Migration(store, new=NEW, options=options).start(engine=ray_engine(tmp_path))
            done = Migration(store, options=options).status()
            assert 0 < done.rows_done < ROWS
            ballast.unlink()
            Migration(store, new=NEW, options=options).start(engine=ray_engine(tmp_path))
    assert_all_true(rows, database_url, tmp_path)
    wait_until(lambda: workers_of_ray() == [])
