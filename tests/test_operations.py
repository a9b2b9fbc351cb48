"""Planning with constant weights: few tensor operations, and the futures and gradients of
autograd."""

from collections import Counter
from contextlib import closing
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import ami_agent as ami
from ami_agent.agent import Controller
from ami_agent.storage import run_dir
from modules.actor.policy import BallActions, BoxActions, PolicyConfig
from modules.by_hand import convolution
from modules.by_hand.autograd import after_first
from modules.by_hand.protocol import own_method
from modules.cost.cost import goal_distance
from modules.cost.goal_critic import (
    ConvQuasimetricConfig,
    GoalCritic,
    Quasimetric,
    QuasimetricConfig,
)
from modules.types import EvaluatedRollouts, Rollout, TaskContext
from modules.world_model.dynamics import ConvDynamicsConfig, MLPDynamics, MLPDynamicsConfig
from modules.world_model.jepa import WorldModel, WorldModelConfig

SHIPPED = Path(__file__).parents[1] / "runs" / "reference" / "two-rooms"
MAX_OPERATIONS = 650
HORIZON = 4


class OperationCounter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def randomized(module):
    """In float64, and no weight is zero."""
    module.double()
    with torch.no_grad():
        for index, part in enumerate(module.parameters()):
            part.copy_(0.3 * normal(*part.shape, seed=index))
    return module


def world_model() -> WorldModel:
    config = WorldModelConfig(dynamics=MLPDynamicsConfig(hidden=12))
    return randomized(config.build((5, 1, 1), 3, 0))


MAP = 2, 3, 4


def map_world_model() -> WorldModel:
    config = WorldModelConfig(dynamics=ConvDynamicsConfig(hidden=5))
    return randomized(config.build(MAP, 3, 0))


def act_repeatedly(agent: ami.Agent, steps: int) -> list[ami.Plan]:
    with closing(run_dir.settings_of(SHIPPED).env.build(1)) as env:
        obs, info = env.reset(seed=0)
        controller = agent.controller(1, ami.Task(goal=env.goal(info)), tensors=True)
        plans = []
        for _ in range(steps):
            plans.append(controller.act(obs))
            obs = env.step(obs, plans[-1].action).transition.next_obs
    return plans


def test_a_plan_of_the_shipped_run_takes_few_operations():
    agent = ami.load(SHIPPED)
    with closing(run_dir.settings_of(SHIPPED).env.build(1)) as env:
        obs, info = env.reset(seed=0)
        controller = agent.controller(1, ami.Task(goal=env.goal(info)), tensors=True)
        for _ in range(3):
            obs = env.step(obs, controller.act(obs).action).transition.next_obs
        with OperationCounter() as operations:
            controller.act(obs)
    assert operations.counts.total() <= MAX_OPERATIONS, operations.counts.most_common(12)


def test_constant_weights_give_the_same_plans():
    trainable, frozen = (ami.load(SHIPPED).double() for _ in range(2))
    trainable.requires_grad_()
    for expected, plan in zip(*(act_repeatedly(a, 4) for a in (trainable, frozen)), strict=True):
        torch.testing.assert_close(plan.actions, expected.actions, rtol=0, atol=1e-10)
        torch.testing.assert_close(plan.states, expected.states, rtol=0, atol=1e-10)
        torch.testing.assert_close(plan.energy, expected.energy, rtol=0, atol=1e-10)
        assert plan.candidate_states.shape == expected.candidate_states.shape


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 2), (3, 16)])
@pytest.mark.parametrize("start_has_gradient", [False, True])
@pytest.mark.parametrize(("make", "size"), [(world_model, 5), (map_world_model, prod(MAP))])
def test_futures_and_their_gradients_are_those_of_autograd(
    shape, start_has_gradient, make, size, monkeypatch
):
    monkeypatch.setattr(convolution, "MAX_PRODUCTS", 2000)  # several maps at once, but not all
    model, state = make(), normal(shape[0], size).requires_grad_(start_has_gradient)
    actions = normal(*shape, HORIZON, 3, seed=1).requires_grad_()
    inputs = (actions, state) if start_has_gradient else (actions,)
    weights = normal(*shape, HORIZON + 1, size, seed=2)

    def energy() -> tuple[Tensor, Tensor]:
        states = model.imagine(state, actions).states
        return states, (weights * states).sum() + states.square().sum()

    states, total = energy()
    expected = torch.autograd.grad(total, inputs)
    model.requires_grad_(False)
    found_states, total = energy()
    torch.testing.assert_close(found_states, states)
    found = torch.autograd.grad(total, inputs, retain_graph=True)
    torch.testing.assert_close(found, expected)
    model.imagine(state, 2 * actions)  # uses the same buffers
    torch.testing.assert_close(torch.autograd.grad(total, inputs), expected)


