"""The value critics predict the future cost of each drive, and a limit goes before all else."""

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
from ami_agent.adapters.env import EnvConfig, EnvironmentSpec
from ami_agent.adapters.tensors import ModalitySpec
from ami_agent.agent import Agent
from ami_agent.config import build, override
from ami_agent.training import TrainValue
from ami_agent.training.critics import lambda_returns
from ami_agent.training.optim import OptimConfig
from modules.actor.planning import (
    CEM,
    CEMConfig,
    GradientPlanner,
    GradientPlannerConfig,
    RolloutEvaluator,
)
from modules.actor.policy import BoxActions
from modules.configurator import ConfiguratorConfig, TaskSpec
from modules.cost.cost import CONSTRAINT_PENALTY, Cost
from modules.cost.drives import Drives, InteroceptiveCost
from modules.cost.value_critics import ValueCritics, ValueCriticsConfig
from modules.nets import EnsembleHead, StandardizedHead
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.types import (
    CONTINUE,
    ConfigError,
    ModalityWeights,
    Plan,
    Rollout,
    TaskContext,
    Transition,
)
from modules.world_model.dynamics import MLPDynamicsConfig
from modules.world_model.jepa import (
    InteroceptionHeadConfig,
    NoEnsemble,
    NoInteroception,
    WorldModel,
    WorldModelConfig,
)
from modules.world_model.latents import Latent
from tests.conftest import Stepping, make_context, stepwise

CHANNELS = ("reward", "damage")
DISCOUNT = 0.8
FOREVER = 1 / (1 - DISCOUNT)
"""The discounted sum of a cost of 1 at every step."""
FAR_AWAY = EnvConfig(id="ami/TwoRooms-v0")
"""No agent acts in it: the replay buffer is filled by hand."""


class AsItIs(nn.Module):
    """A state that is the observation alone."""

    def forward(self, obs: Tensor, gains: ModalityWeights) -> Tensor:
        return obs


def remembering(positions: Tensor, interoception: Tensor, done: Tensor) -> Agent:
    """An agent with these episodes: positions `[B, T + 1, D]`, interoception on arrival
    `[B, T, 2]`, where an episode ended `[B, T]`."""
    count, steps, size = *interoception.shape[:2], positions.shape[-1]
    config = override(
        recipes.two_rooms(),
        {
            "perception": MultiModalEncoderConfig(vector_dim=size, num_frequencies=0, hidden=4),
            "world_model": WorldModelConfig(
                dynamics=MLPDynamicsConfig(hidden=4),
                interoception_head=InteroceptionHeadConfig(hidden=4),
            ),
            "cost.drives": ("pain", "reward"),
            "cost.goal_critic": None,
            "cost.value_critics": ValueCriticsConfig(hidden=32, discount=DISCOUNT),
            "configurator": ConfiguratorConfig(critic=0.0),
            "tasks": {"hide": TaskSpec(drives={"pain": 1.0})},
        },
    )
    spec = EnvironmentSpec({"obs": ModalitySpec((size,), torch.float32)}, 1, CHANNELS)
    agent = build(config, spec, num_envs=count, buffer_size=steps)
    agent.perception = AsItIs()
    for step in range(steps):
        agent.remember(
            Transition(
                obs=positions[:, step],
                action=torch.zeros(count, 1),
                interoception=interoception[:, step],
                next_obs=positions[:, step + 1],
                terminated=done[:, step],
                truncated=torch.zeros_like(done[:, step]),
            )
        )
    return agent


def settled(interoception: Tensor, steps: int = 12) -> Agent:
    """Episodes that stay where they are, each at a position of its own, with the same interoception
    at every step: `[B, 2]`."""
    here = torch.eye(len(interoception))[:, None].expand(-1, steps + 1, -1)
    every = interoception[:, None].expand(-1, steps, -1)
    return remembering(here, every, torch.zeros(len(interoception), steps, dtype=torch.bool))


def make_stage(steps: int = 300, **how: Any) -> TrainValue:
    optim = OptimConfig(steps=steps, batch_size=32, lr=1e-2, warmup_steps=5, weight_decay=0)
    return TrainValue(optim=optim, length=3, ema_decay=0.8, **how)


