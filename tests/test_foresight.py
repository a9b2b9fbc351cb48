"""The critics of the drives foresee what is still to come, and a limit goes before all else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ami_agent import recipes
from ami_agent.agent import Agent
from ami_agent.build import build
from ami_agent.learning import Learning
from ami_agent.lessons import Foresee
from ami_agent.life import Sense, Spec, WorldConfig
from ami_agent.losses import lambda_returns
from modules.bounds import Box
from modules.configurator import Assignment, Configurator
from modules.cost import LIMIT_PRICE, Body, Cost, Foresight, NoCritic, NoForesight
from modules.drives import Drives
from modules.dynamics import VectorDynamics
from modules.layers import InUnits, Judges
from modules.perception import Senses
from modules.planners import CEM, GradientPlanner, MindsEye
from modules.types import ALIVE, Focus, Gains, Plan, Rollout, Transition, UnusableInput
from modules.world_model import Certain, Feeling, Numb, WorldModel
from tests.conftest import stepwise, wish

CHANNELS = ("reward", "damage")
DISCOUNT = 0.8
FOREVER = 1 / (1 - DISCOUNT)
"""What a cost of 1 at every step comes to."""
NOWHERE = WorldConfig(id="ami/TwoRooms-v0")
"""Nobody lives in it: memory is filled by hand."""


class AsItIs(nn.Module):
    """A state that is nothing but what is seen."""

    def forward(self, obs: Tensor, gains: Gains) -> Tensor:
        return obs


def remembering(places: Tensor, felt: Tensor, ended: Tensor) -> Agent:
    """An agent that lived so, once: places `[B, T + 1, D]`, what was felt on arrival `[B, T, 2]`,
    where life ended `[B, T]`."""
    count, steps, size = *felt.shape[:2], places.shape[-1]
    config = replace(
        recipes.two_rooms(),
        perception=Senses.Config(vector=size, waves=0, hidden=4),
        world_model=WorldModel.Config(
            dynamics=VectorDynamics.Config(hidden=4), feeling=Feeling.Config(hidden=4)
        ),
        drives=("pain", "reward"),
        critic=NoCritic.Config(),
        foresight=Foresight.Config(hidden=32, discount=DISCOUNT),
        configurator=Configurator.Config(critic=0.0),
        tasks={"hide": Assignment(drives={"pain": 1.0})},
    )
    spec = Spec({"obs": Sense((size,), torch.float32)}, 1, CHANNELS)
    agent = build(config, spec, worlds=count, capacity=steps)
    agent.perception = AsItIs()
    for step in range(steps):
        agent.observe(
            Transition(
                obs=places[:, step],
                action=torch.zeros(count, 1),
                interoception=felt[:, step],
                next_obs=places[:, step + 1],
                terminated=ended[:, step],
                truncated=torch.zeros_like(ended[:, step]),
            )
        )
    return agent


def settled(felt: Tensor, steps: int = 12) -> Agent:
    """Lives that stay where they are, each in a place of its own, and feel the same at every step:
    `[B, 2]`."""
    here = torch.eye(len(felt))[:, None].expand(-1, steps + 1, -1)
    every = felt[:, None].expand(-1, steps, -1)
    return remembering(here, every, torch.zeros(len(felt), steps, dtype=torch.bool))


def lesson(steps: int = 300, **how: Any) -> Foresee:
    learning = Learning(steps=steps, batch=32, lr=1e-2, warmup=5, weight_decay=0)
    return Foresee(learning=learning, length=3, lag=0.8, **how)


def take(agent: Agent, foresee: Foresee) -> None:
    pupil = foresee.begin(agent, NOWHERE, seed=1)
    while pupil.step < pupil.total:
        pupil.update()
    pupil.finish()


@torch.no_grad()
def foreseen(agent: Agent, count: int) -> Tensor:
    """In each of so many places, of pain and of reward; `[N, 2]`."""
    return agent.cost.body.foresight(torch.eye(count))


COSTS = torch.tensor([1.0, 2.0, 4.0])[None, :, None]
AHEAD = torch.tensor([10.0, 20.0, 30.0])[None, :, None]


@pytest.mark.parametrize(
    ("trace", "end", "by_hand"),
    [
        (0.0, None, [1 + 5, 2 + 10, 4 + 15]),
        (1.0, None, [1 + 0.5 * (2 + 0.5 * 19), 2 + 0.5 * 19, 4 + 15]),
        (0.0, 1, [6, 2, 19]),
        (1.0, 1, [1 + 0.5 * 2, 2, 19]),
        (0.0, 2, [6, 12, 4]),
        (1.0, 2, [1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 4]),
    ],
)
def test_returns_of_a_chain_solved_by_hand(trace, end, by_hand):
    ended = torch.arange(3)[None] == (-1 if end is None else end)
    assert lambda_returns(COSTS, AHEAD, ~ended, 0.5, trace).flatten().tolist() == by_hand


def test_every_life_and_every_drive_has_returns_of_its_own():
    costs, ahead = torch.cat([COSTS, -3 * COSTS]), torch.cat([AHEAD, AHEAD.square()])
    costs, ahead = torch.cat([costs, costs.flip(1)], -1), torch.cat([ahead, 2 * ahead], -1)
    ended = torch.tensor([[False, True, False], [False, False, False]])
    whole = lambda_returns(costs, ahead, ~ended, 0.5, 0.7)
    for life in range(2):
        for drive in range(2):
            part = (slice(life, life + 1), slice(None), slice(drive, drive + 1))
            alone = lambda_returns(costs[part], ahead[part], ~ended[life, None], 0.5, 0.7)
            torch.testing.assert_close(whole[part], alone)


@pytest.mark.parametrize("trace", [0.0, 0.8, 1.0])
def test_a_cost_that_never_changes_is_foreseen_as_its_sum_over_all_time(trace):
    felt = torch.tensor([[0.5, 0.3], [-1.0, 1.0], [0.2, 2.0]])  # reward, damage
    agent = settled(felt)
    take(agent, lesson(trace=trace))
    by_hand = torch.stack([felt[:, 1], -felt[:, 0]], 1) * FOREVER
    torch.testing.assert_close(foreseen(agent, 3), by_hand, rtol=0.05, atol=0)


@pytest.mark.parametrize("trace", [0.0, 1.0])
def test_what_a_chain_leads_to_is_foreseen_and_nothing_beyond_its_end(trace):
    hurts = torch.tensor([0.0, 1.0, 0.0, 3.0])  # on arrival at the places 1 to 4
    felt = torch.stack([torch.zeros(4), hurts], -1)[None].expand(2, -1, -1)
    ended = (torch.arange(4) == 3)[None].expand(2, -1)
    agent = remembering(torch.eye(5)[None].expand(2, -1, -1), felt, ended)
    take(agent, lesson(trace=trace))
    by_hand = [sum(DISCOUNT**k * c for k, c in enumerate(hurts[i:].tolist())) for i in range(4)]
    learnt = foreseen(agent, 5)[:4, 0]
    torch.testing.assert_close(learnt, torch.tensor(by_hand), rtol=0.05, atol=0.05)


class Whim(WorldModel):
    """An imagination in which nothing moves, it hurts little to go one way, which is not rewarded,
    and much to go the other, which is."""

    def __init__(self) -> None:
        super().__init__([], Numb(), Certain(), action_dim=1)

    def imagine(self, state: Tensor, actions: Tensor) -> Rollout:
        states = state[:, None, None].expand(-1, *actions.shape[1:3], -1)
        states = torch.cat([states, states[:, :, :1]], 2)
        kind = actions < 0  # [B, P, H, 1]
        felt = torch.cat([torch.where(kind, 0.0, 1.0), torch.where(kind, 0.2, 1.0)], -1)
        return Rollout(states, actions, actions[..., :0], felt)


@pytest.mark.parametrize(
    ("futures", "by_hand"), [(0, [1.0, 0.0]), (1, [1.0, -1.0]), (48, [0.2, -1.0])]
)
def test_the_cheapest_future_that_can_be_imagined_is_what_a_state_promises(futures, by_hand):
    """For each drive by itself. The only future imagined of one is rest, and what memory felt
    dearer counts for nothing at an expectile of 1; with memory alone it has to count."""
    agent = settled(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    agent.world_model = Whim()
    take(agent, lesson(futures=futures, expectile=1.0 if futures else 0.8, horizon=3))
    wanted = FOREVER * torch.tensor(by_hand).expand(2, -1)
    torch.testing.assert_close(foreseen(agent, 2), wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("futures", [0, 4])
def test_only_the_critics_of_the_drives_learn(futures):
    agent = settled(torch.tensor([[0.5, 0.3], [-1.0, 1.0]]))
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    take(agent, lesson(steps=3, futures=futures))
    after = agent.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    still = {f"cost.body.foresight.{name}" for name in ("offset", "terminal", "gamma")}
    critics = {name for name in before if name.startswith("cost.body.foresight.")}
    assert moved == critics - still
    learners = set(agent.cost.body.foresight.parameters())
    assert all(p.grad is None and p.requires_grad for p in set(agent.parameters()) - learners)


@pytest.mark.parametrize("futures", [0, 4])
def test_put_away_and_taken_up_again_it_ends_as_if_never_put_away(futures):
    felt = torch.tensor([[0.5, 0.3], [-1.0, 1.0]])
    plan = lesson(steps=6, futures=futures)
    whole, first, second = (settled(felt) for _ in range(3))
    take(whole, plan)
    pupil = plan.begin(first, NOWHERE, seed=1)
    for _ in range(3):
        pupil.update()
    kept = {name: value.clone() for name, value in pupil.state_dict().items()}
    pupil = plan.begin(second, NOWHERE, seed=1)
    pupil.load_state_dict(kept)
    assert pupil.step == 3
    while pupil.step < pupil.total:
        pupil.update()
    torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_what_it_logs_says_how_well_foresight_agrees_with_what_is_felt():
    agent = settled(torch.tensor([[0.5, 0.3], [-1.0, 1.0], [0.2, 2.0]]))
    pupil = lesson().begin(agent, NOWHERE, seed=1)
    told = [pupil.update() for _ in range(pupil.total)]
    assert told[0]["correlation"] < 0.9
    assert told[-1]["correlation"] > 0.99
    assert abs(told[-1]["bias"]) < 0.1


def test_who_has_no_drives_cannot_foresee_them():
    config = replace(recipes.two_rooms(), tasks={"rest": Assignment(weights={"effort": 1.0})})
    agent = build(config, NOWHERE.build(1).spec)
    with pytest.raises(UnusableInput, match="without drives or foresight"):
        lesson().begin(agent, NOWHERE, seed=0)


@pytest.mark.parametrize(
    ("setting", "least"),
    [("length", 1), ("horizon", 1), ("trace", 0), ("expectile", 0), ("lag", 0), ("futures", 0)],
)
def test_settings_that_make_no_sense_are_refused_by_name(setting, least):
    with pytest.raises(UnusableInput, match=f"{setting} is {least - 1}"):
        Foresee(**{setting: least - 1})


@pytest.mark.parametrize("setting", ["trace", "expectile", "lag"])
def test_shares_are_no_more_than_one(setting):
    with pytest.raises(UnusableInput, match=f"{setting} is 1.5; it must be from 0 to 1$"):
        Foresee(**{setting: 1.5})
    Foresee(**{setting: 1.0})


class Table(nn.Module):
    """Foresees what a table says of a place, which is the state; `[..., 1]` -> `[..., 1]`."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, state: Tensor) -> Tensor:
        return self.values[state.long()]


