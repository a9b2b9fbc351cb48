"""Mode "auto" plans where planning promises more than the policy, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ami_agent import recipes
from ami_agent.adapters.env import EnvAdapter, rollout
from ami_agent.agent import Agent
from ami_agent.config import Config, buffer_steps, build, override
from ami_agent.evaluation import policies
from ami_agent.evaluation.policies import EpisodeStart
from modules.actor.auto_mode import (
    AdaptiveActorConfig,
    LastPlan,
    PlanEnergyPredictor,
    merge_plans,
)
from modules.actor.planning import (
    CEMConfig,
    GradientPlanner,
    GradientPlannerConfig,
    RolloutEvaluator,
)
from modules.actor.policy import BoxActions
from modules.types import (
    ConfigError,
    EvaluatedRollouts,
    Plan,
    PlannerCarry,
    PlannerProtocol,
    ProposalFn,
    Rollout,
    TaskContext,
)
from tests.conftest import Stepping, make_context, small, stepwise

BIG = 1e6


def coast(state: Tensor, actions: Tensor) -> Rollout:
    """The dynamics s' = s + a, without interoception."""
    start = state[:, None, None].expand(-1, actions.shape[1], 1, -1)
    states = torch.cat([start, start + actions.cumsum(2)], 2)
    return Rollout(states, actions, actions[..., :0], actions[..., :0])


def miss_and_effort(rollout: Rollout, context: TaskContext) -> dict[str, Tensor]:
    """The squared distance of the last state to the goal, and the weighted control cost."""
    miss = (rollout.states[:, :, -1] - context.goal[:, None]).square().sum(-1)
    return {
        "miss": miss,
        "control_cost": context.task_vector * rollout.actions.square().sum((-2, -1)),
    }


EYE = RolloutEvaluator(coast, stepwise(coast), miss_and_effort, BoxActions(), 2)
NUM_ENVS = 6
HERE = torch.tensor([[0.5, -0.3], [0.2, 0.9], [-0.4, 0.1], [0.9, 0.9], [-0.8, 0.3], [0.0, -0.6]])
THERE = HERE.roll(1, 0) + torch.tensor([0.3, -0.5])
TASK = make_context(THERE, task_vector=torch.linspace(0.2, 2.0, NUM_ENVS)[:, None])
LAZY = torch.tensor([False, True, True, False, True, False])
"""Where the policy does nothing."""


def best(state: Tensor, context: TaskContext, rng: Any = None) -> Tensor:
    """argmin |s + sum a - g|^2 + w sum |a|^2 is H equal steps (g - s) / (H + w); `[B, 1, H, A]`."""
    step = (context.goal - state) / (context.horizon + context.task_vector)
    return step[:, None, None].expand(-1, 1, context.horizon, -1)


def rest(state: Tensor, context: TaskContext, rng: Any = None) -> Tensor:
    return torch.zeros_like(best(state, context))


def uneven(state: Tensor, context: TaskContext, rng: Any = None) -> Tensor:
    """The optimum, except where the policy is lazy."""
    return torch.where(LAZY[:, None, None, None], rest(state, context), best(state, context))


class By:
    """A policy proposal that follows a rule."""

    def __init__(self, rule: ProposalFn) -> None:
        self.rule = rule

    def evaluate_with(
        self, state: Tensor, others: Tensor, context: TaskContext
    ) -> EvaluatedRollouts:
        proposed = self.rule(state, context, torch.Generator())
        return EYE.evaluate(state, torch.cat([proposed, others], 1), context)


class Says(nn.Module):
    """Layers that follow a rule."""

    def __init__(self, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, output: Tensor) -> Tensor:
        return self.rule(output)[:, None]


def constant_predictor(energy: float) -> PlanEnergyPredictor:
    """The same prediction for every plan."""
    return PlanEnergyPredictor(
        Says(lambda output: torch.full((len(output),), energy)), num_tasks=1, task_dim=1
    )


def exact_predictor() -> PlanEnergyPredictor:
    """The energy of the best plan of three steps: w / (H + w) of the squared distance."""

    def least(output: Tensor) -> Tensor:
        way, weight = output[:, 4:6], output[:, 6]
        return weight / (3 + weight) * way.square().sum(-1)

    return PlanEnergyPredictor(Says(least), num_tasks=1, task_dim=1)


