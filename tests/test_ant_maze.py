"""The quadruped in a maze. Some tests take seconds: its state has 29 numbers."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from envs.ant_maze import (
    ACTION_JOINTS,
    CELL,
    STANDING,
    STEP,
    AntMazeVectorEnv,
    AntPhysics,
    heading,
    is_free,
    knees_and_feet,
    place_at,
    trot_controller,
)
from envs.maze import MAPS
from envs.maze.dynamics import FixedMaze, read_map
from envs.rng import keys_from_seeds, uniform

CPU = torch.device("cpu")


def known(name, count):
    return FixedMaze(read_map(MAPS[name], CPU))(torch.zeros(count))


def standing(positions):
    return place_at(torch.tensor(positions), torch.zeros(len(positions), 2))


def facing(ant, yaw):
    """The same ants, turned."""
    pose = ant.pose.clone()
    pose[:, 1], pose[:, 4] = (yaw / 2).cos(), (yaw / 2).sin()
    return ant._replace(pose=pose)


def tilt(ant):
    """[B] 1 upright, -1 on its back"""
    _, x, y, _ = ant.pose[:, 1:5].unbind(-1)
    return 1 - 2 * (x * x + y * y)


@pytest.mark.filterwarnings("ignore:.*infinity")  # Ant-v5 has no bounds either
def test_gymnasium_accepts_the_ant_env():
    one = gymnasium.make("ami/AntMaze-v0").unwrapped
    check_env(one, skip_render_check=True)
    assert one.observation_space.shape == (29,)
    assert one.action_space.shape == (8,)


def test_the_trot_moves_in_any_direction_whatever_the_heading():
    # 64 starts: legs on the ground are chaotic, and each release of MuJoCo moves one ant otherwise
    ways = 2 * math.pi * torch.arange(64) / 64
    target = torch.stack([ways.cos(), ways.sin()], -1)
    ant = facing(standing([[2.5, 2.5]] * 64), torch.linspace(-3, 3, 64))
    start, ants, maze = ant.position, AntPhysics(11), known("four-rooms", 64)
    for _ in range(100):
        ant = ants(maze, ant, trot_controller(ant, target))
    moved = CELL * (ant.position - start)  # metres, in 5 seconds
    along = (moved * target).sum(-1)
    sideways = (moved - along[:, None] * target).norm(dim=-1) / along
    assert along.quantile(0.05) > 1.5
    assert along.min() > 0.5
    assert sideways.quantile(0.95) < 0.5
    assert sideways.max() < 1
    assert tilt(ant).min() > 0.8


def test_an_ant_with_zero_velocity_command_stands():
    ant, ants, maze = standing([[1.5, 0.5]]), AntPhysics(3), known("u", 1)
    for _ in range(60):
        ant = ants(maze, ant, trot_controller(ant, torch.zeros(1, 2)))
    assert CELL * (ant.position - torch.tensor([[1.5, 0.5]])).norm() < 0.05
    assert ant.pose[0, 0] > 0.4


def test_every_number_of_an_action_turns_its_own_joint_as_in_ant_v5():
    like = gymnasium.make("Ant-v5").unwrapped.model
    joints = [like.joint(like.actuator_trnid[k, 0]).qposadr[0] - 7 for k in range(8)]
    assert list(ACTION_JOINTS) == joints
    ants, ant = AntPhysics(3), standing([[1.5, 0.5]] * 9)
    push = torch.cat([torch.zeros(1, 8), 0.3 * torch.eye(8)])
    spin = ants(known("u", 9), ant, push).pose_velocity[:, 4:]
    turned = (spin[1:] - spin[0]).abs()
    assert turned.argmax(-1).tolist() == joints
    assert (spin[1:] - spin[0])[range(8), joints].min() > 0


def test_walls_stop_ants_and_openings_let_them_pass():
    requested = AntMazeVectorEnv(1).dynamics_tests(3)
    way = {name: CELL * 3 * np.linalg.norm((e.end_factors - e.start_factors)[:, :2], axis=-1)
           for name, e in requested.items()}  # fmt: skip
    assert np.quantile(way["open"], 0.1) > 0.7
    assert np.quantile(way["wall"], 0.95) < 1.2  # their feet are there before them
    assert way["wall"].max() < 2  # along the wall
    assert way["wall"].mean() < 0.5 * way["open"].mean()


def test_a_dynamics_test_is_what_its_actions_lead_to():
    dynamics_test = AntMazeVectorEnv(1).dynamics_tests(3)["open"]
    vec_env = AntMazeVectorEnv(len(dynamics_test.start_factors))
    vec_env.reset(seed=0, options={"factors": dynamics_test.start_factors})
    for step in range(dynamics_test.actions.shape[1]):
        *_, info = vec_env.step(dynamics_test.actions[:, step])
    np.testing.assert_allclose(info["factors"], dynamics_test.end_factors, atol=2e-3)


def test_no_ant_starts_in_a_wall():
    vec_env = AntMazeVectorEnv(200)
    vec_env.reset(seed=5)
    ant = vec_env.state.body
    assert is_free(vec_env.state.maze, ant.position).all()
    assert is_free(vec_env.state.maze, vec_env.state.goal).all()
    for _ in range(5):
        vec_env.step(np.zeros((200, 8), np.float32))
    assert (
        CELL * (vec_env.state.body.position - ant.position).norm(dim=-1).max() < 0.02
    )  # nothing threw it


def test_success_is_half_a_metre_from_the_goal_and_the_goal_shows_an_ant_that_stands():
    vec_env = AntMazeVectorEnv(2)
    near, goal = np.zeros((2, 4)), np.zeros((2, 4))
    goal[:, :2] = 1.5 / 3, 0.5 / 3
    near[:, :2] = goal[:, :2]
    near[:, 0] += np.array([0.48, 0.52]) / CELL / 3
    obs, info = vec_env.reset(seed=0, options={"factors": near, "goal_factors": goal})
    assert info["final_success"].tolist() == [True, False]
    output = info["goal"][0]
    np.testing.assert_allclose(output[:2], [0, -2 / 3], atol=1e-6)
    np.testing.assert_allclose(output[2:15], STANDING)
    assert not output[15:].any()
    assert (obs[:, 2:] == info["goal"][:, 2:]).all()
    np.testing.assert_allclose(info["factors"], near, atol=1e-6)


def test_a_start_in_a_wall_is_refused():
    vec_env = AntMazeVectorEnv(1)
    at = np.array([[0.5 / 3, 0.9 / 3, 0, 0]])
    with pytest.raises(
        ValueError, match=r"environment 0 the body at cell \[0\.5, 0\.9\] is inside a wall"
    ):
        vec_env.reset(seed=0, options={"factors": at})


def test_velocities_are_observed_in_metres_a_second():
    ant = place_at(torch.tensor([[1.5, 0.5]]), torch.tensor([[0.01, 0.0]]))
    vec_env = AntMazeVectorEnv(1)
    observed = vec_env._observe_body(torch.zeros(1), ant)
    assert observed[0, 15] == pytest.approx(0.01 * CELL / STEP)


def test_an_env_gives_the_same_episode_alone_and_in_a_batch():
    batch, single = AntMazeVectorEnv(3), AntMazeVectorEnv(1)
    observed, _ = batch.reset(seed=7)
    one, _ = single.reset(seed=9)
    for _ in range(40):
        assert (observed[2] == one[0]).all()
        observed = batch.step(batch.behaviour_action())[0]
        one = single.step(single.behaviour_action())[0]


def test_the_behaviour_policy_is_noisy_and_explores():
    vec_env = AntMazeVectorEnv(12, directed_fraction=0.5)
    vec_env.reset(seed=1)
    start = vec_env.state.body.position
    steady = trot_controller(vec_env.state.body, torch.zeros(12, 2))
    assert (torch.from_numpy(vec_env.behaviour_action()) != steady).any(-1).all()
    for _ in range(200):
        vec_env.step(vec_env.behaviour_action())
    assert (vec_env.state.body.position - start).norm(dim=-1).median() > 0.25
    assert (tilt(vec_env.state.body) > 0.5).float().mean() > 0.8


def test_the_oracle_arrives():
    vec_env = AntMazeVectorEnv(12, goal_distance="short")
    vec_env.reset(seed=4)
    for _ in range(450):
        *_, info = vec_env.step(vec_env.expert_action())
    assert info["final_success"].mean() >= 11 / 12
    assert tilt(vec_env.state.body).min() > 0.8


def test_a_picture_shows_the_legs():
    vec_env = AntMazeVectorEnv(1)
    vec_env.reset(seed=0)
    ant, (picture,) = vec_env.state.body, vec_env.render()
    tips = ant.position[:, None] + knees_and_feet(ant.pose)[:, :, 1] / CELL
    for x, y in (
        vec_env.factors_to_pixels(torch.cat([tips[0] / 3, 0 * tips[0]], -1)).round().astype(int)
    ):
        assert np.abs(picture[y, x].astype(int) - [30, 90, 220]).max() < 60
    assert knees_and_feet(ant.pose).norm(dim=-1).max() < 1.0
    tipped = uniform(keys_from_seeds([1], CPU), 1)[0] * 0 + ant.pose
    tipped[:, 1:5] = torch.tensor([0.0, 1.0, 0.0, 0.0])  # on its back: left is right
    flipped = knees_and_feet(ant.pose) * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(knees_and_feet(tipped), flipped)
    assert heading(facing(ant, torch.tensor([2.0])).pose) == pytest.approx(2.0)
