"""locks/ and requirements.txt: whole, with hashes, and of one mind."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def entries(lock: str) -> list[tuple[Requirement, list[str]]]:
    """Return each requirement and its hashes."""
    text = re.sub(r"^#.*\n", "", (ROOT / "locks" / f"{lock}.txt").read_text(), flags=re.MULTILINE)
    parts = (entry.split("--hash=") for entry in text.replace("\\\n", "").splitlines())
    return [(Requirement(requirement), [digest.strip() for digest in hashes]) for requirement, *hashes in parts]


def pins(lock: str) -> dict[str, set[str]]:
    """Return the versions of each name."""
    versions: dict[str, set[str]] = {}
    for requirement, _ in entries(lock):
        versions.setdefault(requirement.name, set()).add(str(requirement.specifier))
    return versions


def declared(extra: str) -> list[Requirement]:
    """Return the project's requirements with this extra, and those of the extras that it names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements, extras, expanded = [*map(Requirement, project["dependencies"])], [extra], set[str]()
    while extras:
        if (name := extras.pop()) not in expanded:
            expanded.add(name)
            for requirement in map(Requirement, project["optional-dependencies"][name]):
                if requirement.name == "vecferry":
                    extras += requirement.extras
                else:
                    requirements.append(requirement)
    return requirements


@pytest.mark.parametrize("lock", ["cuda", "demo", "dev", "server", "torch"])
def test_every_version_is_fixed_and_has_hashes(lock: str) -> None:
    for requirement, hashes in entries(lock):
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
        assert hashes, requirement
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", digest) for digest in hashes), requirement


@pytest.mark.parametrize("extra", ["demo", "dev", "server"])
def test_a_lock_has_what_the_project_asks_for(extra: str) -> None:
    versions = pins(extra) | pins("torch")
    for requirement in declared(extra):
        locked = versions[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(version.removeprefix("==")) for version in locked), requirement


@pytest.mark.parametrize("lock", ["demo", "server"])
def test_the_smaller_locks_have_the_versions_of_the_one_that_is_tested(lock: str) -> None:
    assert pins(lock).items() <= pins("dev").items()


def test_requirements_txt_has_the_versions_of_the_lock() -> None:
    *lines, project = (ROOT / "requirements.txt").read_text().splitlines()
    assert project == ".[pgvector,parquet]"
    locked = pins("dev")
    for requirement in (Requirement(line) for line in lines if not line.startswith("#")):
        assert str(requirement.specifier) in locked[requirement.name]