class Recorder:
    """A planner that records the states it is called with."""

    def __init__(self, planner: PlannerProtocol) -> None:
        self.planner = planner
        self.states: list[Tensor] = []
        self.given: list[Tensor] = []

    def __call__(
        self, state: Tensor, context: TaskContext, carry: PlannerCarry
    ) -> tuple[Plan, PlannerCarry]:
        self.states.append(state)
        assert carry.warm_start is not None
        self.given.append(carry.warm_start)
        return self.planner(state, context, carry)


def make_planner(**how: int) -> GradientPlanner:
    """By default without random candidates: rest is its only one."""
    config = GradientPlannerConfig(**{"num_proposals": 1, "horizon": 3, **how})
    return config.build(EYE, EYE.no_candidates)


def auto(
    expectation: PlanEnergyPredictor,
    proposal: ProposalFn = uneven,
    planner: PlannerProtocol | None = None,
    **how: Any,
) -> tuple[Stepping, Recorder]:
    recorder = Recorder(planner or make_planner())
    return Stepping(
        AdaptiveActorConfig(**how).build(By(proposal), recorder, expectation, 2)
    ), recorder


def rows(plan: Plan, env_ids: Tensor) -> Plan:
    """The plan of some of the environments."""
    parts: dict[str, Any] = {
        name: part[env_ids] for name, part in plan._asdict().items() if isinstance(part, Tensor)
    }
    terms = {name: term[env_ids] for name, term in plan.terms.items()}
    return plan._replace(**{**parts, "terms": terms})


def chosen_only(plan: Plan) -> Plan:
    """The plan without the futures that were only candidates."""
    return plan._replace(
        candidate_states=plan.states[:, None], candidate_energies=plan.energy[:, None]
    )


def assert_same(one: Plan, other: Plan) -> None:
    torch.testing.assert_close(one._asdict(), other._asdict(), rtol=0, atol=0)


def test_a_prediction_of_no_gain_means_reacting_everywhere_without_planning():
    actor, recorder = auto(constant_predictor(BIG))
    plan = actor(HERE, TASK)
    assert not plan.planned.any()
    assert not recorder.states
    assert torch.equal(plan.actions, uneven(HERE, TASK)[:, 0])


def test_a_policy_that_is_already_optimal_needs_no_plan():
    actor, recorder = auto(exact_predictor(), best, tolerance=0.0)
    assert not actor(HERE, TASK).planned.any()
    assert not recorder.states


def test_a_prediction_of_large_gains_means_planning_everywhere_as_in_mode_2():
    actor, recorder = auto(constant_predictor(-BIG))
    plan = actor(HERE, TASK)
    assert plan.planned.all()
    assert len(recorder.states) == 1
    everyone = torch.arange(NUM_ENVS)
    assert_same(plan, chosen_only(after(uneven, make_planner(), everyone)))
    own = EYE.best_plan(HERE, uneven(HERE, TASK), TASK).energy
    assert (plan.energy[LAZY] < own[LAZY]).all()


def test_only_the_envs_that_need_it_are_planned_for_and_as_if_they_were_alone():
    actor, recorder = auto(exact_predictor(), planner=make_planner(num_proposals=4))
    plan = actor(HERE, TASK)
    assert torch.equal(plan.planned, LAZY)
    assert torch.equal(recorder.states[0], HERE[LAZY])
    single = after(rest, make_planner(num_proposals=4), LAZY)
    assert_same(rows(plan, LAZY), chosen_only(single))
    own = EYE.best_plan(HERE, uneven(HERE, TASK), TASK)
    reactive = own._replace(planned=torch.zeros(NUM_ENVS, dtype=torch.bool))
    assert_same(rows(plan, ~LAZY), rows(reactive, ~LAZY))


def test_every_plan_starts_from_what_mode_1_would_do():
    actor, recorder = auto(
        constant_predictor(-BIG), planner=make_planner(warm_iterations=20, lr=0.05), patience=0
    )
    first = actor(HERE, TASK)
    assert torch.equal(recorder.given[0], uneven(HERE, TASK))
    then, kept = onward(first), torch.cat([first.actions[:, 1:], first.actions[:, -1:]], 1)
    actor(then, TASK)
    assert torch.equal(recorder.given[1], torch.cat([uneven(then, TASK), kept[:, None]], 1))


