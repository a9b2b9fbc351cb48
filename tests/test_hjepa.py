"""Learnt levels above: macro-actions encode chunks of actions, subgoals lie a macro-step ahead, and
planning stays where the replay buffer has been."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ami_agent import recipes
from ami_agent.config import build, override
from ami_agent.train import train
from ami_agent.training import SelectLandmarks, TrainHierarchy
from ami_agent.training.critics import LagrangeMultiplier
from ami_agent.training.hierarchy import LevelWindow, hjepa_level_loss
from ami_agent.validate import check_stages
from modules.actor.planning.risk import ScenarioCVaR
from modules.configurator import Task
from modules.cost.goal_critic import QuasimetricConfig
from modules.types import ConfigError, Plan, PlannerCarry, QuasimetricFns
from modules.world_model.dynamics import MLPDynamicsConfig
from modules.world_model.hjepa import (
    HierarchicalJEPA,
    HierarchicalJEPAConfig,
    JEPALevelConfig,
    LevelPlanner,
    SharedCriticConfig,
)
from modules.world_model.latents import Normal, SparseLatentConfig
from tests.conftest import Stepping, make_context, small, unexpected_query

STRIDE = 4
STEP = 0.1
SMALL = JEPALevelConfig(
    macro_dim=2, hidden=32, dynamics=MLPDynamicsConfig(hidden=32),
    distance=QuasimetricConfig(hidden=32),
)  # fmt: skip


def walks(count: int, steps: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """On a plane without walls: whole macro-steps in one direction or another."""
    turns = torch.rand(count, -(-steps // STRIDE), 1, generator=random) * 2 * torch.pi
    way = torch.cat([turns.cos(), turns.sin()], -1).repeat_interleave(STRIDE, 1)[:, :steps]
    start = torch.rand(count, 1, 2, generator=random) * 4 - 2
    return torch.cat([start, start + STEP * way.cumsum(1)], 1), way


@cache
def trained(strides: tuple[int, ...] = (STRIDE,), size: int = 0) -> dict[str, Tensor]:
    """What levels above that plane have learnt."""
    levels = made(strides, size)
    prices = [LagrangeMultiplier() for _ in strides]
    parts = [*levels.parameters(), *(p for price in prices for p in price.parameters())]
    optimiser, random = torch.optim.Adam(parts, 4e-3), torch.Generator().manual_seed(0)
    window = 3 * int(torch.tensor(strides).prod())
    for _ in range(250):
        steps = LevelWindow(*walks(64, window, random))
        total = torch.zeros(())
        for above, price in zip(levels.level_planners, prices, strict=True):
            terms, steps = hjepa_level_loss(above.level, price, steps, random, max_distance=20)
            total = total + 10 * terms.pop("prediction") + sum(terms.values())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    levels.memory_bank.copy_(walks(200, 3, random)[0][:, 0])
    return levels.state_dict()


Latents = SparseLatentConfig | None


def made(
    strides: tuple[int, ...] = (STRIDE,), size: int = 0, latent: Latents = None, **output: object
) -> HierarchicalJEPA:
    torch.manual_seed(0)
    level = replace(SMALL, state_dim=size, latent=latent)
    config = HierarchicalJEPAConfig(steps_per_level=strides, level=level, memory_size=200, **output)
    return config.build((2, 1, 1), 2, None, unexpected_query)


def metres(state: Tensor, goal: Tensor) -> Tensor:
    """The distances of a perfect critic of that plane."""
    return (state - goal).norm(dim=-1) / STEP


def borrowing(strides: tuple[int, ...] = (STRIDE,), size: int = 0, **output: object) -> Stepping:
    """What they have learnt, but for distances: these are the critic's."""
    torch.manual_seed(0)
    level = replace(SMALL, state_dim=size, distance=SharedCriticConfig())
    config = HierarchicalJEPAConfig(steps_per_level=strides, level=level, memory_size=200, **output)
    ready = config.build(
        (2, 1, 1), 2, QuasimetricFns(lambda state: state, metres), unexpected_query
    )
    known = {k: part for k, part in trained(strides).items() if ".distance." not in k}
    ready.load_state_dict(known)
    return Stepping(ready.eval())


