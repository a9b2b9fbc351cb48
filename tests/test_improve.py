"""Critics and policy in turns: what a state promises is what the policy makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ami_agent import ablate, recipes
from ami_agent.agent import Agent
from ami_agent.checks import check_lessons
from ami_agent.learning import Learning
from ami_agent.lessons import Amortise, Foresee, Improve, NoLesson, Pupil
from ami_agent.lessons.base import purpose
from modules.cost import NoForesight
from modules.types import UnusableInput
from modules.world_model import Certain, Level, WorldModel
from tests.test_foresight import DISCOUNT, FOREVER, NOWHERE, remembering

PLACES = torch.linspace(-2, 2, 9)
FULL = 0.5
"""How far a full step leads."""


class Line(nn.Module):
    """s' = s + a / 2, on a line."""

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return state + FULL * action


class Homesick(nn.Module):
    """It hurts to be far from 0; nothing is rewarded."""

    def forward(self, state: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(state), state.abs()], -1)


def sitting(steps: int = 8) -> Agent:
    """Lives that stayed where they were, and hurt for it; but it knows how it could move."""
    here = PLACES[:, None, None].expand(-1, steps + 1, 1)
    felt = torch.stack([torch.zeros(9, steps), PLACES.abs()[:, None].expand(-1, steps)], -1)
    agent = remembering(here, felt, torch.zeros(9, steps, dtype=torch.bool))
    agent.world_model = WorldModel([Level(Line())], Homesick(), Certain(), action_dim=1)
    return agent


def iteration(rounds: int = 2, steps: int = 250, **how: Any) -> Improve:
    """Nothing but rest is guessed, so that all that is better is the policy's."""
    learning = Learning(steps=steps, batch=32, lr=1e-2, warmup=5, weight_decay=0)
    critics = Foresee(learning=learning, length=3, lag=0.8, futures=1, horizon=4, expectile=1.0)
    return Improve(rounds=rounds, critics=critics, policy=Amortise(learning=learning, horizon=4))


def finish(pupil: Pupil) -> None:
    while pupil.step < pupil.total:
        pupil.update()
    pupil.finish()


def foreseen(agent: Agent) -> Tensor:
    """Pain to come from each place, `[9]`."""
    with torch.no_grad():
        return agent.cost.body.foresight(PLACES[:, None])[:, 0]


def going_home() -> Tensor:
    """What is felt by who takes full steps to 0 and stays, `[9]`."""
    ahead = torch.arange(1, 30.0)
    left = (PLACES.abs()[:, None] - FULL * ahead).relu()
    return (DISCOUNT ** (ahead - 1) * left).sum(1)


def test_who_imagines_only_rest_foresees_pain_for_ever_and_who_improves_goes_home():
    agent = sitting()
    finish(iteration().critics.begin(agent, NOWHERE, seed=1))
    torch.testing.assert_close(foreseen(agent), FOREVER * PLACES.abs(), rtol=0.1, atol=0.3)
    finish(iteration().begin(agent, NOWHERE, seed=1))
    torch.testing.assert_close(foreseen(agent), going_home(), rtol=0.1, atol=0.3)
    focus = purpose(agent, agent.assignments["hide"], PLACES[:, None])
    with torch.no_grad():
        steps = agent.policy(PLACES[:, None], focus.goal, focus.condition)[:, 0]
    away = PLACES.abs() >= FULL
    assert (steps * PLACES.sign() < -0.8)[away].all()


def test_only_the_critics_of_the_drives_and_the_policy_learn():
    agent = sitting()
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    finish(iteration(steps=3).begin(agent, NOWHERE, seed=1))
    after = agent.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    learners = ("cost.body.foresight.", "policy.")
    assert moved == {name for name in before if name.startswith(learners)}
    others = {p for name, p in agent.named_parameters() if not name.startswith(learners)}
    assert all(p.grad is None and p.requires_grad for p in others)


def test_the_turns_are_critics_and_policy_again_and_again():
    pupil = iteration(rounds=2, steps=3).begin(sitting(), NOWHERE, seed=1)
    assert pupil.total == 12
    told = [{"foresight", "energy"} & pupil.update().keys() for _ in range(12)]
    assert told == 3 * [{"foresight"}] + 3 * [{"energy"}] + 3 * [{"foresight"}] + 3 * [{"energy"}]
    assert pupil.step == 12


def test_every_turn_has_a_chance_of_its_own():
    """The seed alone would draw the same moments again in every round."""
    pupil = iteration(rounds=2, steps=1).begin(sitting(), NOWHERE, seed=1)
    states = []
    for _ in range(4):
        pupil.update()
        states.append(pupil.now.random.initial_seed())
    assert states[0] != states[2]
    assert states[1] != states[3]


@pytest.mark.parametrize("at", [1, 3, 4, 8, 11])
def test_put_away_in_any_turn_it_ends_as_if_never_put_away(at):
    lesson = iteration(rounds=2, steps=3)
    whole, first, second = sitting(), sitting(), sitting()
    finish(lesson.begin(whole, NOWHERE, seed=1))
    pupil = lesson.begin(first, NOWHERE, seed=1)
    for _ in range(at):
        pupil.update()
    kept = {name: value.clone() for name, value in pupil.state_dict().items()}
    second.load_state_dict(first.state_dict())  # as a checkpoint puts weights back first
    pupil = lesson.begin(second, NOWHERE, seed=1)
    pupil.load_state_dict(kept)
    assert pupil.step == at
    finish(pupil)
    torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_no_rounds_are_refused():
    with pytest.raises(UnusableInput, match="rounds is 0; it must be at least 1"):
        Improve(rounds=0)


FORAGE = recipes.forage()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            replace(FORAGE, foresight=NoForesight.Config(), foresee=NoLesson()),
            "improve teaches critics of drives",
        ),
        (
            replace(FORAGE, improve=Improve(policy=Amortise(tasks=("fly",)))),
            "improve.policy.tasks names 'fly'; there are eat, flag",
        ),
        (
            replace(FORAGE, improve=Improve()),
            "improve.policy can't practise 'explore'.*improve.policy.tasks may name eat, flag",
        ),
        (
            replace(FORAGE, improve=replace(FORAGE.improve, critics=Foresee(length=300))),
            "improve.critics.length is 300, but a life has 205 steps",
        ),
    ],
)
def test_what_cannot_be_improved_is_refused_before_anything_is_learnt(config, said):
    with pytest.raises(UnusableInput, match=said):
        check_lessons(config)


@pytest.mark.parametrize("part", ["policy", "foresight", "drives"])
def test_what_it_improves_cannot_be_taken_away_without_it(part):
    config = ablate.without(FORAGE, part)
    assert isinstance(config.improve, NoLesson)
    check_lessons(config)
