"""The walls of the corridor: where they are, and that no agent passes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from envs.cue_corridor import CueCorridorVectorEnv, is_free, slide


def pixels(infos):
    """The positions of the agents, [B, 2]."""
    return infos["factors"][:, :2] * 32 - 0.5


def clear(positions, slack):
    """[..., 2] -> [...] bool: in the T as drawn, independent of the physics."""
    x, y = positions[..., 0], positions[..., 1]
    stem = (abs(x - 15.5) <= 3 + slack) & (abs(y - 15.5) <= 15 + slack)
    bar = (abs(x - 15.5) <= 15 + slack) & (abs(y - 3.5) <= 3 + slack)
    return stem | bar


def test_the_image_shows_the_agent_and_the_walls_of_a_t():
    envs = CueCorridorVectorEnv(64)
    envs.reset(seed=1)
    for _ in range(15):
        obs, _, _, _, infos = envs.step(envs.behaviour_action())
    dot, pixel = obs[:, 0].astype(float), np.arange(32)
    observed = np.stack([(dot.sum(1) * pixel).sum(1), (dot.sum(2) * pixel).sum(1)], 1)
    inner = (np.abs(pixels(infos) - 15.5) < 12).all(1)  # at the image's edge a dot is cut off
    assert inner.sum() > 30
    assert np.abs(observed / dot.sum((1, 2))[:, None] - pixels(infos))[inner].max() < 0.1
    paper = clear(np.stack(np.meshgrid(pixel, pixel), -1), 0)
    np.testing.assert_array_equal(obs[:, 1], np.broadcast_to(255 * ~paper, (64, 32, 32)))


def starts_and_moves(count, longest):
    """Free positions, many of them close to a corner of the fork, and moves, [N, 2] each."""
    rng = np.random.default_rng(0)
    corner = np.array([[12.5, 6.5], [18.5, 6.5]])[rng.integers(2, size=count)]
    near = corner + rng.normal(size=(count, 2)) * 10 ** rng.uniform(-3, 0.5, (count, 1))
    start = np.concatenate([near, rng.uniform(0, 31, (count, 2)), corner]).astype(np.float32)
    start = torch.from_numpy(start[clear(start, 0)])
    angle = 2 * np.pi * torch.rand(len(start), generator=torch.Generator().manual_seed(0))
    angle[::4] = (angle[::4] * 4 / np.pi).round() * np.pi / 4  # along the walls, and diagonally
    length = longest * torch.from_numpy(rng.uniform(size=len(start)).astype(np.float32))
    return start, length[:, None] * torch.stack([angle.cos(), angle.sin()], -1)


@pytest.mark.parametrize("longest", [0.01, 2.0, 100.0, 1e12])
def test_the_agent_is_never_in_a_wall_however_far_it_is_pushed(longest):
    start, move = starts_and_moves(5000, longest)
    for _ in range(5):
        start = slide(start, move)
        assert clear(start, 0).all()
        assert is_free(start).all()


@pytest.mark.parametrize("longest", [0.05, 2.0])
def test_the_agent_moves_straight_where_it_can_and_cuts_no_corner(longest):
    start, move = starts_and_moves(5000, longest)
    arrived = (slide(start, move) - start - move).abs().amax(-1) < 1e-4
    way = start + torch.linspace(0, 1, 401)[:, None, None] * move
    assert arrived[clear(way, -1e-2).all(0)].all()  # checked every 0.005 pixels
    assert clear(way, 1e-3).all(0)[arrived].all()
    assert 0.1 < arrived.float().mean() < 0.95


def test_no_action_moves_further_than_a_full_step():
    envs = CueCorridorVectorEnv(1000)
    _, infos = envs.reset(seed=0)
    actions = 1e30 * np.random.default_rng(0).normal(size=(1000, 2)).astype(np.float32)
    moved = pixels(envs.step(actions)[4]) - pixels(infos)
    assert np.linalg.norm(moved, axis=1).max() <= 2.0001


def test_the_dynamics_tests_distinguish_a_wall_from_an_open_arm():
    envs = CueCorridorVectorEnv(1)
    wall, way = (envs.dynamics_tests(seed=4)[name] for name in ("wall", "open"))
    assert wall.obs.shape == (64, 3, 32, 32)
    assert wall.actions.shape == (64, 5, 2)
    moved = {
        n: (e.end_factors - e.start_factors)[:, 0] * 32 for n, e in (("wall", wall), ("open", way))
    }
    assert 0.4 <= moved["wall"].min() < moved["wall"].max() <= 3
    np.testing.assert_allclose(wall.end_factors[:, 0], 19 / 32, rtol=1e-5)
    np.testing.assert_allclose(moved["open"], 10, rtol=1e-5)
    for test in (wall, way):  # the same by stepping
        envs = CueCorridorVectorEnv(64)
        obs, _ = envs.reset(seed=0, options={"factors": test.start_factors})
        np.testing.assert_array_equal(obs, test.obs)
        for action in test.actions.swapaxes(0, 1):
            infos = envs.step(action)[4]
        np.testing.assert_allclose(infos["factors"], test.end_factors, atol=1e-6)
