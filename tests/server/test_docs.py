"""docs/serving.md and deploy/ are executed, as far as no container engine and no systemd run here."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import psycopg
import pytest
import typer
from prometheus_client.parser import text_string_to_metric_families

from tests.postgres import connection, database_url, postgres_url
from tests.server.conftest import Server, serving
from tests.test_docs import ROOT, blocks
from vecferry.cli import app
from vecferry.errors import Locked
from vecferry.model.artifact import Artifact
from vecferry.server.options import ServerLimits
from vecferry.stores.ledger import Serving
from vecferry.stores.opening import open_store
from vecferry.stores.sqlite import SqliteLedger
from vecferry.stores.values import Patience

__all__ = ["connection", "database_url", "postgres_url"]

PAGE = ROOT / "docs/serving.md"
URL = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def documented(wide_artifact: Artifact) -> Iterator[Server]:
    """Run the server of the page: 1,024 numbers under the name `bge-m3-onnx`."""
    with serving(f"bge-m3-onnx={wide_artifact.path}") as started:
        yield started


@pytest.mark.parametrize("number", range(3))
def test_python_of_the_page_runs(documented: Server, number: int) -> None:
    examples = blocks(PAGE, "python")
    assert len(examples) == 3
    command = [sys.executable, "-c", examples[number].replace(URL, documented.url)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_curl_of_the_page_is_answered(documented: Server) -> None:
    """The command's own words are sent; /search and the name `serving` want a migration."""
    lines = [line for block in blocks(PAGE, "sh") for line in block.replace("\\\n", " ").splitlines()]
    statuses = {}
    for command_words in (shlex.split(line) for line in lines if line.startswith("curl")):
        _, url, header, name_and_value, data, body = (word for word in command_words if word != "-i")
        assert (header, data) == ("-H", "-d")
        name, value = name_and_value.split(": ")
        answer = httpx2.post(url.replace(URL, documented.url), headers={name: value}, content=body)
        statuses[url.removeprefix(URL)] = answer.status_code
    assert statuses == {"/v1/m3": 200, "/search": 400, "/v1/embeddings": 404}


def test_sql_of_the_page_reads_the_epoch_and_holds_a_switch_off(
    connection: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    connection.execute("CREATE TABLE products (id int PRIMARY KEY, text text, embedding vector(8))")
    epoch = Serving(4, 2, "public.products.embedding", "f" * 64, {"duplicate": 0.9})
    steps = [step for step in blocks(PAGE, "sql")[0].split("\n") if step]
    with closing(open_store(database_url, "products")) as store:
        store.ledger.install()
        store.ledger.serve("public.products.embedding", epoch)
        for step in steps[:2]:
            connection.execute(step)
        row = connection.execute(steps[2]).fetchone()
        assert row == (4, "f" * 64, '{"duplicate": 0.9}')
        with pytest.raises(Locked):
            store.exclusively(lambda: None, Patience(0.1, wait_s=0.1))
        connection.execute(steps[3])
        store.exclusively(lambda: None, Patience())


def test_sql_of_the_page_reads_the_control_database(tmp_path: Path) -> None:
    with closing(SqliteLedger.open(tmp_path / "control.db")) as ledger:
        ledger.install()
        ledger.serve("products", Serving(2, 2, "products_vecferry_2", "f" * 64))
        with closing(sqlite3.connect(f"file:{tmp_path}/control.db?mode=ro", uri=True)) as reader:
            assert reader.execute(blocks(PAGE, "sql")[1]).fetchall() == [(2, "f" * 64, "{}", "products_vecferry_2")]


def test_defaults_of_the_page_are_the_command_lines_and_the_servers() -> None:
    written = dict(re.findall(r"^\| `--([a-z-]+)` \| ([\d,]+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    documented_limits = {name.replace("-", "_"): float(value.replace(",", "")) for name, value in written.items()}
    documented_limits["query_tokens"] = float(re.search(r"`--query-tokens` \((\d+)\)", PAGE.read_text())[1])  # type: ignore[index]
    assert documented_limits == vars(ServerLimits())
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    parameters = {parameter.name: parameter.default for parameter in serve.params}
    assert {name: parameters[name] for name in documented_limits} == documented_limits


def test_metrics_of_the_page_are_those_that_there_are(documented: Server) -> None:
    httpx2.post(f"{documented.url}/embed", json={"inputs": "one"})
    families = text_string_to_metric_families(httpx2.get(f"{documented.url}/metrics").text)
    exposed = {family.name for family in families}
    written = {name.removesuffix("_total") for name in re.findall(r"`(vecferry_\w+)[{`]", PAGE.read_text())}
    assert written == exposed


# --- deploy/ --------------------------------------------------------------------------------------


def test_the_container_file_passes_its_linter() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "deploy/Containerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_containers_health_check_passes_on_a_server_that_works(documented: Server) -> None:
    text = (ROOT / "deploy/Containerfile").read_text()
    command = json.loads(re.search(r"HEALTHCHECK.*?CMD (\[.*?\])\n", text, re.DOTALL)[1])  # type: ignore[index]
    port = documented.url.rpartition(":")[2]
    check = [sys.executable, *(word.replace(":8080", f":{port}") for word in command[1:])]
    assert subprocess.run(check, check=False).returncode == 0
    nobody = [sys.executable, *(word.replace(":8080", ":1") for word in command[1:])]
    assert subprocess.run(nobody, capture_output=True, check=False).returncode == 1


def test_the_containers_command_starts_with_keys_and_not_without(wide_artifact: Artifact) -> None:
    text = (ROOT / "deploy/Containerfile").read_text()
    command_words = json.loads(re.search(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)[1])  # type: ignore[index]
    assert command_words[:2] == ["vecferry", "serve"]
    without_port = command_words[2 : command_words.index("--port")]
    environment = {"ONNX_MODEL_PATH": str(wide_artifact.path)}
    with serving(*without_port, env=environment | {"VECFERRY_API_KEYS": "0123456789abcdef"}) as started:
        assert started.process.poll() is None
    command = [sys.executable, "-m", "vecferry.cli", *command_words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert "VECFERRY_API_KEYS" in done.stderr


def test_the_units_command_starts(wide_artifact: Artifact, tmp_path: Path) -> None:
    text = (ROOT / "deploy/vecferry.service").read_text()
    (tmp_path / "api-keys").write_text("0123456789abcdef\n")
    line = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)[1]  # type: ignore[index]
    command_words = shlex.split(line.replace("${CREDENTIALS_DIRECTORY}", str(tmp_path)))
    at = command_words.index("--port")
    with serving(
        *command_words[2:at], *command_words[at + 2 :], env={"ONNX_MODEL_PATH": str(wide_artifact.path)}
    ) as started:
        assert httpx2.get(f"{started.url}/info").status_code == 401
    assert int(re.search(r"TimeoutStopSec=(\d+)", text)[1]) > ServerLimits().drain_s  # type: ignore[index]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_passes_systemds_own_check(tmp_path: Path) -> None:
    unit = tmp_path / "vecferry.service"
    text = (ROOT / "deploy/vecferry.service").read_text()
    unit.write_text(text.replace("/opt/vecferry/bin/vecferry", str(Path(sys.executable).with_name("vecferry"))))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
