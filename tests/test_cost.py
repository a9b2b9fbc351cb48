"""Costs are what they are called, distances are distances, and the critic learns known ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ami_agent.training.base import SGDStageRun
from ami_agent.training.critics import (
    LagrangeMultiplier,
    expectile_value_loss,
    lambda_returns,
    quasimetric_loss,
)
from ami_agent.training.optim import OptimConfig
from ami_agent.training.path_distillation import path_regression_loss
from modules.actor.planning import RolloutEvaluator
from modules.actor.policy import BoxActions
from modules.cost.cost import (
    CONSTRAINT_PENALTY,
    Cost,
    boredom,
    control_cost,
    goal_distance,
    soft_nearest,
)
from modules.cost.drives import DRIVES, Drives, InteroceptiveCost
from modules.cost.goal_critic import (
    ConvQuasimetricConfig,
    GoalCritic,
    Quasimetric,
    QuasimetricConfig,
    no_goal_critic,
)
from modules.cost.value_critics import ValueCritics
from modules.types import ConfigError, CostFn, Rollout, TaskContext
from modules.world_model.jepa import Ensemble, EnsembleConfig, NoEnsemble
from tests.conftest import make_context, stepwise


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quasimetric(seed: int, dim: int = 3) -> Quasimetric:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return QuasimetricConfig(hidden=16, groups=3, units=2).build((dim, 1, 1))


def map_quasimetric(seed: int) -> Quasimetric:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = ConvQuasimetricConfig(channels=4, hidden=16, groups=3, units=2)
        return config.build((3, 2, 2))


def context(goal: Tensor, **weights: float) -> TaskContext:
    collected, pace = (
        normal(len(goal), 4, goal.shape[1], seed=3).to(goal),
        0.5 * goal.new_ones(len(goal)),
    )
    return make_context(goal, weights=weights, episode_states=collected, step_scale=pace)


def rollout(states: Tensor, actions: Tensor, interoception: Tensor | None = None) -> Rollout:
    return Rollout(
        states,
        actions,
        actions[..., :0],
        actions[..., :0] if interoception is None else interoception,
    )


CHANNELS = ("reward", "energy", "damage")
INSENTIENT = InteroceptiveCost(Drives((), CHANNELS), None, 0.9)


def cost_of(critic: nn.Module | None, interoceptive: InteroceptiveCost = INSENTIENT) -> Cost:
    return Cost(critic, interoceptive, NoEnsemble().disagreement)


def curiosity(double: bool) -> CostFn:
    """Of an ensemble over states of 3 and actions of 2."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        uncertainty = EnsembleConfig(members=3, hidden=4).build((3, 1, 1), 2)
    uncertainty = uncertainty.double() if double else uncertainty
    return Cost(None, INSENTIENT, uncertainty.disagreement).cost_functions()["curiosity"]


A_PATH = rollout(
    torch.tensor([[9.0, 9.0], [1.0, 0.0], [3.0, 4.0]])[None, None],
    torch.tensor([[3.0, 4.0], [0.0, 1.0]])[None, None],
)
HOME = torch.tensor([[1.0, 0.0]])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 30), on_maps=st.booleans())
def test_triangle_inequality_and_zero_distance_to_itself(seed, scale, on_maps):
    distance, size = (map_quasimetric(seed), 12) if on_maps else (quasimetric(seed), 3)
    here, via, there = scale * normal(3, 40, size, seed=seed)
    detour = distance(here, via) + distance(via, there)
    assert (distance(here, there) <= detour * (1 + 1e-5) + 1e-6).all()
    assert (distance(here, there) >= 0).all()
    assert (distance(here, here) == 0).all()


def test_the_distance_is_asymmetric():
    here, there = normal(2, 40, 3)
    distance = quasimetric(0)
    assert not torch.allclose(distance(here, there), distance(there, here), atol=0.01)


def test_a_distance_by_hand():
    distance = quasimetric(0)  # 3 groups of 2
    start = torch.tensor([0.0, 0, 0, 0, 5, 5])
    goal = torch.tensor([1.0, 3, -1, 2, 4, -9])
    assert distance.from_embeddings(start, goal).item() == pytest.approx((3 + 2 + 0) / 3)
    assert distance.from_embeddings(goal, start).item() == pytest.approx((0 + 1 + 14) / 3)


