"""The whole agent: the same seed gives the same episode, and a stage trains its modules only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ami_agent import recipes
from ami_agent.adapters.env import EnvAdapter, rollout
from ami_agent.adapters.tensors import ModalitySpec
from ami_agent.agent import Agent, Controller
from ami_agent.config import Config, buffer_steps, build, override
from ami_agent.evaluation import policies
from ami_agent.evaluation.policies import EpisodeStart
from modules.actor.policy import (
    StuckPerturbationConfig,
)
from modules.configurator import Task, TaskSpec
from modules.memory.short_term import (
    AttentionMemoryConfig,
    GRUMemoryConfig,
)
from modules.types import ConfigError, Observation, Plan, as_dict
from modules.world_model.hjepa import HierarchicalJEPAConfig
from tests.conftest import OWN_RECIPES, small

MODES = ("react", "plan", "auto")
LEARNS = {
    "collect": set(),
    "train_jepa": {"perception", "world_model"},
    "train_goal_critic": {"cost"},
    "distill_paths": {"cost"},
    "train_values": {"cost"},
    "actor_critic": {"world_model", "cost", "policy"},
    "planner_rollouts": set(),
    "finetune_dynamics": {"world_model"},
    "train_hierarchy": {"subgoals"},
    "distill_landmark_paths": {"cost"},
    "select_landmarks": {"subgoals"},
    "goal_bc": {"policy"},
    "amortize_policy": {"policy"},
    "distill_policy": {"policy", "plan_energy_predictor"},
}
"""The modules that each stage trains."""


def make_policy(config: Config, num_envs: int = 2, seed: int = 0) -> tuple[Agent, EnvAdapter]:
    """A new agent and its environments."""
    env = config.eval_env.build(num_envs)
    return build(
        config,
        env.spec,
        seed=seed,
        num_envs=config.stages["collect"].num_envs,
        buffer_size=buffer_steps(config),
    ), env


def waking(
    config: Config, mode: str, *, seed: int = 0, num_envs: int = 2
) -> tuple[Controller, Observation]:
    """An agent with a task, and the first observations."""
    agent, env = make_policy(config, num_envs)
    controller = agent.controller(tensors=True)
    obs, info = env.reset(seed)
    awake(agent)
    controller.set_task(Task(goal=env.goal(info), mode=mode))
    return controller, obs


def awake(agent: Agent) -> None:
    """A world model in which actions matter, as after some training."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in agent.world_model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))


def record_of(config: Config, seed: int, mode: str, steps: int = 4) -> Tensor:
    """Actions `[T, B, A]`."""
    agent, env = make_policy(config, seed=seed)
    controller = agent.controller(tensors=True)
    obs, info = env.reset(seed)
    controller.set_task(Task(goal=env.goal(info), mode=mode), seed)
    collected = islice(rollout(lambda obs: controller.act(obs).action, env, obs), steps)
    return torch.stack([step.transition.action for step in collected])


def weights_of(agent: Agent) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in agent.state_dict().items()}


def moved(agent: Agent, before: dict[str, Tensor]) -> set[str]:
    """The modules of which a number changed."""
    after = agent.state_dict()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def same(one: Plan, other: Plan) -> bool:
    return torch.equal(one.actions, other.actions) and torch.equal(one.states, other.states)


def test_an_agent_without_a_task_can_not_act(tiny):
    agent, env = make_policy(tiny)
    controller = agent.controller(tensors=True)
    with pytest.raises(ConfigError, match="set_task"):
        controller.act(env.reset(0)[0])


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"mode": "sleep"}, "'sleep'; there are react, plan, auto"),
        (
            {"weights": {"hunger": 1.0}},
            "'hunger'; there are goal_distance, control_cost, boredom, curiosity, cri",
        ),
        ({"horizon": -1}, "horizon is -1"),
        ({"planner_iterations": -2}, "planner_iterations is -2"),
    ],
)
def test_an_invalid_task_is_refused_and_the_old_one_stays(tiny, wish, message):
    controller, obs = waking(tiny, "plan")
    before = controller.context
    with pytest.raises(ConfigError, match=message):
        controller.set_task(Task(goal=obs, **wish))
    assert controller.context is before


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_episode_and_another_seed_another(tiny, mode):
    first = record_of(tiny, 1, mode)
    assert torch.equal(first, record_of(tiny, 1, mode))
    assert not torch.equal(first, record_of(tiny, 2, mode))


