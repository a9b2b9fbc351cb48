"""Planning finds the best valid actions, never makes a proposal worse, and leaves no trace."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modules.actor.planning import (
    CEM,
    MPPI,
    CEMConfig,
    GradientPlanner,
    GradientPlannerConfig,
    MPPIConfig,
    RolloutEvaluator,
)
from modules.actor.planning.evaluator import RandomProposals
from modules.actor.policy import (
    ActionSpace,
    BallActions,
    BoxActions,
    PlanningActor,
    PolicyProposal,
    StuckPerturbationConfig,
)
from modules.types import (
    CostTermsFn,
    Plan,
    PlannerCarry,
    ProposalFn,
    Rollout,
    RolloutFn,
    TaskContext,
)
from tests.conftest import Stepping, make_context, stepwise

Make = Callable[..., GradientPlanner | CEM | MPPI]

PLANNERS: dict[str, Callable[..., GradientPlannerConfig | CEMConfig | MPPIConfig]] = {
    "gradient": GradientPlannerConfig,
    "cem": CEMConfig,
    "mppi": MPPIConfig,
}
THOROUGH = {
    "gradient": {"lr": 0.05},
    "cem": {"num_samples": 128},
    "mppi": {"num_samples": 128, "temperature": 0.5},
}
STEPS = {"gradient": 200, "cem": 30, "mppi": 30}
BOUNDS = [BoxActions(), BallActions(), BallActions(radius=0.4)]
CARE = 1.0
"""Weight of the control cost in the environment solved by hand."""


def coast(state: Tensor, actions: Tensor) -> Rollout:
    """The dynamics s' = s + a."""
    start = state[:, None, None].expand(-1, actions.shape[1], 1, -1)
    return insentient(torch.cat([start, start + actions.cumsum(2)], 2), actions)


def insentient(states: Tensor, actions: Tensor) -> Rollout:
    """A future without interoception."""
    return Rollout(states, actions, latents=actions[..., :0], interoception=actions[..., :0])


