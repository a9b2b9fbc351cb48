"""A hand that pushes a block."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from envs.geometry import direction
from envs.push import PushEnv, PushVectorEnv, TablePhysics, TableState, at_rest
from envs.rng import keys_from_seeds, uniform

CPU = torch.device("cpu")
HAND, BLOCK, REACHED, TERMINAL, KEPT, VELOCITY_SCALE = 0.04, 0.07, 0.06, 0.06, 0.6, 0.08
TOUCH = HAND + BLOCK


def many(count, numbers=1, seed=0):
    return uniform(keys_from_seeds(range(seed, seed + count), CPU), numbers)[0]


def started(count, **settings):
    vec_env = PushVectorEnv(count, output="torch", **settings)
    return vec_env, *vec_env.reset(seed=0)


def lively(count):
    """TableState in motion, some of them in contact."""
    block = 0.3 + 0.4 * many(count, 2)
    off = TOUCH * (1 + 0.5 * many(count, 1, seed=9))
    hand = block + off * direction(2 * math.pi * many(count, seed=7)[:, 0])
    velocity = VELOCITY_SCALE * (many(count, 4, seed=5) - 0.5)
    position = torch.cat([hand, block], -1)
    return TableState(position, velocity, position - velocity)


def acted(label, vec_env, step):
    drunk = 2 * many(vec_env.num_envs, 2, 1000 * step) - 1
    acts = {
        "oracle": vec_env.expert_action,
        "walk": vec_env.behaviour_action,
        "random": lambda: drunk,
    }
    return acts[label]()


def test_objects_at_rest_stay_and_a_free_hand_reaches_its_terminal_speed():
    physics, table = TablePhysics(), started(50)[0].state.table
    for a, b in zip(physics(table, torch.zeros(50, 2)), table, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    table = at_rest(torch.tensor([[0.1, 0.9]]), torch.tensor([[0.5, 0.5]]))
    velocity = 0.0
    for _ in range(9):
        before, table = table, physics(table, torch.tensor([[5.0, 0.0]]))  # no more than 1
        velocity = KEPT * velocity + (1 - KEPT) * TERMINAL
        torch.testing.assert_close(table.velocity, torch.tensor([[velocity, 0, 0, 0]]))
        torch.testing.assert_close(table.previous_position, before.position)
    assert table.hand[0, 0] > 0.4


def test_a_block_moves_where_it_is_touched_and_nowhere_else():
    vec_env, *_ = started(200)
    touched = torch.zeros(200, dtype=torch.bool)
    for step in range(60):
        before = vec_env.state.table
        vec_env.step(acted("walk", vec_env, step))
        after = vec_env.state.table
        way = after.block - before.block
        # no hand comes nearer in a step than two steps' way
        far = (before.hand - before.block).norm(dim=-1) > TOUCH + 2 * TERMINAL
        still = before.velocity[:, 2:].norm(dim=-1) < 1e-6
        assert way[far & still].abs().max() < 1e-5
        close = (after.hand - after.block).norm(dim=-1)
        assert close.min() > TOUCH - 0.02  # they don't pass through one another
        moved = still & (way.norm(dim=-1) > 1e-3)
        away = before.block - before.hand
        assert ((away * way).sum(-1)[moved] > 0).all()  # it is pushed, never pulled
        touched |= moved
    assert touched.float().mean() > 0.7


def test_a_central_push_moves_the_block_straight_and_an_eccentric_one_aside():
    physics, block = TablePhysics(), torch.tensor([[0.4, 0.5]]).expand(3, 2)
    beside = torch.tensor([[-TOUCH, 0.0], [-TOUCH, 0.05], [-TOUCH, -0.05]])
    table = at_rest(block + beside, block)
    for _ in range(6):
        table = physics(table, torch.tensor([[1.0, 0.0]]).expand(3, 2))
    way = table.block - block
    assert way[0, 0] > 0.1
    assert way[0, 1].abs() < 1e-5
    assert (way[1:, 0] > 0.02).all()
    assert way[1, 1] < -0.02
    torch.testing.assert_close(way[1] * torch.tensor([1.0, -1.0]), way[2], atol=1e-4, rtol=0)
    assert table.velocity[0, 0] < 0.75 * TERMINAL  # a block is heavy to push
    for _ in range(4):
        table = physics(table, torch.zeros(3, 2))
    assert table.velocity[:, 2:].abs().max() < 0.002  # and soon comes to rest


def test_without_a_push_motion_decays():
    physics, table = TablePhysics(), lively(100)
    mass = torch.tensor([1.0, 1.0, 0.3, 0.3])
    left = (mass * table.velocity.square()).sum(-1)
    for _ in range(12):
        table = physics(table, torch.zeros(100, 2))
        now = (mass * table.velocity.square()).sum(-1)
        assert (now <= left + 1e-6).all()
        left = now
    assert left.max() < 1e-6


def test_the_border_stops_the_block_so_that_the_hand_fits_behind_it():
    physics, block = TablePhysics(), 0.2 + 0.6 * many(300, 2)
    table = at_rest(torch.full((300, 2), 0.5), block)
    outside = (table.hand - block).norm(dim=-1) > TOUCH
    table = TableState(*(part[outside] for part in table))
    out = torch.nn.functional.normalize(table.block - 0.5, dim=-1)
    for _ in range(40):
        table = physics(table, out)
    assert table.block.min() > 0.16
    assert table.block.max() < 0.84
    assert (table.block - 0.5).abs().amax(-1).max() > 0.3
    assert table.hand.min() > HAND - 0.02
    difference = torch.minimum(table.block, 1 - table.block).amin(-1) - BLOCK
    assert difference.min() > 2 * HAND


def test_the_next_state_depends_on_state_and_action_alone():
    table, push, physics = lively(64), 2 * many(64, 2, seed=7) - 1, TablePhysics()
    together = physics(table, push)
    for i in (0, 63):
        for _ in range(2):
            single = physics(TableState(*(part[i : i + 1] for part in table)), push[i : i + 1])
        assert all(torch.equal(a[0], b[i]) for a, b in zip(single, together, strict=True))


@pytest.mark.parametrize("label", ["behaviour_action", "expert_action"])
def test_an_env_gives_the_same_episode_alone_and_in_a_batch(label):
    output = []
    for count, seed in ((4, 40), (1, 43)):
        vec_env = PushVectorEnv(count, max_episode_steps=30)
        vec_env.reset(seed=seed)
        output.append([vec_env.step(getattr(vec_env, label)()) for _ in range(70)])
    for together, single in zip(*output, strict=True):
        for a, b in zip(together[:4], single[:4], strict=True):
            np.testing.assert_array_equal(a[3], b[0])
        for name in single[4]:
            np.testing.assert_array_equal(together[4][name][3], single[4][name][0], err_msg=name)


def test_episodes_begin_apart_and_goals_are_everywhere_within_the_border():
    vec_env, _, infos = started(3000)
    table, goal = vec_env.state.table, vec_env.state.goal
    for one in (table, goal):
        assert (one.hand - one.block).norm(dim=-1).min() > TOUCH
        assert ((one.hand - 0.5).abs() <= 0.5 - HAND + 1e-6).all()
        assert ((one.block >= 0.2) & (one.block <= 0.8)).all()
    assert infos["distance"].min() >= 0.2
    assert not infos["success"].any()
    assert 0.19 < goal.block.amin() < 0.21
    assert 0.79 < goal.block.amax() < 0.81
    assert (goal.block.mean(0) - 0.5).abs().max() < 0.02


def test_the_goal_is_the_observation_when_the_block_has_been_pushed_there():
    for obs_type in ("state", "image"):
        vec_env, _, infos = started(100, obs_type=obs_type)
        state, factors = vec_env.state, infos["goal_factors"]
        obs, output = vec_env.reset(seed=0, options={"factors": factors, "goal_factors": factors})
        torch.testing.assert_close(obs, infos["goal"], atol=0, rtol=0)
        assert output["success"].all()
        _, reward, *_ = vec_env.step(torch.zeros(100, 2))
        assert (reward == 1).all()  # and all stays as it is
        way, push = state.goal.block - state.table.block, state.goal.block - state.goal.hand
        assert torch.cosine_similarity(way, push).min() > 1 - 1e-4


def test_success_is_of_the_block_alone_and_exactly_within_the_tolerance():
    vec_env, _, infos = started(64)
    goal = infos["goal_factors"][:, 2:4]
    inwards = torch.where(goal > 0.5, -1.0, 1.0) / 2**0.5
    hand = torch.where(goal > 0.5, 0.1, 0.9)  # far from where the goal shows it
    for fraction, there in ((0.999, True), (1.001, False)):
        block = goal + fraction * REACHED * inwards
        factors = torch.cat([hand, block, torch.zeros(64, 4)], -1)
        options = {"factors": factors, "goal_factors": infos["goal_factors"]}
        output = vec_env.reset(seed=0, options=options)[1]
        assert (output["final_success"] == there).all()
        assert (vec_env.step(torch.zeros(64, 2))[1] == float(there)).all()


def test_the_oracle_pushes_the_block_to_the_goal_and_random_actions_do_not():
    fractions = {}
    for label in ("oracle", "walk", "random"):
        vec_env, *_ = started(300)
        for step in range(vec_env.max_episode_steps):
            _, reward, *_, infos = vec_env.step(acted(label, vec_env, step))
            assert torch.equal(reward, infos["final_success"].float())
        fractions[label] = infos["final_success"].float().mean()
    assert fractions["oracle"] >= 0.97
    assert fractions["walk"] < 0.05
    assert fractions["random"] < 0.02


def test_the_behaviour_policy_touches_the_block_and_directed_exploration_more_often():
    pushed = {}
    for directed_fraction in (0.0, 0.7):
        vec_env, *_ = started(300, directed_fraction=directed_fraction)
        moved = torch.zeros(300)
        for _ in range(50):
            before = vec_env.state.table.block
            vec_env.step(vec_env.behaviour_action())
            moved += (vec_env.state.table.block - before).norm(dim=-1) > 1e-3
        pushed[directed_fraction] = (moved > 0).float().mean(), moved.mean() / 50
    assert pushed[0.7][0] > 0.8
    assert pushed[0.7][1] > 0.1
    assert pushed[0.0][1] < 0.5 * pushed[0.7][1]


def test_the_observation_shows_hand_and_block():
    vec_env, numbers = (PushVectorEnv(12, obs_type=s) for s in ("image", "state"))
    vec_env.reset(seed=1)
    numbers.reset(seed=1)
    for step in range(12):
        push = (3 * many(12, 2, 1000 * (step // 4)) - 1.5).numpy()
        obs, *_, infos = vec_env.step(push)
        state = numbers.step(push)[0]
        assert vec_env.observation_space.contains(obs)
        assert numbers.observation_space.contains(state)
        table = vec_env.state.table
        np.testing.assert_allclose((state[:, :4] + 1) / 2, table.position, atol=1e-6)
        np.testing.assert_allclose(VELOCITY_SCALE * state[:, 4:], table.velocity, atol=1e-6)
        waypoints = torch.cat([table.position, table.previous_position], -1).unflatten(-1, (4, 2))
        grid = torch.arange(32.0)
        for i in range(4):  # each a spot at its position
            image = torch.from_numpy(obs[:, i]).float()
            mass = image.sum((1, 2))
            x, y = (image.sum(1) @ grid / mass, image.sum(2) @ grid / mass)
            inner = ((waypoints[:, i] > 0.2) & (waypoints[:, i] < 0.8)).all(-1)
            found = torch.stack([x, y], -1)[inner] / 31
            torch.testing.assert_close(found, waypoints[:, i][inner], atol=0.01, rtol=0)
    for position, picture in zip(
        vec_env.factors_to_pixels(infos["factors"]), vec_env.render(), strict=True
    ):
        x, y = position.round().astype(int)
        assert picture[y, x].astype(int)[2] - picture[y, x].astype(int)[0] > 150


def test_an_episode_restored_from_its_factors_has_the_same_state_and_others_are_refused():
    vec_env, *_ = started(50)
    for _ in range(20):
        obs, *_, infos = vec_env.step(vec_env.behaviour_action())
    options = {"factors": infos["factors"], "goal_factors": infos["goal_factors"]}
    again, output = vec_env.reset(seed=0, options=options)
    torch.testing.assert_close(again, obs, atol=1e-6, rtol=0)
    torch.testing.assert_close(output["distance"], infos["distance"], atol=1e-6, rtol=0)
    wrong = {
        "apart": infos["factors"][7, [2, 3, 2, 3, 4, 5, 6, 7]],
        "within the rim": torch.tensor([0.5, 0.5, 0.1, 0.5, 0, 0, 0, 0]),
        "on the table": torch.tensor([1.0, 0.5, 0.5, 0.5, 0, 0, 0, 0]),
        "hand velocity y is 1.2;": torch.tensor([0.2, 0.5, 0.5, 0.5, 0, 1.2, 0, 0]),
        "environment 7": torch.tensor([0.2, 0.5, math.nan, 0.5, 0, 0, 0, 0]),
    }
    for named, row in wrong.items():
        factors = infos["factors"].clone()
        factors[7] = row
        with pytest.raises(ValueError, match=f"goal_factors: .*{named}"):
            vec_env.reset(options={"goal_factors": factors})
    with pytest.raises(ValueError, match=r"factors has shape \[2, 8\]; it must be \[50, 8\]"):
        vec_env.reset(options={"factors": infos["factors"][:2]})


def test_the_dynamics_tests_push_the_block_and_pass_it_by():
    tests = PushVectorEnv(1).dynamics_tests(seed=4)
    way = {name: (test.end_factors - test.start_factors)[:, [0, 2]] for name, test in tests.items()}
    assert (tests["block"].actions == tests["open"].actions).all()
    assert not way["open"][:, 1].any()
    assert way["block"][:, 1].min() > 0.05
    assert way["block"][:, 0].max() < 0.7 * way["open"][:, 0].min()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"obs_type": "smell"}, "state, image"),
        ({"max_episode_steps": 0}, "max_episode_steps"),
        ({"directed_fraction": 2}, "directed_fraction"),
    ],
)
def test_unusable_settings_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        PushVectorEnv(**settings)


@pytest.mark.parametrize("obs_type", ["state", "image"])
def test_gymnasium_accepts_the_env_and_makes_it_by_every_function(obs_type):
    made = gymnasium.make("ami/Push-v0", render_mode="rgb_array", obs_type=obs_type).unwrapped
    check_env(made)
    assert isinstance(made, PushEnv)
    vec_env = gymnasium.make_vec("ami/Push-v0", num_envs=3, obs_type=obs_type)
    np.testing.assert_array_equal(vec_env.reset(seed=8)[0][2], made.reset(seed=10)[0])
