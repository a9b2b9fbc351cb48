"""Lasting memory: what outlives an episode, by hand-computed numbers."""

from __future__ import annotations

import json
from contextlib import closing
from functools import cache
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ami_agent.ablation.variants import removable, without
from ami_agent.cli.main import main
from ami_agent.config import Config, build, override
from ami_agent.evaluation import policies
from ami_agent.evaluation.evaluate import check_episodes, evaluate, run_episodes, table_rows
from ami_agent.evaluation.lifetime_memory import LifetimeMemory
from ami_agent.recipes import recipe
from ami_agent.storage import checkpoint
from ami_agent.storage.memory_files import fingerprint
from ami_agent.train import train
from ami_agent.training.collect import CollectBehaviour, PlannerCollector
from modules.actor.subgoals import RememberedGoalConfig
from modules.configurator import Task
from modules.cost.cost import goal_distance
from modules.cost.remembered import remembered_cost
from modules.memory.lasting import (
    LastingMemory,
    LastingMemoryConfig,
    Memories,
    discounted_costs,
    write,
)
from modules.types import ConfigError, RememberedStates, Rollout
from tests.conftest import error_line, make_context
from tests.test_fault_tolerance import kill

SHIPPED = Path(__file__).parents[1] / "runs" / "reference" / "two-rooms"
CONFIG = LastingMemoryConfig(num_slots=3, num_prototypes=2, rate=0.5, same_within=0.25)


def row(*numbers: float) -> Tensor:
    """One environment, one number each."""
    return torch.tensor([[number] for number in numbers])


def written(config: LastingMemoryConfig, *entries: tuple[float, float]) -> Memories:
    """The memories of one environment after states of one number and their costs; a full step
    covers a distance of 1."""
    memories = Memories.blank(config, torch.zeros(1, 1), 1)
    for state, cost in entries:
        memories = write(memories, config, row(state), row(cost), torch.ones(1))
    return memories


# ---- what is written


def test_costs_are_discounted_from_each_step_to_the_end():
    costs = torch.tensor([[[0.0], [1.0], [4.0]]])
    expected = [[0.5 * 1 + 0.25 * 4], [1 + 0.5 * 4], [4]]
    torch.testing.assert_close(discounted_costs(costs, 0.5)[0], torch.tensor(expected))


def test_new_states_take_empty_slots():
    memories = written(CONFIG, (0.0, 1.0), (5.0, 2.0))
    assert memories.states.flatten().tolist() == [0, 5, 0]
    assert memories.costs.flatten().tolist() == [1, 2, 0]
    assert memories.uses.flatten().tolist() == [1, 1, 0]


def test_a_better_visit_takes_the_place_of_a_remembered_state_and_a_worse_one_moves_its_cost():
    better = written(CONFIG, (5.0, 2.0), (5.2, 1.0))
    assert better.states.flatten().tolist() == pytest.approx([5.2, 0, 0])
    assert better.costs.flatten().tolist() == [1, 0, 0]
    worse = written(CONFIG, (5.0, 2.0), (5.2, 4.0))
    assert worse.states.flatten().tolist() == [5, 0, 0]
    assert worse.costs.flatten().tolist() == [3, 0, 0]
    assert better.uses.flatten().tolist() == worse.uses.flatten().tolist() == [2, 0, 0]
    assert written(CONFIG, (5.0, 2.0), (5.3, 4.0)).uses.flatten().tolist() == [1, 1, 0]


def test_the_least_used_state_is_forgotten_and_becomes_part_of_a_prototype():
    memories = written(CONFIG, (0.0, 1.0), (1.0, 2.0), (2.0, 3.0))
    memories = memories._replace(uses=torch.tensor([[3.0, 0.5, 2.0]]))
    memories = write(memories, CONFIG, row(9.0), row(7.0), torch.ones(1))
    assert memories.states.flatten().tolist() == [0, 9, 2]
    assert memories.uses.flatten().tolist() == [3, 1, 2]
    assert memories.prototypes.flatten().tolist() == [1, 0]
    assert memories.prototype_costs.flatten().tolist() == [2, 0]
    assert memories.counts.flatten().tolist() == [1, 0]