def take(agent: Agent, stage: TrainValue) -> None:
    stage_run = stage.start(agent, FAR_AWAY, seed=1)
    while stage_run.step < stage_run.total:
        stage_run.update()
    stage_run.finish()


@torch.no_grad()
def predicted(agent: Agent, count: int) -> Tensor:
    """At each of so many positions, of pain and of reward; `[N, 2]`."""
    return agent.cost.interoceptive_cost.value_critics(torch.eye(count))


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
    done = torch.arange(3)[None] == (-1 if end is None else end)
    assert lambda_returns(COSTS, AHEAD, ~done, 0.5, trace).flatten().tolist() == by_hand


def test_every_episode_and_every_drive_has_returns_of_its_own():
    costs, ahead = torch.cat([COSTS, -3 * COSTS]), torch.cat([AHEAD, AHEAD.square()])
    costs, ahead = torch.cat([costs, costs.flip(1)], -1), torch.cat([ahead, 2 * ahead], -1)
    done = torch.tensor([[False, True, False], [False, False, False]])
    whole = lambda_returns(costs, ahead, ~done, 0.5, 0.7)
    for episode in range(2):
        for drive in range(2):
            part = (slice(episode, episode + 1), slice(None), slice(drive, drive + 1))
            single = lambda_returns(costs[part], ahead[part], ~done[episode, None], 0.5, 0.7)
            torch.testing.assert_close(whole[part], single)


@pytest.mark.parametrize("trace", [0.0, 0.8, 1.0])
def test_a_constant_cost_is_predicted_as_its_discounted_sum(trace):
    interoception = torch.tensor([[0.5, 0.3], [-1.0, 1.0], [0.2, 2.0]])  # reward, damage
    agent = settled(interoception)
    take(agent, make_stage(td_lambda=trace))
    by_hand = torch.stack([interoception[:, 1], -interoception[:, 0]], 1) * FOREVER
    torch.testing.assert_close(predicted(agent, 3), by_hand, rtol=0.05, atol=0)


@pytest.mark.parametrize("trace", [0.0, 1.0])
def test_values_of_a_chain_are_learnt_and_end_with_the_episode(trace):
    hurts = torch.tensor([0.0, 1.0, 0.0, 3.0])  # on arrival at the positions 1 to 4
    interoception = torch.stack([torch.zeros(4), hurts], -1)[None].expand(2, -1, -1)
    done = (torch.arange(4) == 3)[None].expand(2, -1)
    agent = remembering(torch.eye(5)[None].expand(2, -1, -1), interoception, done)
    take(agent, make_stage(td_lambda=trace))
    by_hand = [sum(DISCOUNT**k * c for k, c in enumerate(hurts[i:].tolist())) for i in range(4)]
    learnt = predicted(agent, 5)[:4, 0]
    torch.testing.assert_close(learnt, torch.tensor(by_hand), rtol=0.05, atol=0.05)


