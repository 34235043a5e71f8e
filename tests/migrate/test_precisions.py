"""A backfill in one precision, served in others: end to end on PostgreSQL, and what is refused on the way."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest

from tests.migrate.doubles import TruthEncoder
from tests.stores.collections import OLD_DIMENSION, old_vector
from vecferry.conversion.calibration import comparison_texts
from vecferry.conversion.convert import convert_checkpoint
from vecferry.embeddings import TextVectors
from vecferry.encode.encoder import Encoder
from vecferry.encode.runtime.onnx import OnnxRuntime
from vecferry.errors import MigrationConflict, PrecisionMismatch, SameFunction, SpaceMismatch
from vecferry.migrate import Migration, MigrationOptions, Status
from vecferry.migrate.router import Document, Router
from vecferry.model.artifact import Artifact, Override
from vecferry.model.sources import open_source
from vecferry.model.tokens import open_tokenizer
from vecferry.stores.pgvector import PgVectorStore
from vecferry.stores.values import Patience, Record

pytestmark = pytest.mark.slow
TEXTS = comparison_texts()[:20]
OLD = TruthEncoder("old", OLD_DIMENSION)


@dataclass(frozen=True)
class Forms:
    """One small model in three precisions; fp16 is measured as `convert` does, int8 has an override."""

    fp32: Encoder
    fp16: Encoder
    int8: Encoder


def opened(artifact: Artifact) -> Encoder:
    return Encoder(open_tokenizer(artifact), OnnxRuntime(artifact), spec=artifact.manifest.encoder)


@pytest.fixture(scope="module")
def forms(tiny_checkpoint: Path, tiny_artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Forms:
    folder, source = tmp_path_factory.mktemp("forms"), open_source(str(tiny_checkpoint))
    fp16 = convert_checkpoint(source, folder / "fp16", precision="fp16").artifact
    override = Override(verdict="queries only", reason="so small a model keeps more than a real one")
    int8 = convert_checkpoint(source, folder / "int8", precision="int8", override=override, verified=False).artifact
    return Forms(opened(tiny_artifact), opened(fp16), opened(int8))


@pytest.fixture
def store(
    connection: psycopg.Connection, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PgVectorStore]:
    monkeypatch.chdir(tmp_path)
    connection.execute(f"CREATE TABLE docs (id integer PRIMARY KEY, body text, embedding vector({OLD_DIMENSION}))")
    for i, text in enumerate(TEXTS):
        write(connection, i, text)
    with closing(PgVectorStore.connect(database_url, "docs", "body", "embedding")) as opened_store:
        yield opened_store


def write(connection: psycopg.Connection, key: int, text: str) -> None:
    """Write a row as an application does that still has the old model."""
    connection.execute(
        "INSERT INTO docs VALUES (%s, %s, %s::real[]::vector)"
        " ON CONFLICT (id) DO UPDATE SET body = excluded.body, embedding = excluded.embedding",
        [key, text, old_vector(text).tolist()],
    )


def options(**changes: object) -> MigrationOptions:
    given = MigrationOptions(
        accept_unconfirmed="a test", rows_per_range=7, staging=Path("staging"), patience=Patience(0.2, 1.0),
        reconnect_s=0.0,
    )  # fmt: skip
    return replace(given, **changes)  # type: ignore[arg-type]


def migration_of(store: PgVectorStore, new: Encoder, serve: Encoder | None, **changes: object) -> Migration:
    return Migration(store, new=new, serve=serve, old=OLD, options=options(**changes))


def top(router: Router, text: str) -> int:
    return int(router.search(text, k=1).hits[0].key[0])


def test_three_precisions_are_one_function_and_three_keys(forms: Forms) -> None:
    spaces = [encoder.space for encoder in (forms.fp32, forms.fp16, forms.int8)]
    assert len({space.fingerprint for space in spaces}) == 1
    assert len({space.key for space in spaces}) == 3
    assert [space.form().verdict for space in spaces] == ["interchangeable", "interchangeable", "queries only"]


def test_a_backfill_in_fp16_is_followed_in_fp32_and_asked_in_fp32_and_int8(
    forms: Forms, store: PgVectorStore, connection: psycopg.Connection
) -> None:
    migration = migration_of(store, forms.fp16, forms.fp32)
    assert any(each.startswith("cheapest here: rows in fp") for each in migration.plan().warnings)
    assert migration.start().precisions == {"fp16": len(TEXTS)}
    assert marked(connection) == f"vecferry:space:{forms.fp32.fingerprint}:fp16:interchangeable"
    write(connection, 100, "a ferry that was written meanwhile")
    write(connection, 1, "another text in the place of one")
    status: Status = migration_of(store, forms.fp16, forms.fp32).start()
    assert status.precisions == {"fp16": len(TEXTS) - 1, "fp32": 2}
    connection.execute("DELETE FROM docs WHERE id = 1")
    assert migration.start().precisions == {"fp16": len(TEXTS) - 1, "fp32": 1}
    report = migration_of(store, forms.fp32, None).verify(override="no gate in this test")  # where there is no fp16
    assert report.passed
    assert report.precisions == {"fp16": len(TEXTS) - 1, "fp32": 1}
    assert report.lowest_cosine is not None
    assert report.lowest_cosine >= 0.9999

    migration.cutover()
    for asking in (forms.fp32, forms.int8, forms.fp16):
        with Router(store, old=OLD, new=asking, max_age_s=0) as router:
            assert [top(router, TEXTS[i]) for i in (3, 7)] == [3, 7]
            assert top(router, "a ferry that was written meanwhile") == 100
    with Router(store, old=OLD, new=forms.fp32, max_age_s=0) as router:
        router.put([Document(("200",), "by the router")])
        assert migration.status().precisions == {"fp16": len(TEXTS) - 1, "fp32": 2}
        migration.rollback()
        assert top(router, TEXTS[3]) == 3
        migration.cutover()
        assert top(router, "by the router") == 200
    migration_of(store, forms.fp32, None).finalize(confirmed=True)
    with Router(store, old=OLD, new=forms.int8, max_age_s=0) as router:
        assert top(router, TEXTS[3]) == 3
    with pytest.raises(SameFunction, match="in fp16: none need be encoded in fp32"):
        Migration(store, new=forms.fp32, options=options()).start()
    again = Migration(store, new=forms.fp32, options=options(reencode=True)).start()
    assert again.precisions == {"fp32": len(TEXTS) + 1}


def test_what_the_evidence_does_not_allow_is_refused_by_name(
    forms: Forms, wide_artifact: Artifact, store: PgVectorStore
) -> None:
    migration = migration_of(store, forms.fp32, None)
    migration.start()
    with pytest.raises(PrecisionMismatch, match="int8-1 may be used for queries alone"):
        migration_of(store, forms.int8, None).start()
    with pytest.raises(MigrationConflict):
        migration_of(store, opened(wide_artifact), None).start()
    assert migration_of(store, forms.fp32, forms.int8).start().precisions == {"fp32": len(TEXTS)}
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()
    vectors = TextVectors(forms.int8.encode(["int8"]).dense[0])
    with pytest.raises(SpaceMismatch):
        store.put([Record(("9",), "int8", vectors)], fingerprint=str(forms.int8.space.mark()))
    with Router(store, old=OLD, new=forms.int8, max_age_s=0) as router:
        assert top(router, TEXTS[3]) == 3
        with pytest.raises(PrecisionMismatch, match="queries alone"):
            router.put([Document(("9",), "int8")])
        with pytest.raises(PrecisionMismatch, match="queries alone"):
            router.encode_passages(["int8"])
    for other in (with_space(forms.int8, recipe="int8-2", verdicts={}), with_space(forms.int8, verdicts={})):
        with Router(store, old=OLD, new=other, max_age_s=0) as router, pytest.raises(PrecisionMismatch, match="apart"):
            router.search("a query")
    stranger = with_space(forms.fp32, weights="another model of the same size")
    with Router(store, old=OLD, new=stranger, max_age_s=0) as router, pytest.raises(SpaceMismatch) as caught:
        router.search("a query")
    assert not isinstance(caught.value, PrecisionMismatch)


def test_an_int8_index_takes_int8_alone(forms: Forms, store: PgVectorStore) -> None:
    migration = migration_of(store, forms.int8, None)
    migration.start()
    assert migration.verify(override="no gate in this test").passed
    migration.cutover()
    with Router(store, old=OLD, new=forms.int8, max_age_s=0) as router:
        router.put([Document(("9",), "int8")])
        assert top(router, "int8") == 9
    for asking in (forms.fp32, forms.fp16):
        with Router(store, old=OLD, new=asking, max_age_s=0) as router, pytest.raises(PrecisionMismatch, match="int8"):
            router.search("a query")


def marked(connection: psycopg.Connection) -> str:
    ((comment,),) = connection.execute(
        "SELECT col_description(attrelid, attnum) FROM pg_attribute"
        " WHERE attrelid = 'docs'::regclass AND attname = 'embedding_vecferry_new'"
    ).fetchall()
    return str(comment)


def with_space(encoder: Encoder, **changes: object) -> Encoder:
    """Return the encoder as if its manifest said something else."""
    assert isinstance(encoder.runtime, OnnxRuntime)
    manifest = encoder.runtime.artifact.manifest
    changed = manifest.model_copy(update={"space": manifest.space.model_copy(update=changes)})
    return opened(replace(encoder.runtime.artifact, manifest=changed))
