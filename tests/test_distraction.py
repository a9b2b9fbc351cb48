"""Two rooms before a background that moves."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.draw import draw_dot
from envs.two_rooms import VARIANTS, TwoRoomsVectorEnv


def collect_data(vec_env, steps, seed, actions):
    """Observations and infos of the environments over some steps."""
    output = [(*vec_env.reset(seed=seed),)]
    for step in range(steps):
        obs, reward, _, truncated, infos = vec_env.step(actions(step))
        output.append((obs, {**infos, "reward": reward, "truncated": truncated}))
    return output


def drifting(vec_env, steps, seed=0):
    """Where the distractors are, [T, B, N, 2], while the dots move."""
    positions = []
    vec_env.reset(seed=seed)
    for _ in range(steps):
        positions.append(vec_env.state.distractors.position.numpy())
        vec_env.step(vec_env.behaviour_action())
    return np.stack(positions)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_scene_is_the_observation_without_distractors(variant):
    plain, busy = (
        TwoRoomsVectorEnv(3, variant=variant, max_episode_steps=9, num_distractors=n)
        for n in (0, 4)
    )
    single = collect_data(plain, 25, 7, lambda _: plain.behaviour_action())
    behind = collect_data(busy, 25, 7, lambda _: busy.behaviour_action())
    for (obs, infos), (both, others) in zip(single, behind, strict=True):
        np.testing.assert_array_equal(obs, both["scene"])
        np.testing.assert_array_equal(infos.pop("goal"), others.pop("goal")["scene"])
        for name in infos:
            np.testing.assert_array_equal(infos[name], others[name], err_msg=name)


def test_a_distracted_env_gives_the_same_episode_alone_and_in_a_batch():
    many, single = (TwoRoomsVectorEnv(n, num_distractors=3, max_episode_steps=7) for n in (5, 1))
    together = collect_data(many, 17, 40, lambda _: many.behaviour_action())
    by_itself = collect_data(single, 17, 43, lambda _: single.behaviour_action())
    for (obs, infos), (own_obs, own_infos) in zip(together, by_itself, strict=True):
        for observed, own in ((obs, own_obs), (infos["goal"], own_infos["goal"])):
            assert sorted(observed) == sorted(own) == ["background", "scene"]
            for name in own:
                np.testing.assert_array_equal(observed[name][3], own[name][0], err_msg=name)


def test_no_action_moves_the_background():
    backgrounds = []
    for action in (-1.0, 1.0):
        vec_env = TwoRoomsVectorEnv(4, num_distractors=2, max_episode_steps=10)
        push = np.full((4, 2), action, np.float32)
        output = collect_data(vec_env, 25, 3, lambda _, push=push: push)
        backgrounds.append(np.stack([obs["background"] for obs, _ in output]))
    np.testing.assert_array_equal(*backgrounds)


def test_the_background_reveals_neither_dot_nor_goal():
    vec_env = TwoRoomsVectorEnv(2000, variant="random", num_distractors=1)
    _, infos = vec_env.reset(seed=0)
    knows = np.concatenate([infos["factors"], infos["goal_factors"][:, :2]], 1)
    position, pace = (
        vec_env.state.distractors.position[:, 0].numpy(),
        vec_env.state.distractors.velocity[:, 0].numpy(),
    )
    pixel = np.arange(32)
    goal = infos["goal"]["background"][:, 0].astype(float)
    there = np.stack([goal.max(1).argmax(1), goal.max(2).argmax(1)], 1)
    pages = [position, pace, there, knows]
    for i, page in enumerate(pages):
        for other in pages[i + 1 :]:
            related = np.corrcoef(page.T, other.T)[: page.shape[1], page.shape[1] :]
            assert np.abs(related).max() < 0.08
    assert np.abs(position.mean(0) - pixel.mean()).max() < 1


@pytest.mark.parametrize(("variant", "count"), [("random", 50), ("eb-fixed", 10)])
def test_distractors_move_straight_and_bounce_off_the_borders(variant, count):
    vec_env = TwoRoomsVectorEnv(count, variant=variant, num_distractors=3, max_episode_steps=200)
    vec_env.reset(seed=0)
    pace, far = vec_env.state.distractors.velocity.numpy(), vec_env.variant.canvas.size - 1
    positions = drifting(vec_env, 150)
    assert positions.min() >= 0
    assert positions.max() <= far
    straight = positions[0] + np.arange(150)[:, None, None, None] * pace
    there = straight % (2 * far)  # as a ray between mirrors
    np.testing.assert_allclose(positions, np.minimum(there, 2 * far - there), atol=0.02)


def test_distractors_move_in_every_direction_at_speeds_up_to_a_full_step():
    vec_env = TwoRoomsVectorEnv(500, variant="random", num_distractors=4)
    vec_env.reset(seed=0)
    pace = vec_env.state.distractors.velocity.flatten(0, 1).numpy()
    full = vec_env.variant.motion.bound * vec_env.variant.motion.scale
    speed = np.linalg.norm(pace, axis=1) / full
    assert np.abs(np.quantile(speed, [0, 0.25, 0.5, 0.75, 1]) - np.linspace(0, 1, 5)).max() < 0.05
    assert speed.max() <= 1.00001
    quadrants = np.histogram(np.arctan2(pace[:, 1], pace[:, 0]), 8, (-np.pi, np.pi))[0]
    assert quadrants.min() > 200
    assert np.abs(pace.mean(0) / full).max() < 0.04  # the fast ones go everywhere too
    among = np.corrcoef(vec_env.state.distractors.velocity[:, :, 0].numpy().T)  # each has its own
    assert np.abs(among - np.eye(4)).max() < 0.15


@pytest.mark.parametrize("variant", ["fixed", "swm"])
def test_a_distractor_looks_like_the_dot(variant):
    vec_env = TwoRoomsVectorEnv(6, variant=variant, num_distractors=1)
    obs, _ = vec_env.reset(seed=0)
    canvas = vec_env.variant.canvas
    own = draw_dot(vec_env.state.distractors.position[:, 0], canvas.size, canvas.dot_std).numpy()
    np.testing.assert_array_equal(obs["background"][:, 0], own)
    many = TwoRoomsVectorEnv(6, variant=variant, num_distractors=40)
    obs, _ = many.reset(seed=0)
    parts = [
        draw_dot(p, canvas.size, canvas.dot_std).numpy()
        for p in many.state.distractors.position.unbind(1)
    ]
    done = obs["background"][:, 0] - np.sum(parts, 0, int).clip(max=255)
    assert np.abs(done).max() <= 10  # each part is rounded
    assert np.abs(done.mean()) < 1


def test_distractors_persist_through_an_episode_and_the_goal_shows_another_time():
    vec_env = TwoRoomsVectorEnv(8, num_distractors=2, max_episode_steps=5)
    output = collect_data(vec_env, 11, 0, lambda _: vec_env.behaviour_action())
    goals = np.stack([infos["goal"]["background"] for _, infos in output])
    views = np.stack([obs["background"] for obs, _ in output])
    for episode in (slice(0, 6), slice(6, 12)):
        assert (goals[episode] == goals[episode][0]).all()
    moved = (goals[6] != goals[5]).any(axis=(1, 2, 3)), (views[0] != goals[0]).any(axis=(1, 2, 3))
    assert np.stack(moved).all()
    assert (views[6] != views[0]).any(axis=(1, 2, 3)).all()


def test_the_dynamics_tests_have_random_backgrounds():
    plain, busy = (TwoRoomsVectorEnv(2, variant="random", num_distractors=n) for n in (0, 3))
    for name, dynamics_test in busy.dynamics_tests(seed=4).items():
        assert dynamics_test.obs["background"].shape == (64, 1, 32, 32)
        assert len(np.unique(dynamics_test.obs["background"], axis=0)) == 64
        np.testing.assert_array_equal(
            dynamics_test.obs["scene"], plain.dynamics_tests(seed=4)[name].obs
        )


def test_a_picture_shows_the_distractors_faintly():
    plain, busy = (TwoRoomsVectorEnv(6, variant="random", num_distractors=n) for n in (0, 3))
    for vec_env in (plain, busy):
        vec_env.reset(seed=0)
    zoom = 320 / 32
    for position, without, picture in zip(
        busy.state.distractors.position.numpy(), plain.render(), busy.render(), strict=True
    ):
        changed = without.astype(int) - picture.astype(int)
        assert 0 < changed.max() < 130
        for x, y in ((position + 0.5) * zoom - 0.5).round().astype(int):
            on_white = (without[y, x] == 255).all()
            assert bool(changed[y, x].any()) == on_white
            assert not on_white or picture[y, x].argmin() == 1


@pytest.mark.filterwarnings("ignore:.*recommend using a symmetric and normalized space")
@pytest.mark.filterwarnings("error")
def test_gymnasium_accepts_the_distracted_env():
    check_env(
        gymnasium.make("ami/TwoRooms-v0", num_distractors=2, render_mode="rgb_array").unwrapped
    )


@pytest.mark.parametrize("mode", [None, "sync"])
def test_observations_and_goals_are_in_the_space(mode):
    vec_env = gymnasium.make_vec(
        "ami/TwoRooms-v0", num_envs=3, vectorization_mode=mode, variant="random", num_distractors=2
    )
    obs, infos = vec_env.reset(seed=8)
    assert vec_env.observation_space.contains(obs)
    single = gymnasium.make("ami/TwoRooms-v0", variant="random", num_distractors=2)
    own, own_infos = single.reset(seed=10)
    for part in ("scene", "background"):
        np.testing.assert_array_equal(obs[part][2], own[part])
        np.testing.assert_array_equal(infos["goal"][part][2], own_infos["goal"][part])
    assert single.observation_space.contains(own_infos["goal"])


def test_writing_into_returned_infos_does_not_change_the_env():
    vec_env = TwoRoomsVectorEnv(2, num_distractors=1, output="torch", max_episode_steps=2)
    _, infos = vec_env.reset(seed=0)
    infos["goal"]["background"].zero_()
    infos["goal"]["scene"].zero_()
    again = vec_env.step(vec_env.behaviour_action())[4]["goal"]
    assert again["background"].any()
    assert again["scene"].any()


def test_a_negative_number_of_distractors_is_refused():
    with pytest.raises(ValueError, match="num_distractors"):
        TwoRoomsVectorEnv(1, num_distractors=-1)
