"""The environment in which food lies where it lay in the episode before."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from envs.hidden_food import CENTRE, START_OFFSET, HiddenFoodVectorEnv, sites

SITES = 8


def foods(infos):
    return infos["factors"][:, 2:]


def test_the_food_stays_at_its_site_for_a_lifetime_and_a_seed_begins_another():
    envs = HiddenFoodVectorEnv(200, max_episode_steps=4, later_episode_steps=3)
    _, infos = envs.reset(seed=0)
    first, ends = foods(infos), []
    for step in range(1, 14):
        *_, truncated, infos = envs.step(np.zeros((200, 2)))
        ends += [step] if truncated.all() else []
        np.testing.assert_array_equal(foods(infos), first)
    assert ends == [4, 8, 12]  # episodes of 4, then of 3 steps, with a step between them
    assert (infos["episode_of_lifetime"] == 3).all()
    _, infos = envs.reset()
    np.testing.assert_array_equal(foods(infos), first)
    assert (infos["episode_of_lifetime"] == 4).all()
    _, infos = envs.reset(seed=1000)
    assert (foods(infos) != first).any(1).mean() > 0.7
    assert (infos["episode_of_lifetime"] == 0).all()


def test_food_lies_at_every_site_equally_often():
    _, infos = HiddenFoodVectorEnv(4000).reset(seed=5)
    places = torch.tensor(foods(infos))
    nearest = (places[:, None] - sites(SITES, places.device)).norm(dim=-1)
    torch.testing.assert_close(nearest.amin(1), torch.zeros(4000), atol=1e-5, rtol=0)
    counts = nearest.argmin(1).bincount(minlength=SITES)
    assert counts.min() > 420  # of 500, with a standard deviation of 21
    assert counts.max() < 580


def test_a_lifetime_is_the_same_alone_and_in_a_batch():
    many, alone = (HiddenFoodVectorEnv(n, max_episode_steps=9) for n in (4, 1))
    (obs, infos), (own_obs, own_infos) = many.reset(seed=20), alone.reset(seed=22)
    for _ in range(40):
        np.testing.assert_array_equal(obs[2], own_obs[0])
        for name in own_infos:
            np.testing.assert_array_equal(infos[name][2], own_infos[name][0], err_msg=name)
        obs, *_, infos = many.step(many.behaviour_action())
        own_obs, *_, own_infos = alone.step(alone.behaviour_action())


def test_observations_say_nothing_about_the_food():
    envs = HiddenFoodVectorEnv(2)
    factors = [[0.5, 0.5, 0.9, 0.5], [0.5, 0.5, 0.5, 0.1]]
    obs, _ = envs.reset(options={"factors": factors})
    for _ in range(5):
        np.testing.assert_array_equal(obs[0], obs[1])
        obs, *_ = envs.step(np.full((2, 2), 0.4))


def test_the_agent_eats_within_the_mouth_and_that_ends_the_episode():
    envs = HiddenFoodVectorEnv(2)
    step_and_mouth = 0.05 + 0.08
    at = [[0.5, 0.5, 0.5 + step_and_mouth + excess, 0.5] for excess in (-0.001, 0.001)]
    envs.reset(options={"factors": at})
    _, reward, terminated, _, infos = envs.step(np.array([[1.0, 0.0]] * 2))
    assert reward.tolist() == infos["interoception"][:, 0].tolist() == [1, 0]
    assert terminated.tolist() == infos["success"].tolist() == [True, False]
    _, reward, terminated, _, infos = envs.step(np.array([[0.0, 0.0]] * 2))
    assert reward.tolist() == [0, 0]
    assert np.abs(infos["factors"][0, :2] - CENTRE).max() <= START_OFFSET  # the next episode


def test_episodes_begin_near_the_centre_and_not_at_the_same_place():
    _, infos = HiddenFoodVectorEnv(1000).reset(seed=0)
    offset = infos["factors"][:, :2] - CENTRE
    assert np.abs(offset).max() <= START_OFFSET + 1e-6
    np.testing.assert_allclose(offset.mean(0), 0, atol=0.002)
    np.testing.assert_allclose(offset.std(0), START_OFFSET / 3**0.5, rtol=0.1)


def test_a_later_episode_is_long_enough_for_the_oracle_and_too_short_for_three_sites():
    envs = HiddenFoodVectorEnv(64)
    envs.reset(seed=0)
    way = np.hypot(*(envs.state.position - envs.state.food).numpy().T) - 0.08
    ended = np.full(64, np.nan)
    for step in range(1, envs.later_episode_steps + 1):
        _, _, terminated, *_ = envs.step(envs.expert_action())
        ended[terminated & np.isnan(ended)] = step
    np.testing.assert_array_equal(ended, np.ceil(way / 0.05))
    places = sites(SITES, torch.device("cpu"))
    gap = float((places[0] - places[1]).norm()) - 2 * 0.08
    nearest = 0.4 - START_OFFSET * 2**0.5 - 0.08
    assert (nearest + 2 * gap) / 0.05 > envs.later_episode_steps


def test_gymnasium_accepts_it():
    check_env(gymnasium.make("ami/HiddenFood-v0").unwrapped, skip_render_check=True)
    frame = gymnasium.make("ami/HiddenFood-v0", render_mode="rgb_array")
    frame.reset(seed=0)
    assert frame.render().shape == (320, 320, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_sites": 13}, "num_sites is 13; it must be at least 1 and at most 12"),
        ({"later_episode_steps": 0}, "later_episode_steps is 0; it must be at least 1"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        HiddenFoodVectorEnv(1, **options)
