"""An arm that reaches."""

from __future__ import annotations

import math

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from envs.reach import (
    MAX_BEND,
    MJCF,
    ArmPhysics,
    ArmState,
    ReachEnv,
    ReachVectorEnv,
    angles_from_points,
    at_rest,
    fingertip,
    inverse_kinematics,
    joint_positions,
    sample_angles,
    sample_goal,
)
from envs.rng import keys_from_seeds, uniform

CPU = torch.device("cpu")
TERMINAL, VELOCITY_SCALE = 0.3, 0.9


def many(count, numbers=1, seed=0):
    return uniform(keys_from_seeds(range(seed, seed + count), CPU), numbers)[0]


def lively(count):
    """ArmPhysics in motion."""
    angle, velocity = sample_angles(many(count, 2)), 0.6 * many(count, 2, seed=5) - 0.3
    return ArmState(angle, velocity, angle - velocity)


def energy(arm):
    """[B] of their motion, as MuJoCo computes it: half the speed times mass times the speed."""
    model = mujoco.MjModel.from_xml_string(MJCF)
    data, output = mujoco.MjData(model), []
    for angle, velocity in zip(arm.angle, arm.velocity, strict=True):
        data.qpos[:], data.qvel[:] = angle, 10 * velocity
        mujoco.mj_forward(model, data)
        mass = np.zeros((2, 2))
        for i, one in enumerate(np.eye(2)):
            mujoco.mj_mulM(model, data, mass[i], one)
        output.append(data.qvel @ mass @ data.qvel / 2)
    return torch.tensor(np.array(output))


def test_elbow_and_fingertip_are_where_mujoco_puts_them():
    model = mujoco.MjModel.from_xml_string(MJCF)
    data, angle = mujoco.MjData(model), sample_angles(many(50, 2))
    for own, pair in zip(joint_positions(angle), angle, strict=True):
        data.qpos[:] = pair
        mujoco.mj_kinematics(model, data)
        elbow, way = data.xpos[2], data.xmat[2].reshape(3, 3)[:, 0]
        np.testing.assert_allclose(own[0], elbow[:2], atol=1e-6)
        np.testing.assert_allclose(own[1], (elbow + 0.5 * way)[:2], atol=1e-6)


def test_inverse_kinematics_reaches_positions_with_the_elbow_to_either_side():
    angle = sample_angles(many(2000, 2))
    position = fingertip(angle)
    for side in (-1.0, 1.0):
        found = inverse_kinematics(position, torch.full((2000,), side))
        torch.testing.assert_close(fingertip(found), position, atol=1e-5, rtol=0)
        assert (side * found[:, 1] >= 0).all()
        assert (found[:, 1].abs() <= MAX_BEND).all()
        assert (found[:, 0].abs() <= math.pi + 1e-6).all()
    torch.testing.assert_close(
        angles_from_points(*joint_positions(angle).unbind(1)), angle, atol=1e-4, rtol=0
    )
    far = torch.tensor([[3.0, 4.0], [0.0, 0.01]])  # out of reach: as near as possible
    near = fingertip(inverse_kinematics(far, torch.ones(2)))
    torch.testing.assert_close(near[0], far[0] / 5, atol=1e-3, rtol=0)
    assert near[1].norm().item() == pytest.approx(math.cos(MAX_BEND / 2), abs=1e-5)


def test_goals_are_everywhere_in_reach_but_not_where_the_fingertip_is():
    tip = fingertip(sample_angles(many(5000, 2)))
    angle = sample_goal(tip, many(5000, 17, seed=3))
    position = fingertip(angle)
    assert (position - tip).norm(dim=-1).min() >= 0.25 - 1e-5
    reach = position.norm(dim=-1)
    assert (reach.min() - 0.297).abs() < 0.02
    assert 0.94 < reach.max() <= 0.95 + 1e-5
    assert 0.45 < (angle[:, 1] > 0).float().mean() < 0.55
    assert position.mean(0).abs().max() < 0.05