def test_goal_distance_is_the_mean_squared_distance_of_all_future_states():
    assert goal_distance(A_PATH, context(HOME)).item() == (0 + 0 + 2**2 + 4**2) / 4


def test_goal_distance_counts_the_numbers_that_the_goal_is_about_alone():
    task = context(normal(2, 3, seed=2).double())._replace(goal_dims=2)
    states = normal(2, 3, 4, 3).double().requires_grad_()
    path = rollout(states, normal(2, 3, 3, 2).double())
    difference = states[:, :, 1:, :2] - task.goal[:, None, None, :2]
    torch.testing.assert_close(goal_distance(path, task), difference.square().mean((-2, -1)))
    assert torch.autograd.gradcheck(
        lambda states: goal_distance(path._replace(states=states), task), (states,)
    )
    by_hand = cost_of(None).by_hand(task._replace(weights={"goal_distance": 3.0}))
    assert by_hand is not None
    terms, slope = by_hand(path)
    (grad,) = torch.autograd.grad(terms["goal_distance"].sum(), states)
    torch.testing.assert_close(slope.permute(1, 2, 0, 3), grad[:, :, 1:])


def test_control_cost_is_the_mean_squared_length_of_the_actions():
    assert control_cost(A_PATH, context(HOME)).item() == (5**2 + 1) / 2


def test_the_critic_cost_is_the_mean_critic_of_all_future_states():
    critic = GoalCritic(quasimetric(1, dim=2))
    by_hand = critic.distance(A_PATH.states[0, 0, 1:], HOME).mean()
    torch.testing.assert_close(critic(A_PATH, context(HOME))[0, 0], by_hand)


@pytest.mark.parametrize(
    "energy",
    [
        goal_distance,
        control_cost,
        boredom,
        curiosity(True),
        GoalCritic(quasimetric(2)).double(),
        no_goal_critic,
    ],
)
def test_an_energy_has_the_gradient_it_claims(energy: CostFn):
    states = normal(2, 3, 4, 3).double().requires_grad_()
    actions = normal(2, 3, 3, 2, seed=1).double().requires_grad_()
    goal = normal(2, 3, seed=2).double()

    def hurt(states: Tensor, actions: Tensor) -> Tensor:
        return energy(rollout(states, actions), context(goal)) + 0 * (states.sum() + actions.sum())

    assert torch.autograd.gradcheck(hurt, (states, actions))


@pytest.mark.parametrize(
    "energy",
    [
        goal_distance,
        control_cost,
        boredom,
        curiosity(False),
        GoalCritic(quasimetric(2)),
        no_goal_critic,
    ],
)
def test_the_energy_of_a_future_does_not_depend_on_others(energy: CostFn):
    states, actions, goal = normal(2, 3, 5, 3), normal(2, 3, 4, 2), normal(2, 3, seed=1)
    task = context(goal)
    single = energy(rollout(states[1:, 2:], actions[1:, 2:]), task.select(torch.tensor([1])))
    torch.testing.assert_close(energy(rollout(states, actions), task)[1:, 2:], single)


def test_boredom_is_similarity_to_the_nearest_state_of_the_episode_at_a_scale_of_two_steps():
    task = context(HOME)._replace(
        episode_states=torch.tensor([[[1.0, 3.0], [3.0, 4.0], [9.0, 9.0]]])
    )
    near, there = 1 / (1 + (3 / (2 * 0.5)) ** 2), 1.0  # 3 away from the first; at the second
    assert boredom(A_PATH, task).item() == pytest.approx((near + there) / 2)
    assert boredom(A_PATH, task._replace(episode_states=task.episode_states[:, :0])).item() == 0


