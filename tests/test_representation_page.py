"""The exercises of docs/representation-learning.md print what the page shows."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib.image
import pytest

from ami_agent.cli import config_flags
from ami_agent.cli.command_flags import TRAIN_ALIASES, TrainFlags, resolve_aliases
from ami_agent.recipes import recipe

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "representation-learning.md"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
TOLERANCE, TRAINED_TOLERANCE = (0.01, 0.02), (0.1, 0.25)
"""Absolute and relative; the second of a line about an encoder that the page has trained."""


def close(printed: str, shown: str) -> bool:
    """Whether two lines have the same words, and numbers within the tolerance."""
    is_trained = "VICReg" in shown or "JEPA" in shown
    absolute, relative = TRAINED_TOLERANCE if is_trained else TOLERANCE
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (printed, shown)]
    words = [NUMBER.sub("#", text).split() for text in (printed, shown)]
    return words[0] == words[1] and all(
        abs(one - other) <= absolute + relative * abs(other)
        for one, other in zip(*numbers, strict=True)
    )


def test_lines_are_close_where_their_words_are_equal_and_their_numbers_close():
    assert close("rank 1.02  class -0.5", "rank 1.00 class -0.50")
    assert not close("rank 1.04", "rank 1.00")
    assert not close("rank 1.00", "class 1.00")
    assert close("JEPA 1.3", "JEPA 1.0")
    assert not close("JEPA 1.4", "JEPA 1.0")


@pytest.mark.slow
def test_the_exercises_print_and_draw_what_the_page_shows(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn, of the extra `docs`, is not installed")
    (tmp_path / "runs").symlink_to(ROOT / "runs")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", PAGE.read_text(), re.DOTALL
    )
    names = {"__name__": "documentation"}
    for number, (code, shown) in enumerate(blocks):
        output = io.StringIO()
        with redirect_stdout(output):
            exec(compile(code, f"{PAGE.name}, block {number}", "exec"), names)
        printed = output.getvalue()
        assert len(printed.splitlines()) == len(shown.splitlines()), printed
        pairs = zip(printed.splitlines(), shown.splitlines(), strict=True)
        assert [pair for pair in pairs if not close(*pair)] == []
    drawn = sorted(tmp_path.glob("*.png"))
    assert len(drawn) == 2
    for picture in drawn:
        shipped = PAGE.parent / picture.name
        assert shipped.stat().st_size < 100_000
        assert matplotlib.image.imread(shipped).shape == matplotlib.image.imread(picture).shape


def test_every_flag_of_the_table_is_one_of_training():
    shown = " ".join(re.findall(r"`(--[^`]+)`", PAGE.read_text()))
    values = dict(re.findall(r"(--\S+)(?: (\w+))?", shown))
    assert len(values) >= 12
    together = resolve_aliases(" ".join(map(" ".join, values.items())).split(), TRAIN_ALIASES)
    config, rest = config_flags.choose_components(recipe("two-rooms"), together)
    config_flags.parse(TrainFlags(config=config), rest, "ami")
