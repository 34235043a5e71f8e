"""The examples of docs/integrations.md run, with a small model in the place of BGE-M3."""

import re
from pathlib import Path

import pytest

from vecferry.model.artifact import Artifact

PAGE = (Path(__file__).parents[2] / "docs/integrations.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = dict(SECTION.findall(PAGE))


def test_every_section_has_an_example() -> None:
    assert len(EXAMPLES) == PAGE.count("\n## ") == PAGE.count("```python") == 6


@pytest.mark.parametrize("title", EXAMPLES)
def test_an_example_runs(
    title: str,
    wide_artifact: Artifact,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/bge-m3-onnx").symlink_to(wide_artifact.path)
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[title], title, "exec"), {})
    assert capsys.readouterr().out.strip()
