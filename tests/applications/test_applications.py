"""Applications that know nothing of us: the framework's own client, in which only the model is another one.

The real packages, at the versions of `requirements.txt` beside this file; a package that is not there is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.applications.application import Application, Listing
from tests.applications.sites import Site
from tests.applications.table import APPLICATIONS
from tests.migrate.doubles import TruthEncoder
from vecferry.migrate import Migration, MigrationOptions, State
from vecferry.migrate.config import read_config
from vecferry.migrate.config_file import Draft, StoreAddress
from vecferry.migrate.found import Found
from vecferry.migrate.recipe import recipe_of
from vecferry.stores.backend import ANYONE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect in the local Qdrant"),
]
OLD, NEW = TruthEncoder("old", 8), TruthEncoder("new", 16)
Open = Callable[[TruthEncoder, str], Application]


class User:
    """Works with an application, and knows what it must answer."""

    def __init__(self, listing: Listing, opened: Open) -> None:
        self._listing = listing
        self._opened = opened
        self._keys = [f"{i:08}-0000-4000-8000-000000000000" for i in range(12)]
        self._texts: dict[str, str] = {}
        self.open(OLD, listing.collection)
        for number, key in enumerate(self._keys):
            self._add(key, f"text number {number}")

    def open(self, encoder: TruthEncoder, collection: str) -> None:
        """Open the application with this model and the collection's name."""
        self._application = self._opened(encoder, collection)
        self._model = encoder

    def _add(self, key: str, text: str) -> None:
        self._application.add(key, text)
        self._texts[key] = text

    def write(self, number: int) -> None:
        """Add a document, replace one and remove one."""
        self._add(f"{number:08}-1111-4000-8000-000000000000", f"added {number}")
        self._add(self._keys[number], f"replaced {number}")
        self._application.remove(self._keys[number + 6])
        del self._texts[self._keys[number + 6]]

    def check(self) -> None:
        """Assert that each text is read by its key and found by itself, and that what was removed is gone."""
        expected = dict.fromkeys(self._keys) | self._texts
        assert {key: self._application.read(key) for key in expected} == expected
        assert [self._application.first(text) for text in self._texts.values()] == list(self._texts.values())

    def see_other_columns(self) -> None:
        """Open the application anew where its statements were prepared for the columns that the table had."""
        if self._listing.prepares_all_columns:
            with pytest.raises(Exception, match="cached plan must not change result type"):
                self.check()
            self.open(self._model, self._listing.collection)


@pytest.fixture
def options(tmp_path: Path) -> MigrationOptions:
    return MigrationOptions(staging=tmp_path / "staging", min_free_gb=0)


@pytest.fixture
def site(kind: Any, request: pytest.FixtureRequest) -> Site:
    chosen: Site = request.getfixturevalue(kind.site)
    return chosen


@pytest.fixture
def opened(kind: Any, site: Site) -> Iterator[Open]:
    """Yield what opens the application with a model, by the collection's name; all are closed at the end."""
    applications: list[Application] = []

    def open_one(encoder: TruthEncoder, collection: str) -> Application:
        applications.append(kind(site, encoder, collection))
        return applications[-1]

    yield open_one
    for application in applications:
        application.close()


@pytest.mark.parametrize("kind", APPLICATIONS)
def test_an_application_goes_on_before_during_and_after(
    kind: Any, site: Site, opened: Open, options: MigrationOptions
) -> None:
    listing = kind.listing
    user = User(listing, opened)
    user.check()
    with closing(site.store(listing)) as store:
        migration = Migration(store, new=NEW, old=OLD, options=options)
        assert migration.plan().provenance.is_confirmed
        migration.start()
        user.see_other_columns()
        user.write(0)
        user.check()
        migration.start()
        assert migration.verify(override="no gate in this test").passed
        migration.cutover()
        user.open(NEW, listing.collection_after_switch)
        user.check()
        user.write(1)
        migration.start()
        user.check()
        migration.rollback()
        user.open(OLD, listing.collection)
        user.check()
        user.write(2)
        migration.start()
        migration.cutover()
        user.open(NEW, listing.collection_after_switch)
        user.check()
        assert migration.finalize(confirmed=True).state is State.FINALIZED
        user.see_other_columns()
        if not listing.follows_switch:
            user.open(NEW, listing.collection)
        user.write(3)
        user.check()


@pytest.mark.parametrize("kind", APPLICATIONS)
def test_the_file_of_init_works_unchanged(kind: Any, site: Site, opened: Open, tmp_path: Path) -> None:
    listing = kind.listing
    User(listing, opened)
    with site.browser() as browser:
        found = Found("the store", browser.kind, browser.vector_fields())
        (field,) = found.candidates(listing.collection, None)
        recipe = recipe_of(browser, field, OLD)
        address = StoreAddress(f"{browser.kind}:///where/it/is")
    new, old = Path("new"), Path("old")
    file = tmp_path / "migration.toml"
    file.write_text(Draft(address, ANYONE, field, recipe, new, old, is_old_known=True).text(file), encoding="utf-8")
    store = read_config(file).store
    assert (recipe.framework, store.text) == (listing.layout, listing.found_text or listing.text)
    assert recipe.is_confirmed
    chosen = replace(listing, collection=store.collection, text=store.text, vector=store.vector, key=store.key)
    with closing(site.store(chosen)) as opened_store:
        plan = Migration(opened_store, new=NEW, old=OLD).plan()
    assert (plan.provenance.is_confirmed, plan.problems) == (True, ())
