"""States that are not reachable yet lead to plans that are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from modules.actor.planning import (
    CollocationConfig,
    GradientPlannerConfig,
    RolloutEvaluator,
)
from modules.actor.planning.collocation import Adam
from modules.actor.planning.evaluator import RandomProposals
from modules.actor.policy import ActionSpace, BallActions, BoxActions
from modules.types import (
    ConfigError,
    CostTermsFn,
    EvaluatedRollouts,
    ProposalFn,
    Rollout,
    TaskContext,
)
from tests.conftest import Stepping, make_context, stepwise

HERE = torch.tensor([[0.5, -0.3], [0.2, 0.9]])
THERE = torch.tensor([[1.3, -1.1], [-0.6, 0.1]])
CARE = 0.1
"""Weight of the control cost."""


class Steps(nn.Module):
    """Dynamics given by one step; the interoception on arrival is the state."""

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step

    def forward(self, state: Tensor, actions: Tensor) -> Rollout:
        states = [state[:, None].expand(-1, actions.shape[1], -1)]
        for action in actions.unbind(2):
            states.append(self.step(states[-1], action))
        path = torch.stack(states, 2)
        return Rollout(path, actions, actions[..., :0], path[:, :, 1:])


def coast(state: Tensor, action: Tensor) -> Tensor:
    return state + action


def push(state: Tensor, action: Tensor) -> Tensor:
    """The double integrator: positions, then velocities."""
    position, speed = state.chunk(2, -1)
    speed = speed + 0.1 * action
    return torch.cat([position + 0.1 * speed, speed], -1)


def spin(state: Tensor, action: Tensor) -> Tensor:
    """A rotation that diverges from the origin by 14 % every step: 190 times in 40."""
    turn = torch.tensor([[1.1, -0.3], [0.3, 1.1]]).to(state)
    return state @ turn + 0.2 * action


def miss_and_effort(rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
    """The squared distance of the last state to the goal, and the control cost."""
    miss = (rollout.states[:, :, -1] - context.goal[:, None]).square().sum(-1)
    return {"miss": miss, "control_cost": CARE * rollout.actions.square().sum((-2, -1))}


def distance(rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
    """Mean over the path, as the critic has it."""
    return {
        "critic": (rollout.states[:, :, 1:] - context.goal[:, None, None]).norm(dim=-1).mean(-1)
    }


def make_evaluator(
    step: Callable[[Tensor, Tensor], Tensor] = coast,
    evaluate: CostTermsFn = miss_and_effort,
    bounds: ActionSpace | None = None,
) -> RolloutEvaluator:
    env = Steps(step)
    return RolloutEvaluator(env, stepwise(env), evaluate, bounds or BoxActions(), 2)


def planner(
    agent: RolloutEvaluator | None = None, propose: ProposalFn | None = None, **how: float
) -> Stepping:
    config = CollocationConfig(**how)  # type: ignore[arg-type]
    evaluator = agent or make_evaluator()
    return Stepping(config.build(evaluator, propose or evaluator.no_candidates))


def context(goal: Tensor = THERE, steps: int = 8, horizon: int = 3) -> TaskContext:
    return make_context(goal, horizon=horizon, iterations=steps, weights={"critic": 1.0})


def total(agent: RolloutEvaluator, state: Tensor, actions: Tensor, task: TaskContext) -> Tensor:
    return agent.evaluate(state, actions, task).energy


@pytest.mark.parametrize("bounds", [BoxActions(), BallActions()], ids=str)
@pytest.mark.parametrize("through", [0.0, 0.5, 1.0])
def test_finds_the_optimum_of_an_env_solved_by_hand(bounds, through):
    """argmin |s + sum a - g|^2 + w sum |a|^2 is H equal steps (g - s) / (H + w)."""
    agent = make_evaluator(bounds=bounds)
    plan = planner(agent, dynamics_grad_scale=through, polish_steps=60)(HERE, context(steps=100))
    best = ((THERE - HERE) / (3 + CARE))[:, None].expand(-1, 3, -1)
    torch.testing.assert_close(plan.actions, best, atol=0.02, rtol=0)


def test_pushes_a_mass_as_well_as_least_squares():
    agent, horizon = make_evaluator(push), 16
    state = torch.cat([HERE, torch.zeros(2, 2)], 1)
    task = context(state + 0.3, steps=200, horizon=horizon)

    def end(actions: Tensor) -> Tensor:
        return agent.imagine(state[:1], actions.reshape(1, 1, horizon, 2)).states[0, 0, -1]

    reach = torch.autograd.functional.jacobian(end, torch.zeros(horizon * 2))  # [D, H A]
    difference = task.goal[0] - end(torch.zeros(horizon * 2))
    best = reach.T @ torch.linalg.solve(reach @ reach.T + CARE * torch.eye(4), difference)
    assert best.abs().max() < 0.9  # within the bounds of the actions
    least = total(agent, state[:1], best.reshape(1, 1, horizon, 2), task.select(torch.tensor([0])))
    plan = planner(agent, polish_steps=30)(state, task)
    assert plan.energy[0] < 1.02 * least[0, 0]


def test_in_unstable_dynamics_it_plans_far_ahead_where_shooting_fails():
    agent, start = (
        make_evaluator(spin, distance),
        torch.tensor([[0.3, -0.1], [0.1, 0.3], [-0.4, 0.2]]),
    )
    task = context(-start, steps=64, horizon=40)
    descent = Stepping(GradientPlannerConfig(lr=0.1).build(agent, agent.no_candidates))
    shooting = descent(start, task)
    plan = planner(agent)(start, task)
    assert plan.energy.mean() < shooting.energy.mean() / 2


def test_its_updates_are_those_of_adam():
    gradients = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    there = nn.Parameter(torch.zeros(3))
    oracle, ours, here = torch.optim.Adam([there], lr=0.1), Adam(0.1), torch.zeros(3)
    for gradient in gradients:
        there.grad = gradient
        oracle.step()
        here = here - ours(gradient[None])[0]
    torch.testing.assert_close(here, there.detach())


def test_longer_horizons_are_no_deeper_graphs():
    """All steps are one batch; only polishing unrolls the dynamics."""
    lengths: list[int] = []
    env = Steps(coast)

    def watched(state: Tensor, actions: Tensor) -> Rollout:
        lengths.append(actions.shape[2])
        return env(state, actions)

    agent = RolloutEvaluator(watched, stepwise(watched), miss_and_effort, BoxActions(), 2)
    planner(agent, polish_steps=0)(HERE, context(steps=10, horizon=30))
    assert lengths.count(1) == 10 + 2  # two rollouts measure the scale of a step and of the energy
    assert lengths.count(30) == 2  # the candidates, and their rollouts


@pytest.mark.parametrize("steps", [0, 1, 8])
def test_the_states_of_a_plan_are_what_its_actions_lead_to(steps):
    agent, task = make_evaluator(spin), context(steps=steps, horizon=6)
    plan = planner(agent, polish_steps=0, weight=1e-3, final_weight=1e-3)(HERE, task)
    evaluated = agent.evaluate(HERE, plan.actions[:, None], task)
    torch.testing.assert_close(plan.states, evaluated.rollout.states[:, 0])
    torch.testing.assert_close(plan.energy, evaluated.energy[:, 0])
    torch.testing.assert_close(plan.energy, plan.terms["miss"] + plan.terms["control_cost"])
    assert (plan.candidate_states == plan.states[:, None]).flatten(2).all(2).any(1).all()


def test_the_plan_is_the_candidate_of_least_energy():
    agent, task = make_evaluator(), context(steps=0)
    rng = torch.Generator().manual_seed(0)
    candidates = RandomProposals(agent.action_space, 2)(HERE, task, 4, rng)
    energy = total(agent, HERE, candidates, task)
    plan = planner(agent, num_proposals=4)(HERE, task)
    torch.testing.assert_close(plan.energy, energy.amin(1))
    assert (candidates == plan.actions[:, None]).flatten(2).all(2).any(1).all()


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_planning_is_never_worse_than_the_candidates_even_with_a_large_learning_rate(steps):
    guessed = planner()(HERE, context(steps=0)).energy
    assert (
        planner(lr=3.0, state_lr=5.0, noise=2.0)(HERE, context(steps=steps)).energy <= guessed
    ).all()


def test_an_optimal_proposal_is_kept():
    best = ((THERE - HERE) / (3 + CARE))[:, None, None].expand(-1, 1, 3, -1)
    plan = planner(propose=lambda state, task, rng: best, lr=1.0)(HERE, context())
    torch.testing.assert_close(plan.actions, best[:, 0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("through", [0.0, 1.0])
def test_neither_the_unit_of_the_state_nor_that_of_the_cost_matters(through):
    """A representation a thousand times as large, and a cost ten thousand times as high."""

    def vast(state: Tensor, action: Tensor) -> Tensor:
        return 1e3 * spin(state / 1e3, action)

    def scaled_cost(rollout: Rollout, task: TaskContext) -> dict[str, Tensor]:
        return {"critic": 10 * distance(rollout, task)["critic"]}

    here, task = HERE.double(), context(THERE.double(), steps=20, horizon=8)
    plan = planner(make_evaluator(spin, distance), dynamics_grad_scale=through)(here, task)
    other = planner(make_evaluator(vast, scaled_cost), dynamics_grad_scale=through)(
        1e3 * here, task._replace(goal=1e3 * task.goal)
    )
    torch.testing.assert_close(plan.actions, other.actions, atol=1e-4, rtol=0)


def test_without_gradient_through_dynamics_they_need_no_gradient_in_the_state():
    def opaque(state: Tensor, action: Tensor) -> Tensor:
        return spin(state.detach(), action)

    def plan(step: Callable[[Tensor, Tensor], Tensor], through: float) -> Tensor:
        agent = make_evaluator(step, distance)
        return planner(agent, dynamics_grad_scale=through, polish_steps=0)(HERE / 3, task).actions

    task = context(-HERE / 3, horizon=20, steps=64)
    plans = [plan(step, through=0) for step in (spin, opaque)]
    assert torch.equal(*plans)
    whole = plan(spin, through=1)
    assert not torch.allclose(whole, plans[0], atol=1e-2)


@pytest.mark.parametrize("horizon", [1, 3])
def test_interoception_moves_the_actions(horizon):
    def hunger(rollout: Rollout, task: TaskContext) -> dict[str, Tensor]:
        return {
            "hunger": (rollout.interoception - task.goal[:, None, None]).square().mean((-2, -1))
        }

    agent, task = make_evaluator(evaluate=hunger), context(HERE + 0.8, steps=60, horizon=horizon)
    lazy = total(agent, HERE, torch.zeros(2, 1, horizon, 2), task)[:, 0]
    assert (planner(agent, polish_steps=0, num_proposals=1)(HERE, task).energy < lazy / 4).all()


class Gusts:
    """Two futures of the same actions, as likely as each other: a gust from the left or right."""

    def noise(self, actions: Tensor) -> tuple[Tensor, ...]:
        return (torch.tensor([-0.5, 0.5]),)

    def aggregate(self, evaluated: EvaluatedRollouts, task: TaskContext) -> EvaluatedRollouts:
        first = Rollout(*(part[:, ::2] for part in evaluated.rollout))
        terms = {n: term.unflatten(1, (-1, 2)).mean(-1) for n, term in evaluated.terms.items()}
        return evaluated._replace(rollout=first, terms=terms, energy=sum(terms.values()))


def test_sampled_futures_are_aggregated_and_virtual_states_are_not():
    still = Steps(coast)

    def windy(state: Tensor, actions: Tensor, *chance: Tensor) -> Rollout:
        if not chance:
            return still(state, actions)
        blown = actions.repeat_interleave(2, 1) + chance[0].repeat(actions.shape[1])[:, None, None]
        path = still(state, blown).states
        return Rollout(path, actions.repeat_interleave(2, 1), blown[..., :0], path[:, :, 1:])

    agent = RolloutEvaluator(windy, stepwise(windy), miss_and_effort, BoxActions(), 2, Gusts())
    plan = planner(agent, polish_steps=60)(HERE, context(steps=100))
    best = ((THERE - HERE) / (3 + CARE))[:, None].expand(-1, 3, -1)  # gusts only add a constant
    torch.testing.assert_close(plan.actions, best, atol=0.02, rtol=0)


def test_without_a_goal_the_plan_is_not_drawn_to_one():
    def flee(rollout: Rollout, task: TaskContext) -> dict[str, Tensor]:
        return {"fear": (-rollout.states[:, :, 1:].square().sum(-1)).exp().mean(-1)}

    for weights, same in (({"fear": 1.0}, True), ({"critic": 1.0}, False)):
        tasks = [context(goal)._replace(weights=weights) for goal in (THERE, -THERE)]
        first, other = (
            planner(make_evaluator(evaluate=flee), polish_steps=0)(HERE, task) for task in tasks
        )
        assert torch.equal(first.actions, other.actions) is same


class Spring(nn.Module):
    """A step with parameters: s' = W s + a."""

    def __init__(self) -> None:
        super().__init__()
        self.push = nn.Linear(2, 2)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        return self.push(state) + action


