"""One language: words that this project has retired stay out of identifiers, docstrings, messages
and documentation. They are metaphors or have several meanings; the field has words for all of
them."""

import re
import tokenize
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1]
RETIRED = (
    "told", "lived", "felt", "errand", "errands", "pupil", "lesson", "lessons", "deed", "deeds",
    "stroll", "strolls", "gloomy", "gloomiest", "whoever", "nobody", "somebody", "wanted", "asked",
    "minds", "lives", "hopes", "foresight", "foresee", "habit", "temper", "mortal", "worlds",
    "amortise", "ascend", "retrace", "rehearse", "apprentice", "foretell",
)  # fmt: skip
"""As whole words, or as parts of identifiers."""
KEPT = {
    "ami_agent/cli/config_flags.py": "old flags, which name the new ones",
    "ami_agent/config.py": "ids of random streams, on which published figures depend",
    "tests/test_vocabulary.py": "the words themselves",
}
SOURCES = [
    path
    for package in ("ami_agent", "modules", "envs", "benchmarks", "tests")
    for path in sorted((HOME / package).rglob("*.py"))
    if str(path.relative_to(HOME)) not in KEPT
]
PAGES = [HOME / "README.md", HOME / "CONTRIBUTING.md", *sorted((HOME / "docs").rglob("*.md"))]
PATTERN = re.compile(rf"(?<![A-Za-z])({'|'.join(RETIRED)})(?![A-Za-z])", re.I)


def found_in(text: str) -> set[str]:
    return {match.lower() for match in PATTERN.findall(text)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(HOME)))
def test_sources_use_the_words_of_the_field(path):
    with tokenize.open(path) as file:
        assert found_in(file.read()) == set()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(HOME)))
def test_documentation_uses_the_words_of_the_field(path):
    assert found_in(path.read_text()) == set()


def test_a_retired_word_is_found_as_a_part_of_a_name():
    assert found_in("def as_told(x): return seen_worlds") == {"told", "worlds"}
    assert found_in("untold, deliver, forecast") == set()