def miss_and_effort(rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
    """The squared distance of the last state to the goal, and the control cost."""
    miss = (rollout.states[:, :, -1] - context.goal[:, None]).square().sum(-1)
    return {"miss": miss, "control_cost": CARE * rollout.actions.square().sum((-2, -1))}


def solved_by_hand(state: Tensor, context: TaskContext) -> Tensor:
    """argmin |s + sum a - g|^2 + w sum |a|^2 is H equal steps (g - s) / (H + w); `[B, H, A]`."""
    step = (context.goal - state) / (context.horizon + CARE)
    return step[:, None].expand(-1, context.horizon, -1)


def make_evaluator(
    bounds: ActionSpace | None = None,
    imagine: RolloutFn = coast,
    evaluate: CostTermsFn = miss_and_effort,
) -> RolloutEvaluator:
    return RolloutEvaluator(imagine, stepwise(imagine), evaluate, bounds or BoxActions(), 2)


def planner(
    kind: str,
    agent: RolloutEvaluator | None = None,
    propose: ProposalFn | None = None,
    **how: float,
) -> Stepping:
    evaluator = agent or make_evaluator()
    return Stepping(PLANNERS[kind](**how).build(evaluator, propose or evaluator.no_candidates))


def context(goal: Tensor, steps: int = 8, horizon: int = 3) -> TaskContext:
    return make_context(goal, horizon=horizon, iterations=steps)


HERE = torch.tensor([[0.5, -0.3], [0.2, 0.9]])
THERE = torch.tensor([[1.3, -1.1], [-0.6, 0.1]])
everyone = pytest.mark.parametrize("kind", PLANNERS)


@everyone
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_finds_the_optimum_of_an_env_solved_by_hand(kind, bounds):
    plan = planner(kind, make_evaluator(bounds), **THOROUGH[kind])(
        HERE, task := context(THERE, STEPS[kind])
    )
    torch.testing.assert_close(plan.actions, solved_by_hand(HERE, task), atol=0.02, rtol=0)


@everyone
def test_the_states_of_a_plan_are_what_its_actions_lead_to(kind):
    task = context(THERE)
    plan = planner(kind)(HERE, task)
    future = coast(HERE, plan.actions[:, None])
    torch.testing.assert_close(plan.states, future.states[:, 0])
    hurt = miss_and_effort(future, task)
    torch.testing.assert_close(dict(plan.terms), {name: term[:, 0] for name, term in hurt.items()})
    torch.testing.assert_close(plan.energy, plan.terms["miss"] + plan.terms["control_cost"])
    assert (plan.candidate_states == plan.states[:, None]).flatten(2).all(2).any(1).all()


@everyone
def test_the_candidate_of_least_energy_is_chosen(kind):
    task = context(THERE)
    plan = planner(kind)(HERE, task)
    actions = plan.candidate_states.diff(dim=2)  # s' = s + a
    rivals = sum(miss_and_effort(coast(HERE, actions), task).values())
    torch.testing.assert_close(plan.energy, rivals.amin(1))


@everyone
@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_plans_reach_the_bounds_of_the_actions_and_do_not_exceed_them(kind, bounds):
    far = torch.tensor([[40.0, 0.0], [0.0, -40.0]])
    plan = planner(kind, make_evaluator(bounds), **THOROUGH[kind])(
        torch.zeros(2, 2), context(far, STEPS[kind])
    )
    torch.testing.assert_close(bounds.project(plan.actions), plan.actions)
    assert ((plan.actions * far[:, None]).sum(-1) > 0.9 * 40 * getattr(bounds, "radius", 1)).all()


@everyone
def test_more_iterations_never_make_a_plan_worse(kind):
    energies = [planner(kind)(HERE, context(THERE, steps)).energy for steps in range(12)]
    assert (torch.stack(energies).diff(dim=0) <= 1e-6).all()


def test_a_step_that_overshoots_does_not_make_a_plan_worse():
    almost_there = torch.full((1, 2), 0.02)
    evaluated = [
        planner("gradient", num_proposals=1, lr=2.0)(
            torch.zeros(1, 2), context(almost_there, steps)
        )
        for steps in range(4)
    ]
    energies = torch.cat([plan.energy for plan in evaluated])
    assert (energies.diff() <= 0).all()
    assert energies[-1] <= 8e-4  # the cost of staying; the first step lands near (1, 1)


class Spring(nn.Module):
    """Dynamics with parameters: s' = W s + a."""

    def __init__(self) -> None:
        super().__init__()
        self.push = nn.Linear(2, 2)

    def forward(self, state: Tensor, actions: Tensor, noise: Tensor | None = None) -> Rollout:
        states = [state[:, None].expand(-1, actions.shape[1], -1)]
        for action in actions.unbind(2):
            states.append(self.push(states[-1]) + action)
        return insentient(torch.stack(states, 2), actions)


class Taste(nn.Module):
    """A cost with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = nn.Linear(2, 2)

    def forward(self, rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
        return {"taste": self.weigh(rollout.states[:, :, 1:]).square().mean((-2, -1))}


@everyone
@pytest.mark.parametrize("recording", [torch.no_grad, torch.enable_grad])
def test_planning_leaves_no_trace_in_any_parameter(kind, recording):
    spring, taste = Spring(), Taste()
    agent = [*spring.named_parameters(), *taste.named_parameters()]
    before = {name: parameter.detach().clone() for name, parameter in agent}
    with recording():
        planner(kind, make_evaluator(None, spring, taste))(HERE, context(THERE))
    assert all(parameter.grad is None for _, parameter in agent)
    assert all(parameter.requires_grad for _, parameter in agent)
    assert all(torch.equal(parameter, before[name]) for name, parameter in agent)


@everyone
def test_the_plan_of_an_env_does_not_depend_on_others(kind):
    elsewhere = torch.cat([THERE[:1], 100 * THERE[1:]])
    single = planner(kind)(HERE, context(THERE))
    beside = planner(kind)(HERE * torch.tensor([[1], [-7]]), context(elsewhere))
    torch.testing.assert_close(single.actions[0], beside.actions[0])
    torch.testing.assert_close(single.energy[0], beside.energy[0])
    assert not torch.allclose(single.actions[1], beside.actions[1])


def test_without_noise_envs_in_another_order_get_the_same_plans():
    order = torch.tensor([1, 0])
    plan = planner("gradient", num_proposals=1)(HERE, context(THERE))
    turned = planner("gradient", num_proposals=1)(HERE[order], context(THERE[order]))
    torch.testing.assert_close(turned.actions, plan.actions[order])


def miss_all_along(rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
    """A late arrival costs more: in the best plan no two actions are the same."""
    miss = rollout.states[:, :, 1:] - context.goal[:, None, None]
    return {"late": miss.square().sum((-2, -1)), **miss_and_effort(rollout, context)}


@everyone
def test_the_second_plan_starts_from_the_first_one_step_later(kind):
    single = {"gradient": {"num_proposals": 1}}.get(kind, {})
    agent = planner(kind, make_evaluator(None, coast, miss_all_along), warm_iterations=0, **single)
    task = context(THERE, {"gradient": 40}.get(kind, 3), horizon=4)
    first = agent(HERE, task)
    second = agent(first.states[:, 1], task)
    later = torch.cat([first.actions[:, 1:], first.actions[:, -1:]], 1)
    torch.testing.assert_close(second.actions, later, atol=1e-5, rtol=0)
    assert not torch.allclose(later, first.actions, atol=1e-2)


@everyone
def test_with_other_envs_or_another_horizon_there_is_no_warm_start(kind):
    agent = planner(kind)
    agent(HERE, context(THERE))
    assert agent(HERE[:1], context(THERE[:1])).actions.shape == (1, 3, 2)
    assert agent(HERE[:1], context(THERE[:1], horizon=5)).actions.shape == (1, 5, 2)


@everyone
def test_a_new_episode_with_the_same_seed_makes_the_same_plans(kind):
    agent = planner(kind)

    def episodes_of(seed: int) -> Tensor:
        agent.reset(seed)
        return torch.stack([agent(HERE, context(THERE, steps=1)).actions for _ in range(3)])

    first, other, again = episodes_of(3), episodes_of(4), episodes_of(3)
    assert torch.equal(first, again)
    assert kind == "gradient" or not torch.equal(first, other)


@everyone
def test_a_given_warm_start_replaces_the_last_plan_and_the_random_stream_continues(kind):
    task = context(THERE, STEPS[kind])
    uneven = solved_by_hand(HERE, task)[:, None] * torch.tensor([0.8, 1.1, 1.0])[:, None]
    agent = planner(kind, warm_iterations=0, **{"gradient": {"num_proposals": 1}}.get(kind, {}))
    agent(-HERE, task)
    agent.set_warm_start(uneven)
    torch.testing.assert_close(agent(HERE, task).actions, uneven[:, 0], atol=1e-5, rtol=0)
    agent = planner(kind, warm_iterations=1)
    far = torch.full_like(uneven, -0.9)
    agent.set_warm_start(far)
    hasty = agent(HERE, task)
    agent.set_warm_start(far)
    again = agent(HERE, task)
    assert kind == "gradient" or not torch.equal(hasty.actions, again.actions)


def test_another_seed_makes_other_candidates():
    propose = RandomProposals(BoxActions(), 2)
    first, other = (
        propose(HERE, context(THERE), 4, torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    assert not torch.equal(first[:, 1:], other[:, 1:])


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_random_candidates_are_piecewise_constant_within_bounds_and_rest_comes_first(bounds):
    candidates = RandomProposals(bounds, 2, num_segments=2)(
        HERE, context(THERE, horizon=5), 50, torch.Generator().manual_seed(0)
    )
    assert candidates.shape == (2, 50, 5, 2)
    assert (candidates[:, 0].abs() < 1e-6).all()
    assert (candidates[:, :, :3] == candidates[:, :, :1]).all()
    assert (candidates[:, :, 3:] == candidates[:, :, 3:4]).all()
    torch.testing.assert_close(bounds.project(candidates), candidates)


@everyone
def test_an_optimal_proposal_needs_no_planning(kind):
    def perfect(state: Tensor, task: TaskContext, rng: torch.Generator) -> Tensor:
        return solved_by_hand(state, task)[:, None]

    task = context(THERE, steps=0)
    plan = planner(kind, propose=perfect)(HERE, task)
    torch.testing.assert_close(plan.actions, solved_by_hand(HERE, task))


@everyone
def test_a_bad_proposal_does_not_mislead(kind):
    def mad(state: Tensor, task: TaskContext, rng: torch.Generator) -> Tensor:
        return -solved_by_hand(state, task)[:, None].sign()

    task = context(THERE, STEPS[kind])
    plan = planner(kind, propose=mad, **THOROUGH[kind])(HERE, task)
    optimum = coast(HERE, solved_by_hand(HERE, task)[:, None])
    least = sum(miss_and_effort(optimum, task).values())[:, 0]
    torch.testing.assert_close(plan.energy, least, atol=0.02, rtol=0)


def test_a_policy_proposal_is_the_rollout_of_the_policy():
    def halve(state: Tensor, goal: Tensor, condition: Tensor) -> Tensor:
        return (goal - state) / 2

    proposal = PolicyProposal(halve, make_evaluator())(
        HERE, context(THERE, horizon=3), torch.Generator()
    )
    fraction = torch.tensor([1 / 2, 1 / 4, 1 / 8])[:, None]
    torch.testing.assert_close(proposal[:, 0], (THERE - HERE)[:, None] * fraction)


class Counting:
    """States in every action which plan it belongs to, and which step of it this is."""

    def __call__(
        self, state: Tensor, task: TaskContext, carry: PlannerCarry
    ) -> tuple[Plan, PlannerCarry]:
        plans = 0 if carry.warm_start is None else int(carry.warm_start)
        step = torch.arange(task.horizon + 1.0)
        states = torch.stack([torch.full_like(step, plans), step], -1)[None]
        plan = bare(states[:, :-1], torch.zeros(1), states)
        return plan, carry._replace(warm_start=torch.tensor(plans + 1))


def bare(actions: Tensor, energy: Tensor, states: Tensor) -> Plan:
    """A plan without terms or subgoals, and without other candidates."""
    deliberated = torch.ones(len(energy), dtype=torch.bool)
    return Plan(
        actions, energy, {}, states, states[:, None][:, :0], states[:, None], energy[:, None],
        deliberated,
    )  # fmt: skip


def carried_out(actor: Stepping, calls: int, horizon: int = 4) -> list[list[float]]:
    task = context(THERE[:1], horizon=horizon)
    return [actor(HERE[:1], task).action[0].tolist() for _ in range(calls)]


def test_open_loop_execution_plans_every_so_many_calls_and_follows_the_plan():
    assert carried_out(Stepping(PlanningActor(Counting(), 1)), 3) == [[0, 0], [1, 0], [2, 0]]
    assert carried_out(Stepping(PlanningActor(Counting(), 3)), 5) == [
        [0, 0],
        [0, 1],
        [0, 2],
        [1, 0],
        [1, 1],
    ]


def test_open_loop_execution_ends_with_the_plan():
    assert carried_out(Stepping(PlanningActor(Counting(), 9)), 4, horizon=2) == [
        [0, 0],
        [0, 1],
        [1, 0],
        [1, 1],
    ]


def test_a_partly_executed_plan_starts_at_the_current_state():
    actor = Stepping(PlanningActor(Counting(), 2))
    carried_out(actor, 1)
    rest = actor(HERE[:1], context(THERE[:1], horizon=4))
    assert rest.states[0].tolist() == [[0, 1], [0, 2], [0, 3], [0, 4]]
    assert torch.equal(rest.candidate_states[:, 0], rest.states)
    assert rest.actions[0].tolist() == [[0, 1], [0, 2], [0, 3]]


def test_a_new_episode_ends_open_loop_execution():
    actor = Stepping(PlanningActor(Counting(), 3))
    assert carried_out(actor, 5)[-1] == [1, 1]
    actor.reset()
    assert carried_out(actor, 1) == [[0, 0]]  # and its planner began anew as well


def vectors(seed: int, scale: float) -> Tensor:
    return scale * torch.randn(50, 2, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3), action_space=st.sampled_from(BOUNDS)
)
def test_no_action_leaves_the_bounds(seed, scale, action_space):
    wild, limit = vectors(seed, scale), getattr(action_space, "radius", 1) + 1e-5
    for inside in (action_space.squash(wild), action_space.project(wild)):
        size = (
            inside.abs().amax(-1) if isinstance(action_space, BoxActions) else inside.norm(dim=-1)
        )
        assert (size <= limit).all()
        torch.testing.assert_close(action_space.project(inside), inside)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), action_space=st.sampled_from(BOUNDS))
def test_unsquash_inverts_squash_within_the_bounds(seed, action_space):
    inside = 0.99 * action_space.project(vectors(seed, 0.5))
    again = action_space.squash(action_space.unsquash(inside))
    torch.testing.assert_close(again, inside, atol=1e-4, rtol=0)


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_zero_actions_have_a_gradient_in_every_direction(bounds):
    rest = torch.zeros(2)
    gradient = torch.autograd.functional.jacobian(bounds.squash, rest)
    torch.testing.assert_close(gradient, getattr(bounds, "radius", 1) * torch.eye(2))


class Stubborn:
    """Always the same plan, whose energy is given by the state."""

    def __call__(self, state, context, carry):
        still = state.new_zeros(len(state), 1, 2)
        return bare(still, state[:, 0], still), carry


def test_only_an_agent_without_progress_and_far_from_the_goal_is_perturbed():
    actor, task = (
        Stepping(
            PlanningActor(
                Stubborn(),
                stuck_recovery=StuckPerturbationConfig(check_every=1).build(
                    make_evaluator(BallActions())
                ),
            )
        ),
        context(torch.zeros(3, 2)),
    )
    assert not actor(torch.tensor([[9.0, 0], [9.0, 0], [1.0, 0]]), task).action.any()  # no check
    plan = actor(torch.tensor([[9.0, 0], [8.0, 0], [1.0, 0]]), task)
    assert plan.action[0].any()  # stuck
    assert not plan.action[1:].any()  # progress; near the goal
    assert plan.action.norm(dim=-1).max() <= 1
    torch.testing.assert_close(plan.states[:, 1], plan.states[:, 0] + plan.action)


def test_detours_of_a_stuck_agent_get_longer_until_it_makes_progress():
    settings = StuckPerturbationConfig(check_every=1, max_steps=4)
    recovery = settings.build(make_evaluator(BallActions()))
    actor, task = (
        Stepping(PlanningActor(Stubborn(), stuck_recovery=recovery)), context(torch.zeros(1, 2))
    )  # fmt: skip

    def lengths(energy: float, steps: int) -> list[int]:
        """How long each action is repeated, while the energy stays the same."""
        state = torch.tensor([[energy, 0.0]])
        actions = [tuple(actor(state, task).action[0].tolist()) for _ in range(steps)]
        assert actions[0] == (0, 0)  # there was progress, or no check yet
        assert (0, 0) not in actions[1:]
        return [len(list(same)) for _, same in itertools.groupby(actions)]

    assert lengths(9.0, 12) == [1, 1, 2, 4, 4]
    assert lengths(5.0, 4) == [1, 1, 2]


@everyone
def test_a_future_that_diverges_misleads_no_planner(kind):
    """Actions to the left of 0 lead to NaN, and the goal lies to the right."""

    def split(rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
        energies = miss_and_effort(rollout, context)
        diverges = (rollout.actions[..., 0] < -0.05).any(-1)
        return {name: term.masked_fill(diverges, torch.nan) for name, term in energies.items()}

    goal = HERE + torch.tensor([1.0, 0.0])
    task = context(goal, STEPS[kind])
    plan = planner(kind, make_evaluator(evaluate=split), **THOROUGH[kind])(HERE, task)
    assert plan.energy.isfinite().all()
    assert (plan.actions[:, 0, 0] > 0.1).all()


def test_the_rest_of_a_plan_is_not_for_another_number_of_environments():
    actor = Stepping(PlanningActor(Stubborn(), 3, stuck_recovery=None))
    task = context(torch.zeros(2, 2))
    assert len(actor(torch.ones(2, 2), task).action) == 2
    assert len(actor(torch.ones(1, 2), context(torch.zeros(1, 2))).action) == 1
    recovery = StuckPerturbationConfig(check_every=1).build(make_evaluator(BallActions()))
    actor = Stepping(PlanningActor(Stubborn(), stuck_recovery=recovery))
    actor(torch.full((3, 2), 9.0), context(torch.zeros(3, 2)))
    plan = actor(torch.full((2, 2), 9.0), task)  # the energies before were of other environments
    assert not plan.action.any()
