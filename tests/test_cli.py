"""The command line as a user meets it: help, results, errors, exit codes."""

import ast
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
import typer.main
from typer.testing import CliRunner

from vecferry import __version__, errors
from vecferry.cli import EXIT_CODES, app, main
from vecferry.errors import VecferryError
from vecferry.model.artifact import Artifact
from vecferry.stores.opening import open_store


def vecferry(*arguments: str, stdin: str = "", code: int = 0) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "vecferry.cli", *arguments],
        input=stdin, capture_output=True, text=True, timeout=600, check=False,
        env={"COLUMNS": "200", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def inside(*arguments: str, code: int = 0) -> Done:
    """Run a command in this process, which spares it a second of imports, and five where it needs PyTorch."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        pytest.raises(SystemExit) as ended,
    ):
        main(list(arguments))
    done = Done(ended.value.code, out.getvalue(), err.getvalue())  # type: ignore[arg-type]
    assert done.returncode == code, done.stdout + done.stderr
    return done


PROSE = {"behind", "can", "raises", "serves", "that"}
"""Words that follow our name in a sentence."""
COMMANDS = ["convert", "verify", "encode", "init", "doctor", "demo", "migrate"]
VERBS = ["plan", "start", "status", "verify", "override", "cutover", "rollback", "finalize"]


def test_help_names_every_command_and_the_exit_codes() -> None:
    text = vecferry("--help").stdout
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", text)
    assert "130 interrupted" in text
    verbs = inside("migrate", "--help").stdout
    assert all(re.search(rf"\b{verb}\b", verbs) for verb in VERBS)


def test_help_version_and_completion_are_at_hand_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vecferry("--version").stdout == f"{__version__}\n"
    assert inside("-h").stdout == inside("--help").stdout
    assert inside("migrate", "plan", "-h").stdout == inside("migrate", "plan", "--help").stdout
    assert "--show-completion" in inside("-h").stdout
    for name, value in {
        "_VECFERRY_COMPLETE": "complete_bash",
        "COMP_WORDS": "vecferry migrate fin",
        "COMP_CWORD": "2",
    }.items():
        monkeypatch.setenv(name, value)
    assert inside().stdout == "finalize\n"


def pages(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, sub in getattr(command, "commands", {}).items():
        yield from pages(sub, (*path, name))


def test_every_help_page_shows_what_is_written_brackets_included() -> None:
    root = typer.main.get_command(app)
    bracketed = set[str]()
    for path, command in pages(root):
        shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"}).stdout
        written = [command.help or "", *(getattr(each, "help", None) or "" for each in command.params)]
        expected = {part for text in written for part in re.findall(r"\[\w+\]", text)}
        assert {part for part in expected if part not in shown} == set(), path
        bracketed |= expected
        first, *_ = (command.help or "").split("\n\n")
        assert " ".join(first.split()) in " ".join(shown.replace("`", "").split()) or "`" in first, path
    assert {"[VECFERRY_CACHE]", "[torch]"} <= bracketed


def error_classes(base: type[VecferryError] = VecferryError) -> Iterator[type[VecferryError]]:
    for each in base.__subclasses__():
        yield each
        yield from error_classes(each)


COMMAND = re.compile(
    r"\bvecferry ((?:migrate )?[a-z]+)((?: (?:-[\w-]+(?: [\w./=-]*\w)?|[A-Z]+\b[\w/-]*|[\w.-]+/[\w./-]+))*)"
)
"""A command of ours in a sentence, with the options and placeholders after it; X stands for a value."""


def texts_of(file: Path) -> Iterator[str]:
    """Yield every string of a module, docstrings included; an f-string has X for what is put in."""
    inside = set[int]()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            yield "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield re.sub(r"\{\w+\}", "X", node.value)


def mentioned_commands() -> list[tuple[str, str]]:
    """Return the command lines that errors, help, results and the console's pages name."""
    folder = Path(errors.__file__).parent
    texts = [text for file in folder.rglob("*.py") for text in texts_of(file)]
    texts += [file.read_text(encoding="utf-8") for file in folder.rglob("*.j2")]
    return sorted({(name, rest) for text in texts for name, rest in COMMAND.findall(text)})


def test_the_commands_that_texts_name_are_found() -> None:
    lines = {f"{name}{rest}" for name, rest in mentioned_commands()}
    for line in (
        "verify MODEL",
        "migrate override --reason REASON",
        "convert BAAI/bge-m3 X",
        "migrate postpone --undo",
    ):
        assert line in lines


@pytest.mark.parametrize(("name", "rest"), mentioned_commands())
def test_a_command_that_a_text_names_parses(name: str, rest: str) -> None:
    known = {" ".join(path): command for path, command in pages(typer.main.get_command(app))}
    if name in PROSE:
        return
    assert name in known
    with contextlib.suppress(typer.Exit):  # --help ends here
        if rest:
            known[name].make_context("vecferry", rest.split())


def test_hints_name_options_and_extras_that_exist() -> None:
    """The hints are those of the classes; where one is made on the spot, its own test looks at it."""
    known = {" ".join(path): command for path, command in pages(typer.main.get_command(app))}
    options = {name for command in known.values() for each in command.params for name in each.opts}
    extras = metadata("vecferry").get_all("Provides-Extra") or []
    for error in error_classes():
        assert set(re.findall(r"(?<![\w-])(--[a-z][\w-]+)", error.advice)) <= options | {"--help", "--head"}, error
        assert set(re.findall(r"vecferry\[(\w+)\]", error.advice)) <= set(extras), error
        assert ".py" not in error.advice, error  # a wheel has none of our scripts


@pytest.mark.parametrize(
    "command", [*([name] for name in COMMANDS), *(["migrate", verb] for verb in VERBS)], ids=" ".join
)
def test_every_command_has_help_and_json(command: list[str]) -> None:
    text = inside(*command, "--help").stdout
    assert "--json" in text or command == ["migrate"]


def test_convert_and_verify_report_as_json(short_checkpoint: Path, tmp_path: Path) -> None:
    converted = json.loads(inside("convert", str(short_checkpoint), str(tmp_path / "out"), "--json").stdout)
    assert converted["dimension"] == 64
    assert converted["outputs"] == ["dense", "sparse", "colbert"]
    assert converted["verification"]["passed"]
    verified = json.loads(inside("verify", str(tmp_path / "out"), "--json").stdout)
    assert verified["fingerprint"] == converted["fingerprint"]


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (
            ["convert", "/no/such/folder", "out"],
            3,
            ["error: no checkpoint at '/no/such/folder'", "hint: Give a folder"],
        ),
        (["convert", "package:no_such_package", "out"], 3, ["no installed package"]),
        (
            ["verify", "/nowhere"],
            3,
            ["no converted model at /nowhere", "hint: Convert one: vecferry convert BAAI/bge-m3 /nowhere"],
        ),
        (["encode", "/nowhere", "-o", "out.csv"], 2, ["--output=out.csv is not valid"]),
        (["encode", "/nowhere", "--role", "title"], 2, ["--role=title", "passage or query"]),
        (
            ["migrate", "status", "--collection", "t"],
            2,
            ["error: the URL of the store is missing", "hint: Add --store URL, or VECFERRY_STORE_URL=postgresql"],
        ),
        (["convert"], 2, ["Missing argument"]),
    ],
)
def test_errors_are_one_line_and_a_hint(arguments: list[str], code: int, parts: list[str]) -> None:
    done = inside(*arguments, code=code)
    for part in parts:
        assert part in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_under_json_is_json_too() -> None:
    error = json.loads(inside("verify", "/nowhere", "--json", code=3).stdout)["error"]
    assert error["type"] == "ArtifactNotFound"
    assert error["hint"].startswith("Convert one")
    assert error["exit_code"] == 3


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in vecferry("--debug", "verify", "/nowhere", code=3).stderr