def onward(plan: Plan) -> Tensor:
    """Where the first action of a plan leads."""
    return plan.states[:, 1]


def test_a_plan_is_continued_without_planning_again():
    """The rest of the best plan after one step is the best plan for the rest of the
    way."""
    actor, recorder = auto(
        exact_predictor(), rest, planner=make_planner(warm_iterations=60, lr=0.05), slack=0.1
    )
    first = actor(HERE, TASK)
    assert first.planned.all()
    then = actor(onward(first), TASK)
    assert not then.planned.any()
    assert len(recorder.states) == 1
    kept = torch.cat([first.actions[:, 1:], first.actions[:, -1:]], 1)
    assert torch.equal(then.actions, kept)
    own = EYE.best_plan(onward(first), rest(HERE, TASK), TASK)
    assert (then.energy < own.energy).all()


def test_after_planning_the_agent_does_not_plan_for_some_steps():
    """However much more is predicted: planning again would find the same plan."""
    actor, recorder = auto(constant_predictor(-BIG), patience=2, slack=10.0)
    state, evaluated = HERE, []
    for _ in range(7):
        plan = actor(state, TASK)
        evaluated.append(plan.planned.tolist())
        state = onward(plan)
    everywhere, nowhere = [True] * NUM_ENVS, [False] * NUM_ENVS
    assert evaluated == [everywhere, nowhere, nowhere, everywhere, nowhere, nowhere, everywhere]
    assert len(recorder.states) == 3


def test_the_last_plan_is_valid_in_its_own_env_for_its_own_time():
    worse, better = torch.full((3,), 9.0), torch.full((3,), 1.0)
    last = LastPlan.none(better).advance()
    assert last.expired(better).all()  # there is no plan yet
    last = last.record(torch.tensor([1]), torch.tensor([5.0]), patience=2).advance()
    assert last.expired(better).tolist() == [True, False, True]
    last = last.record(torch.tensor([0, 2]), torch.tensor([0.5, 3.0]), patience=2).advance()
    assert last.expired(better).tolist() == [True, False, False]
    last = last.advance()
    assert last.expired(better).tolist() == [True, True, False]  # it has expired
    assert last.expired(worse).all()
    last = last.record(torch.tensor([0, 1, 2]), better, patience=2).advance()
    assert not last.expired(better).any()


def test_in_another_episode_no_last_plan_is_valid():
    actor, _ = auto(constant_predictor(-BIG), slack=10.0)
    evaluated = []
    for begins in (False, False, True, False):
        if begins:
            actor.reset()
        evaluated.append(bool(actor(HERE, TASK).planned.all()))
    assert evaluated == [True, False, True, False]


def test_the_energy_of_a_plan_is_recorded_where_it_was_made():
    """The predicted gain is large where the policy is lazy, and zero elsewhere."""
    rule = Says(lambda output: torch.where(LAZY, -BIG, BIG))
    actor, recorder = auto(PlanEnergyPredictor(rule, num_tasks=1, task_dim=1), slack=10.0)
    assert torch.equal(actor(HERE, TASK).planned, LAZY)
    assert not actor(HERE, TASK).planned.any()
    assert len(recorder.states) == 1


def test_where_the_energy_rises_above_that_of_the_plan_the_agent_plans_again_and_only_there():
    actor, recorder = auto(
        constant_predictor(-BIG), planner=make_planner(warm_iterations=60, lr=0.05), slack=0.01
    )
    first = actor(HERE, TASK)
    astray = torch.tensor([True, False, False, True, False, False])
    state = torch.where(astray[:, None], 2 * HERE - THERE, onward(first))  # twice as far away
    assert torch.equal(actor(state, TASK).planned, astray)
    assert torch.equal(recorder.states[1], state[astray])


