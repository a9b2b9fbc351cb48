"""The documentation is true: its Python runs as it stands, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import gymnasium
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "runs" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("code", BLOCKS)
def test_every_python_block_runs(code, monkeypatch):
    monkeypatch.chdir(ROOT)
    known = set(gymnasium.registry)
    exec(compile(code, "documentation", "exec"), {"__name__": "documentation"})
    for name in set(gymnasium.registry) - known:
        del gymnasium.registry[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_of_the_repository(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