def test_of_equally_used_states_the_one_of_the_highest_cost_is_forgotten():
    """A long episode with its reward in the middle keeps the reward and the way to it."""
    config = LastingMemoryConfig(num_slots=8, num_prototypes=0, discount=0.9)
    costs = torch.zeros(1, 40, 1)
    costs[0, 20] = -1
    values = discounted_costs(costs, config.discount)[0, :, 0].tolist()
    memories = written(config, *((float(step), cost) for step, cost in enumerate(values)))
    kept = sorted(memories.states.flatten().tolist())
    assert kept[:-1] == [14, 15, 16, 17, 18, 19, 20]  # the last slot is that of the latest state
    assert memories.costs.min() == -1


def test_a_state_that_is_seldom_used_is_forgotten_for_another_alone():
    config = LastingMemoryConfig(num_slots=1, num_prototypes=1, use_decay=0.0)
    memory = recorded([[-1.0]], config).end_episodes(config)
    for _ in range(3):
        _, memory = memory.record(config, row(90.0), row(0.0), torch.ones(1)).read(
            config, torch.ones(1)
        )
    assert memory.memories.uses.item() > 0
    memory = memory.end_episodes(config)
    assert memory.memories.prototype_costs.tolist()[0][0] == [-1]


def test_prototypes_are_means_of_the_nearest_forgotten_states():
    config = LastingMemoryConfig(num_slots=1, num_prototypes=2)
    memories = written(config, (0.0, 1.0), (10.0, 3.0), (2.0, 2.0), (11.0, 5.0), (50.0, 0.0))
    # forgotten: 0 and 10, which take a prototype each; 2, nearer to 0; 11, nearer to 10
    assert memories.prototypes.flatten().tolist() == [1, 10.5]
    assert memories.prototype_costs.flatten().tolist() == [1.5, 4]
    assert memories.counts.flatten().tolist() == [2, 2]
    without_prototypes = LastingMemoryConfig(num_slots=1, num_prototypes=0)
    assert written(without_prototypes, (0.0, 1.0), (10.0, 3.0)).counts.shape == (1, 0)


def recorded(steps: list[list[float]], config: LastingMemoryConfig = CONFIG) -> LastingMemory:
    """The costs of steps in B environments; the state of step t is 10 t."""
    memory = LastingMemory()
    for number, costs in enumerate(steps):
        state = torch.full((len(costs), 1), 10.0 * number)
        column = torch.tensor(costs, dtype=torch.float32)[:, None]
        memory = memory.record(config, state, column, torch.ones(len(costs)))
    return memory


def test_an_episode_is_remembered_when_it_ends_and_only_where_it_does():
    config = LastingMemoryConfig(num_slots=4, discount=0.5)
    memory = recorded([[0, 0], [0, 8], [4, 0]], config)
    assert memory.memories.uses.sum() == 0
    memory = memory.end_episodes(config, torch.tensor([True, False]))
    assert memory.memories.costs[0].flatten().tolist() == [1, 2, 4, 0]
    assert memory.memories.states[0].flatten().tolist() == [0, 10, 20, 0]
    assert memory.memories.uses[1].sum() == 0
    memory = memory.record(config, row(30.0, 30.0), row(1.0, 0.0), torch.ones(2))
    memory = memory.end_episodes(config)
    assert memory.memories.costs[0].flatten().tolist() == [1, 2, 4, 1]  # the new episode alone
    assert memory.memories.costs[1].flatten().tolist() == [4, 8, 0, 0]  # all of the first


def test_environments_do_not_disturb_each_other():
    config = LastingMemoryConfig(num_slots=2, num_prototypes=1)
    together = recorded([[0, 1], [2, 3], [4, 5]], config).end_episodes(config)
    alone = recorded([[1], [3], [5]], config).end_episodes(config)
    for part, own in zip(together.memories, alone.memories, strict=True):
        torch.testing.assert_close(part[1:], own)


def test_forgetting_empties_some_environments_and_drops_their_present_episode():
    memory = recorded([[1, 1], [2, 2]]).end_episodes(CONFIG)
    memory = memory.record(CONFIG, row(7.0, 7.0), row(9.0, 9.0), torch.ones(2))
    memory = memory.forget(torch.tensor([True, False])).end_episodes(CONFIG)
    assert (memory.memories.uses > 0).sum(1).tolist() == [0, 3]
    assert memory.forget().memories is None


# ---- what is read


def memory_of(costs: list[float], places: list[float], distance_cost: float, beta: float):
    states = torch.tensor(places)[None, :, None]
    return RememberedStates(states, torch.tensor([costs]), torch.tensor([distance_cost]), beta)