@pytest.mark.parametrize(("worse", "needs_planning"), [(0.04, False), (0.06, True)])
def test_a_small_rise_of_the_energy_is_ignored(worse, needs_planning):
    last = LastPlan.none(torch.zeros(2)).advance()
    last = last.record(torch.tensor([1]), torch.tensor([2.0]), patience=3)
    task = make_context(torch.zeros(2, 2), horizon=1, task_vector=torch.zeros(2, 1))
    expectation = constant_predictor(-BIG)
    actor, _ = auto(expectation, rest, slack=0.05, tolerance=0.0)
    actor.carry = actor.carry._replace(last_plan=last)
    away = torch.tensor([[0.0, 0.0], [(2.0 + worse) ** 0.5, 0.0]])
    assert actor(away, task).planned.tolist() == [True, needs_planning]


def test_the_warm_start_is_the_rest_of_the_plan_one_step_later():
    def uneven_steps(state: Tensor, context: TaskContext, rng: Any) -> Tensor:
        return best(state, context) * torch.tensor([0.5, 1.0, 0.9])[:, None]

    actor, _ = auto(constant_predictor(BIG), uneven_steps)
    first = actor(HERE, TASK)
    actor.component.policy_proposal = By(rest)
    then = actor(onward(first), TASK)
    left = torch.cat([first.actions[:, 1:], first.actions[:, -1:]], 1)
    assert torch.equal(then.actions, left)


def test_the_rest_of_a_plan_gives_way_to_a_better_policy_rollout():
    actor, _ = auto(constant_predictor(BIG), rest)
    actor(HERE, TASK)
    actor.component.policy_proposal = By(best)
    assert torch.equal(actor(HERE, TASK).actions, best(HERE, TASK)[:, 0])


@pytest.mark.parametrize(
    "elsewhere", [lambda actor: 2 * HERE - THERE, lambda actor: actor.reset() or HERE]
)
def test_a_warm_start_of_another_size_is_not_used(elsewhere):
    """Farther away, or in another episode."""
    actor, recorder = auto(
        exact_predictor(), rest, planner=make_planner(warm_iterations=60, lr=0.05)
    )
    actor(HERE, TASK)
    state = elsewhere(actor)
    plan = actor(state, TASK)
    assert plan.planned.all()
    assert len(recorder.states) == 2


def test_the_candidates_of_a_plan_are_of_its_own_env():
    plan = auto(exact_predictor())[0](HERE, TASK)
    for env in range(NUM_ENVS):
        this = torch.tensor([env])
        mine = rows(plan, this)
        single = EYE.best_plan(HERE[this], mine.actions[:, None], TASK.select(this))
        assert_same(mine, single._replace(planned=mine.planned))
        torch.testing.assert_close(mine.energy, mine.terms["miss"] + mine.terms["control_cost"])


def after(proposal: ProposalFn, planner: PlannerProtocol, env_ids: Tensor) -> Plan:
    """The plans for some of the environments, warm-started from a proposal."""
    carry = PlannerCarry.initial(0)._replace(warm_start=proposal(HERE, TASK)[env_ids])
    return planner(HERE[env_ids], TASK.select(env_ids), carry)[0]


def half_way(fraction: float) -> ProposalFn:
    """Goes a fraction x of a way of length 1 without control cost: the energy is (1 - x)^2."""
    return lambda state, context, rng: fraction * (context.goal - state)[:, None, None]


@pytest.mark.parametrize(
    ("fraction", "expected", "how", "needs_planning"),
    [
        (0.69, 0.0, {"tolerance": 0.1, "slack": 0.0}, False),  # an energy of 0.0961 of 1
        (0.68, 0.0, {"tolerance": 0.1, "slack": 0.0}, True),  # 0.1024
        (0.69, 0.0, {"tolerance": 0.0, "slack": 0.05}, False),  # one standard deviation is 2
        (0.68, 0.0, {"tolerance": 0.0, "slack": 0.05}, True),
        (0.0, 0.85, {"tolerance": 0.5, "slack": 0.0}, True),  # at rest the whole gain is lost
        (-0.4, 2.0, {"tolerance": 0.5, "slack": 0.0}, False),  # 1.96: planning loses more
        (-0.42, 2.0, {"tolerance": 0.5, "slack": 0.0}, True),  # 2.0164; and nothing is ignored
    ],
)
def test_mode_1_may_lose_a_fraction_of_the_gain_and_a_small_energy(
    fraction, expected, how, needs_planning
):
    task = make_context(torch.tensor([[1.0, 0.0]]), horizon=1, task_vector=torch.zeros(1, 1))
    expectation = constant_predictor(expected / 2)
    expectation.scale.fill_(2.0)
    actor, _ = auto(expectation, half_way(fraction), **how)
    assert actor(torch.zeros(1, 2), task).planned.tolist() == [needs_planning]


