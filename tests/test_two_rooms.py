"""Two rooms."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.rng import keys_from_seeds, uniform
from envs.two_rooms import VARIANTS, TwoRoomsVectorEnv
from envs.two_rooms.dynamics import is_free, sample_in_room, slide, stop
from envs.two_rooms.env import sample_initial
from envs.two_rooms.policies import beside_wall, next_waypoint
from envs.two_rooms.variants import layout_table

CPU = torch.device("cpu")
EVERY = pytest.mark.parametrize("variant", VARIANTS)


def crosses_solid(arena, layout, start, end):
    """[N] bool, by checking many points on the way; independent of the physics' own geometry."""
    fraction = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None, None]
    way = start.double() + fraction * (end - start).double()  # [2001, N, 2]
    beside = (way[..., 0] - layout[:, 0]).abs() < arena.half_wall - 1e-4
    closed = (way[..., 1] - layout[:, 1]).abs() > arena.half_door + 1e-4
    outside = ((way < arena.low - 1e-4) | (way > arena.high + 1e-4)).any(-1)
    return ((beside & closed) | outside).any(0)


def births(variant, count, seed=0):
    return sample_initial(
        variant, layout_table(variant, "all"), keys_from_seeds(range(seed, seed + count), CPU)
    )


def collect_data(vec_env, steps, seed, actions):
    """Observations, infos over some steps."""
    text_out = [(*vec_env.reset(seed=seed),)]
    for step in range(steps):
        obs, reward, _, truncated, infos = vec_env.step(actions(step))
        text_out.append((obs, {**infos, "reward": reward, "truncated": truncated}))
    return text_out


def noise(step, start, count):
    rng = [np.random.default_rng((step, start + i)) for i in range(count)]
    return np.stack([r.uniform(-1, 1, 2) for r in rng]).astype(np.float32)


@pytest.mark.parametrize("variant", ["fixed", "eb-random"])
def test_an_env_gives_the_same_episode_alone_and_in_a_batch(variant):
    many = TwoRoomsVectorEnv(5, variant=variant, max_episode_steps=7)
    single = TwoRoomsVectorEnv(1, variant=variant, max_episode_steps=7)
    together = collect_data(many, 17, 40, lambda step: noise(step, 0, 5))
    by_itself = collect_data(single, 17, 43, lambda step: noise(step, 3, 1))
    for (obs, infos), (own_obs, own_infos) in zip(together, by_itself, strict=True):
        np.testing.assert_array_equal(obs[3], own_obs[0])
        for name in own_infos:
            np.testing.assert_array_equal(infos[name][3], own_infos[name][0], err_msg=name)