def test_futures_from_other_states_at_once_keep_their_own_gradients():
    model, actions = world_model(), normal(1, 2, HORIZON, 3).requires_grad_()

    def imagined() -> list[Tensor]:
        return [model.imagine(k * normal(1, 5), k * actions).states for k in (1, 2)]

    def gradients(states: list[Tensor]) -> list[Tensor]:
        return [torch.autograd.grad(part.square().sum(), actions)[0] for part in states]

    expected = imagined()
    model.requires_grad_(False)
    torch.testing.assert_close(imagined(), expected)
    torch.testing.assert_close(gradients(imagined()), gradients(expected))
    state = normal(1, 5)
    gradients([model.imagine(state, actions).states])  # its buffers are used again
    torch.testing.assert_close(model.imagine(state.mul_(2), 2 * actions).states, expected[1])


def test_slopes_by_hand_are_those_of_autograd():
    agent = ami.load(SHIPPED).double()
    with closing(run_dir.settings_of(SHIPPED).env.build(1)) as env:
        context = agent.context(ami.Task(goal=env.goal(env.reset(seed=0)[1])))
    state, raw = normal(1, 32), normal(1, 5, 8, 2, seed=1)
    for weights in ({"goal_distance": 2.0, "critic": 1.0}, {"critic": 0.5}, {"control_cost": 1.0}):
        task = context._replace(weights=weights)
        seen: list[EvaluatedRollouts] = []
        by_hand = replace(agent.evaluator, callbacks=[seen.append])
        found, slope = by_hand.slope_fn(task)(state, raw)
        expected, expected_slope = replace(by_hand, by_hand=None).slope_fn(task)(state, raw)
        torch.testing.assert_close(slope, expected_slope)
        torch.testing.assert_close(found.terms, expected.detach().terms)
        assert [evaluated is found for evaluated in seen] == [True, False]
        assert found.energy.requires_grad == ("control_cost" in weights)


def test_slopes_by_hand_of_map_states_are_those_of_autograd():
    config = ami.recipes.two_rooms_random()
    with closing(config.env.build(1)) as env:
        agent = ami.build(config, env.spec).double().requires_grad_(False)
        context = agent.context(ami.Task(goal=env.goal(env.reset(seed=0)[1])))
    for part in agent.parameters():
        part.add_(0.02 * normal(*part.shape))  # the dynamics begin without change
    state, raw = normal(1, prod(agent.shape)), normal(1, 3, HORIZON, 2, seed=1)
    found, slope = agent.evaluator.slope_fn(context)(state, raw)
    assert not found.energy.requires_grad
    agent.requires_grad_()
    expected, expected_slope = agent.evaluator.slope_fn(context)(state, raw)
    assert expected.energy.requires_grad
    torch.testing.assert_close(slope, expected_slope)
    torch.testing.assert_close(found.terms, expected.detach().terms)


class TwiceAsFar(Quasimetric):
    """The user's own: it measures otherwise."""

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        return 2 * super().forward(state, goal)