def test_the_predicted_energy_depends_on_state_goal_and_task_vector_in_its_unit():
    layers = Says(lambda output: output @ torch.tensor([1.0, 10, 100, 1000]))
    expectation = PlanEnergyPredictor(layers, num_tasks=1, task_dim=1)
    expectation.mean.fill_(0.5)
    expectation.scale.fill_(2.0)
    state, goal, output = torch.tensor([[3.0]]), torch.tensor([[5.0]]), torch.tensor([[7.0]])
    assert expectation(state, goal, output).tolist() == [0.5 + 2 * (3 + 50 + 200 + 7000)]


def test_the_predicted_energy_of_every_task_has_its_own_scale():
    expectation = PlanEnergyPredictor(
        Says(lambda output: torch.ones(len(output))), num_tasks=3, task_dim=2
    )
    nothing = torch.zeros(2, 1)
    assert expectation(nothing, nothing, torch.tensor([[0.0, 9.0], [1.0, 2.0]])).tolist() == [1, 1]
    expectation.adapt(2, torch.tensor([0.0, 1.0]), torch.tensor([100.0, 300.0]))
    assert (
        expectation(nothing, nothing, torch.tensor([[0.0, 9.0], [5.0, 1.0]])).tolist() == [300] * 2
    )
    expectation.adapt(0, torch.tensor([4.0, 1.0]), torch.tensor([-1.0, -3.0]))
    output = torch.tensor([[0.0, 1.0], [4.0, 1.0], [1.9, 1.0], [2.1, 1.0]])
    here = torch.zeros(4, 1)
    assert expectation(here, here, output).tolist() == [
        300,
        -1,
        300,
        -1,
    ]  # the task with the nearest vector


def test_tasks_of_the_same_vector_have_scales_of_their_own(tiny):
    """Without `conditioned_on` all task vectors are empty."""
    tasks = {
        "near": tiny.tasks["reach"],
        "weighted": replace(tiny.tasks["reach"], weights={"critic": 100.0}),
    }
    distil = replace(tiny.stages["distill_policy"], rounds=2, num_envs=4, steps=2)
    changes = {"tasks": tasks, "stages.distill_policy": distil}
    agent, env = make_policy(override(tiny, changes), num_envs=4)
    obs, _ = env.reset(0)
    stage_run = distil.start(agent, tiny.env, seed=1)
    while stage_run.step < stage_run.total:
        stage_run.update()
    predictor, labels = agent.plan_energy_predictor, stage_run.all_labels
    for index, name in enumerate(tasks):
        context = agent.context(tasks[name].to_task(obs, "auto"))
        own = labels.energy[labels.task == index]
        assert len(own) == 8
        std = predictor.energy_std(context.task_vector, context.task_index)
        torch.testing.assert_close(std, own.std(correction=0).expand(4))
    assert predictor.scale[1] > 10 * predictor.scale[0]
    for index, name in enumerate(tasks):  # the scale of the energy is that of the costs
        planned_otherwise = replace(
            tasks[name].to_task(obs, "auto"), horizon=2, planner_iterations=1
        )
        assert agent.context(planned_otherwise).task_index == index


def test_tasks_are_the_same_where_their_costs_are(tiny):
    agent, env = make_policy(tiny, num_envs=4)
    obs, _ = env.reset(0)
    own = tiny.tasks["reach"].to_task(obs, "plan")
    assert agent.context(replace(own, weights={"critic": 1.0})).task_index == 0  # the default
    without_goal = replace(own, goal=None, weights={"control_cost": 1.0})
    assert agent.context(without_goal).task_index is None