def rollout_to(place: Tensor) -> Rollout:
    """One imagined step from 0 to a state of one number."""
    states = torch.cat([torch.zeros_like(place), place])[None, None, :, None]
    return Rollout(
        states, torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 0), torch.zeros(1, 1, 1, 0)
    )


def cost_at(place: Tensor, memory: RememberedStates) -> Tensor:
    context = make_context(torch.zeros(1, 1), remembered=memory)
    return remembered_cost(rollout_to(place), context)[0, 0]


def test_the_remembered_cost_is_the_soft_minimum_over_costs_and_ways():
    memory = memory_of([-2.0, -3.0], [1.0, 4.0], 0.5, beta=2.0)
    energies = [-2 + 0.5 * 1, -3 + 0.5 * 2]  # from 2
    expected = -log(1 + sum(exp(-2 * energy) for energy in energies)) / 2
    assert cost_at(torch.tensor([2.0]), memory).item() == pytest.approx(expected)


def test_an_empty_memory_costs_nothing_anywhere():
    memory = memory_of([torch.inf, torch.inf], [1.0, 4.0], 0.5, beta=50.0)
    place = torch.tensor([3.0], requires_grad=True)
    cost = cost_at(place, memory)
    (slope,) = torch.autograd.grad(cost, place)
    assert cost.item() == slope.item() == 0


def test_the_remembered_cost_leads_to_the_cheapest_state_by_the_cost_of_a_unit_of_distance():
    memory = memory_of([-1.0, 0.0], [5.0, -1.0], 0.02, beta=1000.0)
    place = torch.tensor([1.0], requires_grad=True)
    (slope,) = torch.autograd.grad(cost_at(place, memory), place)
    assert slope.item() == pytest.approx(-0.02)


def test_the_slope_of_the_remembered_cost_is_the_attention_to_each_memory():
    costs = torch.tensor([[-0.3, -0.1]], requires_grad=True)
    memory = memory_of([0, 0], [1.0, 4.0], 0.1, beta=3.0)._replace(costs=costs)
    (slope,) = torch.autograd.grad(cost_at(torch.tensor([2.0]), memory), costs)
    energies = torch.tensor([-0.3 + 0.1 * 1, -0.1 + 0.1 * 2, 0.0])
    torch.testing.assert_close(slope[0], torch.softmax(-3 * energies, 0)[:2])


def test_reading_counts_as_use_and_uses_fade():
    config = LastingMemoryConfig(
        num_slots=2, num_prototypes=0, use_decay=0.5, step_cost=0.1, beta=3.0
    )
    memory = recorded([[-1], [-1]], config).end_episodes(config)
    memory = memory.record(config, row(0.0), row(0.0), torch.ones(1))
    costs = memory.memories.costs.flatten()
    remembered, memory = memory.read(config, torch.tensor([2.0]))
    torch.testing.assert_close(remembered.costs[0], 2 * costs)  # the drive has weight 2
    energies = torch.cat([2 * costs + torch.tensor([0.0, 1.0]), torch.zeros(1)])
    expected = 0.5 + torch.softmax(-3 * energies, 0)[:2]
    torch.testing.assert_close(memory.memories.uses[0], expected)


def test_empty_slots_and_prototypes_attract_nothing():
    memory = recorded([[-1]]).end_episodes(CONFIG)
    remembered, _ = memory.read(CONFIG, torch.ones(1))
    assert remembered.costs.tolist() == [[-1, *[torch.inf] * 4]]


def test_a_context_of_some_environments_has_their_memories_alone():
    memory = RememberedStates(
        torch.arange(6.0).view(3, 2, 1), torch.zeros(3, 2), torch.ones(3), 1.0
    )
    context = make_context(torch.zeros(3, 1), remembered=memory, has_goal=torch.tensor([1, 0, 1]))
    some = context.select(torch.tensor([2]))
    assert some.remembered.states.flatten().tolist() == [4, 5]
    assert some.has_goal.tolist() == [1]


