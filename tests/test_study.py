"""A study that was stopped is continued; no agent's figures are taken for another's."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import ami_agent as ami
from ami_agent import HOME
from tests.conftest import small

NO_CHANGES: dict = {}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Of two tiny agents, in an empty folder."""
    monkeypatch.syspath_prepend(str(HOME / "benchmarks"))
    sys.modules.pop("study", None)
    import study

    monkeypatch.setattr(
        ami.recipes, "recipe", lambda name: replace(small(ami.recipes.two_rooms()), recipe=name)
    )
    return study.Study(tmp_path, [0, 1], 2, Console(quiet=True))


def measure(study, what: str, changes=NO_CHANGES) -> tuple[list, list[int]]:
    """The figures of every agent, and which were measured."""
    looked: list[int] = []

    def find(agent, env, start: int) -> list[int]:
        looked.append(start)
        return [start, agent.planner.config.horizon]

    return study.of_agents("two-rooms", what, find, changes), looked


def test_stored_figures_are_not_measured_again(study):
    found, looked = measure(study, "this")
    assert looked == [1_000_000, 1_010_000]
    assert found == [[1_000_000, 8], [1_010_000, 8]]
    assert measure(study, "this") == (found, [])


def test_another_question_agent_or_set_of_episodes_is_measured_anew(study):
    measure(study, "this")
    planner = replace(ami.recipes.two_rooms().actor.planner, horizon=3)
    found, looked = measure(study, "this", {"actor.planner": planner})
    assert len(looked) == 2
    assert [horizon for _, horizon in found] == [3, 3]
    assert len(measure(study, "that")[1]) == 2
    study.episodes = 3
    assert len(measure(study, "this")[1]) == 2


def test_weights_without_training_are_refused_whatever_is_stored(study):
    measure(study, "this")
    facts = next(Path(study.run("two-rooms", 1)).glob("checkpoints/*/metadata.json"))
    newest = max(facts.parent.parent.glob("*/metadata.json"))
    text = newest.read_text()
    digest = text.split('"tensors.safetensors": "')[1][:64]
    newest.write_text(text.replace(digest, "0" * 64))
    with pytest.raises(ami.ConfigError, match="checksum"):  # not the figures of other weights
        measure(study, "this")


def test_a_measurement_that_fails_stores_no_figure(study):
    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        study.cached("what", fail)
    assert study.cached("what", lambda: 7) == 7