@pytest.mark.parametrize("obs_type", ["state", "image"])
def test_the_goal_is_the_observation_when_the_fingertip_is_there(obs_type):
    vec_env = ReachVectorEnv(200, obs_type=obs_type, output="torch")
    _, infos = vec_env.reset(seed=2)
    obs, output = vec_env.reset(seed=2, options={"factors": infos["goal_factors"]})
    torch.testing.assert_close(obs.float(), infos["goal"].float(), atol=1, rtol=0)
    assert not infos["goal_factors"][:, 4:].any()  # it rests
    tip = 2 * output["factors"][:, :2] - 1
    goal = fingertip(vec_env.state.goal)  # sampled anew, for agents that start there
    assert (output["distance"] - (tip - goal).norm(dim=-1)).abs().max() < 1e-5
    options = {name: infos["goal_factors"] for name in ("factors", "goal_factors")}
    _, output = vec_env.reset(seed=2, options=options)
    assert output["distance"].max() < 1e-4
    assert output["success"].all()
    _, reward, *_ = vec_env.step(torch.zeros(200, 2))
    assert (reward == 1).all()  # it stays there


def test_an_arm_at_rest_stays_and_one_that_moves_slows_down():
    arms, arm = ArmPhysics(), at_rest(sample_angles(many(50, 2)))
    for a, b in zip(arms(arm, torch.zeros(50, 2)), arm, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    arm = lively(60)
    left = energy(arm)
    for _ in range(30):
        arm = arms(arm, torch.zeros(60, 2))
        now = energy(arm)
        assert (now <= left + 1e-4).all()
        left = now
    assert left.max() < 1e-3


def test_a_shoulder_reaches_the_terminal_speed_and_its_motion_moves_the_elbow():
    arms, start = ArmPhysics(), at_rest(torch.zeros(1, 2))
    thrown = arms(start, torch.tensor([[1.0, 0.0]]))
    assert thrown.velocity[0, 0] > 0.1
    assert thrown.velocity[0, 1] < -0.1
    torch.testing.assert_close(thrown.previous_angle, start.angle)
    arm = start
    for _ in range(120):
        arm = arms(arm, torch.tensor([[5.0, 0.0]]))  # no more than 1
        assert arm.angle[0, 0].abs() <= math.pi + 1e-6  # all the way round
    assert arm.velocity[0].tolist() == pytest.approx([TERMINAL, 0], abs=0.01)


def test_an_elbow_bends_to_its_limit_and_no_further():
    arms, arm = ArmPhysics(), lively(300)
    widest = torch.zeros(())
    for step in range(100):
        torque = (4 * many(300, 2, seed=1000 * (step // 10)) - 2).clamp(-1, 1)
        arm = arms(arm, torque)
        widest = torch.maximum(widest, arm.angle[:, 1].abs().max())
        assert arm.velocity.abs().max() < VELOCITY_SCALE
    assert MAX_BEND - 0.01 < widest < MAX_BEND + 0.06


def test_the_next_state_depends_on_state_and_action_alone():
    arm, torque, arms = lively(64), 2 * many(64, 2, seed=7) - 1, ArmPhysics()
    together = arms(arm, torque)
    for i in (0, 63):
        for _ in range(2):
            single = arms(ArmState(*(part[i : i + 1] for part in arm)), torque[i : i + 1])
        assert all(torch.equal(a[0], b[i]) for a, b in zip(single, together, strict=True))


@pytest.mark.parametrize("label", ["behaviour_action", "expert_action"])
def test_an_env_gives_the_same_episode_alone_and_in_a_batch(label):
    output = []
    for count, seed in ((4, 40), (1, 43)):
        vec_env = ReachVectorEnv(count, max_episode_steps=30)
        vec_env.reset(seed=seed)
        output.append([vec_env.step(getattr(vec_env, label)()) for _ in range(70)])
    for together, single in zip(*output, strict=True):
        for a, b in zip(together[:4], single[:4], strict=True):
            np.testing.assert_array_equal(a[3], b[0])
        for name in single[4]:
            np.testing.assert_array_equal(together[4][name][3], single[4][name][0], err_msg=name)


def test_the_oracle_reaches_and_rests_at_the_goal_and_random_actions_do_not():
    fractions = {}
    for label in ("oracle", "walk", "random"):
        vec_env = ReachVectorEnv(300, output="torch")
        vec_env.reset(seed=0)
        for step in range(vec_env.max_episode_steps):
            drunk = 2 * many(300, 2, 1000 * step) - 1
            acts = {
                "oracle": vec_env.expert_action,
                "walk": vec_env.behaviour_action,
                "random": lambda d=drunk: d,
            }
            _, reward, *_, infos = vec_env.step(acts[label]())
            assert torch.equal(reward, infos["final_success"].float())
        fractions[label] = infos["final_success"].float().mean()
        if label == "oracle":
            assert infos["factors"][:, 4:].abs().max() < 0.02
    assert fractions["oracle"] >= 0.99
    assert fractions["walk"] < 0.05
    assert fractions["random"] < 0.05


def test_the_observation_shows_the_arm():
    vec_env, numbers = (ReachVectorEnv(12, obs_type=s) for s in ("image", "state"))
    vec_env.reset(seed=1)
    numbers.reset(seed=1)
    for step in range(12):
        torque = (3 * many(12, 2, 1000 * (step // 4)) - 1.5).numpy()
        obs, *_, infos = vec_env.step(torque)
        state = numbers.step(torque)[0]
        assert vec_env.observation_space.contains(obs)
        assert numbers.observation_space.contains(state)
        now, before = vec_env.state.arm.angle, vec_env.state.arm.previous_angle
        np.testing.assert_allclose(state[:, :2], now.cos(), atol=1e-6)
        np.testing.assert_allclose(state[:, 2:4], now.sin(), atol=1e-6)
        np.testing.assert_allclose(
            VELOCITY_SCALE * state[:, 4:], vec_env.state.arm.velocity, atol=1e-5
        )
        for image, angle in ((obs[:, 0], now), (obs[:, 1], before)):
            elbow, tip = joint_positions(angle).unbind(1)
            for fraction in torch.linspace(0, 1, 5):  # bright along both links
                for position in (fraction * elbow, torch.lerp(elbow, tip, fraction)):
                    x, y = ((position / 1.05 + 1) * 15.5).round().long().T
                    assert image[np.arange(12), y, x].min() > 150
            assert image.reshape(12, -1).mean(-1).max() < 25  # and dark elsewhere
    for position, picture in zip(
        vec_env.factors_to_pixels(infos["factors"]), vec_env.render(), strict=True
    ):
        x, y = position.round().astype(int)
        assert picture[y, x].astype(int)[2] - picture[y, x].astype(int)[0] > 150


def test_an_episode_restored_from_its_factors_has_the_same_state_and_others_are_refused():
    vec_env = ReachVectorEnv(50, output="torch")
    vec_env.reset(seed=0)
    for _ in range(20):
        obs, *_, infos = vec_env.step(vec_env.behaviour_action())
    options = {"factors": infos["factors"], "goal_factors": infos["goal_factors"]}
    again, output = vec_env.reset(seed=0, options=options)
    torch.testing.assert_close(again, obs, atol=1e-5, rtol=0)
    torch.testing.assert_close(output["distance"], infos["distance"], atol=1e-5, rtol=0)
    for column, wrong, named in (
        (0, 0.9, "environment 7 no arm"),
        (5, 1.2, "environment 7 elbow velocity is 1.2;"),
        (2, math.nan, "environment 7 elbow x is nan;"),
    ):
        factors = infos["factors"].clone()
        factors[7, column] = wrong
        with pytest.raises(ValueError, match=f"goal_factors: .*{named}"):
            vec_env.reset(options={"goal_factors": factors})
    with pytest.raises(ValueError, match=r"factors has shape \[2, 6\]; it must be \[50, 6\]"):
        vec_env.reset(options={"factors": infos["factors"][:2]})


def test_the_dynamics_tests_move_the_fingertip_to_the_right():
    for name, test in ReachVectorEnv(1).dynamics_tests(seed=4).items():
        column = ("shoulder", "elbow").index(name)
        assert (np.abs(test.actions[..., column]) == 1).all()
        assert not test.actions[..., 1 - column].any()
        assert (test.end_factors - test.start_factors)[:, 0].mean() > 0.05


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"obs_type": "smell"}, "state, image"), ({"max_episode_steps": 0}, "max_episode_steps")],
)
def test_unusable_settings_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        ReachVectorEnv(**settings)


@pytest.mark.parametrize("obs_type", ["state", "image"])
def test_gymnasium_accepts_the_env_and_makes_it_by_every_function(obs_type):
    made = gymnasium.make("ami/Reach-v0", render_mode="rgb_array", obs_type=obs_type).unwrapped
    check_env(made)
    assert isinstance(made, ReachEnv)
    vec_env = gymnasium.make_vec("ami/Reach-v0", num_envs=3, obs_type=obs_type)
    np.testing.assert_array_equal(vec_env.reset(seed=8)[0][2], made.reset(seed=10)[0])