def test_a_path_that_returns_to_its_own_states_is_boring():
    there = torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0], [5, 0], [6, 0]])
    task = context(HOME)._replace(
        episode_states=torch.tensor([[[0.0, 0.0]]]), step_scale=torch.ones(1)
    )
    metrics = []
    for last in ((7.0, 0.0), (1.0, 0.0)):  # 7 from the goal, 4 from its own past; in its own past
        states = torch.cat([torch.zeros(1, 2), there, torch.tensor([last])])[None, None]
        path = rollout(states, torch.zeros(1, 1, 7, 2))
        metrics.append(boredom(path, task).item() * 7)
    alike = [1 / (1 + (d / 2) ** 2) for d in (1, 2, 3, 4, 4, 4, 4)]
    assert metrics == pytest.approx([sum(alike), sum(alike[:-1]) + 1])


def test_an_impossible_state_is_recognised_as_the_nearest_reference_state():
    known = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    states = torch.tensor([[[[9.0, 0.5], [0.5, 0.0]]]])
    near, between = soft_nearest(states, known, torch.tensor(0.2))[0, 0]
    assert near.tolist() == pytest.approx([1, 0], abs=1e-4)
    assert between.tolist() == pytest.approx([0.5, 0], abs=1e-4)
    assert soft_nearest(states, known[:0], torch.tensor(0.2)) is states


def test_an_impossible_state_is_not_novel():
    there = torch.tensor([[0.0, 0.0], [1, 0], [2, 0]])  # a corridor, visited from end to end
    task = context(HOME)._replace(episode_states=there[None], step_scale=torch.tensor([0.5]))
    beyond = torch.tensor([[2.0, 0], [5, 0]]).expand(1, 1, 2, 2)
    path = rollout(beyond, torch.zeros(1, 1, 1, 2))
    assert boredom(path, task).item() == pytest.approx(1 / (1 + 3**2))
    assert boredom(path, task._replace(reference_states=there)).item() == pytest.approx(1)


def test_where_no_step_leads_anywhere_boredom_is_maximal():
    still = A_PATH.states[:, :, :1].expand_as(A_PATH.states)
    task = context(HOME)._replace(episode_states=still[:, 0, :1], step_scale=torch.zeros(1))
    assert boredom(A_PATH._replace(states=still), task).item() == 1


def test_curiosity_is_minus_the_variance_of_the_predictions_of_the_ensemble():
    class Says(nn.Module):
        def __init__(self, times: float) -> None:
            super().__init__()
            self.times = times

        def forward(self, both: Tensor) -> Tensor:
            return self.times * both[..., :2]

    uncertainty = Ensemble([Says(1.0), Says(3.0)])  # variance: twice the square of the action
    known = Cost(None, INSENTIENT, uncertainty.disagreement)(A_PATH, context(HOME, curiosity=3.0))
    assert known["curiosity"].item() == -3 * 2 * (9**2 + 9**2 + 1**2 + 0**2) / 4


def test_the_sum_of_the_weighted_terms_is_the_energy():
    cost = cost_of(GoalCritic(quasimetric(1, dim=2)))
    evaluator = RolloutEvaluator(
        only := lambda state, actions: A_PATH, stepwise(only), cost, BoxActions(), 2
    )
    evaluated = evaluator.evaluate(
        HOME, A_PATH.actions, context(HOME, goal_distance=2.0, control_cost=3.0, critic=0.5)
    )
    steps = cost.goal_critic(A_PATH, context(HOME)).item()
    terms = {name: term.item() for name, term in evaluated.terms.items()}
    assert terms == pytest.approx(
        {"goal_distance": 2 * 5, "control_cost": 3 * 13, "critic": steps / 2}
    )
    assert evaluated.energy.item() == pytest.approx(sum(terms.values()))


class Unaffordable(nn.Module):
    """Must not be computed."""

    def forward(self, rollout: Rollout, context: TaskContext) -> Tensor:
        raise AssertionError("computed, though it has no weight")


def test_costs_without_weight_are_not_computed():
    cost = cost_of(Unaffordable())
    assert list(cost(A_PATH, context(HOME, goal_distance=1.0, control_cost=0.0, critic=0.0))) == [
        "goal_distance"
    ]
    with pytest.raises(AssertionError, match="no weight"):
        cost(A_PATH, context(HOME, critic=1.0))