HURTS = torch.tensor([0.0, 0.3, 0.0, 1.0, 0.2, 0.0])
"""On arrival at each place of a chain, after which nothing more is felt."""


def along(horizon: int) -> Rollout:
    """The first steps along the chain."""
    states = torch.arange(horizon + 1.0)[None, None, :, None]
    felt = torch.stack([torch.zeros(horizon), HURTS[1 : horizon + 1]], -1)[None, None]
    actions = torch.zeros(1, 1, horizon, 1)
    return Rollout(states, actions, actions[..., :0], felt)


def body(drives: tuple[str, ...], values: Tensor | None = None) -> Body:
    """One that foresees these values, or nothing."""
    if values is None:
        return Body(Drives(drives, CHANNELS), NoForesight(DISCOUNT))
    foresight = Foresight(Judges([Table(values)]), len(drives), DISCOUNT)
    return Body(Drives(drives, CHANNELS), foresight)


def test_of_several_critics_the_gloomiest_is_believed_and_each_learns():
    tables = Judges([Table(torch.tensor([1.0, 5.0])), Table(torch.tensor([2.0, 3.0]))])
    both = Foresight(tables, 1, DISCOUNT)
    places = torch.tensor([[0.0], [1.0]])
    torch.testing.assert_close(both(places), torch.tensor([[2.0], [5.0]]))
    assert both.every(places).shape == (2, 2, 1)
    built = Foresight.Config(hidden=8, critics=3, norm=True).build((4, 1, 1), 2)
    state = torch.randn(5, 4)
    one, *others = built.every(state)
    assert not any(one.equal(other) for other in others)
    built.every(state).sum().backward()
    assert all(p.grad is not None for p in built.parameters())
    far = built(1e4 * state).abs().max()
    assert far < 10 * built(state).abs().max().clamp_min(1)  # normed: strange states stay in bounds