@pytest.mark.parametrize("recording", [torch.no_grad, torch.enable_grad])
def test_planning_leaves_no_trace_in_any_parameter(recording):
    spring, taste = Spring(), nn.Linear(2, 2)

    def like(rollout: Rollout, task: TaskContext) -> dict[str, Tensor]:
        return {"taste": taste(rollout.states[:, :, 1:]).square().mean((-2, -1))}

    agent = [*spring.named_parameters(), *taste.named_parameters()]
    before = {name: parameter.detach().clone() for name, parameter in agent}
    with recording():
        planner(make_evaluator(spring, like))(HERE, context())
    assert all(parameter.grad is None for _, parameter in agent)
    assert all(parameter.requires_grad for _, parameter in agent)
    assert all(torch.equal(parameter, before[name]) for name, parameter in agent)


def test_a_new_episode_with_the_same_seed_makes_the_same_plans():
    agent = planner(make_evaluator(spin), noise=0.3)

    def episodes_of(seed: int) -> Tensor:
        agent.reset(seed)
        return torch.stack([agent(HERE, context(steps=3)).actions for _ in range(3)])

    first, other, again = episodes_of(3), episodes_of(4), episodes_of(3)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_another_seed_makes_other_plans():
    plans = [
        planner(num_proposals=1, noise=n, polish_steps=0)(HERE, context()).actions for n in (0, 0.5)
    ]
    assert not torch.allclose(*plans)