def test_new_weights_depend_on_the_seed_alone_and_use_up_no_random_numbers_of_others(tiny):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = weights_of(make_policy(tiny, seed=3)[0])
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    torch.testing.assert_close(weights_of(make_policy(tiny, seed=3)[0]), first, rtol=0, atol=0)
    boxes = {"perception", "world_model", "cost", "policy", "plan_energy_predictor"}
    assert moved(make_policy(tiny, seed=4)[0], first) == boxes


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_answers_with_a_plan_of_valid_actions(tiny, mode):
    controller, obs = waking(tiny, mode)
    agent = controller.agent
    plan = controller.act(obs)
    length = plan.actions.shape[1]
    assert plan.action.shape == (2, 2)
    assert plan.energy.shape == (2,)
    assert plan.states.shape[1] == plan.candidate_states.shape[2]
    assert plan.states.shape[1] == (1 if mode == "react" else length + 1)
    torch.testing.assert_close(plan.states[:, 0], agent.encode(obs))
    torch.testing.assert_close(agent.policy.action_space.project(plan.actions), plan.actions)
    assert not plan.actions.requires_grad


def test_the_task_sets_the_horizon_and_the_cost_weights(tiny):
    controller, obs = waking(tiny, "plan")
    target = {"control_cost": 2.0, "critic": 0.5, "goal_distance": 0.0}
    controller.set_task(Task(goal=obs, horizon=3, weights=target))
    plan = controller.act(obs)
    assert plan.actions.shape == (2, 3, 2)
    effort = plan.actions.square().sum(-1).mean(-1)
    torch.testing.assert_close(dict(plan.terms)["control_cost"], 2 * effort)
    assert set(plan.terms) == {"control_cost", "critic"}


def test_a_new_goal_within_an_episode_resets_the_plans(tiny):
    config = override(tiny, {"actor.receding_horizon": 3})
    controller, obs = waking(config, "plan")
    agent = controller.agent
    old = controller.act(obs)
    controller.set_task(Task(goal=obs), seed=0)
    torch.testing.assert_close(controller.context.goal, agent.encode(obs))
    is_first, _ = waking(config, "plan")
    is_first.set_task(Task(goal=obs), seed=0)
    plan = controller.act(obs)
    assert same(plan, is_first.act(obs))
    assert not torch.equal(plan.actions, old.actions)


def test_changing_the_mode_keeps_the_agent(tiny):
    controller, obs = waking(tiny, "react")
    agent = controller.agent
    before = weights_of(agent)
    reactive = controller.act(obs)
    controller.set_task(Task(goal=obs, mode="plan"))
    controller.act(obs)
    controller, obs = waking(tiny, "react")
    agent = controller.agent
    assert moved(agent, before) == set()
    assert same(controller.act(obs), reactive)


def test_a_reactive_actor_in_one_env_is_the_same_as_among_many(tiny):
    controller, obs = waking(tiny, "react", num_envs=5)
    together = controller.act(obs).action
    context = controller.context
    for env in range(5):
        controller.episode = controller.episode._replace(
            context=context.select(torch.tensor([env]))
        )
        torch.testing.assert_close(controller.act(obs[env, None]).action[0], together[env])


@pytest.mark.parametrize("name", OWN_RECIPES)
def test_every_recipe_trains_its_stages_and_each_moves_its_own_components_only(name):
    config = small(recipes.recipe(name), steps=2)
    agent, env = make_policy(config)
    for index, (stage, how) in enumerate(config.stages.items()):
        before = weights_of(agent)
        stage_run = how.start(agent, config.env, seed=index)
        while stage_run.step < stage_run.total:
            assert all(value.isfinite() for value in stage_run.update().values())
        stage_run.finish()
        assert moved(agent, before) == learns(config, stage)
    for mode in agent.actors:
        for assignment in agent.tasks.values():
            obs, info = env.reset(0)
            act = policies.agent_policy_factory(agent, mode, assignment)(
                EpisodeStart(env, obs, info), 0
            )
            for collected in islice(rollout(act, env, obs), 2):
                assert shapes(collected.transition.next_obs) == shapes(obs)


def learns(config: Config, stage: str) -> set[str]:
    """The modules that a stage with these settings trains."""
    recalls = stage == "train_jepa" and config.memory.short_term is not None
    keeps = config.memory.num_reference_obs and stage in ("collect", "planner_rollouts")
    has_levels = isinstance(config.actor.subgoals, HierarchicalJEPAConfig)
    return (
        LEARNS[stage]
        | ({"short_term_memory"} if recalls else set())
        | ({"reference_obs"} if keeps else set())
        | ({"subgoals"} if has_levels and stage == "distill_landmark_paths" else set())
    )


