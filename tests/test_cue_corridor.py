"""The corridor whose cue is visible only at its start."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from envs.cue_corridor import CueCorridorVectorEnv

COUNT = 1000


def pixels(infos):
    """The positions of the agents, [B, 2]."""
    return infos["factors"][:, :2] * 32 - 0.5


def collect_data(vec_env, steps, seed, actions, options=None):
    """Observations and infos of the environments over some steps."""
    text_out = [(*vec_env.reset(seed=seed, options=options),)]
    for step in range(steps):
        obs, reward, terminated, truncated, infos = vec_env.step(actions(step))
        ends = {"terminated": terminated, "truncated": truncated}
        text_out.append((obs, {**infos, "reward": reward, **ends}))
    return text_out


def first_episodes(vec_env, act):
    """Success [B] bool, steps to an arm's end [B], NaN without, and the last positions [B, 2]."""
    vec_env.reset(seed=0)
    success, steps = np.zeros(COUNT, bool), np.full(COUNT, np.nan)
    going, positions = np.ones(COUNT, bool), np.zeros((COUNT, 2))
    for step in range(1, vec_env.max_episode_steps + 1):
        _, _, terminated, truncated, infos = vec_env.step(act())
        positions[going] = pixels(infos)[going]
        success |= going & infos["success"]
        steps[going & terminated] = step
        going &= ~(terminated | truncated)
    assert not going.any()
    return success, steps, positions


def test_an_env_gives_the_same_episode_alone_and_in_a_batch():
    many, single = CueCorridorVectorEnv(5), CueCorridorVectorEnv(1)
    together = collect_data(many, 90, 40, lambda _: many.behaviour_action())
    by_itself = collect_data(single, 90, 43, lambda _: single.behaviour_action())
    assert sum(infos["terminated"][3] for _, infos in together[1:]) > 0
    for (obs, infos), (own_obs, own_infos) in zip(together, by_itself, strict=True):
        np.testing.assert_array_equal(obs[3], own_obs[0])
        for name in own_infos:
            np.testing.assert_array_equal(infos[name][3], own_infos[name][0], err_msg=name)