def levels(strides: tuple[int, ...] = (STRIDE,), size: int = 0, **output: object) -> Stepping:
    ready = made(strides, size, **output)
    ready.load_state_dict(trained(strides, size))
    return Stepping(ready.eval())


START = torch.tensor([[-1.5, -1.0], [1.0, 1.5]])
GOAL = torch.tensor([[1.5, 1.0], [1.0, -1.5]])


def with_target(goal: Tensor = GOAL, **output: object):
    return make_context(goal, weights={"critic": 1.0}, **output)


def plan_of(above: LevelPlanner, state: Tensor, goal: Tensor, context: Any = None) -> Plan:
    """The first plan of a level."""
    return above(state, goal, context or with_target(), PlannerCarry.initial(0))[0]


def test_a_macro_action_encodes_a_chunk_of_actions():
    (level,) = (above.level for above in levels().level_planners)
    states, actions = walks(200, 3 * STRIDE, torch.Generator().manual_seed(9))
    macros = level.encode_actions(actions)
    assert macros.shape == (200, 3, 2)
    assert macros.abs().max() <= 1
    ahead = level.world_model.unroll(states[:, 0], macros)
    error = (ahead - states[:, ::STRIDE]).norm(dim=-1)[:, 1:].mean()
    assert error < 0.3 * STRIDE * STEP
    other = level.world_model.unroll(states[:, 0], macros.roll(1, 0))
    assert (other - states[:, ::STRIDE]).norm(dim=-1)[:, 1:].mean() > 3 * error


def test_the_upper_plan_lies_one_macro_action_ahead_on_the_way_to_the_goal():
    found = levels()(START, with_target())
    assert found.upper_plans.shape == (2, 1, 2, 2)
    assert torch.equal(found.goal, found.upper_plans[:, 0, 0])
    way = found.goal - START
    # a normal prior knows the length of macro-steps only roughly
    assert ((way.norm(dim=-1) - STRIDE * STEP).abs() < 0.8 * STRIDE * STEP).all()
    assert (torch.cosine_similarity(way, GOAL - START) > 0.8).all()
    far = (found.upper_plans[:, 0] - GOAL[:, None]).norm(dim=-1)
    assert (far[:, -1] < far[:, 0]).all()


