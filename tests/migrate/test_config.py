import re
import traceback
from contextlib import closing
from pathlib import Path

import lancedb
import psycopg
import pyarrow as pa
import pytest
from pydantic import SecretStr

from vecferry.embeddings import DENSE, Outputs
from vecferry.errors import MissingOption, SettingsError, StoreUnreachable, UnknownSetting
from vecferry.migrate.config import MigrationConfig, StoreConfig, merged, read_config
from vecferry.migrate.opening import old_encoder, open_configured_store
from vecferry.stores.group import Member
from vecferry.stores.opening import ChromaOptions, PostgresOptions, QdrantOptions, open_store
from vecferry.stores.protocol import Store, StoreGroup
from vecferry.stores.values import Layout

SHORT = """
[store]
collection = "docs"
[models]
new = "new"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "migration.toml"
    path.write_text(text, encoding="utf-8")
    return path


def with_line(section: str, line: str) -> str:
    """Return `SHORT` with one line more."""
    text = SHORT.replace(f"[{section}]", f"[{section}]\n{line}")
    return text if f"[{section}]" in text else f"{text}[{section}]\n{line}\n"


def test_the_file_of_the_documentation_written_out_is_read_as_it_says(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/migrate.md").read_text(encoding="utf-8")
    block = page.partition("```toml\n")[2].partition("```")[0]
    config = read_config(written(tmp_path, re.sub(r"^# (\w+ = )", r"\1", block, flags=re.MULTILINE)))
    assert config.model_dump() == {
        "store": {
            "url": SecretStr("postgresql://app@localhost/app"),
            "collection": "shop.products",
            "collections": (),
            "text": "description",
            "source": "product_texts",
            "where": "tenant = 'north'",
            "layout": Layout.COLUMNS,
            "new_vector": "fast-bge-m3",
            "vector": "embedding",
            "key": "id",
            "control": tmp_path / ".vecferry/control.db",
            "tenant": "shop",
            "database": "catalogue",
            "embed_missing": False,
            "embedding_function": False,
        },
        "models": {
            "new": tmp_path / "models/bge-m3-onnx",
            "old": tmp_path / "models/all-MiniLM-L6-v2-onnx",
            "outputs": DENSE,
            "serve": tmp_path / "models/bge-m3-fp32",
            "reencode": False,
        },
        "limits": {
            "rows_per_range": 256,
            "rows_per_write": 64,
            "max_pause_s": 1.0,
            "rows_per_s": 500.0,
            "max_query_ms": 250.0,
            "min_free_gb": 1.0,
            "lease_s": 15.0,
            "staging": tmp_path / ".vecferry/staging",
        },
        "engine": {
            "kind": "local",
            "address": "HEAD:6379",
            "workers": 1,
            "cpus_per_worker": 2,
            "gpus_per_worker": 0.0,
            "wave": 64,
            "stall_s": 600.0,
            "tries": 3,
        },
        "old": {
            "prefix": "passage: ",
            "query_prefix": "query: ",
            "lowercase": False,
            "max_characters": 1000,
            "max_tokens": 128,
            "dimension": 1536,
        },
        "verify": {"sample": 100, "min_recall": 0.9},
        "gate": {"queries": tmp_path / "judged", "margin": 0.02, "confidence": 0.95, "max_queries": 500},
        "thresholds": {"duplicate": 0.92},
        "collections": (),
    }


def test_what_is_left_out_has_its_default_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    written(tmp_path / "in", SHORT)
    monkeypatch.chdir(tmp_path)
    config = read_config(Path("in/migration.toml"))
    monkeypatch.chdir("/")
    assert (config.store.url, config.models.old, config.models.outputs) == (None, None, DENSE)
    assert (config.store.text, config.store.vector, config.store.key) == ("text", "embedding", None)
    assert config.store.control == tmp_path / "in/.vecferry/control.db"
    assert config.limits.staging == tmp_path / "in/.vecferry/staging"
    assert config.models.new == tmp_path / "in/new"
    limits = config.limits
    assert (limits.rows_per_range, limits.rows_per_s, limits.max_query_ms) == (256, None, None)
    assert (limits.min_free_gb, limits.lease_s, config.verify.sample, config.verify.min_recall) == (1.0, 15.0, 100, 0.9)
    gate = config.gate
    assert (gate.queries, gate.margin, gate.confidence, gate.max_queries) == (None, 0.02, 0.95, 500)
    assert config.thresholds == {}


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("chroma:./data", "chroma://{}/data"),
        ("lancedb:data/x", "lancedb://{}/data/x"),
        ("sqlite:data/x.db", "sqlite://{}/data/x.db"),
        ("qdrant:///data", "qdrant:///data"),
        ("milvus+http://host:1/db", "milvus+http://host:1/db"),
        ("postgresql://host/db", "postgresql://host/db"),
    ],
)
def test_a_path_in_a_url_is_relative_to_the_file_too(tmp_path: Path, url: str, expected: str) -> None:
    config = read_config(written(tmp_path, with_line("store", f'url = "{url}"')))
    assert config.store.url is not None
    assert config.store.url.get_secret_value() == expected.format(tmp_path)


def test_outputs_are_a_flag_too(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, with_line("models", 'outputs = ["sparse", "dense"]')))
    assert config.models.outputs == DENSE | Outputs.SPARSE


@pytest.mark.parametrize(
    ("section", "line", "name", "value", "expected"),
    [
        ("limits", "rows_per_s = 0", "[limits] rows_per_s", "0", "a number above 0"),
        ("limits", "rows_per_s = nan", "[limits] rows_per_s", "nan", "a number above 0"),
        ("limits", 'rows_per_s = "500"', "[limits] rows_per_s", "500", "a number above 0"),
        ("limits", "rows_per_range = 1.5", "[limits] rows_per_range", "1.5", "a whole number from 1"),
        ("limits", "rows_per_range = true", "[limits] rows_per_range", "True", "a whole number from 1"),
        ("limits", "max_query_ms = -1", "[limits] max_query_ms", "-1", "milliseconds above 0"),
        ("limits", "min_free_gb = -1", "[limits] min_free_gb", "-1", "gigabytes from 0"),
        ("limits", "lease_s = 0", "[limits] lease_s", "0", "seconds above 0"),
        ("engine", 'kind = "dask"', "[engine] kind", "dask", "local or ray"),
        ("engine", "workers = 0", "[engine] workers", "0", "a whole number from 1"),
        ("engine", "stall_s = 0", "[engine] stall_s", "0", "seconds above 0"),
        ("limits", "staging = 5", "[limits] staging", "5", "a folder"),
        ("limits", "row_per_s = 5", "[limits] row_per_s", "…", "one of rows_per_range, rows_per_write, rows_per_s"),
        ("verify", "min_recall = 1.1", "[verify] min_recall", "1.1", "a number from 0 to 1"),
        ("verify", "sample = 0", "[verify] sample", "0", "a whole number from 1"),
        ("gate", "queries = 5", "[gate] queries", "5", "a folder in BEIR layout"),
        ("gate", "margin = 1.5", "[gate] margin", "1.5", "a number from 0 to 1"),
        ("gate", "margin = true", "[gate] margin", "True", "a number from 0 to 1"),
        ("gate", "confidence = 1.0", "[gate] confidence", "1.0", "a number between 0 and 1"),
        ("gate", "max_queries = 0", "[gate] max_queries", "0", "a whole number from 1"),
        ("gate", "querys = 5", "[gate] querys", "…", "one of margin, confidence, queries, max_queries"),
        ("thresholds", "duplicate = 1.1", "[thresholds] duplicate", "1.1", "names, each with a number from -1 to 1"),
        ("thresholds", "duplicate = nan", "[thresholds] duplicate", "nan", "names, each with a number from -1 to 1"),
        ("thresholds", 'duplicate = "0.9"', "[thresholds] duplicate", "0.9", "names, each with a number from -1 to 1"),
        ("thresholds", '"" = 0.9', "[thresholds] ", "", "names, each with a number from -1 to 1"),
        ("models", 'outputs = ["dens"]', "[models] outputs", "['dens']", '["dense"]'),
        ("models", 'outputs = ["sparse"]', "[models] outputs", "['sparse']", '["dense"]'),
        ("gate", 'queries = "~no-such-user/q"', "[gate] queries", "~no-such-user/q", "a path without ~, whose home"),
        ("store", 'url = "lancedb:~no-such-user/d"', "[store] url", "…", "a path without ~, whose home"),
        ("store", 'text = ""', "[store] text", "", "the name of the column"),
        ("store", 'layout = "beside"', "[store] layout", "beside", "columns or side-table"),
        ("stores", "", "[stores]", "…", "one of store, collections, models, limits, engine, old"),
    ],
)
def test_a_wrong_value_is_named_by_its_place(
    tmp_path: Path, section: str, line: str, name: str, value: str, expected: str
) -> None:
    with pytest.raises(SettingsError) as failed:
        read_config(written(tmp_path, with_line(section, line)))
    assert (failed.value.name, str(failed.value.value)) == (name, value)
    assert failed.value.expected.startswith(expected)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("", "[store]", "a section [store]"),
        ('[store]\ncollection = "docs"', "[models]", "a section [models]"),
        ('[models]\nnew = "new"\n[store]', "[store] collection", "the name of a table or collection"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, text: str, name: str, expected: str) -> None:
    with pytest.raises(SettingsError) as failed:
        read_config(written(tmp_path, text))
    assert (failed.value.name, failed.value.value, failed.value.expected) == (name, "", expected)


@pytest.mark.parametrize(
    ("text", "name", "meant"),
    [
        (SHORT.replace("[store]", "[stroe]"), "[stroe]", "[store]"),
        (SHORT.replace("collection", "colection"), "[store] colection", "[store] collection"),
        (SHORT.replace("new =", "neww ="), "[models] neww", "[models] new"),
        (with_line("store", "rows_per_s = 5.0"), "[store] rows_per_s", "[limits] rows_per_s"),
        (f'collection = "docs"\n{SHORT}', "[collection]", "[store] collection"),
    ],
)
def test_an_unknown_name_is_answered_by_the_known_one_that_is_spelt_like_it(
    tmp_path: Path, text: str, name: str, meant: str
) -> None:
    with pytest.raises(UnknownSetting, match="is not known") as failed:
        read_config(written(tmp_path, text))
    assert (failed.value.name, failed.value.hint) == (name, f"Did you mean {meant}?")


def test_an_unknown_name_that_is_like_no_other_gets_the_list_of_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownSetting) as failed:
        read_config(written(tmp_path, with_line("limits", "qqqq = 1")))
    assert failed.value.expected.startswith("one of rows_per_range")
    assert failed.value.hint.startswith("Correct [limits] qqqq where it was set")


def test_a_file_that_is_not_there_or_not_toml_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        read_config(tmp_path / "nothing.toml")
    with pytest.raises(SettingsError, match="line 2, column"):
        read_config(written(tmp_path, "[store]\ncollection\n"))
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(SettingsError, match="UTF-8"):
        read_config(tmp_path / "latin.toml")


URL = "postgresql://app:s3cret@host/app"


@pytest.mark.parametrize(
    "text",
    [
        with_line("store", f'urll = "{URL}"'),
        with_line("store", f'url = ["{URL}"]'),
        f'[store]\nurl = "{URL}"\n[models]\nnew = "new"',
        f'store = "{URL}"\n[models]\nnew = "new"',
        f'url = "{URL}"\n{SHORT}',
        f'[store]\nurl = "{URL}\n',
    ],
)
def test_no_error_shows_the_password(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError) as failed:
        read_config(written(tmp_path, text))
    assert "s3cret" not in "".join(traceback.format_exception(failed.value))
    assert "s3cret" not in repr(vars(failed.value))


def test_no_text_of_a_configuration_shows_the_password(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, with_line("store", f'url = "{URL}"')))
    assert "s3cret" not in f"{config} {config!r} {config.model_dump_json()}"
    assert config.store.url is not None
    assert config.store.url.get_secret_value() == URL


def test_single_values_can_be_replaced(tmp_path: Path) -> None:
    before = read_config(written(tmp_path, with_line("store", f'url = "{URL}"')))
    after = merged(
        before,
        {
            "store.url": "chroma:elsewhere",
            "limits.rows_per_s": 5,
            "models.old": Path("old"),
            "limits.rows_per_range": None,
        },
    )
    assert after.store.url == SecretStr("chroma:elsewhere")
    assert (after.limits.rows_per_s, after.models.old) == (5.0, Path("old"))
    unchanged = merged(after, {"store.url": URL, "limits.rows_per_s": 6.0, "models.old": Path("x")})
    assert (unchanged.models.new, unchanged.limits.staging) == (before.models.new, before.limits.staging)
    assert merged(before, {}) == before
    with pytest.raises(SettingsError, match="a number above 0"):
        merged(before, {"limits.rows_per_s": -1})
    with pytest.raises(SettingsError, match=r"\[limits\] rows"):
        merged(before, {"limits.rows": 1})


def test_what_was_done_to_the_texts_of_an_old_model_is_refused_without_that_model(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, f'{SHORT}\n[old]\nprefix = "passage: "\n'))
    with pytest.raises(MissingOption, match=r"\[models\] old is missing"):
        old_encoder(config)
    assert old_encoder(read_config(written(tmp_path, SHORT))) is None


def test_names_of_thresholds_are_the_applications_own(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, with_line("thresholds", '"same product" = -0.25\nany = 1')))
    assert config.thresholds == {"same product": -0.25, "any": 1.0}
    assert merged(config, {"thresholds.any": 0.5}).thresholds == {"same product": -0.25, "any": 0.5}


def test_a_configuration_can_be_made_without_a_file() -> None:
    config = MigrationConfig.model_validate({"store": {"collection": "docs"}, "models": {"new": "new"}})
    assert (config.models.new, config.limits.staging) == (Path("new"), Path(".vecferry/staging"))


# --- which store a URL names ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["chroma", "lancedb", "milvus", "qdrant"])
def test_each_scheme_leads_to_its_store(kind: str, tmp_path: Path) -> None:
    with pytest.raises(StoreUnreachable) as failed:
        open_store(
            f"{kind}://{tmp_path}/no.db", "docs", text="body", vector="v", key="id", control=tmp_path / "control"
        )
    assert failed.value.store == kind


def test_a_store_of_points_is_opened_with_its_fields_and_makes_nothing(tmp_path: Path) -> None:
    url = f"lancedb://{tmp_path}"
    store = open_store(url, "docs", text="body", vector="v", key="id", control=tmp_path / "control.db")
    try:
        assert (store.target, store.traits.text_source, store.ledger.find("docs")) == ("docs", "body", None)
    finally:
        store.close()
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_postgresql_is_opened(connection: psycopg.Connection, database_url: str, tmp_path: Path) -> None:
    connection.execute("CREATE TABLE docs (id integer PRIMARY KEY, body text, v vector(8))")
    store = open_store(database_url, "docs", text="body", vector="v", key=None, control=tmp_path / "control.db")
    try:
        assert store.target.startswith("public.docs")
        assert store.traits.text_source == "body"
    finally:
        store.close()


@pytest.mark.parametrize(
    "options", [ChromaOptions("shop"), ChromaOptions(database="catalogue"), ChromaOptions(embedding_function=object)]
)
def test_what_only_chroma_takes_is_refused_elsewhere(options: ChromaOptions, tmp_path: Path) -> None:
    for url in ("postgresql://localhost/app", f"lancedb://{tmp_path}", "qdrant+http://localhost:6333"):
        with pytest.raises(SettingsError, match="only Chroma"):
            open_store(url, "docs", options=options)


def test_what_only_postgresql_takes_is_refused_elsewhere(tmp_path: Path) -> None:
    for options in (PostgresOptions("texts"), PostgresOptions(layout=Layout.SIDE_TABLE), PostgresOptions(where="a")):
        with pytest.raises(SettingsError, match="only PostgreSQL"):
            open_store(f"lancedb://{tmp_path}", "docs", options=options)


def test_what_a_file_says_for_another_kind_of_store_is_refused_by_its_name_there(tmp_path: Path) -> None:
    for line, url in (("source", "chroma:data"), ("tenant", "postgresql://localhost/app"), ("database", "milvus:m.db")):
        config = merged(read_config(written(tmp_path, SHORT)), {"store.url": SecretStr(url), f"store.{line}": "shop"})
        with pytest.raises(SettingsError) as refused:
            open_configured_store(config)
        assert refused.value.name == f"[store] {line}"


def test_a_store_is_opened_by_its_url_and_name_where_its_fields_have_the_usual_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(open_store("lancedb:.", "docs")) as store:
        assert store.traits.text_source == StoreConfig("docs").text
        store.ledger.install()
    assert StoreConfig("docs").control.is_file()
    vectors = pa.array([[1.0, 0.0]], pa.list_(pa.float32(), 2))
    lancedb.connect(tmp_path).create_table("docs", pa.table({"id": ["1"], "text": ["a"], "embedding": vectors}))
    with closing(open_store("lancedb:.", "docs")) as store:
        assert [row.text for row in store.rows([("1",)])] == ["a"]


def test_what_only_qdrant_takes_is_refused_elsewhere(tmp_path: Path) -> None:
    for url in ("postgresql://localhost/app", f"lancedb://{tmp_path}"):
        with pytest.raises(SettingsError, match="only Qdrant"):
            open_store(url, "docs", options=QdrantOptions("fast-bge-m3"))


@pytest.mark.parametrize("url", ["mysql://app:s3cret@host/db", "s3cret", "", "memory:", "chromadb:s3cret"])
def test_an_unknown_scheme_lists_those_that_are_known(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as failed:
        open_store(url, "docs", text="text", vector="vector", key="id", control=tmp_path / "control.db")
    assert "postgresql:, chroma:, lancedb:, milvus:, qdrant:, sqlite:, faiss:" in failed.value.message
    assert "s3cret" not in failed.value.message


def test_a_file_may_begin_with_the_mark_of_its_encoding(tmp_path: Path) -> None:
    assert read_config(written(tmp_path, f"\ufeff{SHORT}")) == read_config(written(tmp_path, SHORT))


# --- several collections --------------------------------------------------------------------------

MODELS = '[models]\nnew = "new"\n'


@pytest.mark.parametrize(
    ("text", "members", "name"),
    [
        ('[store]\ncollections = "file-*"\n', (Member("file-*"),), "file-*"),
        ('[store]\ncollections = ["docs", "faq"]\n', (Member("docs"), Member("faq")), "{docs,faq}"),
        (
            '[[collections]]\nname = "docs"\n[[collections]]\nname = "faq"\ntext = "answer"\n[store]\n',
            (Member("docs"), Member("faq", "answer")),
            "{docs,faq}",
        ),
    ],
)
def test_several_collections_are_a_pattern_a_list_or_tables(
    text: str, members: tuple[Member, ...], name: str, tmp_path: Path
) -> None:
    config = read_config(written(tmp_path, text + MODELS))
    assert (config.target, config.target_name) == (members, name)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ('[store]\ncollection = "a"\ncollections = "b*"', "[store] collections", "none beside [store] collection"),
        (
            '[[collections]]\nname = "a"\n[store]\ncollections = "b*"',
            "[[collections]]",
            "none beside [store] collections",
        ),
        ("[store]\ncollections = 5", "[store] collections", "a pattern such as file-*, or a list of names"),
        ('[store]\ncollections = [""]', "[store] collections", "a pattern such as file-*, or a list of names"),
        ("[store]\n[[collections]]\nname = 5", "[[collections]] name", "the name of a collection, or a pattern"),
        ('[store]\n[[collections]]\ntext = "b"', "[[collections]] name", "the name of a collection, or a pattern"),
    ],
)
def test_what_is_wrong_with_several_collections_is_named(text: str, name: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as failed:
        read_config(written(tmp_path, f"{MODELS}{text}\n"))
    assert (failed.value.name, failed.value.expected[: len(expected)]) == (name, expected)


def test_an_unknown_name_in_a_table_of_collections_is_answered_by_one_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(UnknownSetting) as failed:
        read_config(written(tmp_path, f'{MODELS}[store]\n[[collections]]\nname = "a"\nvectr = "b"\n'))
    assert (failed.value.name, failed.value.hint) == ("[[collections]] vectr", "Did you mean [[collections]] vector?")


def test_collections_of_the_command_line_stand_in_the_place_of_those_of_the_file(tmp_path: Path) -> None:
    one = read_config(written(tmp_path, f'[store]\ncollection = "docs"\n{MODELS}'))
    several = merged(one, {"store.collection": None, "store.collections": ("file-*",)})
    assert several.target == (Member("file-*"),)
    assert merged(several, {"store.collection": "docs", "store.collections": None}).target == "docs"


def opened_group(url: str, folder: Path, *members: Member, text: str = "text") -> Store:
    return open_store(url, members, text=text, vector="vector", key="id", control=folder / "control.db")


def test_a_group_is_opened_under_its_name(tmp_path: Path) -> None:
    with closing(opened_group(f"lancedb://{tmp_path}", tmp_path, Member("b"), Member("a"))) as store:
        assert isinstance(store, StoreGroup)
        assert store.target == "{a,b}"


@pytest.mark.parametrize(
    ("url", "member", "text", "name", "expected"),
    [
        ("chroma+http://localhost:1", Member("docs", "body"), "text", "[[collections]] text", "none; Chroma"),
        ("lancedb:{folder}", Member("docs", "{a}{b}"), "text", "[[collections]] text", "the name of a field"),
        ("lancedb:{folder}", Member("docs", "body"), "{a}{b}", "[[collections]] text", "the name of a field"),
    ],
)
def test_what_a_group_cannot_have_is_refused_before_a_store_is_opened(
    url: str, member: Member, text: str, name: str, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as failed:
        opened_group(url.replace("{folder}", str(tmp_path)), tmp_path, member, text=text)
    assert (failed.value.name, failed.value.expected[: len(expected)]) == (name, expected)