@pytest.mark.parametrize("horizon", range(1, 6))
def test_with_true_foresight_a_short_look_and_a_long_one_expect_the_same(horizon):
    values = torch.zeros(6)
    for i in reversed(range(5)):
        values[i] = HURTS[i + 1] + DISCOUNT * values[i + 1]
    known = body(("pain",), values)(along(horizon), {})
    torch.testing.assert_close((known["pain"] + known["critic_pain"]).squeeze(), values[0])


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_an_estimate_is_the_mean_of_what_looks_of_every_length_expect(horizon):
    values = torch.tensor([9.0, 7.0, -5.0, 3.0, 2.0, 8.0])
    soon, late = 0.0, 0.0
    for k in range(1, horizon + 1):
        for j in range(k):
            soon += DISCOUNT**j * float(HURTS[j + 1]) / horizon
        late += DISCOUNT**k * float(values[k]) / horizon
    known = body(("pain",), values)(along(horizon), {})
    assert known["pain"].item() == pytest.approx(soon)
    assert known["critic_pain"].item() == pytest.approx(late)
    alone = body(("pain",))(along(horizon), {})
    assert {name: term.item() for name, term in alone.items()} == {"pain": pytest.approx(soon)}


def stairs(state: Tensor, actions: Tensor) -> Rollout:
    """The world s' = s + a on a line, where to be high is rewarded and to be far from 0 hurts."""
    start = state[:, None, None].expand(-1, actions.shape[1], 1, -1)
    states = torch.cat([start, start + actions.cumsum(2)], 2)
    high = states[:, :, 1:]
    return Rollout(states, actions, actions[..., :0], torch.cat([high, high.abs()], -1))