def test_the_upper_plan_depends_on_no_other_env():
    single = levels()(START[:1], with_target(GOAL[:1])).upper_plans
    many = levels()(START[[0, 1, 0]], with_target(GOAL[[0, 1, 0]])).upper_plans
    torch.testing.assert_close(many[0], single[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(many[2], single[0], atol=1e-4, rtol=0)


def test_nearby_the_goal_itself_is_pursued():
    close = START + 0.02
    found = levels()(START, with_target(close))
    assert torch.equal(found.goal, close)
    assert torch.equal(found.upper_plans[:, 0], close[:, None].expand(-1, 2, -1))


def test_distances_may_be_the_critics_in_macro_steps():
    ready = borrowing((STRIDE, 3))
    own = [above.level.distance(START, GOAL) for above in ready.level_planners]
    torch.testing.assert_close(own[0], metres(START, GOAL) / STRIDE)
    torch.testing.assert_close(own[1], metres(START, GOAL) / STRIDE / 3)
    found = borrowing()(START, with_target())
    way = found.goal - START
    assert (torch.cosine_similarity(way, GOAL - START) > 0.8).all()
    assert ((way.norm(dim=-1) - STRIDE * STEP).abs() < 0.8 * STRIDE * STEP).all()
    close = START + 0.02
    assert torch.equal(borrowing()(START, with_target(close)).goal, close)


def test_a_level_does_not_train_the_critics_distance():
    (above,) = borrowing().level_planners
    states, actions = walks(8, 3 * STRIDE, torch.Generator().manual_seed(0))
    price, random = LagrangeMultiplier(), torch.Generator().manual_seed(0)
    terms, _ = hjepa_level_loss(
        above.level, price, LevelWindow(states, actions), random, max_distance=20
    )
    assert {"prediction", "action_prior_nll"} <= set(terms)
    assert not {"push", "constraint", "multiplier"} & set(terms)
    assert not list(above.level.distance.parameters())


def test_the_critics_distance_needs_a_critic_and_its_states():
    level = replace(SMALL, distance=SharedCriticConfig())
    with pytest.raises(ConfigError, match="there must be a critic"):
        HierarchicalJEPAConfig(level=level).build((2, 1, 1), 2, None, unexpected_query)
    with pytest.raises(ConfigError, match=r"level.state_dim 3 must be 0"):
        borrowing(size=3)


def test_three_levels_plan_from_the_top_down():
    ready = levels((STRIDE, 3))
    found = ready(START, with_target())
    assert found.upper_plans.shape == (2, 2, 2, 2)
    reach = (found.upper_plans[:, :, 0] - START[:, None]).norm(dim=-1)
    assert (reach[:, 0] > 1.5 * reach[:, 1]).all()  # the top level looks further
    assert torch.equal(found.goal, found.upper_plans[:, 1, 0])
    # the first subgoal of the level above and no other
    again = plan_of(ready.level_planners[0], START, found.upper_plans[:, 0, 0])
    assert torch.equal(again.states[:, 1:], found.upper_plans[:, 1])


def test_subgoals_are_remembered_states_where_a_level_has_its_own_states_or_snaps_to_memory():
    for ready in (levels(size=6), levels(snap_to_memory=True)):
        found = ready(START, with_target())
        known = {tuple(state) for state in ready.memory_bank.tolist()}
        assert {tuple(state) for state in found.upper_plans.flatten(0, 2).tolist()} <= known
        assert (torch.cosine_similarity(found.goal - START, GOAL - START) > 0).all()
    hoped = levels()(START, with_target()).upper_plans  # by the same noise
    near = (hoped[..., None, :] - ready.memory_bank).norm(dim=-1).amin(-1)
    assert (near > 0).all()
    torch.testing.assert_close((found.upper_plans - hoped).norm(dim=-1), near)


def test_a_changed_memory_bank_is_read_in_the_next_episode():
    ready = levels(size=3)
    before = ready(START, with_target()).goal
    ready.memory_bank.copy_(ready.memory_bank.roll(1, 0))  # the same, in another order
    ready.reset()
    assert torch.equal(ready(START, with_target()).goal, before)


def test_a_subgoal_is_kept_for_some_steps():
    ready = levels(replan_every=3)
    first = ready(START, with_target()).goal
    assert torch.equal(ready(START + 0.3, with_target()).goal, first)
    assert torch.equal(ready(START + 0.3, with_target()).goal, first)
    assert not torch.equal(ready(START + 0.3, with_target()).goal, first)
    ready.reset()
    assert torch.equal(ready(START, with_target()).goal, first)  # the random stream restarts


def test_the_action_prior_prefers_actions_of_the_replay_buffer():
    (level,) = (above.level for above in levels().level_planners)
    states, actions = walks(200, STRIDE, torch.Generator().manual_seed(9))
    collected = level.action_prior(states[:, 0]).nll(level.encode_actions(actions)[:, 0])
    never = level.action_prior(states[:, 0]).nll(torch.ones(200, 2))
    assert never.mean() > collected.mean() + 0.3
    known = Normal(torch.zeros(1), torch.ones(1))
    assert float(known.nll(torch.tensor([2.0]))) == pytest.approx(2 + 0.9189, abs=1e-3)


def test_a_higher_weight_of_the_prior_makes_plans_more_likely():
    def surprise(prior: float) -> float:
        ready = levels(prior_weight=prior)
        (above,) = ready.level_planners
        plan = plan_of(above, START, GOAL)
        known = above.level.action_prior(plan.states[:, :-1])
        return float(known.nll(plan.actions).detach().mean())

    assert surprise(3.0) < surprise(0.0)


def test_planning_is_flat_without_a_goal_and_before_training():
    ready = levels()
    context = make_context(GOAL, weights={"control_cost": 1.0})
    assert ready(START, context) is context
    context = with_target()
    assert Stepping(made())(START, context) is context


def test_the_latent_variable_of_a_level_holds_what_a_macro_action_does_not_determine(
    monkeypatch,
):
    """A gust now and then within a macro-step: the posterior infers it, plans imagine it."""

    def gusty(latent: Latents, steps: int = 300) -> tuple[HierarchicalJEPA, float, float]:
        ready = made(latent=latent)
        (above,), price = ready.level_planners, LagrangeMultiplier()
        parts = [*ready.parameters(), *price.parameters()]
        optimiser, random = torch.optim.Adam(parts, 4e-3), torch.Generator().manual_seed(0)
        for _ in range(steps):
            states, actions = walks(128, 3 * STRIDE, random)
            blows = torch.rand(128, 3, 1, generator=random) < 0.3
            gust = STRIDE * STEP * blows * torch.randn(128, 3, 2, generator=random).sign()
            states[:, 1:] += gust.repeat_interleave(STRIDE, 1).cumsum(1)
            terms, _ = hjepa_level_loss(
                above.level, price, LevelWindow(states, actions), random, max_distance=20
            )
            missed, information = (float(terms[n].detach()) for n in ("prediction", "kl"))
            total = 10 * terms.pop("prediction") + 1e-3 * terms.pop("kl")
            optimiser.zero_grad()
            (total + sum(terms.values())).backward()
            optimiser.step()
        ready.memory_bank.copy_(walks(200, 3, random)[0][:, 0])
        return ready.eval(), missed, information

    known, error, output = gusty(SparseLatentConfig(size=2))
    zero_weights, blind_error, nothing = gusty(None)
    assert output > nothing == 0
    assert error < 0.3 * blind_error
    observed: dict[str, Tensor] = {}
    for name, ready in (("known", known), ("blind", zero_weights)):
        (above,) = ready.level_planners
        observed[name] = plan_of(above, START, GOAL).candidate_states  # [B, P * K, H + 1, D]
    count = HierarchicalJEPAConfig().scenarios.num_scenarios
    assert observed["known"].shape[1] == count * observed["blind"].shape[1]
    spread = observed["known"][:, :, 1].unflatten(1, (-1, count)).std(2)
    assert spread.mean() > 0.2 * STRIDE * STEP
    (above,) = known.level_planners
    chances: list[float] = []
    sample = ScenarioCVaR.sample

    def observed_sample(self: ScenarioCVaR, horizon: int, rng: torch.Generator) -> Tensor:
        noise = sample(self, horizon, rng)
        chances.append(float(noise.sum()))
        return noise

    monkeypatch.setattr(ScenarioCVaR, "sample", observed_sample)
    for seed in (1, 1, 2):
        carry = PlannerCarry.initial(seed)
        for _ in range(2):
            _, carry = above(START, GOAL, with_target(), carry)
    first, second, *rest = chances
    assert first != second
    assert rest[:2] == [first, second]
    assert rest[2] not in (first, second)
    context = with_target()
    mean, worst = (
        plan_of(above, START, GOAL, context._replace(cvar_alpha=tail)).energy for tail in (1.0, 0.0)
    )
    assert (worst > mean).all()


def test_the_latent_variable_leaves_to_macro_actions_what_they_determine():
    """A latent variable that may encode the whole macro-step makes macro-actions useless, and they
    lose their influence."""

    def steer_policy(information: float, steps: int = 300) -> float:
        """How much of the change is explained by the right macro-action and not by another one."""
        ready = made(latent=SparseLatentConfig(size=4))
        level, price = ready.level_planners[0].level, LagrangeMultiplier()
        parts = [*ready.parameters(), *price.parameters()]
        optimiser, random = torch.optim.Adam(parts, 4e-3), torch.Generator().manual_seed(0)
        for _ in range(steps):
            states, actions = windy(random)
            terms, _ = hjepa_level_loss(
                level, price, LevelWindow(states, actions), random, max_distance=20
            )
            total = 10 * terms.pop("prediction") + information * terms.pop("kl")
            optimiser.zero_grad()
            (total + sum(terms.values())).backward()
            optimiser.step()
        states, actions = windy(random)
        macros = level.encode_actions(actions)[:, 0]
        missed = [
            (level.world_model.step(states[:, 0], output).state - states[:, STRIDE]).square().sum()
            for output in (macros, macros.roll(1, 0))
        ]
        return float(((missed[1] - missed[0]) / missed[1]).detach())

    def windy(random: torch.Generator) -> tuple[Tensor, Tensor]:
        states, actions = walks(128, 3 * STRIDE, random)
        gust = STEP * torch.randn(128, 3, 2, generator=random)
        states[:, 1:] += gust.repeat_interleave(STRIDE, 1).cumsum(1)
        return states, actions

    assert steer_policy(TrainHierarchy().kl) > 0.3
    assert steer_policy(0.001) < 0.1


def test_planning_above_leaves_no_gradient():
    ready = levels()
    ready(START, with_target())
    assert all(p.grad is None for p in ready.parameters())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"steps_per_level": ()}, "steps_per_level is"),
        ({"steps_per_level": (4, 1)}, "from 2 to"),
        ({"memory_size": 0}, "memory_size is 0"),
        ({"replan_every": 0}, "replan_every is 0"),
    ],
)
def test_invalid_settings_of_levels_are_refused(changes, why):
    with pytest.raises(ConfigError, match=why):
        HierarchicalJEPAConfig(**changes)


