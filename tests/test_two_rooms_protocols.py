"""The published protocols, number by number, and the behaviour policies of their data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from envs.rng import keys_from_seeds, normal, uniform, von_mises
from envs.two_rooms import VARIANTS, TwoRoomsVectorEnv
from envs.two_rooms.env import sample_initial
from envs.two_rooms.policies import Scene, Wander
from envs.two_rooms.variants import layout_table

CPU = torch.device("cpu")


def many(count, numbers=1, seed=0):
    return uniform(keys_from_seeds(range(seed, seed + count), CPU), numbers)[0]


def rollout(name, count, steps, act):
    """States of `count` environments under the actions of `act(state, step)`, without images."""
    envs = TwoRoomsVectorEnv(count, variant=name)
    envs._observe_at = lambda walls, position, distractors: position
    state = envs._reset_state(keys_from_seeds(range(count), CPU), {})
    for step in range(steps):
        state, actions = act(envs.variant, state, step)
        state = envs._step_state(state, actions)
        yield state


def at_random(variant, state, step):
    u = many(len(state.position), 2, seed=10**6 * (step + 1))
    return state, variant.motion.bound * (2 * u - 1)


def on_a_walk(directed_fraction):
    def act(variant, state, _):
        scene = Scene(state.position, state.goal, state.layout)
        walk = variant.behaviour.step(variant.arena, scene, state.behaviour, directed_fraction)
        return state._replace(behaviour=walk), variant.motion.to_action(walk.last_move)

    return act


ROOMS_65 = (65, 2, 1.3, 1, 4)  # size, channels, std of the dot, half of the wall and of the door
EB = (*ROOMS_65, 4, 60, 1, 4, 2.6, 2.45)  # low, high, solid halves, clearance, reach
SWM = (224, 3, 7, 5, 14, 14, 209, 12, 15.75, 0, 5.0)
RANDOM = (32, 2, 1.0, 1, 3, 1, 30, 1, 3, 1.5)
PUBLISHED = {
    # canvas, arena and reach; then radius, success_at, steps, layouts, first, directed
    "pldm": (*EB, 2**0.5, "ever", 200, 1, (32, 10), 0.6),
    "eb-fixed": (*EB, 4.5, "final", 200, 1, (32, 18), 0.35),
    "eb-random": (*EB, 4.5, "final", 200, 25 * 45, (20, 10), 0.35),
    "swm": (*SWM, 16, "ever", 100, 1, (112, 49), 1.0),
    **{
        f"swm-{offset}": (*SWM, 16, "ever", 2 * offset, 1, (112, 49), 1.0)
        for offset in (25, 50, 75, 100)
    },
    "fixed": (*ROOMS_65[:4], 5, 4, 60, 1.5, 5, 1.5, 2.8, 3.36, "final", 50, 1, (32, 20), 0.1),
    "random": (*RANDOM, 1.45, 1.74, "final", 60, 12 * 20, (10, 6), 0.35),
    "slow": (*RANDOM, 0.145, 1.74, "final", 350, 1, (16, 10), 0.35),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_numbers_of_each_protocol(name):
    variant = VARIANTS[name]
    arena, canvas, motion = variant.arena, variant.canvas, variant.motion
    numbers = (
        *(canvas.size, canvas.channels, canvas.dot_std, canvas.half_wall, canvas.half_door),
        *(arena.low, arena.high, arena.half_wall, arena.half_door, arena.clearance),
        *(motion.bound * motion.scale, variant.goal_radius, variant.success_at),
        *(variant.max_episode_steps, len(variant.layouts), variant.layouts[0]),
        variant.directed_fraction,
    )
    for number, published in zip(numbers, PUBLISHED[name], strict=True):
        assert number == (pytest.approx(published) if isinstance(published, float) else published)


def test_actions_are_pixels_and_a_box_or_a_disk_bounds_them():
    huge = torch.tensor([[1.0, -0.5], [2.45, 2.45], [3e38, -3e38]])
    in_box = VARIANTS["pldm"].motion.move(huge)
    torch.testing.assert_close(in_box, torch.tensor([[1.0, -0.5], [2.45, 2.45], [2.45, -2.45]]))
    half = 2.8 / 2**0.5
    in_disk = VARIANTS["fixed"].motion.move(huge[1:])
    torch.testing.assert_close(in_disk, torch.tensor([[half, half], [half, -half]]))
    scaled = VARIANTS["swm"].motion.move(torch.tensor([[0.5, -3.0]]))
    torch.testing.assert_close(scaled, torch.tensor([[2.5, -5.0]]))


@pytest.mark.parametrize("name", [n for n in VARIANTS if not n.startswith("swm")])
def test_starts_fill_both_rooms_and_goals_lie_in_the_other(name):
    variant = VARIANTS[name]
    start, goal, layout = sample_initial(
        variant, layout_table(variant, "all"), keys_from_seeds(range(4000), CPU)
    )
    right = start[:, 0] > layout[:, 0]
    assert 0.45 < right.float().mean() < 0.55
    assert ((goal[:, 0] > layout[:, 0]) != right).all()
    clearance = variant.arena.clearance
    difference = variant.arena.half_wall + clearance
    for position in (start, goal):
        assert ((position[:, 0] - layout[:, 0]).abs() >= difference - 1e-4).all()
        assert position.min() >= variant.arena.low + clearance
        assert position.max() <= variant.arena.high - clearance
        height = (position[:, 1] - variant.arena.low - clearance) / (
            variant.arena.side - 2 * clearance
        )
        assert stats.kstest(height.numpy(), "uniform").pvalue > 1e-3


def test_a_random_policy_sometimes_succeeds_in_swm_and_hardly_ever_in_pldm():
    """Published for swm, from recorded episodes: about 26 %."""
    nearest = torch.stack([s.distance for s in rollout("swm-25", 300, 50, at_random)]).amin(0)
    assert 0.18 < (nearest < 16).float().mean() < 0.34
    nearest = torch.stack([s.distance for s in rollout("pldm", 300, 200, at_random)]).amin(0)
    assert (nearest < VARIANTS["pldm"].goal_radius).float().mean() < 0.05


def test_steps_of_the_behaviour_policy_are_von_mises_turns_of_truncated_normal_length():
    u = many(20000, 2)
    turns = von_mises(u[:, 0], 5.0).numpy()
    assert stats.kstest(turns, stats.vonmises(5.0).cdf).pvalue > 1e-3
    lengths = Wander().length(u[:, 1]).numpy()
    assert stats.kstest(lengths, stats.truncnorm(-2, 2, loc=1, scale=0.4).cdf).pvalue > 1e-3
    assert lengths.min() >= 0.2
    assert lengths.max() <= 1.8
    assert stats.kstest(normal(u[:, 0]).numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("name", ["eb-fixed", "eb-random", "pldm"])
def test_the_behaviour_policy_turns_and_steps_as_published(name):
    states = list(rollout(name, 400, 20, on_a_walk(directed_fraction=0.0)))
    moves = torch.stack([s.behaviour.last_move for s in states]).double()  # [T, B, 2]
    lengths = moves.norm(dim=-1) / VARIANTS[name].behaviour.mean
    assert lengths.mean() == pytest.approx(1.0, abs=0.02)
    assert lengths.min() > 0.19
    assert lengths.max() < 1.81
    heading = torch.atan2(moves[..., 1], moves[..., 0])
    turns = heading.diff(dim=0)
    assert turns.cos().mean() == pytest.approx(0.893, abs=0.01)  # I1(5) / I0(5)
    assert turns.sin().mean() == pytest.approx(0.0, abs=0.02)


def test_directed_exploration_crosses_the_door_and_undirected_seldom_does():
    def count_crossings(directed_fraction):
        states = list(rollout("eb-fixed", 200, 100, on_a_walk(directed_fraction)))
        right = torch.stack([s.position[:, 0] > s.layout[:, 0] for s in states])
        return (right != right[0]).any(0).float().mean().item()

    seldom, often = count_crossings(0.0), count_crossings(1.0)
    assert seldom < 0.3
    assert often > 0.9


def test_every_other_target_in_our_own_envs_leads_against_the_wall():
    *_, last = rollout("fixed", 400, 30, on_a_walk(1.0))
    assert 0.3 < last.behaviour.ignores_walls.float().mean() < 0.7
    against = (last.position[:, 0] - last.layout[:, 0]).abs() < 3
    assert against[last.behaviour.ignores_walls].float().mean() > 0.2


def test_swm_moves_are_those_of_an_expert_with_normal_noise_of_std_2():
    """A coordinate of the direction is drowned in noise that is clipped to the box."""
    states = list(rollout("swm", 100, 50, on_a_walk(1.0)))
    moves = torch.stack([s.behaviour.last_move for s in states]) / 5
    assert moves.abs().max() <= 1
    clipped = (moves.abs() == 1).float().mean()
    assert clipped == pytest.approx(0.63, abs=0.02)  # 1 - P(|N(d, 2)| < 1), |d| <= 1
    noise = torch.stack([s.behaviour.last_move for s in rollout("swm", 100, 50, on_a_walk(0.0))])
    assert (noise / 5).mean() == pytest.approx(0.0, abs=0.02)


def test_behaviour_action_does_not_change_the_env():
    """Computing a behaviour action changes nothing in the environment."""
    envs = TwoRoomsVectorEnv(3, variant="fixed")
    _, infos = envs.reset(seed=0)
    for _ in range(5):
        envs.behaviour_action()
    _, _, _, _, after = envs.step(np.zeros((3, 2), np.float32))
    np.testing.assert_allclose(after["factors"], infos["factors"], atol=1e-6)