def test_where_nothing_is_known_of_the_energies_of_a_task_the_agent_plans(tiny):
    agent, env = make_policy(tiny, num_envs=4)
    obs, _ = env.reset(0)
    agent.plan_energy_predictor.mean.fill_(BIG)  # of the agent's task: planning gains nothing
    own = tiny.tasks["reach"].to_task(obs, "auto")
    others = replace(own, weights={"critic": 1e-3})
    assert agent.context(others).task_index is None
    for task, plans in ((own, False), (others, True)):
        plan = agent.controller(4, task, tensors=True).act(obs)
        assert plan.planned.tolist() == [plans] * 4


def test_the_ignored_energy_depends_on_the_task():
    expectation = PlanEnergyPredictor(
        Says(lambda output: torch.zeros(len(output))), num_tasks=2, task_dim=1
    )
    expectation.adapt(0, torch.zeros(1), torch.tensor([0.9, 1.1]))
    expectation.adapt(1, torch.ones(1), torch.tensor([-9.0, 11.0]))
    actor, _ = auto(expectation, rest, tolerance=0.0, slack=0.1)
    far = make_context(
        torch.tensor([[1.05, 0.0]] * 2), horizon=1, task_vector=torch.tensor([[0.0], [1.0]])
    )
    # resting costs 1.1025: more than 1.01, less than 2
    assert actor(torch.zeros(2, 2), far).planned.tolist() == [True, False]


def plan_of(seed: int, num_envs: int, proposals: int) -> Plan:
    rng = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(num_envs, *shape, generator=rng)

    return Plan(
        actions=drawn(3, 2),
        energy=drawn(),
        terms={"pain": drawn(), "limit pain": drawn().relu()},
        states=drawn(4, 5),
        upper_plans=drawn(1, 2, 5),
        candidate_states=drawn(proposals, 4, 5),
        candidate_energies=drawn(proposals),
        planned=drawn() > 0,
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), chosen=st.sets(st.integers(0, 4), min_size=1))
def test_merging_plans_keeps_the_envs_apart_and_both_plans_as_they_were(seed, chosen):
    env_ids = torch.tensor(sorted(chosen))
    into, part = plan_of(seed, 5, 1), plan_of(seed + 1, len(env_ids), 4)
    whole = merge_plans(into, part, env_ids)
    assert_same(rows(whole, env_ids), chosen_only(part))
    others = torch.tensor([env for env in range(5) if env not in chosen], dtype=torch.long)
    assert_same(rows(whole, others), rows(into, others))
    assert_same(into, plan_of(seed, 5, 1))
    assert_same(part, plan_of(seed + 1, len(env_ids), 4))


def test_a_new_episode_with_the_same_seed_makes_the_same_plans():
    sampler = CEMConfig(num_samples=8, iterations=2).build(EYE, rest)
    actor, _ = auto(exact_predictor(), planner=sampler)

    def episodes_of(seed: int) -> Tensor:
        actor.reset(seed)
        return torch.stack([actor(HERE, TASK).actions for _ in range(3)])

    first, other, again = episodes_of(3), episodes_of(4), episodes_of(3)
    assert torch.equal(first, again)
    assert not torch.equal(first[:, LAZY], other[:, LAZY])
    assert torch.equal(first[:, ~LAZY], other[:, ~LAZY])


@pytest.mark.parametrize("setting", ["hidden", "tolerance", "slack", "patience"])
def test_invalid_settings_are_refused_by_name(setting):
    with pytest.raises(ConfigError, match=f"{setting} is -1"):
        AdaptiveActorConfig(**{setting: -1})


def make_policy(config: Config, num_envs: int) -> tuple[Agent, EnvAdapter]:
    """An agent in whose world model actions matter, as after some training."""
    env = config.eval_env.build(num_envs)
    agent = build(
        config,
        env.spec,
        num_envs=config.stages["collect"].num_envs,
        buffer_size=buffer_steps(config),
    )
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in [*agent.world_model.parameters(), *agent.cost.parameters()]:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    return agent.eval(), env


@pytest.fixture(scope="module")
def forager() -> tuple[Agent, EnvAdapter]:
    config = small(recipes.forage())
    planner = replace(config.actor.planner, horizon=4, iterations=2)
    config = override(
        config,
        {"actor.planner": planner, "actor.adaptive.patience": 0},
    )
    return make_policy(config, num_envs=3)