def test_the_remembered_state_of_least_cost_is_the_goal_where_there_is_one():
    level = RememberedGoalConfig(weight=3.0).build((1, 1, 1), 1, None, None)
    states = torch.tensor([[[1.0], [9.0]], [[1.0], [9.0]]])
    costs = torch.tensor([[-0.5, -0.6], [torch.inf, torch.inf]])
    memory = RememberedStates(states, costs, torch.full((2,), 0.02), 50.0)
    context = make_context(torch.zeros(2, 1), remembered=memory, weights={"boredom": 1.0})
    here = torch.tensor([[0.0], [0.0]])
    found, _ = level(here, context, None)
    assert found.goal.flatten().tolist() == [1, 0]  # -0.5 + 0.02 against -0.6 + 0.18
    assert found.has_goal.tolist() == [True, False]
    assert found.weights == {"boredom": 1.0, "goal_distance": 3.0}
    rollout = Rollout(torch.full((2, 1, 2, 1), 3.0), *torch.zeros(3, 2, 1, 1, 1))
    assert goal_distance(rollout, found).flatten().tolist() == [4, 0]


# ---- the agent


@cache
def small() -> Config:
    changes = {
        "world_model.dynamics.hidden": 8,
        "memory.lasting.num_slots": 16,
        "actor.planner.horizon": 3,
        "actor.planner.iterations": 2,
        "env.options": {"max_episode_steps": 20, "later_episode_steps": 3},
        "eval_env.options": {"max_episode_steps": 20, "later_episode_steps": 3},
    }
    return override(recipe("hidden-food"), changes)


def agent_of(config: Config, seed: int = 0):
    with closing(config.env.build(1)) as env:
        return build(config, env.spec, seed=seed)


def after_an_episode(agent, num_envs: int = 2):
    """A controller whose first episode found food in environment 0 alone."""
    controller = agent.controller(num_envs, agent.task_spec("").to_task(None, "plan"))
    obs = np.full((num_envs, 2), 0.5, np.float32)
    controller.act(obs)
    meal = np.zeros((num_envs, 2))
    meal[0] = 1
    controller.perceive(obs + np.float32(0.1), meal)
    controller.reset()
    return controller


def test_what_came_of_an_episode_leads_in_the_next_one():
    controller = after_an_episode(agent_of(small()))
    memories = controller.episode.lasting.memories
    assert memories.costs[:, :2, 0].tolist() == [[pytest.approx(-0.97), -1], [0, 0]]
    _, context = controller.perceive(np.full((2, 2), 0.5, np.float32))
    assert context.remembered.costs[0, :2].tolist() == [pytest.approx(-0.97), -1]
    assert context.remembered.costs[1].isinf().all()  # nothing good came of these states
    assert context.weights["remembered"] == 10
    plan = controller.act(np.full((2, 2), 0.5, np.float32))
    assert plan.terms["remembered"][0] < -8  # 10 times almost -1
    assert plan.terms["remembered"][1] == 0


def test_what_is_left_of_plans_does_not_outlive_the_episode():
    config = override(small(), {"actor.receding_horizon": 3})
    agent = agent_of(config)
    controller = agent.controller(2, agent.task_spec("").to_task(None, "plan"))
    obs = np.full((2, 2), 0.5, np.float32)
    controller.act(obs)
    carry = controller.episode.actors["plan"]
    assert len(carry.remaining) == 2
    controller.reset(np.array([True, False]), keep_plans=True)
    after = controller.episode.actors["plan"]
    assert after.remaining == ()
    assert after.planner is carry.planner  # the warm start


def test_a_fingerprint_is_that_of_the_weights_and_of_the_names():
    first, second = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    assert fingerprint(["taste"], first) == fingerprint(["taste"], second)
    assert fingerprint(["taste"], first) != fingerprint(["pain"], first)
    second.num_batches_tracked += 1
    assert fingerprint(["taste"], first) != fingerprint(["taste"], second)


def test_forgetting_and_other_controllers_leave_no_trace():
    agent = agent_of(small())
    controller, other = after_an_episode(agent), agent.controller(2)
    assert other.episode.lasting.memories is None
    controller.forget(np.array([True, False]))
    assert (controller.episode.lasting.memories.uses > 0).any(1).tolist() == [False, True]
    controller.forget()
    assert controller.episode.lasting == LastingMemory()


