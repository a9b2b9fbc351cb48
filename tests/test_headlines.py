"""The figures of the README's table are the measured ones, and say whether the code has changed."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ami_agent.storage import run_dir
from tests.conftest import small

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))
import headlines  # noqa: E402
from study import Study  # noqa: E402

RECORDS = run_dir.read_json(headlines.RECORDS)


def test_the_table_of_the_readme_holds_the_stored_figures():
    readme = headlines.README.read_text()
    assert readme == headlines.with_table(readme, RECORDS)
    assert list(RECORDS) == list(headlines.HEADLINES)


@pytest.fixture
def stored():
    """A figure that the present code made."""
    headline = headlines.HEADLINES["two-rooms"]
    figures = {"Mode-2": headlines.Figure([97.0, 99.0], episodes=100)._asdict()}
    return {"figures": figures, "commit": "1234567", "code": headlines.code_of(headline)}


def test_a_figure_of_this_code_is_not_older_than_the_code(stored):
    assert headlines.changed_since("two-rooms", stored) is None
    row = headlines.table({"two-rooms": stored}).splitlines()[-1]
    assert "Mode-2 98 % [95, 99.2] (2 seeds) | `1234567` |" in row


@pytest.mark.parametrize("part", ["settings", "golden"])
def test_a_changed_setting_or_golden_number_makes_a_figure_older(stored, part):
    before = copy.deepcopy(stored)
    if part == "settings":
        before["code"][part]["two-rooms"]["actor"]["planner"]["horizon"] += 1
    else:
        before["code"][part]["two_rooms"]["sum"] += 1.0
    changed = headlines.changed_since("two-rooms", before)
    assert changed is not None
    assert ("horizon" if part == "settings" else "sum") in changed
    assert "`1234567`, older than the code |" in headlines.table({"two-rooms": before})


def test_a_setting_that_did_not_exist_then_has_its_default(stored):
    del stored["code"]["settings"]["two-rooms"]["env"]["goal_from_obs"]
    assert headlines.changed_since("two-rooms", stored) is None
    stored["code"]["settings"]["two-rooms"]["gone"] = 1
    assert headlines.changed_since("two-rooms", stored) is not None


def test_success_over_mazes_is_that_of_the_agents_of_a_seed():
    def maze(**success):
        return {seed: {"plan": {"success": {"mean": mean}, "episodes": 100}}
                for seed, mean in success.items()}  # fmt: skip

    figure = headlines.over_mazes([maze(a=1.0, b=0.5), maze(b=1.0, a=0.8)], "plan")
    assert figure == headlines.Figure([90.0, 75.0], episodes=200)


def test_a_headline_is_measured_by_training_and_evaluating_its_agents(tmp_path, monkeypatch):
    config = Study.config
    monkeypatch.setattr(Study, "config", lambda study, name: small(config(study, name)))
    study = headlines.HEADLINES["two-rooms"].study(tmp_path, 1, 2, Console())
    found = headlines.measure("two-rooms", study)
    assert set(found["figures"]) == {"Mode-2", "Mode-1"}
    for figure in found["figures"].values():
        assert figure["episodes"] == 2
        assert figure["by_seed"][0] in (0.0, 50.0, 100.0)
    manifest = run_dir.read_json(tmp_path / "two-rooms" / "0" / "manifest.json")
    assert manifest["seed"] == 0