def test_without_a_goal_critic_its_cost_is_zero():
    assert torch.equal(no_goal_critic(A_PATH, context(HOME)), torch.zeros(1, 1))


def test_intrinsic_costs_have_no_parameters():
    drives = Drives(tuple(DRIVES), [signal for signal, _ in DRIVES.values()])
    assert list(cost_of(None, InteroceptiveCost(drives, None, 0.9)).parameters()) == []


class ReplanTrigger(ValueCritics):
    """Predicts as many of these numbers of a state as there are drives."""

    def __init__(self, drives: int, discount: float) -> None:
        super().__init__(nn.Identity(), drives, discount)

    def forward(self, state: Tensor) -> Tensor:
        return state[..., : len(self.mean)]


def test_drives_by_hand():
    interoception = torch.tensor([[3.0, 0.2, 0.0], [-1.0, 1.5, 0.7]])  # reward, energy, damage
    made = Drives(("pain", "hunger", "reward"), CHANNELS)(interoception)
    torch.testing.assert_close(made, torch.tensor([[0.0, 0.8, -3.0], [0.7, 0.0, 1.0]]))


def test_the_expected_cost_of_a_drive_is_the_mean_of_the_returns_of_every_length():
    discount, horizon = 0.9, 4
    interoceptive = InteroceptiveCost(
        Drives(("pain", "reward"), CHANNELS), ReplanTrigger(2, discount)
    )
    states, interoception = normal(2, 3, horizon + 1, 5), normal(2, 3, horizon, 3, seed=1)
    known = interoceptive(rollout(states, normal(2, 3, horizon, 2), interoception), {})
    for drive, column, sign, name in ((0, 2, 1, "pain"), (1, 0, -1, "reward")):
        cost, ahead = sign * interoception[..., column], states[:, :, 1:, drive]
        returns = [
            sum(discount**j * cost[..., j] for j in range(k)) + discount**k * ahead[..., k - 1]
            for k in range(1, horizon + 1)
        ]
        whole = torch.stack(returns).mean(0)
        torch.testing.assert_close(known[name] + known[f"critic_{name}"], whole)
    assert set(known) == {"pain", "reward", "critic_pain", "critic_reward"}


def test_the_drives_and_their_critics_have_the_gradient_they_claim():
    interoceptive = InteroceptiveCost(Drives(("hunger", "pain"), CHANNELS), ReplanTrigger(2, 0.9))
    states = normal(1, 2, 4, 3).double().requires_grad_()
    interoception = normal(1, 2, 3, 3, seed=1).double().requires_grad_()

    def hurt(states: Tensor, interoception: Tensor) -> Tensor:
        known = interoceptive(rollout(states, interoception[..., :2], interoception), {"pain": 0.3})
        return torch.stack(list(known.values())).sum(0)

    assert torch.autograd.gradcheck(hurt, (states, interoception))


def test_a_limit_is_penalised_at_any_step_that_exceeds_it_and_else_free():
    cost = cost_of(None, InteroceptiveCost(Drives(("pain",), CHANNELS), None, 0.9))
    interoception = torch.zeros(1, 2, 3, 3)
    interoception[0, :, :, 2] = torch.tensor([[0.5, 0.1, 0.6], [0.4, 0.0, 0.3]])
    future = rollout(torch.zeros(1, 2, 4, 2), torch.zeros(1, 2, 3, 2), interoception)
    terms = cost(future, make_context(HOME, weights={"control_cost": 1.0}, limits={"pain": 0.4}))
    torch.testing.assert_close(
        terms["limit pain"], CONSTRAINT_PENALTY * torch.tensor([[0.1 + 0.2, 0.0]])
    )
    assert set(terms) == {"control_cost", "limit pain"}


def test_an_unknown_or_undeclared_drive_is_refused_by_name():
    with pytest.raises(ConfigError, match=f"'greed'; there are {', '.join(DRIVES)}$"):
        Drives(("greed",), CHANNELS)
    with pytest.raises(
        ConfigError, match=r"'damage', which this environment does not.*reward, energy$"
    ):
        Drives(("pain",), CHANNELS[:2])


