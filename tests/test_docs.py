"""Documentation is executed: Python blocks run, command lines parse, links lead somewhere."""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from contextlib import closing
from importlib.metadata import metadata
from pathlib import Path

import click
import numpy as np
import psycopg
import pytest
import typer

from bench import page as benchmarks
from tests.postgres import connection, database_url, postgres_url
from vecferry.cli import app, scripts
from vecferry.embeddings import Outputs
from vecferry.encode.batching import Limits
from vecferry.errors import MissingModel
from vecferry.migrate import Migration, states
from vecferry.migrate.config import SECTIONS, read_config
from vecferry.model.artifact import Artifact
from vecferry.options import default_of, help_of, names_of
from vecferry.settings import Settings
from vecferry.stores.memory import MemoryBackend
from vecferry.stores.mirror import MirrorStore
from vecferry.stores.sqlite import SqliteLedger

__all__ = ["connection", "database_url", "postgres_url"]

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [body for named, body in BLOCK.findall(page.read_text(encoding="utf-8")) if named == language]


def test_python_blocks_of_readme_run(wide_artifact: Artifact, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "backend", tmp_path / "backend")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/bge-m3-onnx").symlink_to(wide_artifact.path)
    examples = blocks(ROOT / "README.md", "python")
    assert len(examples) == 2
    for block in examples:
        command = [sys.executable, "-W", "error", "-c", block]
        environment = {"PATH": os.environ["PATH"]}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_python_of_the_migration_page_runs(
    wide_artifact: Artifact, tiny_artifact: Artifact, connection: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    connection.execute("CREATE TABLE documents (id int PRIMARY KEY, body text, lang text, embedding vector(64))")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/bge-m3-onnx").symlink_to(wide_artifact.path)
    (tmp_path / "models/all-MiniLM-L6-v2-onnx").symlink_to(tiny_artifact.path)
    models = '[models]\nold = "models/all-MiniLM-L6-v2-onnx"\nnew = "models/bge-m3-onnx"\n'
    (tmp_path / "migration.toml").write_text(f'[store]\ncollection = "documents"\ntext = "body"\n{models}')
    (block,) = blocks(ROOT / "docs/migrate.md", "python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "VECFERRY_STORE_URL": database_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer, query, passages = done.stdout.splitlines()
    assert answer.startswith("0 [(('42',), ")
    assert query == "public.documents.embedding (64,)"
    assert passages == "0 (1, 64)"


def test_python_of_the_page_on_filters_runs(
    wide_artifact: Artifact, tiny_artifact: Artifact, connection: psycopg.Connection, database_url: str, tmp_path: Path
) -> None:
    columns = "id int PRIMARY KEY, body text, embedding vector(64), lang text, year int, meta jsonb"
    connection.execute(f"CREATE TABLE documents ({columns})")
    for n, lang in enumerate(("en", "de", "en")):
        vector = np.eye(64, dtype=np.float32)[n].tolist()
        values = [n, f"text {n}", vector, lang, 2019 + n]
        connection.execute(
            "INSERT INTO documents VALUES (%s, %s, %s::real[]::vector, %s, %s, '{\"tenant\": 8}')", values
        )
    models = f'[models]\nold = "{tiny_artifact.path}"\nnew = "{wide_artifact.path}"\n'
    (tmp_path / "migration.toml").write_text(f'[store]\ncollection = "documents"\ntext = "body"\n{models}')
    (block,) = blocks(ROOT / "docs/filters.md", "python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "VECFERRY_STORE_URL": database_url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[(('2',), 'text 2')]",
        "[{'lang': 'de', 'meta': {'tenant': 8}, 'year': 2020}]",
        "1",
    ]


def test_python_of_the_evaluation_page_writes_a_report(
    wide_artifact: Artifact, tiny_artifact: Artifact, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/bge-m3-onnx").symlink_to(wide_artifact.path)
    (tmp_path / "models/all-MiniLM-L6-v2-onnx").symlink_to(tiny_artifact.path)
    (tmp_path / "judged/qrels").mkdir(parents=True)
    texts = ["The ferry crosses the strait.", "Bread is baked early.", "A long night."]
    for name in ("corpus", "queries"):
        lines = [json.dumps({"_id": str(number), "text": text}) for number, text in enumerate(texts)]
        (tmp_path / f"judged/{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "judged/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n0\t0\t1\n1\t1\t1\n2\t2\t1\n")
    (block,) = blocks(ROOT / "docs/evaluate.md", "python")
    command = [sys.executable, "-W", "error", "-c", block]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "3 queries are too few to judge by" in done.stdout
    assert "too few to judge by" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_sql_of_the_migration_page_runs(connection: psycopg.Connection) -> None:
    connection.execute("CREATE ROLE app")
    try:
        for block in blocks(ROOT / "docs/migrate.md", "sql"):
            connection.execute(block)
    finally:
        connection.execute("DROP OWNED BY app; DROP ROLE app")


OFF_BY_DEFAULT = {
    *(
        "source",
        "where",
        "layout",
        "serve",
        "new_vector",
        "key",
        "tenant",
        "database",
        "rows_per_s",
        "max_query_ms",
        "address",
    ),
    *("cpus_per_worker", "prefix", "query_prefix", "max_characters", "max_tokens", "dimension"),
}


def test_the_file_of_the_migration_page_has_every_option_with_its_default_and_help(tmp_path: Path) -> None:
    """Values that stand behind a `#` are the defaults, but for those that are off by default."""
    (block,) = blocks(ROOT / "docs/migrate.md", "toml")
    named, section = dict[str, list[str]](), ""
    for line in block.splitlines()[1:]:
        if header := re.match(r"\[(\w+)\]", line):
            section = header[1]
        elif option := re.fullmatch(r"(# )?(\w+) = (.+?) +# (.+)", line):
            named.setdefault(section, []).append(option[2])
            assert section == "thresholds" or option[4] == help_of(SECTIONS[section], option[2])
            if option[1] and option[2] not in OFF_BY_DEFAULT:
                value, default = (
                    tomllib.loads(option[0][2:])[option[2]],
                    default_of(SECTIONS[section], option[2]),
                )
                assert (Outputs.of(value) if isinstance(default, Outputs) else type(default)(value)) == default
    assert {name: set(options) for name, options in named.items() if name != "thresholds"} == {
        name: set(names_of(options)) for name, options in SECTIONS.items()
    }
    (tmp_path / "migration.toml").write_text(block, encoding="utf-8")
    assert read_config(tmp_path / "migration.toml").thresholds == {"duplicate": 0.92}


def test_the_example_file_of_settings_has_their_defaults() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    defaults = {field.alias: field.default for field in Settings.model_fields.values()}
    on_a_processor = Limits()
    defaults["VECFERRY_MAX_BATCH_TOKENS"] = on_a_processor.max_batch_tokens
    defaults["VECFERRY_MEMORY_BUDGET_MB"] = on_a_processor.memory_budget_mb
    for name, number in re.findall(r"^#?([A-Z_]+)=(\d+)$", example, re.MULTILINE):
        assert name == "VECFERRY_THREADS" or int(number) == defaults[name]


def test_the_states_are_drawn_as_they_are() -> None:
    (drawn, *_) = (block for block in blocks(ROOT / "docs/migrate.md", "") if "planned" in block)
    assert drawn.rstrip("\n") in str(states.__doc__)


def models_of_verbs() -> list[tuple[str, str, str]]:
    """Return (verb, its new model, its old model), as the page has them in a table: "needed", "for ...", or "–"."""
    (table,) = re.findall(
        r"^\| verb \| new model \| old model \|\n\|[-|]+\n((?:\|.*\n)+)",
        (ROOT / "docs/migrate.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [(verb, new, old) for verbs, new, old in lines for verb in re.findall(r"`(\w+)`", verbs)]


@pytest.mark.parametrize(("verb", "new", "old"), models_of_verbs())
def test_a_verb_takes_the_models_that_the_page_says(verb: str, new: str, old: str) -> None:
    """What the page calls needed is asked for by name where the migration was made without it."""
    migrate = typer.main.get_command(app).commands["migrate"]  # type: ignore[attr-defined]
    options = {option for parameter in migrate.commands[verb].params for option in parameter.opts}
    for model, option, cell in (("new", "--new-model", new), ("old", "--old-model", old)):
        assert (option in options) == (cell != "–")
        if cell == "needed":
            store = MirrorStore(MemoryBackend(), "docs", SqliteLedger.in_memory())
            with closing(store), pytest.raises(MissingModel, match=f"needs the {model} model"):
                getattr(Migration(store), verb)()


def test_every_verb_is_in_the_table_of_models() -> None:
    verbs = typer.main.get_command(app).commands["migrate"].commands  # type: ignore[attr-defined]
    assert sorted(verb for verb, _, _ in models_of_verbs()) == sorted(verbs)


def command_lines() -> list[tuple[str, str]]:
    """Return each command of ours in a shell block, with the page that has it; continued lines are joined."""
    lines = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                command = line.split("#")[0].strip()
                if re.match(r"(vecferry|python (convert_to_onnx|test_model)\.py)\b", command):
                    lines.append((page.name, command))
    return lines


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_command_lines_of_the_pages_parse(page: str, line: str) -> None:
    """Every command, option and argument exists."""
    parts = shlex.split(line)
    if parts[0] == "python":
        script = typer.Typer()
        script.command()(getattr(scripts, parts[1].removesuffix(".py")))
        command, arguments = typer.main.get_command(script), parts[2:]
    else:
        command, arguments = typer.main.get_command(app), parts[1:]
    while hasattr(command, "commands") and not set(arguments) <= {"--version"}:
        options = [word for word in arguments if not word.startswith("-")]
        command = command.commands[options[0]]
        arguments = arguments[arguments.index(options[0]) + 1 :]
    with contextlib.suppress(click.exceptions.Exit, typer.Exit):  # --help and --version end here
        command.make_context("vecferry", [*arguments])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_page_is_listed_in_the_site() -> None:
    listed = set((ROOT / "docs/index.md").read_text(encoding="utf-8").split())
    pages = {path.relative_to(ROOT / "docs").with_suffix("").as_posix() for path in ROOT.glob("docs/**/*.md")}
    decisions = {page for page in pages if page.startswith("decisions/0")}  # docs/conf.py lists them
    assert pages - decisions - {"index"} == {word for word in listed if word in pages}


def test_the_benchmarks_and_the_figures_of_readme_are_those_of_the_results() -> None:
    assert benchmarks.PAGE.read_text(encoding="utf-8") == benchmarks.page()
    readme = benchmarks.README.read_text(encoding="utf-8")
    assert readme == benchmarks.with_figures(readme)
    assert len(benchmarks.FIGURES.findall(readme)) == 1
    assert len(readme.splitlines()) <= 150


def test_every_extra_is_explained() -> None:
    """Extras that are for working on vecferry itself are not."""
    table = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    explained = {
        name for line in re.findall(r"^\| (`.+?) \|", table, re.MULTILINE) for name in re.findall(r"`(.+?)`", line)
    }
    assert explained == set(metadata("vecferry").get_all("Provides-Extra") or []) - {"dev"}


def test_every_setting_is_in_the_example_file() -> None:
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    named = set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE))
    assert named == {field.alias for field in Settings.model_fields.values()}


def test_every_make_target_that_the_pages_name_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"\bmake ([a-z-]+)", " ".join(blocks(page, "sh"))):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