def test_the_same_seed_gives_the_same_episode_and_another_seed_another():
    vec_env = CueCorridorVectorEnv(4)
    first, again, other = (
        np.stack(
            [
                pixels(i)
                for _, i in collect_data(vec_env, 20, seed, lambda _: vec_env.behaviour_action())
            ]
        )
        for seed in (1, 1, 2**40)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max(axis=(0, 2)).min() > 0.5


@pytest.mark.parametrize("visible", [False, True])
def test_the_cue_is_visible_in_the_first_fifth_of_the_stem_alone(visible):
    def pair(cue):
        vec_env = CueCorridorVectorEnv(200, visible=visible)
        _, born = vec_env.reset(seed=3)
        factors = np.concatenate([born["factors"][:, :2], np.full((200, 1), cue)], 1)
        return collect_data(
            vec_env, 40, 3, lambda _: vec_env.behaviour_action(), {"factors": factors}
        )

    going, dark = np.ones(200, bool), 0
    for (left, infos), (right, other) in zip(pair(0.0), pair(1.0), strict=True):
        np.testing.assert_array_equal(pixels(infos)[going], pixels(other)[going])
        text_out = (left != right).any(axis=(1, 2, 3))
        lit = pixels(infos)[:, 1] > 30.5 - 24 / 5
        np.testing.assert_array_equal(text_out[going], (lit | visible)[going])
        dark += (going & ~lit).sum()
        for end in ("terminated", "truncated"):
            going = going & ~infos.get(end, np.zeros(200, bool))
    assert dark > 3000


def test_the_cue_is_a_bright_bar_on_its_side_of_the_bottom():
    vec_env = CueCorridorVectorEnv(64)
    obs, infos = vec_env.reset(seed=0)
    assert vec_env.observation_space.contains(obs)
    right = infos["factors"][:, 2] == 1
    assert 0 < right.sum() < 64
    for picture, is_right in zip(obs[:, 2], right, strict=True):
        bar = np.zeros((32, 32), bool)
        bar[29:, slice(16, 32) if is_right else slice(0, 16)] = True
        np.testing.assert_array_equal(picture, 255 * bar)


def test_episodes_terminate_exactly_at_an_end_and_only_the_right_one_is_rewarded():
    vec_env = CueCorridorVectorEnv(COUNT, directed_fraction=1.0)
    text_out = collect_data(vec_env, 100, 0, lambda _: vec_env.behaviour_action())
    done, observed = np.zeros(COUNT, bool), set()
    for _, infos in text_out[1:]:
        x, cue = pixels(infos)[:, 0], infos["factors"][:, 2]
        left, right = (x <= 2.5) & ~done, (x >= 28.5) & ~done
        np.testing.assert_array_equal(infos["terminated"], left | right)
        earned = np.where(cue == 1, right, left)
        for name in ("reward", "score", "success", "final_success"):
            np.testing.assert_array_equal(infos[name], earned, err_msg=name)
        observed |= set(zip(left.tolist(), right.tolist(), cue.tolist(), strict=True))
        done = infos["terminated"] | infos["truncated"]
    assert len(observed) == 6


def test_the_step_after_an_end_begins_a_new_episode_and_ignores_its_action():
    vec_env = CueCorridorVectorEnv(2)
    factors = np.array([[0.5, 0.9, 1.0], [27.9 / 32, 0.1, 1.0]])
    vec_env.reset(seed=0, options={"factors": factors})
    full = np.array([[0.0, 0.0], [1.0, 0.0]], np.float32)
    while not vec_env.step(full)[2][1]:
        pass
    full[1] = np.nan
    obs, reward, terminated, truncated, infos = vec_env.step(full)
    assert not reward.any()
    assert not terminated.any()
    assert not truncated.any()
    assert not infos["success"].any()
    assert 27 <= pixels(infos)[1, 1] <= 30
    assert obs[1, 2].any()
    np.testing.assert_allclose(infos["factors"][0], factors[0])
    started = infos["factors"][1]
    np.testing.assert_array_equal(
        vec_env.step(np.zeros((2, 2), np.float32))[4]["factors"][1], started
    )


def test_an_agent_that_stays_runs_out_of_time():
    vec_env = CueCorridorVectorEnv(3)
    still = np.zeros((3, 2), np.float32)
    text_out = collect_data(vec_env, 82, 0, lambda _: still)[1:]
    assert not any(infos["terminated"].any() or infos["reward"].any() for _, infos in text_out)
    ends = [step for step, (_, infos) in enumerate(text_out, 1) if infos["truncated"].all()]
    assert ends == [40, 81]


def test_the_oracle_always_succeeds_and_quickly():
    vec_env = CueCorridorVectorEnv(COUNT)
    success, steps, _ = first_episodes(vec_env, vec_env.expert_action)
    assert success.all()
    assert steps.max() <= 20
    assert np.linalg.norm(vec_env.expert_action(), axis=1).max() <= 1.00001


def test_a_policy_that_ignores_the_cue_is_right_half_of_the_time():
    vec_env = CueCorridorVectorEnv(COUNT, directed_fraction=1.0)
    up_and_right = np.array([[0.7, -0.7]], np.float32).repeat(COUNT, 0)
    success, steps, _ = first_episodes(vec_env, lambda: up_and_right)
    assert not np.isnan(steps).any()
    assert abs(success.mean() - 0.5) < 0.05
    success, steps, _ = first_episodes(vec_env, vec_env.behaviour_action)
    assert abs(success[~np.isnan(steps)].mean() - 0.5) < 0.05


def test_neither_the_start_nor_the_episode_before_reveals_the_cue():
    vec_env = CueCorridorVectorEnv(COUNT, max_episode_steps=1)
    born = [i for _, i in collect_data(vec_env, 6, 0, lambda _: vec_env.behaviour_action())][::2]
    cues = [infos["factors"][:, 2] for infos in born]
    clues = [pixels(infos)[:, axis] for infos in born for axis in (0, 1)]
    walk = vec_env.state.behaviour  # nor does the behaviour policy reveal it
    related = np.corrcoef([*cues, *clues, walk.right.numpy(), walk.directed.numpy()])
    assert np.abs(related - np.eye(len(related))).max() < 0.1


def test_the_behaviour_policy_reaches_either_arm_as_often_as_directed_fraction_says():
    vec_env = CueCorridorVectorEnv(COUNT)
    _, steps, positions = first_episodes(vec_env, vec_env.behaviour_action)
    reached = ~np.isnan(steps)
    assert 0.6 < reached.mean() < 0.9
    assert abs((positions[reached, 0] > 15.5).mean() - 0.5) < 0.05
    assert np.ptp(positions[~reached], axis=0).min() > 5  # undirected walks cover it too
    make_random_policy = CueCorridorVectorEnv(COUNT, directed_fraction=0.0)
    assert (
        ~np.isnan(first_episodes(make_random_policy, make_random_policy.behaviour_action)[1])
    ).mean() < 0.05


def test_a_picture_shows_agent_cue_and_ends():
    vec_env = CueCorridorVectorEnv(2, render_mode="rgb_array")
    factors = np.array([[0.5, 0.93, 0.0], [0.5, 0.5, 1.0]])
    vec_env.reset(seed=0, options={"factors": factors})
    lit, dark = (picture.astype(int) for picture in vec_env.render())
    assert lit.shape == (320, 320, 3)
    positions = vec_env.factors_to_pixels(factors).round().astype(int)
    for picture, (x, y) in zip((lit, dark), positions, strict=True):
        assert picture[y, x, 2] - picture[y, x, 0] > 150
    red, _, blue = (lit[310, 40] - dark[310, 280]).tolist()
    assert red - blue > 50  # a cue that is not visible is paler
    for picture, right_end, wrong_end in ((lit, 20, 300), (dark, 300, 20)):
        assert picture[30, right_end].argmax() == 1
        assert picture[30, wrong_end].argmax() == 0


@pytest.mark.filterwarnings("error")
def test_gymnasium_accepts_the_env():
    check_env(gymnasium.make("ami/CueCorridor-v0", render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("mode", [None, "sync", "vector_entry_point"])
def test_gymnasium_makes_the_same_envs_by_every_function(mode):
    vec_env = gymnasium.make_vec("ami/CueCorridor-v0", num_envs=3, vectorization_mode=mode)
    obs, infos = vec_env.reset(seed=8)
    own_obs, own_infos = gymnasium.make("ami/CueCorridor-v0").reset(seed=10)
    np.testing.assert_array_equal(obs[2], own_obs)
    np.testing.assert_array_equal(infos["factors"][2], own_infos["factors"])
    assert "goal" not in infos
    assert CueCorridorVectorEnv.interoception_names == ()


def test_torch_and_numpy_give_the_same_numbers():
    text_out = {}
    for output in ("numpy", "torch"):
        vec_env = CueCorridorVectorEnv(2, output=output)
        obs, _ = vec_env.reset(seed=5)
        text_out[output] = (
            obs,
            vec_env.expert_action(),
            *vec_env.step(vec_env.behaviour_action())[:4],
        )
    for tensor, array in zip(text_out["torch"], text_out["numpy"], strict=True):
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.parametrize(
    ("settings_", "named"),
    [
        ({"output": "jax"}, "torch"),
        ({"max_episode_steps": 0}, "max_episode_steps"),
        ({"directed_fraction": 1.5}, "directed_fraction"),
    ],
)
def test_unusable_settings_are_refused_by_name(settings_, named):
    with pytest.raises(ValueError, match=named):
        CueCorridorVectorEnv(1, **settings_)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ([0.2, 0.5, 0.0], "environment 1 .* inside the wall"),
        ([0.95, 0.1, 0.0], "environment 1 .* arm's end"),
        ([0.5, 0.5, 0.5], "cue must be 0"),
        ([0.5, 1.5, 0.0], "environment 1 body y is 1.5;"),
        ([0.5, np.nan, 0.0], "environment 1 body y is nan;"),
    ],
)
def test_unusable_factors_are_refused_by_name_and_env(change, named):
    factors = np.array([[0.5, 0.5, 0.0], change])
    vec_env = CueCorridorVectorEnv(2)
    with pytest.raises(ValueError, match=named):
        vec_env.reset(options={"factors": factors})
    with pytest.raises(ValueError, match="it must be"):
        vec_env.reset(options={"factors": factors[:1]})