@pytest.mark.parametrize("trace", [0.0, 0.6, 1.0])
def test_lambda_returns_mix_the_returns_of_every_length_and_end_with_the_episode(trace):
    cost, ahead, discount = normal(1, 4, 1), normal(1, 4, 1, seed=1), 0.9
    done = torch.tensor([[False, False, True, False]])
    found = lambda_returns(cost, ahead, ~done, discount, trace)[0, :, 0]
    c, v = cost[0, :, 0], ahead[0, :, 0]
    third = c[2]
    second = c[1] + discount * ((1 - trace) * v[1] + trace * third)
    first = c[0] + discount * ((1 - trace) * v[0] + trace * second)
    torch.testing.assert_close(found, torch.stack([first, second, third, c[3] + discount * v[3]]))


def test_an_overestimated_cost_counts_for_more():
    predicted, interoception = torch.tensor([[5.0], [5.0]]), torch.tensor([[3.0], [9.0]])
    loss = expectile_value_loss(predicted, interoception, expectile=0.8)["value"].item()
    assert loss == pytest.approx((0.8 * 2**2 + 0.2 * 4**2) / 2)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            {"hunger": 1.0},
            "'hunger'; there are goal_distance, control_cost, boredom, curiosity, critic$",
        ),
        ({"goal_distance": -1.0}, "'goal_distance' is -1.0"),
        ({"critic": float("nan")}, "'critic' is nan"),
        ({"control_cost": float("inf")}, "'control_cost' is inf"),
        ({"control_cost": 0.0}, "no cost has a weight above 0"),
    ],
)
def test_invalid_weights_are_refused_by_name(weights: Mapping[str, float], message: str):
    with pytest.raises(ConfigError, match=message):
        cost_of(None).validate_weights(weights)


def test_valid_weights_are_accepted():
    cost_of(None).validate_weights({"goal_distance": 0.0, "control_cost": 2, "critic": 1.5})
    interoception = cost_of(
        None, InteroceptiveCost(Drives(("pain",), CHANNELS), ReplanTrigger(1, 0.9))
    )
    interoception.validate_weights({"pain": 1.0, "critic_pain": 0.5, "boredom": 1, "curiosity": 2})


def apart(state: Tensor, goal: Tensor) -> Tensor:
    """On a line, one step is one."""
    return (goal - state).abs().sum(-1)


def test_path_regression_is_the_squared_error_relative_to_the_distance():
    state, goal, steps = torch.zeros(2, 1), torch.tensor([[3.0], [5.0]]), torch.tensor([1.0, 9.0])
    trained = path_regression_loss(apart, state, goal, steps)["regression"]
    assert trained.item() == pytest.approx((2**2 / 2 + 4**2 / 10) / 2)


def test_a_goal_without_a_known_path_gives_no_gradient():
    state, goal = torch.zeros(2, 1), torch.tensor([[3.0], [5.0]], requires_grad=True)
    trained = path_regression_loss(apart, state, goal, torch.tensor([1.0, float("inf")]))[
        "regression"
    ]
    assert trained.item() == pytest.approx(2**2 / 2)
    trained.backward()
    assert goal.grad.flatten().tolist() == [2, 0]


@pytest.mark.parametrize("start", [0.5, 1.0, 3.0])
def test_a_multiplier_starts_at_its_value_and_is_never_negative(start):
    assert LagrangeMultiplier(start)().item() == pytest.approx(start, rel=1e-4)
    price = LagrangeMultiplier(start)
    nn.init.constant_(price.raw, -5.0)
    assert price().item() >= 0


@pytest.mark.parametrize(("step", "rises"), [(3.0, True), (0.5, False)])
def test_the_multiplier_rises_while_a_step_costs_more_than_one(step, rises):
    distance, price = quasimetric(0, dim=6), LagrangeMultiplier()
    distance.embed = nn.Identity()
    state = torch.zeros(4, 6)
    terms = quasimetric_loss(distance, price, state, state + step, max_distance=9)
    terms["multiplier"].backward()
    assert (price.raw.grad < 0) == rises  # descent goes the other way
    assert terms["constraint"].item() == pytest.approx(max(step - 1, 0) ** 2 - 0.05**2, abs=1e-5)