def test_a_batch_of_envs_is_planned_for_as_each_alone():
    together = planner(num_proposals=1, noise=0.3)
    single = [planner(num_proposals=1, noise=0.3) for _ in HERE]
    for _ in range(2):  # cold, then warm
        plan = together(HERE, context())
        for i, agent in enumerate(single):
            own = agent(HERE[i : i + 1], context(THERE[i : i + 1]))
            torch.testing.assert_close(plan.actions[i], own.actions[0])


def miss_all_along(rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
    """A late arrival costs more: in the best plan no two actions are the same."""
    miss = rollout.states[:, :, 1:] - context.goal[:, None, None]
    return {"late": miss.square().sum((-2, -1)), **miss_and_effort(rollout, context)}


def test_the_second_plan_starts_from_the_first_one_step_later():
    agent = planner(make_evaluator(evaluate=miss_all_along), warm_iterations=0, num_proposals=1)
    task = context(steps=40, horizon=4)
    first = agent(HERE, task)
    second = agent(first.states[:, 1], task)
    later = torch.cat([first.actions[:, 1:], first.actions[:, -1:]], 1)
    torch.testing.assert_close(second.actions, later, atol=1e-5, rtol=0)
    assert not torch.allclose(later, first.actions, atol=1e-2)


def test_a_warm_plan_is_improved_in_fewer_steps():
    agent = make_evaluator(spin, distance)
    task = context(-HERE / 3, steps=64, horizon=20)
    warm_planner = planner(agent)
    first = warm_planner(HERE / 3, task)
    again, cold = (
        warm_planner(HERE / 3, task),
        planner(agent)(HERE / 3, task._replace(iterations=16)),
    )
    assert (again.energy < cold.energy).all()
    assert first.states.shape == again.states.shape


@pytest.mark.parametrize(("proposals", "same"), [(1, True), (2, False)])
def test_only_candidates_without_a_warm_start_begin_on_a_line_to_the_goal(proposals, same):
    def described(straight: float) -> Tensor:
        agent = planner(
            make_evaluator(spin, distance),
            linear_init=straight,
            num_proposals=proposals,
            polish_steps=0,
        )
        agent.set_warm_start(torch.full((2, 1, 20, 2), 0.1))
        return agent(HERE / 3, context(-HERE / 3, horizon=20)).candidate_states

    assert torch.equal(described(0), described(1)) is same


def test_with_other_envs_or_another_horizon_there_is_no_warm_start():
    agent = planner()
    agent(HERE, context())
    assert agent(HERE[:1], context(THERE[:1])).actions.shape == (1, 3, 2)
    assert agent(HERE[:1], context(THERE[:1], horizon=5)).actions.shape == (1, 5, 2)


def test_a_given_warm_start_replaces_the_last_plan():
    uneven = ((THERE - HERE) / (3 + CARE))[:, None, None] * torch.tensor([0.8, 1.1, 1.0])[:, None]
    agent = planner(num_proposals=1, warm_iterations=0)
    agent(-HERE, context())
    agent.set_warm_start(uneven)
    torch.testing.assert_close(agent(HERE, context()).actions, uneven[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_keep_the_precision_of_the_state(dtype):
    plan = planner(make_evaluator(spin))(HERE.to(dtype), context(THERE.to(dtype)))
    assert {plan.actions.dtype, plan.energy.dtype, plan.states.dtype} == {dtype}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_seed_gives_the_same_plans_on_another_device():
    here = planner()(HERE, context())
    there = planner()(HERE.cuda(), context(THERE.cuda()))
    torch.testing.assert_close(there.actions.cpu(), here.actions, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("horizon", 0),
        ("num_proposals", 0),
        ("iterations", -1),
        ("warm_iterations", -1),
        ("num_warm_starts", -1),
        ("sync_every", 0),
        ("polish_steps", -1),
        ("lr", -0.1),
        ("state_lr", -0.1),
        ("weight", 0.0),
        ("final_weight", 0.0),
        ("noise", -0.1),
        ("dynamics_grad_scale", 1.5),
        ("dynamics_grad_scale", -0.5),
        ("landed_fraction", 1.1),
        ("linear_init", 2.0),
    ],
)
def test_settings_without_meaning_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} is {value}"):
        replace(CollocationConfig(), **{name: value})


def test_callbacks_receive_real_futures_only():
    """A state of the optimiser is no prediction: callbacks must not receive its energy."""
    messages = []
    agent = make_evaluator()
    agent.callbacks.append(lambda evaluated: messages.append(evaluated.energy))
    plan = planner(agent, polish_steps=3)(HERE, context(steps=4))
    assert messages
    assert torch.stack([energy.amin(1) for energy in messages]).amin(0).allclose(plan.energy)