def test_the_same_seed_gives_the_same_episode_and_another_seed_another():
    vec_env = TwoRoomsVectorEnv(4, variant="random")
    first, again, other = (
        np.stack(
            [
                i["factors"]
                for _, i in collect_data(vec_env, 30, seed, lambda _: vec_env.behaviour_action())
            ]
        )
        for seed in (1, 1, 2**40)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max(axis=(0, 2)).min() > 0.05


@EVERY
@pytest.mark.parametrize("contact", [stop, slide])
@pytest.mark.parametrize("length", [0.3, 3.0, 40.0, 1e4, 1e12])
def test_a_dot_never_crosses_the_wall_or_leaves_the_arena(variant, contact, length):
    variant = VARIANTS[variant]
    start, _, layout = births(variant, 300)
    for step in range(8):
        u, _ = uniform(keys_from_seeds(range(300 * step, 300 * step + 300), CPU), 2)
        move = length * (2 * u - 1)
        end = contact(variant.arena, start, move, layout)
        assert is_free(variant.arena, end, layout).all()
        if contact is stop:  # sliding bends, so its chord may cut a corner
            assert not crosses_solid(variant.arena, layout, start, end).any()
        to_door = (start - layout).abs()[:, 1] - variant.arena.half_door
        other_side = (start - layout)[:, 0] * (end - layout)[:, 0] < 0
        assert (to_door <= move[:, 1].abs() + 1)[other_side].all()
        start = end


@EVERY
def test_the_variants_own_contacts_keep_dots_in_free_space(variant):
    """Under actions far too large, and with the noise of an environment."""
    envs = TwoRoomsVectorEnv(80, variant=variant)
    envs._observe_at = lambda walls, position, distractors: position
    arena, state = envs.variant.arena, envs._reset_state(keys_from_seeds(range(80), CPU), {})
    for step in range(100):
        u, _ = uniform(keys_from_seeds(range(80 * step, 80 * step + 80), CPU), 2)
        old, state = state, envs._step_state(state, 20 * (u - 0.5))
        assert is_free(arena, state.position, state.layout).all()
        crossed = (state.position[:, 0] > state.layout[:, 0]) != (
            old.position[:, 0] > old.layout[:, 0]
        )
        to_door = (state.position - state.layout)[:, 1].abs() - arena.half_door
        assert (to_door[crossed] <= 3).all()


@settings(max_examples=150, deadline=None)
@given(
    corner=st.sampled_from([(-1, -1), (-1, 1), (1, -1), (1, 1)]),
    offset=st.tuples(st.floats(-0.02, 0.02), st.floats(-0.02, 0.02)),
    angle=st.sampled_from([k * np.pi / 8 for k in range(16)]) | st.floats(0, 6.28),
    length=st.floats(1e-6, 1e6),
    name=st.sampled_from(list(VARIANTS)),
)
def test_the_corners_of_the_door_are_solid(corner, offset, angle, length, name):
    arena = VARIANTS[name].arena
    layout = torch.tensor([VARIANTS[name].layouts[0]], dtype=torch.float32)
    half = torch.tensor([arena.half_wall, arena.half_door])
    start = layout + torch.tensor([corner]) * half + torch.tensor([offset])
    if not is_free(arena, start, layout):
        return
    move = length * torch.tensor([[np.cos(angle), np.sin(angle)]], dtype=torch.float32)
    end = stop(arena, start, move, layout)
    assert is_free(arena, end, layout).all()
    assert not crosses_solid(arena, layout, start, end).any()


@settings(max_examples=50, deadline=None)
@given(action=st.tuples(*[st.floats(allow_nan=False, allow_infinity=False, width=32)] * 2))
def test_no_action_moves_further_than_the_variant_allows(action):
    for variant in VARIANTS.values():
        move = variant.motion.move(torch.tensor([action]))
        longest = variant.motion.scale * variant.motion.bound * 1.00001
        assert (
            variant.motion.shrink(move / variant.motion.scale, variant.motion.bound)
            .isfinite()
            .all()
        )
        assert move.abs().max() <= longest


@EVERY
def test_the_oracle_always_arrives_well_before_the_time_limit(variant):
    variant = VARIANTS[variant]
    rows = layout_table(variant, "all")
    layouts = rows.repeat(-(-300 // len(rows)), 1)  # every layout, 300 episodes at least
    keys = keys_from_seeds(range(len(layouts)), CPU)
    u, _ = uniform(keys, 3)
    position = sample_in_room(variant.arena, layouts, u[:, 0] < 0.5, u[:, 1:])
    goal = variant.goal(variant, position, layouts, keys)
    near = beside_wall(variant.arena, goal, layouts)
    for _ in range(variant.max_episode_steps * 3 // 4):
        waypoint = next_waypoint(variant.arena, position, near, layouts)
        move = variant.motion.move(variant.motion.to_action(waypoint - position))
        position = variant.motion.contact(variant.arena, position, move, layouts)
    nearest = variant.goal_radius if variant.goals_in_wall else 0.01
    assert (position - goal).norm(dim=-1).max() < nearest


@pytest.mark.parametrize("name", ["random", "eb-random"])
def test_the_oracle_of_an_env_succeeds_and_keeps_to_the_disk(name):
    vec_env = TwoRoomsVectorEnv(64, variant=name)
    vec_env.reset(seed=0)
    for _ in range(vec_env.max_episode_steps):
        action = vec_env.expert_action()
        assert np.linalg.norm(action, axis=1).max() <= vec_env.variant.motion.bound * 1.00001
        _, reward, _, truncated, infos = vec_env.step(action)
    assert infos["success"].all()
    assert infos["final_success"].all()
    assert (reward == 1).all()
    assert truncated.all()


@pytest.mark.filterwarnings("ignore:.*recommend using a symmetric and normalized space")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("variant", ["fixed", "pldm"])
def test_gymnasium_accepts_the_env(variant):
    check_env(gymnasium.make("ami/TwoRooms-v0", variant=variant, render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("mode", [None, "sync", "vector_entry_point"])
def test_gymnasium_makes_the_same_envs_by_every_function(mode):
    vec_env = gymnasium.make_vec(
        "ami/TwoRooms-v0", num_envs=3, vectorization_mode=mode, variant="random", split="test"
    )
    obs, infos = vec_env.reset(seed=8)
    single = gymnasium.make("ami/TwoRooms-v0", variant="random", split="test")
    own_obs, own_infos = single.reset(seed=10)
    np.testing.assert_array_equal(obs[2], own_obs)
    np.testing.assert_allclose(infos["distance"][2], own_infos["distance"], rtol=1e-6)
    assert infos["_goal"].all()


def test_the_step_after_the_end_begins_a_new_episode_and_ignores_its_action():
    vec_env = TwoRoomsVectorEnv(2, max_episode_steps=3)
    _, born = vec_env.reset(seed=0)
    full = np.ones((2, 2), dtype=np.float32)
    ends = []
    for _ in range(8):
        _, reward, terminated, truncated, infos = vec_env.step(full)
        assert not terminated.any()
        ends.append(bool(truncated.all()))
        if ends[-1]:  # still about the episode that ends
            np.testing.assert_array_equal(infos["goal_factors"], born["goal_factors"])
            _, reward, _, truncated, born = vec_env.step(np.full((2, 2), np.nan, np.float32))
            assert not truncated.any()
            assert not reward.any()
            goal = vec_env.state.goal
            _, first_goal, _ = sample_initial(
                vec_env.variant, layout_table(vec_env.variant, "all"), keys_from_seeds([0, 1], CPU)
            )
            assert not torch.equal(goal, first_goal)
    assert ends == [False, False, True] * 2 + [False, False]


def test_envs_end_and_begin_independently():
    vec_env = TwoRoomsVectorEnv(3, max_episode_steps=4)
    vec_env.reset(seed=0)
    vec_env._steps[1] = 2
    text_out = [vec_env.step(np.zeros((3, 2), np.float32))[3].tolist() for _ in range(5)]
    middle = [False, True, False, False, False]
    others = [False, False, False, True, False]
    assert text_out == [[o, m, o] for m, o in zip(middle, others, strict=True)]


def test_success_is_kept_and_final_success_is_not():
    vec_env = TwoRoomsVectorEnv(1, variant="fixed")
    here, there = np.array([[0.3, 0.5, 0.5, 16 / 56]]), np.array([[0.4, 0.5, 0.5, 16 / 56]])
    vec_env.reset(seed=0, options={"factors": here, "goal_factors": there})
    text_out = [vec_env.step(np.array([[1.0, 0.0]], np.float32)) for _ in range(5)]
    assert [bool(t[4]["final_success"][0]) for t in text_out] == [True, True, True, False, False]
    assert all(t[4]["success"][0] for t in text_out)
    assert [float(t[1][0]) for t in text_out] == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("name", ["random", "eb-random"])
def test_held_out_layouts_are_never_trained_on(name):
    rows = {
        s: {tuple(r) for r in layout_table(VARIANTS[name], s).tolist()} for s in ("train", "test")
    }
    assert not rows["train"] & rows["test"]
    assert len(rows["train"] | rows["test"]) == len(VARIANTS[name].layouts)
    assert 0.15 < len(rows["test"]) / len(VARIANTS[name].layouts) < 0.25
    for split in rows:
        vec_env = TwoRoomsVectorEnv(200, variant=name, split=split)
        vec_env.reset(seed=3)
        sampled = {tuple(r) for r in vec_env.state.layout.tolist()}
        assert sampled <= rows[split]
        assert len(sampled) > 30


@EVERY
def test_the_image_shows_the_dot_where_it_is_and_the_door_where_it_is(variant):
    vec_env = TwoRoomsVectorEnv(16, variant=variant)
    vec_env.reset(seed=1)
    dots = np.random.default_rng(0).uniform([0.15, 0.2], [0.3, 0.8], (16, 2))  # not near walls
    layout = vec_env._factors(vec_env.state)[:, 2:].numpy()
    obs, _ = vec_env.reset(options={"factors": np.concatenate([dots, layout], 1)})
    assert vec_env.observation_space.contains(obs)
    rgb = obs.shape[1] == 3
    walls = (obs.max(axis=1) < 64) if rgb else obs[:, 1] == 255
    dot = (255.0 - obs[:, 1]) * (obs[:, 0] > 200) if rgb else obs[:, 0].astype(float)
    pixel = np.arange(obs.shape[-1])
    observed = np.stack([(dot.sum(1) * pixel).sum(1), (dot.sum(2) * pixel).sum(1)], 1)
    observed /= dot.sum((1, 2))[:, None]
    state, arena = vec_env.state, vec_env.variant.arena
    assert np.abs(observed - state.position.numpy()).max() < 0.35
    for picture, (wall_x, door_y) in zip(walls, state.layout.int().tolist(), strict=True):
        inner = pixel[int(arena.low) + 1 : int(arena.high)]
        is_open = np.abs(inner - door_y) <= vec_env.variant.canvas.half_door
        np.testing.assert_array_equal(~picture[inner, wall_x], is_open)


def test_the_goal_image_is_the_observation_on_arrival():
    vec_env = TwoRoomsVectorEnv(4, variant="random")
    _, infos = vec_env.reset(seed=2)
    obs, _ = vec_env.reset(options={"factors": infos["goal_factors"]})
    np.testing.assert_allclose(obs.astype(int), infos["goal"].astype(int), atol=1)


@EVERY
def test_the_dynamics_tests_distinguish_a_wall_from_a_door(variant):
    vec_env = TwoRoomsVectorEnv(1, variant=variant, split="test")
    wall, door = (vec_env.dynamics_tests(seed=4)[name] for name in ("wall", "door"))
    assert wall.obs.shape == (64, *vec_env.single_observation_space.shape)
    assert wall.actions.shape == (64, 5, 2)
    step = vec_env.variant.motion.bound * vec_env.variant.motion.scale / vec_env.variant.arena.side
    moved = {
        n: (e.end_factors - e.start_factors)[:, 0] for n, e in (("wall", wall), ("door", door))
    }
    assert moved["wall"].max() <= 2.0001 * step
    np.testing.assert_allclose(moved["door"], 5 * step, rtol=1e-3)
    assert (wall.end_factors[:, 0] < wall.end_factors[:, 2]).all()
    np.testing.assert_array_equal(wall.obs, vec_env.dynamics_tests(seed=4)["wall"].obs)


def test_a_picture_shows_dot_and_goal_where_the_factors_say():
    vec_env = TwoRoomsVectorEnv(3, variant="random")
    _, infos = vec_env.reset(seed=0)
    xy = vec_env.factors_to_pixels(infos["factors"]).round().astype(int)
    for (x, y), picture in zip(xy, vec_env.render(), strict=True):
        assert picture.shape == (320, 320, 3)
        assert picture.dtype == np.uint8
        red, _, blue = picture[y, x].astype(int)
        assert blue - red > 150


def test_torch_and_numpy_give_the_same_numbers():
    text_out = {}
    for output in ("numpy", "torch"):
        vec_env = TwoRoomsVectorEnv(2, output=output)
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
        ({"variant": "three-rooms"}, "eb-random"),
        ({"split": "some"}, "train"),
        ({"output": "jax"}, "torch"),
        ({"max_episode_steps": 0}, "max_episode_steps"),
        ({"directed_fraction": 1.5}, "directed_fraction"),
    ],
)
def test_unusable_settings_are_refused_by_name(settings_, named):
    with pytest.raises(ValueError, match=named):
        TwoRoomsVectorEnv(1, **settings_)


def test_unusable_actions_and_options_are_refused_by_env():
    vec_env = TwoRoomsVectorEnv(3, variant="fixed")
    vec_env.reset(seed=0)
    actions = np.zeros((3, 2), np.float32)
    actions[2, 1] = np.inf
    with pytest.raises(ValueError, match="environment 2"):
        vec_env.step(actions)
    in_wall = np.tile([0.2, 0.9, 0.5, 0.3], (3, 1))
    in_wall[1, 0] = 0.5
    for options, named in (
        ({"factors": in_wall}, "environment 1"),
        ({"factors": in_wall[:2]}, "factors"),
        ({"factors": in_wall * 2}, "environment 0 dot y is 1.8;"),
        ({"goal_factors": in_wall}, "goal_factors"),
        ({"factors": np.tile([0.2, 0.9, 0.0, 0.3], (3, 1))}, "no room"),
    ):
        with pytest.raises(ValueError, match=named):
            vec_env.reset(options=options)
