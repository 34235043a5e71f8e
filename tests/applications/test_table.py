"""docs/applications.md names every application at the version that its test runs with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest

from tests.applications.table import APPLICATIONS, PAGE, found_table, found_table_of, pinned, table, table_of


def test_the_page_has_the_table_of_the_tests() -> None:
    """`python -m tests.applications.table` writes it, of those that have passed."""
    page, listings = PAGE.read_text(encoding="utf-8"), [kind.listing for kind in APPLICATIONS]
    assert table_of(page) == table(listings)
    assert found_table_of(page) == found_table(listings)


@pytest.mark.slow
@pytest.mark.parametrize("package", sorted({kind.listing.package for kind in APPLICATIONS} - {None}))
def test_a_package_is_tried_at_the_version_that_the_page_says(package: str) -> None:
    try:
        assert version(package) == pinned(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