class StaticModel(WorldModel):
    """An imagination in which nothing moves, going one way hurts little and is not rewarded,
    and going the other way hurts much and is."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), Latent(), NoInteroception(), NoEnsemble(), action_dim=1)

    def imagine(self, state: Tensor, actions: Tensor) -> Rollout:
        states = state[:, None, None].expand(-1, *actions.shape[1:3], -1)
        states = torch.cat([states, states[:, :, :1]], 2)
        kind = actions < 0  # [B, P, H, 1]
        interoception = torch.cat([torch.where(kind, 0.0, 1.0), torch.where(kind, 0.2, 1.0)], -1)
        return Rollout(states, actions, actions[..., :0], interoception)


@pytest.mark.parametrize(
    ("futures", "by_hand"), [(0, [1.0, 0.0]), (1, [1.0, -1.0]), (48, [0.2, -1.0])]
)
def test_the_value_of_a_state_is_the_cheapest_imagined_future(futures, by_hand):
    """For each drive by itself. The only imagined future of one is rest, and costlier steps of
    the buffer count for nothing at an expectile of 1; with the buffer alone they have to count."""
    agent = settled(torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    agent.world_model = StaticModel()
    take(agent, make_stage(num_imagined=futures, expectile=1.0 if futures else 0.8, horizon=3))
    target = FOREVER * torch.tensor(by_hand).expand(2, -1)
    torch.testing.assert_close(predicted(agent, 2), target, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("futures", [0, 4])
def test_only_the_value_critics_are_trained(futures):
    agent = settled(torch.tensor([[0.5, 0.3], [-1.0, 1.0]]))
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    take(agent, make_stage(steps=3, num_imagined=futures))
    after = agent.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    still = {
        f"cost.interoceptive_cost.value_critics.{name}" for name in ("offset", "terminal", "gamma")
    }
    critics = {name for name in before if name.startswith("cost.interoceptive_cost.value_critics.")}
    assert moved == critics - still
    learners = set(agent.cost.interoceptive_cost.value_critics.parameters())
    assert all(p.grad is None and p.requires_grad for p in set(agent.parameters()) - learners)


@pytest.mark.parametrize("futures", [0, 4])
def test_saved_and_restored_it_ends_as_if_never_interrupted(futures):
    interoception = torch.tensor([[0.5, 0.3], [-1.0, 1.0]])
    plan = make_stage(steps=6, num_imagined=futures)
    whole, first, second = (settled(interoception) for _ in range(3))
    take(whole, plan)
    stage_run = plan.start(first, FAR_AWAY, seed=1)
    for _ in range(3):
        stage_run.update()
    kept = {name: value.clone() for name, value in stage_run.state_dict().items()}
    stage_run = plan.start(second, FAR_AWAY, seed=1)
    stage_run.load_state_dict(kept)
    assert stage_run.step == 3
    while stage_run.step < stage_run.total:
        stage_run.update()
    torch.testing.assert_close(second.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_the_logged_correlation_says_how_well_the_values_fit_the_returns():
    agent = settled(torch.tensor([[0.5, 0.3], [-1.0, 1.0], [0.2, 2.0]]))
    stage_run = make_stage().start(agent, FAR_AWAY, seed=1)
    output = [stage_run.update() for _ in range(stage_run.total)]
    assert output[0]["correlation"] < 0.9
    assert output[-1]["correlation"] > 0.99
    assert abs(output[-1]["bias"]) < 0.1


def test_an_agent_without_drives_has_no_values_to_predict():
    config = replace(recipes.two_rooms(), tasks={"rest": TaskSpec(weights={"control_cost": 1.0})})
    agent = build(config, FAR_AWAY.build(1).spec)
    with pytest.raises(ConfigError, match="without drives or value_critics"):
        make_stage().start(agent, FAR_AWAY, seed=0)


@pytest.mark.parametrize(
    ("setting", "least"),
    [
        ("length", 1),
        ("horizon", 1),
        ("td_lambda", 0),
        ("expectile", 0),
        ("ema_decay", 0),
        ("num_imagined", 0),
    ],
)
def test_invalid_settings_are_refused_by_name(setting, least):
    with pytest.raises(ConfigError, match=f"{setting} is {least - 1}"):
        TrainValue(**{setting: least - 1})


@pytest.mark.parametrize("setting", ["td_lambda", "expectile", "ema_decay"])
def test_fractions_are_at_most_one(setting):
    with pytest.raises(ConfigError, match=f"{setting} is 1.5; it must be from 0 to 1$"):
        TrainValue(**{setting: 1.5})
    TrainValue(**{setting: 1.0})


class Table(nn.Module):
    """Predicts what a table says of a position, which is the state; `[..., 1]` -> `[..., 1]`."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, state: Tensor) -> Tensor:
        return self.values[state.long()]


HURTS = torch.tensor([0.0, 0.3, 0.0, 1.0, 0.2, 0.0])
"""On arrival at each position of a chain, after which there is no interoception."""


def along(horizon: int) -> Rollout:
    """The first steps along the chain."""
    states = torch.arange(horizon + 1.0)[None, None, :, None]
    interoception = torch.stack([torch.zeros(horizon), HURTS[1 : horizon + 1]], -1)[None, None]
    actions = torch.zeros(1, 1, horizon, 1)
    return Rollout(states, actions, actions[..., :0], interoception)