@pytest.mark.parametrize("has_memory", [True, False])
def test_signals_of_another_shape_are_refused_and_change_nothing(has_memory):
    config = small() if has_memory else without(small(), "lasting_memory")
    controller = after_an_episode(agent_of(config))
    before, obs = controller.episode, np.full((2, 2), 0.5, np.float32)
    for wrong, given in (
        (np.zeros(2), r"of shape \[2\]"),
        (np.zeros((3, 2)), r"of shape \[3, 2\]"),
        (np.full((2, 2), np.nan), r"of shape \[2, 2\] and not finite"),
        ("meal", "a str"),
    ):
        right = r"finite numbers of shape \[2, 2\]: reward, meal of each environment"
        with pytest.raises(ConfigError, match=f"the interoception is {given}; it must be {right}"):
            controller.act(obs, wrong)
        assert controller.episode is before


def test_a_single_environment_takes_its_signals_without_a_batch_axis():
    agent = agent_of(small())
    controller = agent.controller(task=agent.task_spec("").to_task(None, "plan"))
    controller.act(np.full(2, 0.5, np.float32), np.array([0.0, 1.0]))
    controller.reset()
    assert controller.episode.lasting.memories.costs[0, 0, 0] == -1


def test_the_ablation_takes_lasting_memory_away_and_its_cost_with_it():
    assert {"lasting_memory", "prototypes"} <= {*removable(small())}
    assert "lasting_memory" not in removable(recipe("forage"))
    agent = agent_of(without(small(), "lasting_memory"))
    with pytest.raises(ConfigError, match="no cost is called 'remembered'"):
        agent.context(Task(weights={"remembered": 1.0}))
    with_goal = override(small(), {"actor.subgoals": RememberedGoalConfig()})
    assert without(with_goal, "lasting_memory").actor.subgoals is None
    assert without(small(), "prototypes").memory.lasting.num_prototypes == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cost.drives": (), "tasks.eat.drives": {}},
            "lasting memory holds the costs of drives, and there are none",
        ),
        (
            {"memory.lasting": None, "actor.subgoals": RememberedGoalConfig()},
            "RememberedGoal, which reads lasting memory: memory.lasting must not be None",
        ),
    ],
)
def test_settings_that_lack_what_lasting_memory_needs_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        agent_of(override(small(), changes))


def test_plans_towards_a_remembered_goal_are_finite_in_all_environments():
    changes = {"actor.subgoals": RememberedGoalConfig(), "memory.lasting.step_cost": 0.0}
    agent = agent_of(override(small(), changes))
    plan = after_an_episode(agent).act(np.full((2, 2), 0.5, np.float32))
    assert plan.terms["goal_distance"][0] > 0
    assert plan.terms["goal_distance"][1] == 0


# ---- files


def test_a_saved_memory_is_the_same_again(tmp_path):
    agent = agent_of(small())
    controller = after_an_episode(agent)
    controller.save_memory(tmp_path / "memory")
    other = agent.controller(2, agent.task_spec("").to_task(None, "plan"))
    other.load_memory(tmp_path / "memory")
    for saved, loaded in zip(
        controller.episode.lasting.memories, other.episode.lasting.memories, strict=True
    ):
        torch.testing.assert_close(loaded, saved, atol=0, rtol=0)
    obs = np.full((2, 2), 0.5, np.float32)
    torch.testing.assert_close(other.act(obs).terms, after_an_episode(agent).act(obs).terms)


@pytest.fixture
def saved(tmp_path):
    after_an_episode(agent_of(small())).save_memory(tmp_path / "memory")
    return tmp_path / "memory"


def refusal(controller, folder) -> str:
    """The one line with which a memory is refused; nothing changes."""
    before = controller.episode
    with pytest.raises(ConfigError) as error:
        controller.load_memory(folder)
    assert controller.episode is before
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value) or "no lasting memory" in str(error.value)
    return str(error.value)


def test_a_memory_of_another_run_is_refused(saved):
    agent = agent_of(small())
    agent.perception.load_state_dict({k: v + 1 for k, v in agent.perception.state_dict().items()})
    assert "is the lasting memory of another run" in refusal(agent.controller(2), saved)


def test_a_memory_of_another_size_is_refused(saved):
    found = refusal(agent_of(small()).controller(3), saved)
    assert "of shape [2, 16, 1]; this controller needs [3, 16, 1]" in found.replace(", 2]", ", 1]")
    more = agent_of(override(small(), {"memory.lasting.num_slots": 17}))
    assert "this controller needs [2, 17" in refusal(more.controller(2), saved)
    without_memory = agent_of(without(small(), "lasting_memory"))
    assert "this agent has no lasting memory" in refusal(without_memory.controller(2), saved)


