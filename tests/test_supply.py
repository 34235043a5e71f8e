"""What is shipped: the licences of all that is in it, and the images that it stands on (the locks: test_locks.py)."""

import re
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LICENCES = {
    "demo/data/corpus.jsonl.xz": "CC-BY-SA-4.0",
    "demo/data/queries.jsonl.xz": "CC-BY-SA-4.0",
    "demo/data/qrels.tsv.xz": "CC-BY-SA-4.0",
    "demo/data/tokenizer.json.xz": "MIT",
    "conversion/calibration/texts.jsonl.xz": "LicenseRef-CC-BY-2.0-FR",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_all_data_of_others_is_known_and_its_licence_said_in_the_metadata(wheel: zipfile.ZipFile) -> None:
    data = {name.removeprefix("vecferry/") for name in wheel.namelist() if name.endswith(".xz")}
    assert data == set(LICENCES)
    (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    said = message_from_bytes(wheel.read(metadata))
    assert set(said["License-Expression"].split(" AND ")) == {"Apache-2.0", *LICENCES.values()}
    files = said.get_all("License-File") or []
    assert {Path(name).name for name in files} == {"LICENSE", "LICENSE.XQuAD", "LICENSE.tokenizer", "LICENSE.Tatoeba"}


def test_images_are_pinned_by_digest() -> None:
    bases = re.findall(r"^FROM (\S+)", (ROOT / "deploy/Containerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert bases
    assert [base for base in bases if not re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", base)] == []