def cost_of(drives: tuple[str, ...], values: Tensor | None = None) -> InteroceptiveCost:
    """A cost with these values, or with none."""
    if values is None:
        return InteroceptiveCost(Drives(drives, CHANNELS), None, DISCOUNT)
    value_critics = ValueCritics(EnsembleHead([Table(values)]), len(drives), DISCOUNT)
    return InteroceptiveCost(Drives(drives, CHANNELS), value_critics)


def test_of_several_critics_the_most_pessimistic_counts_and_each_is_trained():
    tables = EnsembleHead([Table(torch.tensor([1.0, 5.0])), Table(torch.tensor([2.0, 3.0]))])
    both = ValueCritics(tables, 1, DISCOUNT)
    positions = torch.tensor([[0.0], [1.0]])
    torch.testing.assert_close(both(positions), torch.tensor([[2.0], [5.0]]))
    assert both.all_values(positions).shape == (2, 2, 1)
    built = ValueCriticsConfig(hidden=8, num_critics=3, norm=True).build((4, 1, 1), 2)
    state = torch.randn(5, 4)
    one, *others = built.all_values(state)
    assert not any(one.equal(other) for other in others)
    built.all_values(state).sum().backward()
    assert all(p.grad is not None for p in built.parameters())
    far = built(1e4 * state).abs().max()
    assert far < 10 * built(state).abs().max().clamp_min(1)  # normalised


@pytest.mark.parametrize("horizon", range(1, 6))
def test_with_true_values_a_short_horizon_and_a_long_one_give_the_same_energy(horizon):
    values = torch.zeros(6)
    for i in reversed(range(5)):
        values[i] = HURTS[i + 1] + DISCOUNT * values[i + 1]
    known = cost_of(("pain",), values)(along(horizon), {})
    torch.testing.assert_close((known["pain"] + known["critic_pain"]).squeeze(), values[0])


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_an_estimate_is_the_mean_of_the_estimates_of_every_length(horizon):
    values = torch.tensor([9.0, 7.0, -5.0, 3.0, 2.0, 8.0])
    soon, late = 0.0, 0.0
    for k in range(1, horizon + 1):
        for j in range(k):
            soon += DISCOUNT**j * float(HURTS[j + 1]) / horizon
        late += DISCOUNT**k * float(values[k]) / horizon
    known = cost_of(("pain",), values)(along(horizon), {})
    assert known["pain"].item() == pytest.approx(soon)
    assert known["critic_pain"].item() == pytest.approx(late)
    single = cost_of(("pain",))(along(horizon), {})
    assert {name: term.item() for name, term in single.items()} == {"pain": pytest.approx(soon)}


def stairs(state: Tensor, actions: Tensor) -> Rollout:
    """The dynamics s' = s + a on a line, where height is rewarded and distance from 0 hurts."""
    start = state[:, None, None].expand(-1, actions.shape[1], 1, -1)
    states = torch.cat([start, start + actions.cumsum(2)], 2)
    high = states[:, :, 1:]
    return Rollout(states, actions, actions[..., :0], torch.cat([high, high.abs()], -1))


EYE = RolloutEvaluator(
    stairs,
    stepwise(stairs),
    Cost(None, cost_of(("pain", "reward")), NoEnsemble().disagreement),
    BoxActions(),
    1,
)


def nothing(state: Tensor, context: TaskContext, rng: torch.Generator) -> Tensor:
    return state.new_empty(len(state), 0, context.horizon, 1)


PLANNERS: dict[str, Callable[[], GradientPlanner | CEM]] = {
    "gradient": lambda: GradientPlannerConfig(lr=0.05).build(EYE, nothing),
    "cem": lambda: CEMConfig(num_samples=128).build(EYE, nothing),
}


def climb(planner: str, heights: list[float], **limits: float) -> Plan:
    """Mode-2's plan to get high within two steps, from each of these heights."""
    here = torch.tensor(heights)[:, None]
    task = make_context(here, weights={"reward": 1.0}, limits=limits, horizon=2, iterations=200)
    return Stepping(PLANNERS[planner]())(here, task)


