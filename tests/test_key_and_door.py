"""Key and Door: the key opens the door, the shortest path is the oracle's, and actions are
choices."""

from __future__ import annotations

import re

import gymnasium
import numpy as np
import pytest
import torch

from ami_agent.config import build
from ami_agent.recipes import key_and_door
from modules.actor.planning.tree_search import TreeSearch

RIGHT, DOWN, LEFT, UP = range(4)


def make(num_envs: int):
    return gymnasium.make_vec("ami/KeyAndDoor-v0", num_envs=num_envs)


def factors(position, key, has_key=0.0, door=1, goal=(6, 1)) -> np.ndarray:
    """Cells -> factors, one row."""
    row = [position[0] / 8, position[1] / 3, key[0] / 8, key[1] / 3, has_key, door / 3]
    return np.array([[*row, goal[0] / 8, goal[1] / 3]], np.float32)


def test_the_door_opens_to_the_agent_with_the_key_alone():
    env = make(1)
    env.reset(seed=0, options={"factors": factors((3, 1), key=(3, 0))})
    cells = []
    for action in (RIGHT, UP, DOWN, RIGHT, UP, RIGHT, RIGHT):
        *_, reward, terminated, _, info = env.step(np.array([action]))
        x, y, has_key = info["factors"][0, [0, 1, 4]]
        cells.append((round(8 * x), round(3 * y), bool(has_key), bool(terminated[0])))
    assert cells == [
        (3, 1, False, False),  # locked
        (3, 0, True, False),
        (3, 1, True, False),
        (4, 1, True, False),
        (4, 1, True, False),  # the wall above the door
        (5, 1, True, False),
        (6, 1, True, True),
    ]
    assert reward[0] == 1


def test_walls_hold_the_agent():
    env = make(1)
    row = factors((0, 0), key=(2, 3))
    obs, _ = env.reset(seed=0, options={"factors": row})
    np.testing.assert_allclose(obs, row, atol=1e-6)
    for action in (LEFT, UP):
        after, *_ = env.step(np.array([action]))
        np.testing.assert_array_equal(after, obs)


def test_the_oracle_takes_a_shortest_path_and_random_actions_seldom_arrive():
    env = make(256)
    _, info = env.reset(seed=0)
    x, y, key_x, key_y, _, door, goal_x, goal_y = (
        info["factors"] * np.array([8, 3, 8, 3, 1, 3, 8, 3])
    ).T
    to_key = abs(key_x - x) + abs(key_y - y)
    shortest = to_key + (4 - key_x) + abs(door - key_y) + (goal_x - 4) + abs(goal_y - door)
    steps, running = np.zeros(256), np.ones(256, bool)
    for _ in range(20):
        steps += running
        _, _, terminated, _, info = env.step(env.unwrapped.expert_action())
        running &= ~terminated
    np.testing.assert_allclose(steps, shortest.round())
    env.reset(seed=0)
    arrived = np.zeros(256, bool)
    for _ in range(60):
        arrived |= env.step(env.unwrapped.behaviour_action())[2]
    assert 0.02 < arrived.mean() < 0.2


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([0, 4]), "the action of environment 1 is 4; it must be from 0 to 3"),
        (np.array([0.0, 1.0]), "actions are torch.float64; they must be integers from 0 to 3"),
        (np.zeros((2, 4), int), "actions have shape [2, 4]; it must be [2]"),
    ],
)
def test_other_actions_are_refused(actions, message):
    env = make(2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        env.step(actions)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (factors((4, 1), key=(0, 0)), "the agent is in the wall"),
        (factors((0, 0), key=(6, 0)), "the key is not in the first room"),
        (factors((0, 0), key=(1, 0), goal=(2, 2)), "the goal is not in the second room"),
    ],
)
def test_episodes_that_cannot_begin_are_refused(row, message):
    with pytest.raises(ValueError, match=f"factors: in environment 0 {message}"):
        make(1).reset(seed=0, options={"factors": row})


def test_the_dynamics_tests_part_at_the_door():
    tests = make(1).unwrapped.dynamics_tests()
    assert set(8 * tests["without"].end_factors[:, 0]) == {3.0}
    assert set(8 * tests["with"].end_factors[:, 0]) == {5.0}


def test_the_agent_of_the_recipe_searches_a_tree_of_its_choices():
    config = key_and_door()
    env = config.env.build(3)
    agent = build(config, env.spec)
    assert isinstance(agent.planner, TreeSearch)
    obs, _ = env.reset(0)
    controller = agent.controller(3, agent.task_spec("").to_task(None, "plan"), tensors=True)
    plan = controller.act(obs)
    assert torch.equal(plan.actions.sum(-1), torch.ones(3, 8))
    env.close()