class Still(MLPDynamics):
    """The user's own: no action moves the state."""

    def forward(self, state: Tensor, action_latent: Tensor) -> Tensor:
        return state + 0 * action_latent.sum(-1, keepdim=True)


class HalfEffect(WorldModel):
    """The user's own: its actions have half their effect."""

    def imagine(self, state: Tensor, actions: Tensor, noise: Tensor | None = None) -> Rollout:
        return super().imagine(state, actions / 2, noise)


class TwiceAsFarAhead(WorldModel):
    """The user's own: its states are twice those that the dynamics predict."""

    def unroll(self, state: Tensor, action_latents: Tensor) -> Tensor:
        return 2 * super().unroll(state, action_latents)


def test_a_subclass_imagines_what_it_unrolls_whether_it_learns_or_not():
    model, state, actions = world_model(), normal(1, 5), normal(1, 2, HORIZON, 3)
    own = TwiceAsFarAhead(model.dynamics, model.latent, model.interoception_head, model.ensemble, 3)
    learning = own.imagine(state, actions).states
    torch.testing.assert_close(learning, 2 * model.imagine(state, actions).states)
    own.requires_grad_(False)
    torch.testing.assert_close(own.imagine(state, actions).states, learning)


def path_energy(
    distance: Quasimetric, states: Tensor, goal: Tensor, reachability: float = 0.0
) -> Tensor:
    """States `[B, P, H + 1, D]` -> `[B, P]`"""
    context = TaskContext._make([None] * len(TaskContext._fields))._replace(goal=goal)
    rollout = Rollout(states, states, states, states)
    return GoalCritic(distance, reachability)(rollout, context)


def test_what_a_subclass_computes_itself_is_not_taken_from_its_parent():
    size, goal = 5, normal(1, 5)
    plain = randomized(QuasimetricConfig(hidden=6).build((size, 1, 1))).requires_grad_(False)
    far, states = TwiceAsFar(plain.embed, plain.groups), normal(1, 2, HORIZON, size, seed=1)
    torch.testing.assert_close(path_energy(far, states, goal), 2 * path_energy(plain, states, goal))
    assert GoalCritic(plain).by_hand(goal) is not None
    assert GoalCritic(far).by_hand(goal) is None
    model, state = world_model().requires_grad_(False), normal(1, size)
    own = HalfEffect(model.dynamics, model.latent, model.interoception_head, model.ensemble, 3)
    assert own_method(model, "imagine_by_hand") is not None
    assert own_method(own, "imagine_by_hand") is None
    still = randomized(Still(nn.Linear(size, 6), 6, size, 3, 0)).requires_grad_(False)
    model.dynamics = still
    actions = normal(1, 2, HORIZON, 3)
    imagined = model.imagine(state, actions).states
    torch.testing.assert_close(imagined, state[:, None, None].expand_as(imagined))
    with torch.no_grad():
        followed = model.imagine_policy(state, lambda states: actions[:, 0, 0], actions).states
    torch.testing.assert_close(followed, state[:, None, None].expand_as(followed))
    assert model.imagine_by_hand() is None


class HalfBall(BallActions):
    """The user's own: it squashes otherwise."""

    def squash(self, raw: Tensor) -> Tensor:
        return raw.tanh() / 2


def test_an_action_space_of_the_users_own_is_differentiated_as_it_squashes():
    agent = ami.load(SHIPPED).double()
    with closing(run_dir.settings_of(SHIPPED).env.build(1)) as env:
        context = agent.context(ami.Task(goal=env.goal(env.reset(seed=0)[1])))
    raw = normal(1, 5, 8, 2, seed=1)
    own = replace(agent.evaluator, action_space=HalfBall())
    found, slope = own.slope_fn(context)(normal(1, 32), raw)
    torch.testing.assert_close(found.rollout.actions.detach(), raw.tanh() / 2)
    _, expected = replace(own, by_hand=None).slope_fn(context)(normal(1, 32), raw)
    torch.testing.assert_close(slope, expected)