# --- encode ---------------------------------------------------------------------------------------

LINES = '{"id": "a", "text": "first"}\n{"id": 7, "text": ""}\n{"id": "c", "text": "第三 🚢"}\n'


def test_encode_writes_the_documented_keys(tiny_artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text(LINES)
    out = tmp_path / "vectors.npz"
    arguments = [str(tiny_artifact.path), str(tmp_path / "texts.jsonl"), "--outputs", "dense,sparse,colbert"]
    summary = json.loads(vecferry("encode", *arguments, "-o", str(out), "--json").stdout)
    assert (summary["texts"], summary["truncated"], summary["runtime"]) == (3, 0, "onnx")
    with np.load(out, allow_pickle=False) as file:
        assert file["ids"].tolist() == ["a", "7", "c"]
        assert file["dense"].shape == (3, 64)
        assert len(file["sparse_indptr"]) == len(file["colbert_indptr"]) == 4
        assert file["colbert"].shape == ((file["num_tokens"] - 1).sum(), 64)
        assert file["sparse_indices"].shape == file["sparse_weights"].shape
        assert file["truncated"].tolist() == [False] * 3
        assert str(file["fingerprint"]) == tiny_artifact.fingerprint


def test_encode_reads_standard_input_and_writes_json_lines(tiny_artifact: Artifact) -> None:
    lines = vecferry("encode", str(tiny_artifact.path), stdin="one\ntwo\n").stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["1", "2"]
    assert [len(json.loads(line)["dense"]) for line in lines] == [64, 64]


def test_encode_names_a_bad_line(tiny_artifact: Artifact) -> None:
    done = vecferry("encode", str(tiny_artifact.path), stdin='{"id": 1, "text": "a"}\n{"id": 2}\n', code=2)
    assert 'standard input, line 2: it has no "text"' in done.stderr


def test_doctor_says_what_runs_and_why(tiny_artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vecferry.cli", "doctor", "--json"],
        env={"ONNX_MODEL_PATH": str(tiny_artifact.path), "VECFERRY_STORE_URL": "postgresql://u:hunter2@h/d"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["active"]["runtime"] == "onnx"
    assert report["active"]["fingerprint"] == tiny_artifact.fingerprint
    assert report["active"]["provider"] == "CPUExecutionProvider"
    assert report["packages"]["onnxruntime"] != "not installed"
    assert "hunter2" not in done.stdout


def test_doctor_fails_with_a_hint_where_nothing_runs(tmp_path: Path) -> None:
    snippet = "import sys; sys.modules['torch'] = None; from vecferry.cli import main; main(['doctor', '--json'])"
    environment = {"ONNX_MODEL_PATH": str(tmp_path / "none")}
    done = subprocess.run([sys.executable, "-c", snippet], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert json.loads(done.stdout)["active"]["hint"].startswith("Convert one")


@pytest.mark.slow
def test_a_narrower_precision_is_converted_to_and_shown(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = vecferry("convert", str(tiny_checkpoint), str(tmp_path / "out"), "--precision", "int8", "--json")
    printed = json.loads(done.stdout)
    assert (printed["precision"], printed["verification"]["passed"]) == ("int8", True)


def test_a_precision_that_is_none_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = inside("convert", str(tiny_checkpoint), str(tmp_path / "out"), "--precision", "int4", code=2)
    assert "fp32, fp16, int8, auto" in done.stderr
    done = inside("convert", str(tiny_checkpoint), str(tmp_path / "out"), "--labelled", str(tmp_path), code=2)
    assert "a narrower --precision" in done.stderr


# --- exit codes -----------------------------------------------------------------------------------


def test_the_page_says_what_each_exit_code_means() -> None:
    page = (Path(__file__).parent.parent / "docs/commands.md").read_text(encoding="utf-8")
    assert {int(code): text for code, text in re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)} == EXIT_CODES


def test_each_exit_code_is_had_by_a_command(tiny_artifact: Artifact, tmp_path: Path) -> None:
    broken = "from vecferry.cli import main, model; model.load_encoder = None; main(['encode', 'anywhere'])"
    codes = {
        vecferry("--version", code=0).returncode,
        subprocess.run([sys.executable, "-c", broken], capture_output=True, check=False).returncode,
        inside("convert", "--no-such-option", code=2).returncode,
        inside("encode", "/nowhere", "--role", "title", code=2).returncode,
        vecferry("verify", "/nowhere", code=3).returncode,
        *exit_codes_without_a_migration_and_beside_another_run(tiny_artifact, tmp_path),
        exit_code_of_an_interrupt(tiny_artifact, tmp_path),
    }
    assert codes == set(EXIT_CODES)


def exit_codes_without_a_migration_and_beside_another_run(artifact: Artifact, folder: Path) -> tuple[int, int]:
    url, control = f"lancedb:{folder / 'data'}", folder / "control.db"
    rows = [{"id": str(n), "text": f"text {n}", "embedding": [1.0, 0.0]} for n in range(2)]
    lancedb.connect(folder / "data").create_table("docs", rows)
    place = ("--store", url, "--collection", "docs", "--control", str(control))
    without = inside("migrate", "abort", "--yes", *place, code=4)
    assert "there is no migration" in without.stderr
    store = open_store(url, "docs", text="text", vector="embedding", key="id", control=control)
    with closing(store), store.runner(lease_s=60):
        models = ("--new-model", str(artifact.path), "--accept-unconfirmed", "a test")
        beside = vecferry("migrate", "start", *models, *place, code=5)
    return without.returncode, beside.returncode


def exit_code_of_an_interrupt(artifact: Artifact, folder: Path) -> int:
    """Interrupt a command that reads its texts from a pipe that nobody writes to; return its exit code."""
    os.mkfifo(folder / "texts")
    command = [sys.executable, "-m", "vecferry.cli", "encode", str(artifact.path), str(folder / "texts")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with (folder / "texts").open("w"):
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
    return process.returncode