def shapes(obs: Observation) -> dict[str, torch.Size]:
    return {name: part.shape for name, part in as_dict(obs).items()}


@pytest.mark.parametrize(
    "short_term_memory", [GRUMemoryConfig(hidden=4), AttentionMemoryConfig(slot_dim=4)]
)
def test_short_term_memory_is_trained_with_perception_alone(tiny, short_term_memory):
    config = override(
        tiny,
        {"memory.short_term": short_term_memory, "stages.train_jepa.context_steps": 2},
    )
    agent, before = trained(config, ("collect", "train_jepa"))
    after = agent.state_dict()
    assert moved(agent, before) == {"perception", "short_term_memory", "world_model"}
    parts = {name for name in before if name.startswith("short_term_memory.")}
    assert not any(torch.equal(before[name], after[name]) for name in parts)
    assert moved(*trained(config, ("collect", "train_goal_critic"))) == {"cost"}
    assert moved(*trained(config, ("distill_policy",))) == LEARNS["distill_policy"]


def trained(config: Config, names: tuple[str, ...]) -> tuple[Agent, dict[str, Tensor]]:
    """The agent after some stages, and its weights before the last one."""
    agent, _ = make_policy(config)
    for name in names:
        before = weights_of(agent)
        stage_run = config.stages[name].start(agent, config.env, seed=1)
        while stage_run.step < stage_run.total:
            stage_run.update()
        stage_run.finish()
    return agent, before


def test_distillation_moves_every_layer_of_the_policy_and_of_the_plan_energy_predictor(tiny):
    agent, before = trained(tiny, ("distill_policy",))
    after = agent.state_dict()
    learnt = [name for name in before if name.startswith(("policy.", "plan_energy_predictor."))]
    assert {name.split(".")[0] for name in learnt} == {"policy", "plan_energy_predictor"}
    assert not any(torch.equal(before[name], after[name]) for name in learnt if after[name].numel())


@pytest.mark.parametrize("imitate", [(), ("stay",)])
def test_where_no_task_is_imitated_the_policy_stays_as_it_is(imitate):
    config = small(recipes.forage(), steps=1)
    planner = replace(config.actor.planner, horizon=3, iterations=2)
    distil = replace(config.stages["distill_policy"], imitated_tasks=imitate, rounds=4)
    agent, _ = make_policy(override(config, {"actor.planner": planner}))
    stage_run = distil.start(agent, config.env, seed=1)
    rounds = [stage_run._collect_labels(turn) for turn in range(4)]  # the policy is not trained yet
    for name, label in zip(config.tasks, rounds, strict=True):
        own = agent.policy(label.state, label.goal, label.task_vector)
        as_it_does = torch.allclose(label.action, own, atol=1e-6)
        assert as_it_does == bool(imitate and name not in imitate)


def test_after_a_first_round_under_mode_2_the_policy_acts_by_itself():
    config = small(recipes.forage(), steps=1)
    planner = replace(config.actor.planner, horizon=3, iterations=2)
    agent, _ = make_policy(override(config, {"actor.planner": planner}))
    stage_run = replace(config.stages["distill_policy"], imitated_tasks=()).start(
        agent, config.env, seed=1
    )
    dare, dared = stage_run._with_noise, []
    stage_run._with_noise = lambda action, random: dared.append(action) or dare(action, random)
    tasks = len(config.tasks)
    for turn in (0, tasks):
        dared.clear()
        label = stage_run._collect_labels(turn)
        own = agent.policy(label.state, label.goal, label.task_vector)
        assert not torch.allclose(label.action, own, atol=1e-3)
        collected = label.action if turn < tasks else own
        torch.testing.assert_close(torch.cat(dared), collected, atol=1e-6, rtol=0)


def test_the_same_seed_learns_the_same(tiny):
    names = tuple(tiny.stages)
    first, second = (trained(tiny, names)[0] for _ in range(2))
    assert moved(first, weights_of(second)) == set()


def test_training_leaves_the_replay_buffer_as_it_was_collected(tiny):
    agent, _ = trained(tiny, ("collect",))
    collected = {name: part.clone() for name, part in agent.replay_buffer.state_dict().items()}
    for name in ("train_jepa", "train_goal_critic", "distill_policy"):
        stage_run = tiny.stages[name].start(agent, tiny.env, seed=1)
        stage_run.update()
    torch.testing.assert_close(agent.replay_buffer.state_dict(), collected, rtol=0, atol=0)


