"""LangChain's FAISS, which holds its index in memory: it is stopped for a migration, and loads its folder again."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.applications.application import Listing
from tests.applications.langchain import langchain_model
from tests.applications.sites import UrlSite
from tests.migrate.doubles import TruthEncoder
from vecferry.migrate import Migration, MigrationOptions
from vecferry.migrate.recipe import recipe_of

pytestmark = pytest.mark.slow
OLD, NEW = TruthEncoder("old", 8), TruthEncoder("new", 16)
LISTING = Listing("LangChain `FAISS`", "langchain-community", "index", "text")


def loaded(folder: Path, encoder: TruthEncoder) -> Any:
    vectorstore = pytest.importorskip("langchain_community.vectorstores").FAISS
    return vectorstore.load_local(str(folder), langchain_model(encoder), allow_dangerous_deserialization=True)


def found(store: Any, texts: list[str]) -> list[str]:
    return [store.similarity_search(text, k=1)[0].page_content for text in texts]


@pytest.mark.parametrize("strategy", ["EUCLIDEAN_DISTANCE", "MAX_INNER_PRODUCT"])
def test_a_folder_is_migrated_while_its_application_is_stopped_and_loaded_again(tmp_path: Path, strategy: str) -> None:
    vectorstore = pytest.importorskip("langchain_community.vectorstores").FAISS
    folder, texts = tmp_path / "index", [f"text number {n}" for n in range(20)]
    metadatas = [{"n": n, "source": {"page": [n, None]}} for n in range(20)]
    ids = [f"id {n}" for n in range(20)]
    made = vectorstore.from_texts(texts, langchain_model(OLD), metadatas, ids=ids, distance_strategy=strategy)
    made.delete(["id 7"])
    made.save_local(str(folder))
    site = UrlSite(f"faiss://{folder}", tmp_path / "control.db")
    with site.browser() as browser:
        (field,) = browser.vector_fields()
        recipe = recipe_of(browser, field, OLD)
    assert (field.collection, recipe.framework, recipe.text) == ("index", "LangChain FAISS", "text")
    assert recipe.is_confirmed
    with closing(site.store(LISTING)) as store:
        options = MigrationOptions(staging=tmp_path / "staging", min_free_gb=0)
        migration = Migration(store, new=NEW, old=OLD, options=options)
        assert migration.plan().provenance.is_confirmed
        migration.start()
        assert found(loaded(folder, OLD), texts[:7]) == texts[:7]
        assert migration.verify(override="no gate in this test").passed
        migration.cutover()
        migration.finalize(confirmed=True)
    again = loaded(folder, NEW)
    assert type(again.index) is type(made.index)
    kept = texts[:7] + texts[8:]
    assert found(again, kept) == kept
    (document,) = again.get_by_ids(["id 9"])
    assert (document.page_content, document.metadata) == (texts[9], metadatas[9])
    assert again.similarity_search(texts[0], k=1, filter={"n": 3})[0].page_content == texts[3]
    again.add_texts(["one more"], ids=["id 20"])
    again.delete(["id 0"])
    again.save_local(str(folder))
    assert found(loaded(folder, NEW), ["one more", texts[1]]) == ["one more", texts[1]]