def test_a_memory_for_any_number_of_environments_keeps_its_own(saved):
    controller = agent_of(small()).controller(tensors=True)
    controller.load_memory(saved)
    assert len(controller.episode.lasting.memories.uses) == 2


def test_a_damaged_memory_is_refused(saved):
    controller = agent_of(small()).controller(2)
    tensors, metadata = saved / "tensors.safetensors", saved / "metadata.json"
    whole, text = tensors.read_bytes(), metadata.read_text()
    tensors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "damaged" in refusal(controller, saved)
    tensors.write_bytes(whole[:50])
    refusal(controller, saved)
    tensors.write_bytes(whole)
    metadata.write_text(json.dumps({**json.loads(text), "metadata": {"kind": "another"}}))
    assert "damaged" in refusal(controller, saved)
    metadata.write_text("{")
    refusal(controller, saved)
    metadata.unlink()
    refusal(controller, saved)
    refusal(controller, saved.parent / "nowhere")


def test_there_is_nothing_to_save_before_an_episode(tmp_path):
    with pytest.raises(ConfigError, match="no episode has begun"):
        agent_of(small()).controller(2).save_memory(tmp_path / "memory")


# ---- evaluation


def test_lifetimes_begin_with_what_a_file_remembers(saved):
    agent, plans = agent_of(small()), []
    memory = LifetimeMemory(agent, seeds=[0, 1], load=str(saved))
    controller = agent.controller(tensors=True)
    make_policy = policies.agent_policy_factory(
        agent, "plan", agent.task_spec(""), plans.append, controller
    )
    with closing(small().eval_env.build(2)) as env:
        run_episodes(memory.policy(make_policy, controller, 1), env, 0)
    first = plans[0].terms["remembered"]
    assert first[0] < -3  # 10 times almost -1, and what the way costs
    assert first[1] == 0  # nothing good came there


def test_the_memory_of_a_lifetime_does_not_depend_on_when_others_end():
    """Food is eaten at seed 0 alone, so that the episodes there are shorter."""
    agent = agent_of(small())

    def remembered(seed: int, num_envs: int) -> dict[int, Memories]:
        memory = LifetimeMemory(agent, range(seed, seed + num_envs))
        controller = agent.controller(tensors=True)
        make_plans = policies.agent_policy_factory(
            agent, "react", agent.task_spec(""), controller=controller
        )
        eats = torch.arange(seed, seed + num_envs)[:, None] == 0

        def make_policy(start: policies.EpisodeStart, number: int):
            observe, expert = make_plans(start, number), policies.make_expert_policy(start, number)

            def act_fn(obs: Tensor) -> Tensor:
                observe(obs)
                return expert(obs) * eats

            return act_fn

        make_policy = memory.policy(make_policy, controller, 2)
        with closing(small().eval_env.build(num_envs)) as env:
            run_episodes(make_policy, env, seed, per_env=2, to_reset=True)
        return memory.last

    together, alone = remembered(0, 2), {**remembered(0, 1), **remembered(1, 1)}
    assert together.keys() == alone.keys() == {0, 1}
    assert together[0].costs.min() == -1
    assert together[1].costs.min() == 0
    for seed, memories in together.items():
        for part, own in zip(memories, alone[seed], strict=True):
            torch.testing.assert_close(part, own)


def test_eval_loads_and_saves_lasting_memory(saved, tmp_path, capsys):
    changes = {
        "stages.collect": CollectBehaviour(num_envs=4, steps=12),
        "stages.train_jepa.optim.steps": 2,
        "tasks.eat.episodes_per_lifetime": 2,
        "eval_env.options": {"max_episode_steps": 5, "later_episode_steps": 3},
    }
    config = override(small(), changes)
    run, memory, later = (tmp_path / name for name in ("run", "own", "later"))
    train(config, out=run)
    flags = ("--mode", "react", "--baselines", "--episodes")
    assert main([str(x) for x in ("eval", run, *flags, 2, "--save-memory", memory)]) == 0
    argv = ["eval", run, *flags, 2, "--memory", memory, "--save-memory", later]
    assert main(list(map(str, argv))) == 0
    (before, _), (after, _) = map(checkpoint.load, (memory, later))
    assert before["states"].shape == after["states"].shape == (1, 16, 2)
    assert after["uses"].max() > before["uses"].max() > 0  # the same states, visited again
    capsys.readouterr()
    for argv, message in (
        (("eval", run, *flags, 4, "--memory", memory), "this controller needs [2, 16, "),
        (("eval", run, *flags, 4, "--memory", saved), "is the lasting memory of another run"),
        (("eval", run, *flags, 2, "--save-memory", tmp_path), "exists and is no checkpoint"),
        (("eval", SHIPPED, *flags, 2, "--memory", memory), "this agent has no lasting memory"),
    ):
        assert message in error_line(capsys, *argv)