def test_a_logarithmic_push_is_stronger_for_near_pairs():
    distance = quasimetric(0, dim=6)
    distance.embed = nn.Identity()

    def push(apart: float, fading: bool) -> float:
        state = torch.tensor([0.0, apart]).expand(6, 2).T.clone().requires_grad_()
        terms = quasimetric_loss(
            distance,
            LagrangeMultiplier(),
            state,
            state.detach(),
            max_distance=30,
            log_push=fading,
        )
        terms["push"].backward()
        return float(state.grad[1].sum())

    assert push(0.5, False) / push(10, False) == pytest.approx(1, abs=0.1)
    assert push(0.5, True) / push(10, True) == pytest.approx(11 / 1.5, rel=0.01)


LENGTH = 8
"""Positions on a line, a step apart."""


def place(number: Tensor) -> Tensor:
    """`[N]` -> state `[N, 1]`, of the size that networks like."""
    return 4 * (number.float()[:, None] / (LENGTH - 1) - 0.5)


def walks(random: torch.Generator, ways: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Positions, a step from each by one of the `ways`, and goals anywhere; each `[64, 1]`."""
    here, there = torch.randint(LENGTH, (2, 128), generator=random)
    way = torch.tensor(ways)[torch.randint(len(ways), (128,), generator=random)]
    return place(here), place((here + way).clamp(0, LENGTH - 1)), place(there)


def learn(modules: list[nn.Module], loss: Callable, steps: int, **how) -> None:
    plan = OptimConfig(steps=steps, batch_size=128, lr=5e-3, warmup_steps=10, weight_decay=0)
    learner = SGDStageRun(nn.ModuleList(modules), loss, plan, weights={}, seed=0, **how)
    for _ in range(steps):
        learner.update()


@torch.no_grad()
def table(distance: nn.Module) -> Tensor:
    """Steps from each position of the line to each, `[LENGTH, LENGTH]`."""
    line = place(torch.arange(LENGTH))
    return distance(line[:, None], line[None])


TRUE = (torch.arange(LENGTH) - torch.arange(LENGTH)[:, None]).abs().float()


def likeness(learnt: Tensor) -> float:
    return torch.corrcoef(torch.stack([learnt.flatten(), TRUE.flatten()]))[0, 1].item()


def separated(ways: tuple[int, ...], fading: bool = False) -> Tensor:
    distance, price = quasimetric(0, dim=1), LagrangeMultiplier()

    def loss(random: torch.Generator) -> dict[str, Tensor]:
        state, next_state, _ = walks(random, ways)
        return quasimetric_loss(
            distance, price, state, next_state, max_distance=30, log_push=fading
        )

    learn([distance, price], loss, 500)
    return table(distance)


@pytest.mark.parametrize("fading", [False, True])
def test_pushed_apart_under_the_constraint_a_line_gets_its_true_distances(fading):
    learnt = separated((-1, 1), fading)
    assert (learnt[TRUE == 1] < 1.2).all()
    assert learnt[0, -1].item() == pytest.approx(LENGTH - 1, abs=1)
    assert learnt[-1, 0].item() == pytest.approx(LENGTH - 1, abs=1)
    assert likeness(learnt) > 0.97


def test_where_no_step_leads_back_the_way_back_is_long():
    learnt = separated((1,))
    assert learnt[0, -1].item() == pytest.approx(LENGTH - 1, abs=1)
    assert learnt[-1, 0] > 2 * LENGTH


def test_the_multiplier_and_the_distance_are_trained():
    distance = quasimetric(0, dim=1)

    def loss(random: torch.Generator) -> dict[str, Tensor]:
        here, there = torch.randint(LENGTH, (2, 128), generator=random)
        return path_regression_loss(distance, place(here), place(there), TRUE[here, there])

    learn([distance], loss, 300)
    torch.testing.assert_close(table(distance), TRUE, atol=0.5, rtol=0)