def test_weights_that_change_or_learn_are_noticed():
    model, state, actions = world_model(), normal(2, 5), normal(2, 3, HORIZON, 3)
    states = model.imagine(state, actions).states
    (gradient, *_) = torch.autograd.grad(states.sum(), model.dynamics.hidden_layer.weight)
    assert gradient.abs().sum() > 0
    model.requires_grad_(False)
    torch.testing.assert_close(model.imagine(state, actions).states, states.detach())
    model.dynamics.hidden_layer.weight.mul_(2)
    found = model.imagine(state, actions).states
    model.requires_grad_()
    torch.testing.assert_close(found, model.imagine(state, actions).states.detach())
    assert (found - states).abs().max() > 1e-3


def test_a_policy_is_followed_beside_candidates():
    model, policy = (
        world_model(),
        randomized(PolicyConfig(hidden=8).build((5, 1, 1), 3, BallActions(), 2)),
    )
    state, goal, task_vector = normal(2, 5), normal(2, 5, seed=1), normal(2, 2, seed=2)
    with torch.no_grad():
        for count in (0, 2):
            candidates = normal(2, count, HORIZON, 3, seed=3)
            model.requires_grad_()
            expected = model.imagine_policy(
                state, lambda s: policy(s, goal, task_vector), candidates
            )
            model.requires_grad_(False)
            policy.requires_grad_(False)
            found = model.imagine_policy(state, policy.for_task(goal, task_vector), candidates)
            torch.testing.assert_close(found, expected)


def test_gradients_by_hand_are_those_of_finite_differences():
    states, goal = normal(2, 3, HORIZON + 1, 5).requires_grad_(), normal(2, 5, seed=1)
    distance = randomized(QuasimetricConfig(hidden=6, groups=2, units=3).build((5, 1, 1)))
    expected = distance(states[:, :, 1:], goal[:, None, None]).mean(-1)
    distance.requires_grad_(False)
    torch.testing.assert_close(path_energy(distance, states, goal), expected)
    assert gradcheck(lambda s: path_energy(distance, s, goal), states)

    def miss(states: Tensor, goal: Tensor) -> Tensor:
        context = TaskContext._make([None] * len(TaskContext._fields))._replace(goal=goal)
        return goal_distance(Rollout(states, states, states, states), context)

    assert gradcheck(miss, (states, goal.requires_grad_()))
    assert gradcheck(miss, (states, goal[:1].detach().requires_grad_()))
    for space in (BoxActions(), BallActions(), BallActions(radius=0.4)):
        raw, grad = normal(4, 2).requires_grad_(), normal(4, 2, seed=1)
        expected = torch.autograd.grad(space.squash(raw), raw, grad)
        torch.testing.assert_close(space.squash_by_hand(raw.detach())[1](grad), expected)
        assert gradcheck(space.squash, raw)


def test_the_slope_of_a_distance_between_maps_is_that_of_finite_differences():
    size = prod(MAP)
    states, goal = normal(2, 2, HORIZON, size).requires_grad_(), normal(2, size, seed=1)
    config = ConvQuasimetricConfig(channels=3, hidden=6, groups=2, units=3)
    distance = randomized(config.build(MAP))
    expected = distance(states[:, :, 1:], goal[:, None, None]).mean(-1)
    distance.requires_grad_(False)
    with OperationCounter() as operations:
        torch.testing.assert_close(path_energy(distance, states, goal), expected)
    assert not operations.counts["aten.convolution.default"]
    assert gradcheck(lambda s: path_energy(distance, s, goal), states)