EYE = MindsEye(
    stairs,
    stepwise(stairs),
    Cost(NoCritic(), body(("pain", "reward")), Certain().disagreement),
    Box(),
    1,
)


def nothing(state: Tensor, focus: Focus) -> Tensor:
    return state.new_empty(len(state), 0, focus.horizon, 1)


PLANNERS: dict[str, Callable[[], GradientPlanner | CEM]] = {
    "gradient": lambda: GradientPlanner.Config(lr=0.05).build(EYE, nothing),
    "cem": lambda: CEM.Config(samples=128).build(EYE, nothing),
}


def climb(planner: str, heights: list[float], **limits: float) -> Plan:
    """Mode-2's plan to get high within two steps, from each of these heights."""
    here = torch.tensor(heights)[:, None]
    task = wish(here, weights={"reward": 1.0}, limits=limits, horizon=2, steps=200)
    return PLANNERS[planner]()(here, task)


@pytest.mark.parametrize("planner", PLANNERS)
def test_who_can_keep_a_limit_goes_as_far_as_it_allows_and_pays_nothing(planner):
    free, bound = climb(planner, [0.0, 0.3]), climb(planner, [0.0, 0.3], pain=0.5)
    assert (free.states.amax(1) > 1.8).all()
    assert (bound.states <= 0.5).all()
    assert (bound.states[:, 1:] > 0.35).all()
    assert not bound.violation.any()
    assert not free.violation.any()


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_limit_that_no_plan_can_keep_is_exceeded_as_little_as_can_be(planner):
    plan = climb(planner, [3.0, -2.0, 0.0], pain=0.5)
    least = LIMIT_PRICE * torch.tensor([1.5 + 0.5, 0.5, 0.0])  # full steps towards 0, though it
    torch.testing.assert_close(plan.violation, least, atol=2.5, rtol=0)  # is high that is rewarded