def test_a_horizon_of_zero_is_refused():
    with pytest.raises(ConfigError, match="horizon is 0; it must be a whole number from 1"):
        replace(HierarchicalJEPAConfig().planner, horizon=0)


def test_levels_that_can_not_be_trained_are_refused_before_collection():
    config = recipes.recipe("maze-levels")
    check_stages(config)
    for changes, why in (
        (
            {"actor.subgoals": HierarchicalJEPAConfig(steps_per_level=(6, 3))},
            "6 x 3 steps per level takes 54 steps",
        ),
        (
            {"stages.train_hierarchy": None, "stages.distill_landmark_paths": None},
            "needs the stage train_hierarchy",
        ),
        (
            {"actor.subgoals": None},
            "train_hierarchy trains a HierarchicalJEPA, and subgoals is None",
        ),
        ({"stages.select_landmarks": SelectLandmarks()}, "select_landmarks trains a LandmarkGraph"),
    ):
        with pytest.raises(ConfigError, match=why):
            check_stages(override(config, changes))


def test_a_trained_level_is_used_by_those_below_it():
    config = small(recipes.recipe("maze-levels"))
    hierarchy = replace(
        config.actor.subgoals, steps_per_level=(2, 3), level=replace(SMALL, state_dim=5)
    )
    config = override(config, {"actor.subgoals": hierarchy})
    env = config.env.build(1)
    agent = build(config, env.spec, num_envs=8, buffer_size=30)
    env.close()
    collector = config.stages["collect"].start(agent, config.env, 0)
    while collector.step < collector.total:
        collector.update()
    stage = config.stages["train_hierarchy"]
    assert isinstance(stage, TrainHierarchy)
    stage_run = stage.start(agent, config.env, 0)
    nn.init.normal_(agent.subgoals.level_planners[1].level.world_model.dynamics.delta_head.weight)
    terms = stage_run.loss(torch.Generator().manual_seed(0))
    assert {"prediction 1", "prediction 2", "push 2", "action_prior_nll 1"} <= set(terms)
    terms["prediction 2"].backward()
    below = agent.subgoals.level_planners[0].level
    for part in (below.state_encoder, below.action_encoder):
        reached = any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
        assert reached


def test_learnt_levels_are_saved_with_a_run_and_part_of_every_plan(tmp_path):
    config = small(recipes.recipe("maze-levels"))
    agent = train(config, out=tmp_path / "run")
    controller = agent.controller(tensors=True)
    again = train(config, out=tmp_path / "run", resume=True)
    assert agent.subgoals.memory_bank.any()
    for name, value in agent.subgoals.state_dict().items():
        assert torch.equal(value, again.subgoals.state_dict()[name])
    env = config.eval_env.build(3, goal_distance="long")
    obs, info = env.reset(5)
    for mode in ("react", "plan", "auto"):
        controller.reset()
        controller.set_task(Task(goal=env.goal(info), mode=mode))
        plan = controller.act(obs)
        # from the subgoal on, which is the second of two planned states
        assert plan.upper_plans.shape == (3, 1, 1, plan.states.shape[-1])
    env.close()