@pytest.mark.parametrize("planner", PLANNERS)
def test_within_a_feasible_limit_the_plan_goes_to_the_limit_and_pays_nothing(planner):
    free, bound = climb(planner, [0.0, 0.3]), climb(planner, [0.0, 0.3], pain=0.5)
    assert (free.states.amax(1) > 1.8).all()
    assert (bound.states <= 0.5).all()
    assert (bound.states[:, 1:] > 0.35).all()
    assert not bound.violation.any()
    assert not free.violation.any()


@pytest.mark.parametrize("planner", PLANNERS)
def test_an_infeasible_limit_is_exceeded_as_little_as_possible(planner):
    plan = climb(planner, [3.0, -2.0, 0.0], pain=0.5)
    least = CONSTRAINT_PENALTY * torch.tensor(
        [1.5 + 0.5, 0.5, 0.0]
    )  # full steps towards 0, though it
    torch.testing.assert_close(plan.violation, least, atol=2.5, rtol=0)  # being high is rewarded


@settings(max_examples=60, deadline=None)
@given(
    interoception=st.lists(st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0]), min_size=4, max_size=4),
    most=st.dictionaries(st.sampled_from(["pain", "reward"]), st.sampled_from([-0.5, 0.25, 0.5])),
)
def test_violation_is_0_exactly_where_every_limit_holds_at_every_step(interoception, most):
    numbers = torch.tensor(interoception).view(1, 1, 2, 2)  # reward and damage, twice
    evaluator = replace(
        EYE, imagine=lambda state, a: Rollout(state[:, None], a, a[..., :0], numbers)
    )
    here, actions = torch.zeros(1, 3, 1), torch.zeros(1, 1, 2, 1)
    task = make_context(here[:, 0], weights={"control_cost": 1.0}, limits=most)
    plan = evaluator.best_plan(here, actions, task)
    hurts = {"pain": numbers[..., 1], "reward": -numbers[..., 0]}
    kept = {name: bool((hurts[name] <= limit).all()) for name, limit in most.items()}
    assert (plan.violation.item() == 0) == all(kept.values())
    assert {name: plan.terms[f"limit {name}"].item() == 0 for name in most} == kept
    assert set(plan.terms) == {"control_cost", *(f"limit {name}" for name in most)}


def test_after_termination_no_cost_and_no_limit_counts():
    """Of a future in which the second step is the last."""
    channels = ("reward", "damage", CONTINUE)
    drives = Drives(("pain",), channels)
    interoception = torch.tensor([[0.0, 1.0, 1.0], [0.0, 2.0, 0.0], [0.0, 4.0, 1.0]]).expand(
        1, 1, 3, 3
    )
    before, after = drives.survival(interoception)
    assert before.tolist() == [[[1, 1, 0]]]
    assert after.tolist() == [[[1, 0, 0]]]
    future = Rollout(
        torch.zeros(1, 1, 4, 2), torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 0), interoception
    )
    cost = InteroceptiveCost(drives, None, DISCOUNT)
    assert cost(future, {"pain": 1.0})["limit pain"].item() == 1  # by the second step alone

    agent = settled(torch.zeros(2, 2))
    stage_run = make_stage(num_imagined=1, horizon=3).start(agent, FAR_AWAY, seed=1)
    stage_run.drives, stage_run.model = drives, Certainly(future)
    wild = lambda states: states.new_full((*states.shape[:-1], 1), 100.0)  # noqa: E731
    stage_run.target_critics = SimpleNamespace(average=wild)
    stage_run.value_critics.terminal = torch.zeros(1)  # of that one drive
    planned_steps = stage_run._imagined_value(torch.zeros(1, 2), torch.Generator())
    torch.testing.assert_close(planned_steps, torch.tensor([[1 + DISCOUNT * 2]]))


class Certainly(nn.Module):
    """Imagines one future, whatever is done."""

    def __init__(self, future: Rollout) -> None:
        super().__init__()
        self.future = future

    def imagine(self, state: Tensor, actions: Tensor) -> Rollout:
        return self.future


def test_a_reward_that_never_occurred_can_still_be_learnt():
    layers = StandardizedHead(nn.Linear(1, 2), 2)
    layers.adapt(torch.stack([torch.zeros(50), torch.linspace(0, 1e-3, 50)], 1))
    assert layers.scale[0] == 1
    assert 1e-4 < layers.scale[1] < 1e-3  # small numbers are learnt in their own unit