@pytest.mark.parametrize("config", [
    QuasimetricConfig(hidden=6, groups=2, units=3),
    ConvQuasimetricConfig(channels=3, hidden=6, groups=2, units=3),
])  # fmt: skip
def test_what_is_out_of_reach_costs_the_steps_that_are_missing(config):
    states, goal = normal(2, 3, HORIZON + 1, prod(MAP)), normal(2, prod(MAP), seed=1)
    states[:, :, 0] = states[:, :1, 0]
    distance = randomized(config.build(MAP)).requires_grad_(False)
    for weight in distance.embed.parameters():
        weight.mul_(2)  # some states are too far, and some are not
    to_goal = distance(states[:, :, 1:], goal[:, None, None])
    way = distance(states[:, :, :1], states[:, :, 1:])
    missing = (way - torch.arange(1, HORIZON + 1)).relu()
    assert missing.any()
    assert not missing.all()
    expected = (to_goal + 0.5 * missing).mean(-1)
    torch.testing.assert_close(path_energy(distance, states, goal, 0.5), expected)
    # by hand: the same energy, and the gradient of finite differences
    by_hand, start = GoalCritic(distance, 0.5).by_hand(goal), states[:, 0, 0]
    value, slope = by_hand(after_first(states), goal, start)
    torch.testing.assert_close(value, expected)
    path = after_first(states).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(energy_by_autograd(distance, path, goal, start).sum(), path)
    torch.testing.assert_close(slope(3.0), 3 * gradient)


def energy_by_autograd(distance: Quasimetric, path: Tensor, goal: Tensor, start: Tensor) -> Tensor:
    """The energy by autograd, of states after the first, time first."""
    states = torch.cat([start[None, :, None].expand(-1, -1, path.shape[2], -1), path])
    return path_energy(distance, states.permute(1, 2, 0, 3), goal, 0.5)


def test_no_plan_is_better_than_the_distance_to_the_goal_allows():
    distance = randomized(QuasimetricConfig(hidden=6).build((5, 1, 1))).requires_grad_(False)
    states, goal = 9 * normal(4, 50, HORIZON + 1, 5), normal(4, 5, seed=1)
    states[:, :, 0] = states[:, :1, 0]
    bound = distance(states[:, :, 0], goal[:, None]) - (HORIZON + 1) / 2
    energy = path_energy(distance, states, goal, 1.0)
    assert (energy > bound - 1e-9).all()
    assert (path_energy(distance, states, goal) < bound).any()


def test_an_arrived_state_has_no_slope_to_its_goal():
    distance = Quasimetric(randomized(QuasimetricConfig(hidden=6).build((5, 1, 1)).embed), 8)
    distance.requires_grad_(False)
    goal = normal(1, 5)
    # one state is imagined: of several, the product with the weights may be rounded otherwise
    states = goal.expand(1, 1, 2, 5).clone().requires_grad_()
    (slope,) = torch.autograd.grad(path_energy(distance, states, goal).sum(), states)
    assert not slope.any()


@pytest.mark.parametrize("mode", ["plan", "react"])
def test_inference_mode_and_bfloat16_give_plans(mode):
    config = run_dir.settings_of(SHIPPED)
    with closing(config.env.build(1)) as env:
        obs, info = env.reset(seed=0)
        goal = env.goal(info)

    def acting(agent: ami.Agent) -> Controller:
        return agent.controller(1, ami.Task(goal=goal, mode=mode), tensors=True)

    controller = acting(ami.load(SHIPPED))
    with torch.inference_mode():
        controller.act(obs)
        second = controller.act(obs)
    third = controller.act(obs)  # what is kept between the plans serves outside too
    assert second.actions.isfinite().all()
    assert third.actions.isfinite().all()
    coarse = ami.load(SHIPPED).to(torch.bfloat16)
    action = acting(coarse).act(obs).actions[:, 0]
    assert action.dtype == torch.bfloat16
    native = coarse.spec.interface.env_action(action, batch=True)
    assert (native == coarse.spec.interface.env_action(action.float(), batch=True)).all()