@pytest.mark.parametrize(("expected", "needs_planning"), [(BIG, False), (-BIG, True)])
@pytest.mark.parametrize("name", recipes.forage().tasks)
def test_auto_acts_in_every_task_of_forage(forager, name, expected, needs_planning):
    agent, env = forager
    agent.plan_energy_predictor.mean.fill_(expected)
    plans: list[Plan] = []
    obs, info = env.reset(0)
    begin = policies.agent_policy_factory(agent, "auto", agent.tasks[name], plans.append)
    projected_steps = list(islice(rollout(begin(EpisodeStart(env, obs, info), 0), env, obs), 3))
    assert len(plans) == len(projected_steps) == 3
    for plan in plans:
        assert (plan.planned == needs_planning).all()
        assert plan.actions.shape == (3, 4, 2)
        torch.testing.assert_close(agent.policy.action_space.project(plan.actions), plan.actions)
        torch.testing.assert_close(torch.stack(list(plan.terms.values())).sum(0), plan.energy)
        assert plan.energy.isfinite().all()


def test_the_policy_is_queried_once_for_every_imagined_step_although_the_agent_plans(forager):
    agent, env = forager
    agent.plan_energy_predictor.mean.fill_(-BIG)
    obs, info = env.reset(0)
    act = policies.agent_policy_factory(agent, "auto", agent.tasks["eat"])(
        EpisodeStart(env, obs, info), 0
    )
    requested: list[Tensor] = []
    handle = agent.policy.register_forward_hook(lambda policy, output, done: requested.append(done))
    act(obs)
    handle.remove()
    assert len(requested) == 4


def test_the_predictor_is_trained_on_the_energies_of_plans(tiny):
    optim = replace(tiny.stages["distill_policy"].optim, steps=150, batch_size=64, lr=3e-3)
    distil = replace(tiny.stages["distill_policy"], optim=optim, num_envs=32, steps=8, rounds=2)
    # plans of few iterations differ by chance, which no predictor can learn
    changes = {"stages.distill_policy": distil, "actor.planner.warm_iterations": 4}
    agent, _ = make_policy(override(tiny, changes), num_envs=40)
    agent.perception.layers[-1].weight.data *= 20  # positions look as different as after training
    stage_run = distil.start(agent, tiny.env, seed=1)
    while stage_run.step < stage_run.total:
        stage_run.update()
    state, goal, condition, _, energy, _ = stage_run.all_labels
    torch.testing.assert_close(agent.plan_energy_predictor.mean, energy.mean()[None])
    torch.testing.assert_close(agent.plan_energy_predictor.scale, energy.std(correction=0)[None])
    torch.testing.assert_close(agent.plan_energy_predictor.task_vectors, condition[:1])
    with torch.no_grad():
        expected = agent.plan_energy_predictor(state, goal, condition, 0)
    missed = (expected - energy).square().mean() / energy.var()
    assert missed < 0.5


def test_even_a_single_plan_trains_the_predictor(tiny):
    distil = replace(tiny.stages["distill_policy"], num_envs=1, steps=1, rounds=1)
    agent, _ = make_policy(tiny, num_envs=1)
    stage_run = distil.start(agent, tiny.env, seed=1)
    assert all(value.isfinite() for value in stage_run.update().values())
    torch.testing.assert_close(agent.plan_energy_predictor.mean, stage_run.all_labels.energy)


def test_auto_does_not_exist_where_the_predictor_is_not_trained():
    config = recipes.recipe("gym")
    with closing(config.env.build(1)) as env:
        agent = build(config, env.spec)
        controller = agent.controller(tensors=True)
        assert tuple(agent.actors) == ("react", "plan")
        with pytest.raises(ConfigError, match="'auto'; there are react, plan"):
            controller.set_task(config.tasks["reward"].to_task(None, "auto"))


def test_a_policy_whose_future_diverges_is_not_followed():
    def diverging(state: Tensor, context: TaskContext, rng: Any = None) -> Tensor:
        return best(state, context) * torch.where(LAZY, torch.nan, 1.0)[:, None, None, None]

    actor, _ = auto(constant_predictor(BIG), diverging)
    assert torch.equal(actor(HERE, TASK).planned, LAZY)