def test_an_evaluation_takes_the_episodes_of_a_lifetime_one_after_the_other():
    begun = []

    def make_policy(start: policies.EpisodeStart, seed: int):
        begun.append(None if start.reset_mask is None else start.reset_mask.tolist())
        return policies.make_expert_policy(start, seed)

    with closing(small().eval_env.build(2)) as env:
        env.vector_env.reset(seed=0)
        results = run_episodes(make_policy, env, 0, per_env=3)
    # of at most 20, then of at most 3 steps; the food is 6 to 8 away
    assert results.length.view(2, 3)[:, 1:].tolist() == [[3, 3]] * 2
    assert set(results.length[::3].tolist()) <= {6, 7, 8}
    assert results.success.tolist() == [1, 0, 0] * 2
    assert begun[0] is None
    assert np.sum(begun[1:], 0).tolist() == [2, 2]


def test_environments_that_are_made_again_are_other_ones_of_which_nothing_is_remembered():
    changes = {
        "cost.drives": ("reward",),
        "tasks.eat.drives": {"reward": 1.0},
        "env.vectorization_mode": "async",
        "env.options": {"max_episode_steps": 2, "later_episode_steps": 2},
    }
    config = override(small(), changes)
    with closing(config.env.build(1)) as env:
        agent = build(config, env.spec, num_envs=2, buffer_size=30)
    controller = agent.controller(tensors=True)
    make_policy = policies.agent_policy_factory(
        agent, "plan", agent.task_spec(""), controller=controller
    )
    collector = PlannerCollector(agent, config.env.build(2), 100, [make_policy], seed=0)

    def num_remembered() -> list[int]:
        collector.update()
        return (controller.episode.lasting.memories.uses > 0).sum(1).tolist()

    assert [num_remembered() for _ in range(4)][-1] == [2, 2]
    kill(collector.env, 1)
    assert num_remembered() == [0, 0]
    collector.finish()


def test_results_are_reported_by_episode_of_a_lifetime():
    results = evaluate(agent_of(small()), small().eval_env, episodes=4)
    assert [len(part) for part in (results["by_episode"], results["baselines"])] == [4, 2]
    lengths = [part["length"]["mean"] for part in results["baselines"]["oracle"]["by_episode"]]
    assert lengths[1:] == [3, 3, 3]
    assert 6 <= lengths[0] <= 8
    assert [part["success"]["mean"] for part in results["baselines"]["oracle"]["by_episode"]] == [
        1, 0, 0, 0,
    ]  # fmt: skip
    oracle = results["baselines"]["oracle"]  # of one lifetime: Wilson's interval of n = 1
    assert oracle["success"]["mean"] == 0.25
    assert oracle["success"]["ci95"] == pytest.approx([0.0146, 0.8821], abs=1e-4)
    assert oracle["length"]["ci95"] is None
    mean = np.mean([part["success"]["mean"] for part in results["by_episode"]])
    assert results["success"]["mean"] == pytest.approx(mean)
    _, rows = table_rows({"plan": results})
    printed = {name: cells for name, *cells in rows}
    assert printed["episode 2 of a lifetime: steps"][1] == "3.0"  # of the oracle


def test_lifetimes_are_not_cut_off():
    tasks = small().tasks
    check_episodes(tasks, "eat", 8)
    with pytest.raises(ConfigError, match="lifetimes of 4: --episodes must be a multiple of 4"):
        check_episodes(tasks, "eat", 10)


@pytest.mark.slow
def test_the_second_episode_is_faster_than_the_first(tmp_path):
    config = override(
        recipe("hidden-food"),
        {"stages.train_jepa.optim.steps": 400, "stages.collect.num_envs": 200},
    )
    agent = train(config, out=tmp_path / "run")
    first, second, *_ = evaluate(agent, config.eval_env, episodes=24)["by_episode"]
    assert second["success"]["mean"] >= 5 / 6
    assert second["length"]["mean"] < first["length"]["mean"] / 1.5