@settings(max_examples=60, deadline=None)
@given(
    felt=st.lists(st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0]), min_size=4, max_size=4),
    most=st.dictionaries(st.sampled_from(["pain", "reward"]), st.sampled_from([-0.5, 0.25, 0.5])),
)
def test_violation_is_0_exactly_where_every_limit_holds_at_every_step(felt, most):
    numbers = torch.tensor(felt).view(1, 1, 2, 2)  # reward and damage, twice
    eye = replace(EYE, imagine=lambda state, a: Rollout(state[:, None], a, a[..., :0], numbers))
    here, actions = torch.zeros(1, 3, 1), torch.zeros(1, 1, 2, 1)
    task = wish(here[:, 0], weights={"effort": 1.0}, limits=most)
    plan = eye.decide(here, actions, task)
    hurts = {"pain": numbers[..., 1], "reward": -numbers[..., 0]}
    kept = {name: bool((hurts[name] <= limit).all()) for name, limit in most.items()}
    assert (plan.violation.item() == 0) == all(kept.values())
    assert {name: plan.terms[f"limit {name}"].item() == 0 for name in most} == kept
    assert set(plan.terms) == {"effort", *(f"limit {name}" for name in most)}


def test_nothing_is_promised_after_death_and_no_limit_broken():
    """Of a future in which the second step is the last."""
    channels = ("reward", "damage", ALIVE)
    drives = Drives(("pain",), channels)
    felt = torch.tensor([[0.0, 1.0, 1.0], [0.0, 2.0, 0.0], [0.0, 4.0, 1.0]]).expand(1, 1, 3, 3)
    before, after = drives.alive(felt)
    assert before.tolist() == [[[1, 1, 0]]]
    assert after.tolist() == [[[1, 0, 0]]]
    future = Rollout(
        torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 0), felt
    )
    body = Body(drives, NoForesight(DISCOUNT))
    assert body(future, {"pain": 1.0})["limit pain"].item() == 1  # by the second step alone

    agent = settled(torch.zeros(2, 2))
    pupil = lesson(futures=1, horizon=3).begin(agent, NOWHERE, seed=1)
    pupil.drives, pupil.model = drives, Certainly(future)
    wild = lambda states: states.new_full((*states.shape[:-1], 1), 100.0)  # noqa: E731
    pupil.slow = SimpleNamespace(average=wild)
    pupil.foresight.terminal = torch.zeros(1)  # of that one drive
    promised = pupil._imagined(torch.zeros(1, 2), torch.Generator())
    torch.testing.assert_close(promised, torch.tensor([[1 + DISCOUNT * 2]]))


class Certainly(nn.Module):
    """Imagines one future, whatever is done."""

    def __init__(self, future: Rollout) -> None:
        super().__init__()
        self.future = future

    def imagine(self, state: Tensor, actions: Tensor) -> Rollout:
        return self.future


def test_a_reward_that_was_never_met_can_still_be_learnt():
    layers = InUnits(nn.Linear(1, 2), 2)
    layers.adapt(torch.stack([torch.zeros(50), torch.linspace(0, 1e-3, 50)], 1))
    assert layers.scale[0] == 1
    assert 1e-4 < layers.scale[1] < 1e-3  # what is small is told in its own unit