def test_the_goal_critic_labels_until_its_graph_is_trained():
    config = small(recipes.two_rooms_random(), steps=2)
    agent, _ = trained(config, ("collect",))
    before = weights_of(agent)
    stage_run = config.stages["distill_paths"].start(agent, config.env, seed=1)
    stage_run.update()
    assert moved(agent, before) == set()
    stage_run.finish()
    assert moved(agent, before) == {"cost"}


@pytest.mark.parametrize("stage", ["train_goal_critic", "distill_paths"])
def test_an_agent_without_a_goal_critic_can_not_distill_paths(stage):
    config = small(recipes.two_rooms_random(), steps=2)
    config = override(config, {"cost.goal_critic": None})
    with pytest.raises(ConfigError, match="without a goal critic"):
        trained(config, ("collect", stage))


def weigh(**weights: float) -> Callable[[Config], Config]:
    def changed(config: Config) -> Config:
        return replace(config, configurator=replace(config.configurator, **weights))

    return changed


@pytest.mark.parametrize("ablation", [weigh(goal_distance=1.0, critic=0.0), weigh()])
def test_an_agent_without_a_goal_critic_can_still_plan(tiny, ablation):
    controller, obs = waking(ablation(override(tiny, {"cost.goal_critic": None})), "plan")
    assert controller.act(obs).energy.isfinite().all()


def test_arrays_are_accepted_as_gymnasium_delivers_them(tiny):
    agent, env = make_policy(tiny)
    controller = agent.controller(tensors=True)
    obs, info = env.reset(0)
    controller.set_task(Task(goal=env.goal(info)))
    output = controller.act(obs)
    controller.set_task(Task(goal=env.goal(info).numpy()))
    assert same(controller.act(obs.numpy()), output)
    with pytest.raises(ConfigError, match="observation is a list; it must be a batch of"):
        controller.act([1, 2])


def test_where_an_episode_begins_no_plan_is_continued(tiny):
    controller, obs = waking(
        override(tiny, {"actor.receding_horizon": 3, "actor.policy_proposal": None}),
        "plan",
    )
    controller.reset()
    first = controller.act(obs)
    controller.act(obs)
    assert controller.episode.actors["plan"].remaining
    controller.reset()
    assert (
        controller.act(obs).actions.shape == first.actions.shape
    )  # a whole plan, not the rest of one


def test_without_levels_above_the_agent_pursues_the_goal_of_its_task(tiny):
    controller, obs = waking(tiny, "plan")
    assert controller.agent.subgoals is None
    _, context = controller.perceive(obs)
    assert torch.equal(context.goal, controller.context.goal.expand_as(context.goal))
    assert controller.act(obs).subgoals.shape[:2] == (len(context.goal), 0)


def test_a_goal_at_the_current_position_is_renewed_only_where_an_episode_begins(tiny):
    env = tiny.eval_env.build(3)
    obs, info = env.reset(0)
    subtask = policies.TaskTracker(TaskSpec(goal_source="current"))
    subtask.task(EpisodeStart(env, obs, info), "plan")
    is_first = torch.tensor([False, True, False])
    goal = subtask.task(EpisodeStart(env, obs + 1, info, is_first), "plan").goal
    assert torch.equal(goal, torch.where(is_first[:, None, None, None], obs + 1, obs))


def test_a_plan_for_one_env_does_not_depend_on_the_number_of_others(tiny):
    """Its random draws are the same in all environments."""
    config = override(
        tiny,
        {
            "actor.policy_proposal": None,
            "actor.stuck_recovery": StuckPerturbationConfig(min_energy=0.0),
        },
    )
    agent, env = make_policy(config, num_envs=5)
    controller = agent.controller(tensors=True)
    obs, info = env.reset(0)
    awake(agent)
    goal = env.goal(info)
    plans = []
    for env_ids in ([0, 1, 2, 3, 4], [3]):
        controller.reset()
        controller.set_task(Task(goal=goal[env_ids]), seed=4)
        plans.append(
            [controller.act(obs[env_ids]).actions[-1 if env_ids == [3] else 3] for _ in range(7)]
        )
    torch.testing.assert_close(plans[0], plans[1], atol=1e-4, rtol=0)


def test_a_part_that_is_called_obs_does_not_take_the_place_of_all_parts():
    modalities = {"obs": ModalitySpec((3,)), "goal": ModalitySpec((2,))}
    reader = SimpleNamespace(spec=SimpleNamespace(modalities=modalities), device="cpu")
    given = {"obs": torch.zeros(1, 3), "goal": torch.ones(1, 2)}
    assert Agent.to_tensors(reader, "goal", given).keys() == given.keys()
