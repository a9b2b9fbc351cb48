"""The studies of the objective that ship are what they say, and can be carried out."""

from __future__ import annotations

from pathlib import Path

import pytest

import ami_agent as ami
from ami_agent.ablate.variants import named, question
from ami_agent.glossary import meaning
from ami_agent.settings import differences, to_json
from ami_agent.train import check
from tests.conftest import refuse

FILE = Path(__file__).parent.parent / "benchmarks" / "objectives.py"


@pytest.mark.parametrize("study", ["collapse", "published", "terms", "fixed", "stand_ins"])
def test_every_variant_can_be_trained_and_differs_in_the_objective_alone(study, tmp_path):
    found = named(f"{FILE}:{study}")
    base = next(iter(found.values()))
    for name, config in found.items():
        check(config, tmp_path / name, 0, False)
        assert {**vars(config), "objective": 0} == {**vars(base), "objective": 0}, name


@pytest.mark.parametrize("study", ["published", "terms", "fixed"])
def test_the_published_ablation_takes_one_term_at_a_time(study):
    whole, *others = named(f"{FILE}:{study}").values()
    taken = [
        [n for n, w in vars(whole.objective.weights).items() if w != vars(o.objective.weights)[n]]
        for o in others
    ]
    assert taken == [["variance"], ["covariance"], ["similarity"], ["inverse"]]
    assert all(vars(o.objective.weights)[n] == 0 for o, (n,) in zip(others, taken, strict=True))


@pytest.mark.parametrize("study", ["collapse", "stand_ins", "published"])
def test_what_is_asked_and_what_each_setting_means_is_told(study):
    assert len(question(f"{FILE}:{study}")) > 50
    base, *others = named(f"{FILE}:{study}").values()
    for other in others:
        changes = differences(to_json(other), to_json(base))
        assert changes
        for change in changes:
            assert meaning(other, change.partition(" is ")[0]), change


def test_what_stands_beside_a_setting_is_what_it_means():
    config = ami.recipes.two_rooms()
    assert "(inverse dynamics)" in meaning(config, "objective.weights.inverse")
    assert meaning(config, "planner.is").startswith("Adam on the actions of several proposals")
    assert meaning(config, "world.options.max_episode_steps").startswith(
        "Further keyword arguments"
    )
    assert meaning(config, "nothing.of.that") == ""


def test_they_are_asked_for_by_file_and_name(capsys):
    assert "no function 'nothing'" in refuse(capsys, "ablate", f"{FILE}:nothing")
