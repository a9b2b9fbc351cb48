"""The policy learns from imagined futures what planning would find, and nothing else is trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ami_agent import recipes
from ami_agent.agent import Agent
from ami_agent.config import buffer_steps, build, override
from ami_agent.training import AmortizePlanning
from ami_agent.training.base import encode_buffer
from ami_agent.training.optim import OptimConfig
from ami_agent.validate import check_stages
from modules.configurator import Task, TaskSpec
from modules.types import ConfigError, PlannerCarry
from modules.world_model.jepa import WorldModel
from tests.conftest import small

STAGE = AmortizePlanning(horizon=2, optim=OptimConfig(steps=12, batch_size=16, lr=1e-2))


@torch.no_grad()
def acts_matter(agent: Agent) -> None:
    """Untrained, a world model predicts no change whatever the action."""
    rng = torch.Generator().manual_seed(0)
    for parameter in agent.world_model.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))


def energies(agent: Agent, horizon: int) -> tuple[float, float]:
    """Mean energy of the policy's rollout and of Mode-2's plan, from states to goals of
    the same episodes."""
    batch = encode_buffer(agent).sample(64, 1, torch.Generator().manual_seed(9), group_size=4)
    state = batch.states[:, 0]
    goal = state.unflatten(0, (-1, 4)).roll(1, 1).flatten(0, 1)
    context = agent.configurator.context(
        Task(goal=goal, horizon=horizon, planner_iterations=20), goal
    )
    with torch.no_grad():
        actions, here = [], state
        for _ in range(horizon):
            actions.append(agent.policy(here, goal, context.task_vector))
            here = agent.world_model.dynamics(here, actions[-1])
        future = agent.world_model.imagine(state, torch.stack(actions, 1)[:, None])
        reactive = torch.stack(list(agent.cost(future, context).values())).sum(0)
        planned = agent.planner(state, context, PlannerCarry.initial(0))[0].energy
    return float(reactive.mean()), float(planned.mean())


@pytest.mark.parametrize("recipe", ["two-rooms", "two-rooms-random"])
def test_policies_improve_in_imagination_and_only_the_policy_is_trained(recipe):
    config = small(recipes.recipe(recipe), steps=2)
    stage = AmortizePlanning(group_size=4, horizon=3)
    stage = replace(stage, optim=replace(stage.optim, steps=40, batch_size=16, lr=1e-2))
    config = override(config, {"stages.amortize_policy": stage})
    env = config.env.build(1)
    agent = build(
        config,
        env.spec,
        num_envs=config.stages["collect"].num_envs,
        buffer_size=buffer_steps(config),
    )
    acts_matter(agent)
    for name in ("collect", "amortize_policy"):
        stage_run = config.stages[name].start(agent, config.env, seed=1)
        if name == "amortize_policy":
            before = {key: value.clone() for key, value in agent.state_dict().items()}
            untrained, planned = energies(agent, 3)
        while stage_run.step < stage_run.total:
            stage_run.update()
        stage_run.finish()
    trained, _ = energies(agent, 3)
    assert untrained - trained > 0.5 * (untrained - planned) > 0
    after = agent.state_dict()
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"policy"}
    learners = set(agent.policy.parameters())
    assert all(p.grad is None and p.requires_grad for p in set(agent.parameters()) - learners)


def test_a_task_of_large_costs_does_not_dominate_the_others(tiny):
    """A thousand times the energy has the same gradient: Adam keeps the scale of all tasks."""

    def first(scale: float) -> dict[str, torch.Tensor]:
        tasks = {
            "reach": TaskSpec(goal_source="env", weights={"goal_distance": scale, "critic": 0.0})
        }
        config = override(tiny, {"tasks": tasks, "stages.amortize_policy": STAGE})
        env = config.env.build(1)
        agent = build(
            config,
            env.spec,
            num_envs=config.stages["collect"].num_envs,
            buffer_size=buffer_steps(config),
        )
        acts_matter(agent)
        episode = config.stages["collect"].start(agent, config.env, seed=1)
        while episode.step < episode.total:
            episode.update()
        return STAGE.start(agent, config.env, seed=1).update()

    small_costs, large_costs = first(1.0), first(1000.0)
    assert small_costs["gradient"] > 0
    torch.testing.assert_close(large_costs["gradient"], small_costs["gradient"])
    torch.testing.assert_close(large_costs["energy"], small_costs["energy"])


def test_only_the_named_tasks_are_trained():
    stage = replace(STAGE, tasks=("eat",))
    config = override(small(recipes.forage(), steps=2), {"stages.amortize_policy": stage})
    env = config.env.build(1)
    agent = build(
        config,
        env.spec,
        num_envs=config.stages["collect"].num_envs,
        buffer_size=buffer_steps(config),
    )
    requested, context = set(), agent.configurator.context

    def spy(task, goal):
        requested.add(tuple(task.drives.items()))
        return context(task, goal)

    agent.configurator.context = spy
    episode, practice = (
        config.stages[name].start(agent, config.env, seed=1)
        for name in ("collect", "amortize_policy")
    )
    for stage_run in (episode, practice):
        while stage_run.step < stage_run.total:
            stage_run.update()
    assert requested == {(("taste", 1.0),)}


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (("eat", "fly"), "amortize_policy.tasks names 'fly'; there are eat, flag, explore, stay"),
        ((), "can't practise 'explore'.*amortize_policy.tasks may name eat, flag, stay"),
    ],
)
def test_tasks_that_can_not_be_trained_are_refused_before_training(tasks, message):
    with pytest.raises(ConfigError, match=message):
        check_stages(
            override(recipes.forage(), {"stages.amortize_policy": AmortizePlanning(tasks=tasks)})
        )


def test_tasks_to_imitate_must_exist():
    distil = replace(recipes.forage().stages["distill_policy"], imitated_tasks=("stay", "fly"))
    with pytest.raises(
        ConfigError, match=r"distill_policy\.imitated_tasks names 'fly'; there are eat, flag"
    ):
        check_stages(override(recipes.forage(), {"stages.distill_policy": distil}))


def test_groups_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(ConfigError, match="groups of 3"):
        AmortizePlanning(group_size=3)


def test_every_update_draws_other_noise_and_a_seed_repeats_it(monkeypatch):
    config = small(recipes.recipe("windy-rooms"), steps=2)
    env = config.env.build(1)
    agent = build(
        config,
        env.spec,
        num_envs=config.stages["collect"].num_envs,
        buffer_size=buffer_steps(config),
    )
    env.close()
    collector = config.stages["collect"].start(agent, config.env, 0)
    while collector.step < collector.total:
        collector.update()
    imagine, drawn = WorldModel.imagine_policy, []

    def observed(self, state, policy, candidates, noise=None):
        drawn.append(noise)
        return imagine(self, state, policy, candidates, noise)

    monkeypatch.setattr(WorldModel, "imagine_policy", observed)

    stage_run = replace(STAGE, group_size=4).start(agent, config.env, 0)

    def chance(seed: int) -> torch.Tensor:
        stage_run.loss(torch.Generator().manual_seed(seed))
        return drawn[-1]

    first, other, again = chance(1), chance(2), chance(1)
    assert not torch.equal(first, other)
    assert torch.equal(first, again)
