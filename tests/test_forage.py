"""The foraging environment."""

from __future__ import annotations

import math
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from envs.forage import TASKS, ForageEnv, ForageVectorEnv
from envs.forage.dynamics import (
    distance,
    expert_eat,
    expert_explore,
    move,
    sample_hazard,
    sample_layout,
    sample_target,
    to_action,
)
from envs.rng import keys_from_seeds, uniform

CPU = torch.device("cpu")
EVERY_TASK = pytest.mark.parametrize("task", TASKS)


def layouts(count, split="all", seed=0):
    return sample_layout(keys_from_seeds(range(seed, seed + count), CPU), split)


def make_env(count=1, **settings):
    """Environments with tensors as output, at the beginning of seed 0."""
    vec_env = ForageVectorEnv(count, output="torch", **settings)
    return vec_env, vec_env.reset(seed=0)[1]


def put(vec_env, body, energy=0.5, growth=0.0, seed=0):
    """The environments with agents at positions [B, 2] that the test chooses."""
    rest = torch.tensor([energy, growth, growth]).expand(len(body), -1)
    return vec_env.reset(seed=seed, options={"factors": torch.cat([body, rest], -1)})[1]


def rest(vec_env):
    return torch.zeros(vec_env.num_envs, 2)


def noise(step, start, count):
    rng = [np.random.default_rng((step, start + i)) for i in range(count)]
    return np.stack([r.uniform(-1.5, 1.5, 2) for r in rng]).astype(np.float32)


def collect_data(vec_env, steps, seed, act):
    """Observations, infos and actions over some steps."""
    obs, infos = vec_env.reset(seed=seed)
    output = [{**obs, **infos}]
    for step in range(steps):
        actions = act(step)
        obs, reward, _, truncated, infos = vec_env.step(actions)
        ends = {"reward": reward, "truncated": truncated}
        output.append({**obs, **infos, **ends, "actions": actions})
    return output


def beside(position, difference):
    """Positions [B, 2] a gap [B] or a number to the side that has more room."""
    return position + torch.where(position < 0.5, difference, -difference) * torch.tensor(
        [1.0, 0.0]
    )


def mean_return(task, act, count=100):
    """Mean score and summed damage [B] of an episode under the actions `act(envs)`."""
    vec_env, infos = make_env(count, task=task)
    for _ in range(vec_env.max_episode_steps):
        *_, infos = vec_env.step(act(vec_env))
    return infos["score"].mean().item(), infos["damage"]


def at_random(vec_env):
    vec_env.action_space.seed(int(vec_env.state.record.steps[0]))
    return vec_env.action_space.sample()


def straight(vec_env):
    return to_action(vec_env.state.layout.flag - vec_env.state.position)


@EVERY_TASK
@pytest.mark.parametrize("label", ["noise", "walk", "oracle"])
def test_an_env_gives_the_same_episode_alone_and_in_a_batch(label, task):
    many, single = (
        ForageVectorEnv(n, task=task, max_episode_steps=40, split="train") for n in (5, 1)
    )
    acts = {
        "noise": (lambda step: noise(step, 0, 5), lambda step: noise(step, 3, 1)),
        "walk": (lambda _: many.behaviour_action(), lambda _: single.behaviour_action()),
        "oracle": (lambda _: many.expert_action(), lambda _: single.expert_action()),
    }[label]
    together, by_itself = (
        collect_data(many, 130, 40, acts[0]),
        collect_data(single, 130, 43, acts[1]),
    )
    for projected_step, own in zip(together, by_itself, strict=True):
        for name in own:
            np.testing.assert_array_equal(projected_step[name][3], own[name][0], err_msg=name)


def test_the_same_seed_gives_the_same_episode_and_another_seed_another():
    vec_env = ForageVectorEnv(4)
    first, again, other = (
        np.stack(
            [
                t["factors"]
                for t in collect_data(vec_env, 160, seed, lambda _: vec_env.behaviour_action())
            ]
        )
        for seed in (1, 1, 2**40)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max(axis=(0, 2)).min() > 0.05


def test_every_episode_has_a_layout_of_its_own():
    vec_env, _ = make_env(3, max_episode_steps=2)
    flags = [vec_env.state.layout.flag]
    for _ in range(2):
        for _ in range(3):
            vec_env.step(rest(vec_env))
        flags.append(vec_env.state.layout.flag)
    assert min(distance(a, b).min().item() for a, b in pairwise(flags)) > 0


def test_the_hazard_lies_across_the_direct_path_and_leaves_its_ends_free():
    sampled = layouts(5000)
    assert distance(sampled.start, sampled.flag).min() >= 0.6 - 1e-6
    assert 0.14 <= sampled.radius.min() < 0.142
    assert 0.198 < sampled.radius.max() <= 0.2
    for end in (sampled.start, sampled.flag):
        assert (distance(end, sampled.hazard) - sampled.radius).min() >= 0.04 - 1e-6
        assert end.min() >= 0.05 - 1e-6
        assert end.max() <= 0.95 + 1e-6
    fraction = torch.linspace(0, 1, 501)[:, None, None]
    way = sampled.start + fraction * (sampled.flag - sampled.start)
    nearest = distance(way, sampled.hazard).amin(0)
    assert (nearest <= sampled.radius / 2 + 1e-3).all()
    assert (nearest / sampled.radius).max() > 0.45
    assert sampled.hazard.min() >= 0
    assert sampled.hazard.max() <= 1


def test_food_keeps_its_distances():
    sampled = layouts(5000)
    assert sampled.food.min() >= 0.05 - 1e-6
    assert sampled.food.max() <= 0.95 + 1e-6
    away = distance(sampled.food, sampled.hazard[:, None]) - sampled.radius[:, None]
    assert away.min() >= 0.05 - 1e-6
    assert distance(sampled.food, sampled.flag[:, None]).min() >= 0.1 - 1e-6
    assert sampled.food.shape == (5000, 2, 2)
    assert distance(sampled.food[:, 0], sampled.food[:, 1]).min() >= 0.15 - 1e-6


def test_train_and_test_never_share_a_layout_and_all_has_both():
    def layout_set(split, seed=0):
        return {tuple(np.round(row, 6)) for row in torch.cat(flat(split, seed), -1).numpy()}

    def flat(split, seed):
        return [part.reshape(3000, -1) for part in layouts(3000, split, seed)]

    train, test, both = layout_set("train"), layout_set("test"), layout_set("all")
    assert not train & test
    assert both <= train | test
    assert 0.4 < len(both & test) / len(both) < 0.6
    difference = distance(layouts(3000, "train").flag, layouts(3000, "test").flag)
    assert difference.median() > 0.3  # the same seed does not reveal the layout


def test_the_splits_are_the_layouts_of_the_envs():
    keys = keys_from_seeds(range(50), CPU)
    for split in ("train", "test"):
        vec_env, _ = make_env(50, split=split)
        assert torch.equal(vec_env.state.layout.flag, sample_layout(keys, split).flag)


def test_an_episode_begins_as_documented():
    _, infos = make_env(4000)
    energy, growth = infos["factors"][:, 2], infos["factors"][:, 3:]
    assert 0.3 <= energy.min() < 0.305
    assert 0.795 < energy.max() < 0.8
    assert 0.68 < (growth == 1).float().mean() < 0.72
    young = growth[growth < 1]
    assert 0.47 < young.mean() < 0.53
    assert (infos["cells"] == 1).all()
    assert not infos["damage"].any()
    assert not infos["interoception"][:, 2].any()


def test_only_steps_and_food_change_the_energy():
    vec_env, infos = make_env(64)
    for step in range(149):
        before, eaten = infos["interoception"][:, 0], infos["eaten"]
        *_, infos = vec_env.step(
            vec_env.behaviour_action() if step % 2 else vec_env.expert_action()
        )
        energy, _, meal = infos["interoception"].unbind(-1)
        torch.testing.assert_close(energy, ((before - 0.02).clamp(min=0) + 0.4 * meal).clamp(max=1))
        torch.testing.assert_close(infos["eaten"], eaten + meal, atol=1e-5, rtol=0)
    assert infos["eaten"].min() > 0


def test_food_grows_by_a_fortieth_and_loses_a_fraction_that_falls_with_distance():
    vec_env, infos = make_env(64)
    food, eating = vec_env.state.layout.food.double().numpy(), []
    for step in range(149):
        before = infos["factors"][:, 3:].double().numpy()
        *_, infos = vec_env.step(
            vec_env.behaviour_action() if step % 3 else vec_env.expert_action()
        )
        body, _, growth = np.split(infos["factors"].double().numpy(), [2, 3], axis=-1)
        grown = np.minimum(before + 1 / 40, 1)
        bitten = grown * np.maximum(1 - np.linalg.norm(food - body[:, None], axis=-1) / 0.12, 0)
        np.testing.assert_allclose(growth, grown - bitten, atol=1e-6)
        np.testing.assert_allclose(infos["interoception"][:, 2], bitten.sum(-1), atol=1e-6)
        assert growth.min() >= 0
        assert growth.max() <= 1
        eating.append(bitten.sum(-1) > 0)
    assert 0.1 < np.mean(eating) < 0.9


def test_energy_stays_between_zero_and_one():
    vec_env, _ = make_env(1)
    food = vec_env.state.layout.food[:, 0]
    put(vec_env, food, energy=0.95, growth=1.0)
    assert vec_env.step(rest(vec_env))[4]["interoception"][0, 0] == 1
    put(vec_env, vec_env.state.layout.hazard, energy=0.01)
    assert vec_env.step(rest(vec_env))[4]["interoception"][0, 0] == 0
    put(vec_env, food, energy=0.01)  # the little that grew feeds an agent without energy
    assert vec_env.step(rest(vec_env))[4]["interoception"][0, 0] == pytest.approx(0.4 / 40)


def test_food_is_ripe_again_after_exactly_forty_steps_and_never_more_than_ripe():
    vec_env, _ = make_env(8)
    put(vec_env, vec_env.state.layout.hazard, growth=0.0)  # beyond the reach of any food
    grown = [vec_env.step(rest(vec_env))[4]["factors"][:, 3:] for _ in range(60)]
    ramp = (torch.arange(1, 61) / 40).clamp(max=1)[:, None, None].expand(60, 8, 2)
    torch.testing.assert_close(torch.stack(grown), ramp, atol=1e-6, rtol=0)
    assert (grown[-1] == 1).all()


def test_food_at_the_agents_position_is_eaten_whole_and_then_as_it_grows():
    vec_env, _ = make_env(8)
    put(vec_env, vec_env.state.layout.food[:, 1], growth=1.0)
    for meal in [1.0] + [1 / 40] * 50:
        *_, infos = vec_env.step(rest(vec_env))
        torch.testing.assert_close(infos["interoception"][:, 2], torch.full((8,), meal))
        assert (infos["factors"][:, 4] == 0).all()
        assert (infos["factors"][:, 3] == 1).all()  # the other food is out of reach


@pytest.mark.parametrize(
    ("difference", "growth", "meal"),
    [(0.03, 1.0, 0.75), (0.06, 0.475, 0.25), (0.09, 0.975, 0.25), (0.114, 1, 0.05), (0.121, 1, 0)],
)
def test_eating_takes_a_fraction_of_what_has_grown_and_leaves_the_rest(difference, growth, meal):
    vec_env, _ = make_env(1)
    put(vec_env, beside(vec_env.state.layout.food[:, 1], difference), growth=growth)
    *_, infos = vec_env.step(rest(vec_env))
    assert infos["interoception"][0, 2] == pytest.approx(meal, abs=1e-5)
    grown = min(growth + 1 / 40, 1)
    assert infos["factors"][0, 3:].tolist() == pytest.approx([grown, grown - meal], abs=1e-5)


def test_between_two_foods_both_are_eaten():
    food = layouts(200).food
    difference = distance(food[:, 0], food[:, 1])
    near = (difference < 0.2).nonzero().flatten().tolist()
    vec_env, _ = make_env(len(near))
    put(vec_env, food[near].mean(1), growth=1.0, seed=near)
    *_, infos = vec_env.step(rest(vec_env))
    fraction = 1 - difference[near] / 2 / 0.12
    torch.testing.assert_close(infos["interoception"][:, 2], 2 * fraction, atol=1e-5, rtol=0)
    left = 1 - fraction[:, None].expand(-1, 2)
    torch.testing.assert_close(infos["factors"][:, 3:], left, atol=1e-5, rtol=0)
    assert fraction.min() > 0.15


@pytest.mark.parametrize(
    ("fraction", "interoception"), [(0.0, 1.0), (0.25, 0.75), (0.9, 0.1), (1.1, 0.0)]
)
def test_damage_grows_from_the_edge_of_the_hazard_to_its_centre(fraction, interoception):
    vec_env, _ = make_env(32)
    layout = vec_env.state.layout
    inward = torch.where(layout.hazard < 0.5, 1, -1) / math.sqrt(2)
    body = layout.hazard + fraction * layout.radius[:, None] * inward
    infos = put(vec_env, body)
    for steps in range(3):  # where it rests, the damage continues
        torch.testing.assert_close(
            infos["interoception"][:, 1], torch.full((32,), interoception), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            infos["damage"], torch.full((32,), steps * interoception), atol=1e-4, rtol=0
        )
        *_, infos = vec_env.step(rest(vec_env))


def test_the_hazard_is_where_picture_and_observation_show_it():
    vec_env, _ = make_env(12)
    obs, infos = vec_env.reset(seed=5)
    centre = obs["body"][:, :2] + obs["hazard"][:, :2]
    torch.testing.assert_close(centre, vec_env.state.layout.hazard)
    put(vec_env, torch.full((12, 2), 0.5), seed=5)
    xy = vec_env.factors_to_pixels(torch.cat([centre, infos["factors"][:, 2:]], -1))
    for i, picture in enumerate(vec_env.render()):
        red, green, blue = picture.astype(float).transpose(2, 0, 1)[:, :290]
        hurts = (red > 220) & (green < 222) & (np.abs(green - blue) < 15)
        down, across = np.nonzero(hurts)
        reach = np.hypot(across - xy[i, 0].item(), down - xy[i, 1].item())
        assert np.quantile(reach, 0.99) <= 272 * obs["hazard"][i, 2] + 1
        assert len(reach) > 0.5 * math.pi * (272 * obs["hazard"][i, 2]) ** 2


def test_the_observed_offsets_lead_to_the_objects():
    vec_env, _ = make_env(20)
    for _ in range(30):
        obs, *_ = vec_env.step(vec_env.behaviour_action())
    state = vec_env.state
    torch.testing.assert_close(obs["body"], state.position)
    torch.testing.assert_close(obs["energy"], state.energy[:, None])
    torch.testing.assert_close(state.position[:, None] + obs["food"][..., :2], state.layout.food)
    assert torch.equal(obs["food"][..., 2], state.growth)
    torch.testing.assert_close(state.position + obs["flag"], state.layout.flag)
    assert torch.equal(obs["hazard"][:, 2], state.layout.radius)


def test_a_picture_shows_the_agent_where_the_factors_say_and_how_much_food_has_grown():
    vec_env = ForageVectorEnv(6)
    _, infos = vec_env.reset(seed=0)
    xy = np.round(vec_env.factors_to_pixels(infos["factors"])).astype(int)
    for (x, y), picture in zip(xy, vec_env.render(), strict=True):
        assert picture.shape == (320, 320, 3)
        assert picture.dtype == np.uint8
        red, _, blue = picture[y, x].astype(int)
        assert blue - red > 150
    green = []
    for growth in (0.0, 0.1, 0.5, 0.9, 1.0):
        put(vec_env, vec_env.state.layout.hazard, growth=growth)
        observed = np.stack(vec_env.render())[:, :290].astype(int)
        green.append(((observed[..., 1] - observed[..., 0]) > 60).sum() / 12)  # pixels of one food
    assert green[-1] == pytest.approx(math.pi * 13**2, rel=0.05)
    assert (np.diff(green) > [10, 100, 100, 10]).all()


@pytest.mark.parametrize("growth", [[0.0, 1.0], [1.0, 0.0]])
def test_a_picture_shows_each_food_as_large_as_it_has_grown(growth):
    vec_env, _ = make_env(6)
    layout = vec_env.state.layout
    factors = torch.cat([layout.hazard, torch.tensor([[0.5, *growth]]).expand(6, -1)], -1)
    vec_env.reset(seed=0, options={"factors": factors})
    xy = vec_env.factors_to_pixels(layout.food).round().int()
    for picture, positions in zip(vec_env.render(), xy, strict=True):
        green = [picture[y, x, 1] > 60 + int(picture[y, x, 0]) for x, y in positions.tolist()]
        assert green == [grown == 1 for grown in growth]


def test_the_drawn_ring_around_food_is_as_wide_as_the_reach_of_the_agent():
    vec_env, _ = make_env(24)
    layout = vec_env.state.layout
    put(vec_env, layout.hazard)
    for difference, hazy in ((0.105, True), (0.125, False)):
        position = beside(layout.food[:, 0], difference)
        single = distance(position, layout.hazard) > layout.radius + 0.01
        single &= (distance(position, layout.flag) > 0.15) & (
            distance(position, layout.food[:, 1]) > 0.13
        )
        assert single.sum() > 8
        x, y = vec_env.factors_to_pixels(position[single]).round().int().T.tolist()
        observed = np.stack(vec_env.render())[single.nonzero()[:, 0], y, x]
        assert ((observed != [250, 248, 243]).any(-1) == hazy).all()


def test_the_bar_is_as_long_as_the_energy():
    vec_env = ForageVectorEnv(1)
    for energy in (0.25, 0.75):
        put(vec_env, torch.full((1, 2), 0.5), energy=energy)
        row = vec_env.render()[0][303, 24:296].astype(int)
        coloured = (row.max(-1) - row.min(-1) > 40).mean()
        assert coloured == pytest.approx(energy, abs=0.015)


def test_the_agent_moves_by_its_action_at_most_a_step_and_slides_along_borders():
    vec_env, _ = make_env(5)
    put(vec_env, torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.98, 0.5], [0.5, 0.5], [0.0, 1.0]]))
    actions = [[0.5, -0.2], [3.0, 4.0], [0.8, 0.6], [3e38, -3e38], [-1.0, 0.0]]
    vec_env.step(torch.tensor(actions))
    half = 0.05 / math.sqrt(2)
    ends = [[0.525, 0.49], [0.53, 0.54], [1.0, 0.53], [0.5 + half, 0.5 - half], [0.0, 1.0]]
    torch.testing.assert_close(vec_env.state.position, torch.tensor(ends))


def test_the_reward_is_being_at_the_flag_whatever_the_task():
    for task in TASKS:
        vec_env, _ = make_env(2, task=task)
        flag = vec_env.state.layout.flag
        put(vec_env, torch.stack([flag[0], beside(flag, 0.1)[1]]))
        assert vec_env.step(rest(vec_env))[1].tolist() == [1, 0]
        assert vec_env.step(to_action(flag - vec_env.state.position))[1].tolist() == [1, 1]


def test_final_success_and_success_at_any_step_are_reported_apart():
    vec_env, _ = make_env(1, task="eat")
    infos = put(vec_env, torch.full((1, 2), 0.01), energy=0.51)
    successes = [(bool(infos["success"]), bool(infos["final_success"]))]
    for _ in range(2):
        *_, infos = vec_env.step(rest(vec_env))
        successes.append((bool(infos["success"]), bool(infos["final_success"])))
    assert successes == [(True, True), (True, False), (True, False)]


def test_exploring_counts_cells_and_staying_counts_steps():
    explore, _ = make_env(1, task="explore")
    put(explore, torch.tensor([[0.01, 0.5]]))
    scores = [explore.step(torch.tensor([[1.0, 0.0]]))[4]["score"].item() for _ in range(19)]
    assert scores == [min(int((0.01 + 0.05 * (k + 1)) * 6), 5) + 1 for k in range(19)]
    stay, _ = make_env(1, task="stay")
    assert put(stay, torch.tensor([[0.5, 0.5]]))["score"] == 1
    pushes = [[0.9, 0.0], [0.9, 0.0], [-0.9, 0.0], [0.0, 0.0]]
    infos = [stay.step(torch.tensor([p]))[4] for p in pushes]
    assert [t["score"].item() for t in infos] == pytest.approx([1, 0.5, 2 / 3, 0.75])
    assert [bool(t["final_success"]) for t in infos] == [True, False, True, True]


@EVERY_TASK
def test_the_oracle_is_far_better_than_random_actions(task):
    oracle, _ = mean_return(task, lambda vec_env: vec_env.expert_action())
    chance, _ = mean_return(task, at_random)
    least = {"eat": 8, "flag": 1, "explore": 36, "stay": 1}[task]
    assert oracle >= least
    assert chance < 0.25 * least


@pytest.mark.parametrize(
    ("steps", "growth", "chosen"),
    [
        ([4, 8], [1.0, 1.0], 0),  # both ripe: the nearer
        ([1, 8], [0.0, 1.0], 1),  # nothing there yet: the ripe one
        ([4, 16], [0.02, 0.03], 1),  # the food grows on the way
        ([10, 40], [0.17, 1.0], 0),  # but not beyond ripe
    ],
)
def test_the_eating_expert_goes_where_most_will_have_grown_on_arrival(steps, growth, chosen):
    vec_env, _ = make_env(1)
    side = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    layout = vec_env.state.layout._replace(food=0.05 * torch.tensor(steps)[:, None] * side)
    here = torch.zeros(1, 2)
    state = vec_env.state._replace(position=here, growth=torch.tensor([growth]), layout=layout)
    torch.testing.assert_close(expert_eat(state), side[:, chosen])


def test_the_eating_expert_seldom_goes_hungry():
    vec_env, infos = make_env(200)
    for _ in range(vec_env.max_episode_steps):
        *_, infos = vec_env.step(vec_env.expert_action())
        assert infos["interoception"][:, 0].min() > 0
    assert infos["final_success"].float().mean() > 0.95


def test_the_way_round_the_hazard_is_painless_and_the_direct_path_is_not():
    _, risk_averse = mean_return("flag", lambda vec_env: vec_env.expert_action(), 1000)
    score, careless = mean_return("flag", straight, 1000)
    assert score == 1
    assert risk_averse.max() < 0.1
    assert careless.min() > 1


def test_the_way_round_the_hazard_is_no_longer_than_the_other_way_round():
    vec_env, _ = make_env(300, task="flag")
    layout, body = vec_env.state.layout, vec_env.state.position
    arrived = torch.full((300,), 999)
    for step in range(60):
        *_, infos = vec_env.step(vec_env.expert_action())
        arrived = torch.where(infos["final_success"] & (arrived > step), step, arrived)
    direct = distance(body, layout.flag)
    quarter = math.pi / 2 * (layout.radius + 0.02)  # half the way round at the very most
    usual = arrived.float() * 0.05 <= direct + 2 * quarter - layout.radius
    assert usual.float().mean() > 0.97  # the rest has a border on the shorter side
    assert arrived.max() < 60


def test_the_behaviour_policy_goes_everywhere_and_never_faster_than_a_full_step():
    vec_env, _ = make_env(200)
    lengths = []
    for _ in range(149):
        actions = vec_env.behaviour_action()
        lengths.append(actions.norm(dim=-1))
        *_, infos = vec_env.step(actions)
    length = torch.stack(lengths)
    assert length.max() < 1.00001
    assert 0.08 < (length == 0).float().mean() < 0.2
    assert (length > 0.95).float().mean() > 0.25
    assert (length < 0.5).float().mean() > 0.25
    assert vec_env.state.record.visited.float().mean(0).min() > 0.2
    assert (infos["damage"] > 1).float().mean() > 0.6
    assert (infos["eaten"] > 1).float().mean() > 0.7


@pytest.mark.parametrize(
    ("directed_fraction", "least", "most"),
    [(0.6, 0.1, 0.25), (1.0, 0.02, 0.08)],
    ids=["usual", "directed"],
)
def test_the_behaviour_policy_touches_every_border_now_and_then(directed_fraction, least, most):
    vec_env, _ = make_env(200, directed_fraction=directed_fraction)
    pressed = []
    for _ in range(149):
        actions = vec_env.behaviour_action()
        wish = vec_env.state.position + 0.05 * actions
        pressed.append(torch.cat([wish < 0, wish > 1], -1))
        vec_env.step(actions)
    sides = torch.stack(pressed).float()  # [steps, B, 4]
    assert least < sides.amax(-1).mean() < most
    assert sides.mean((0, 1)).min() > least / 5
    assert sides.amax((0, 2)).mean() > 0.4


def test_only_directed_exploration_leads_to_the_centre_of_the_hazard():
    deep = []
    for directed_fraction in (0.0, 1.0):
        vec_env, _ = make_env(200, directed_fraction=directed_fraction)
        for _ in range(100):
            *_, infos = vec_env.step(vec_env.behaviour_action())
            deep.append((infos["interoception"][:, 1] > 0.9).float().mean())
    assert sum(deep[100:]) > 5 * sum(deep[:100])


def test_the_dynamics_tests_distinguish_a_border_from_open_space():
    vec_env = ForageVectorEnv(1, split="test")
    border, free = (vec_env.dynamics_tests(seed=4)[name] for name in ("border", "open"))
    space = gymnasium.vector.utils.batch_space(vec_env.single_observation_space, 64)
    assert space.contains(border.obs)
    assert border.actions.shape == (64, 5, 2)
    moved = {
        n: (e.end_factors - e.start_factors)[:, 0] for n, e in (("border", border), ("open", free))
    }
    assert moved["border"].min() >= 0.2 * 0.05 - 1e-6
    assert moved["border"].max() <= 2 * 0.05 + 1e-6
    np.testing.assert_allclose(border.end_factors[:, 0], 1)
    np.testing.assert_allclose(moved["open"], 0.25, rtol=1e-5)
    np.testing.assert_array_equal(border.obs["body"], border.start_factors[:, :2])
    np.testing.assert_array_equal(
        border.obs["flag"], vec_env.dynamics_tests(seed=4)["border"].obs["flag"]
    )


def test_observations_stay_in_their_space():
    vec_env = ForageVectorEnv(32, max_episode_steps=60)
    for step in collect_data(vec_env, 130, 0, lambda step: noise(step, 0, 32)):
        assert vec_env.observation_space.contains({name: step[name] for name in SPACES})
        assert step["interoception"].dtype == np.float32
        assert step["score"].dtype == np.float32


SPACES = ("body", "energy", "food", "hazard", "flag")


def test_episodes_end_at_the_time_limit_and_interoception_starts_anew():
    vec_env, _ = make_env(3, max_episode_steps=4)
    ends = []
    for _ in range(10):
        obs, _, terminated, truncated, infos = vec_env.step(vec_env.expert_action())
        ends.append(truncated.all().item())
        assert not terminated.any()
        if len(ends) == 5:
            torch.testing.assert_close(infos["interoception"][:, 0], obs["energy"][:, 0])
            assert infos["interoception"][:, 0].min() >= 0.3
            assert not infos["interoception"][:, 2].any()
            assert not infos["eaten"].any()
            assert (infos["cells"] == 1).all()
    assert ends == [False, False, False, True, False] * 2


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("task", ["eat", "stay"])
def test_gymnasium_accepts_the_env(task):
    made = gymnasium.make("ami/Forage-v0", task=task, render_mode="rgb_array").unwrapped
    check_env(made)
    assert isinstance(made, ForageEnv)
    assert made.interoception_names == ("energy", "damage", "meal")
    assert made.factor_names == ("body x", "body y", "energy", "food 1", "food 2")
    shapes = {name: np.shape(part) for name, part in dict(made.reset(seed=0)[0]).items()}
    assert shapes == {"body": (2,), "energy": (1,), "food": (2, 3), "hazard": (3,), "flag": (2,)}


@pytest.mark.parametrize("mode", [None, "sync", "vector_entry_point"])
def test_gymnasium_makes_the_same_envs_by_every_function(mode):
    vec_env = gymnasium.make_vec("ami/Forage-v0", num_envs=3, vectorization_mode=mode, split="test")
    obs, infos = vec_env.reset(seed=8)
    own, own_infos = gymnasium.make("ami/Forage-v0", split="test").reset(seed=10)
    for name in own:
        np.testing.assert_array_equal(obs[name][2], own[name])
    np.testing.assert_array_equal(infos["interoception"][2], own_infos["interoception"])
    assert infos["_score"].all()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"task": "sing"}, "eat, flag, explore, stay"),
        ({"split": "some"}, "train"),
        ({"output": "jax"}, "torch"),
        ({"max_episode_steps": 0}, "max_episode_steps"),
        ({"directed_fraction": 1.5}, "directed_fraction"),
        ({"num_envs": 0}, "num_envs"),
    ],
)
def test_unusable_settings_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        ForageVectorEnv(**settings)


@pytest.mark.parametrize("wrong", [1.2, -0.1, math.nan])
def test_unusable_factors_are_refused_by_name_and_env(wrong):
    vec_env, infos = make_env(3)
    factors = infos["factors"].clone()
    with pytest.raises(ValueError, match=r"factors has shape \[2, 5\]; it must be \[3, 5\]"):
        vec_env.reset(options={"factors": factors[:2]})
    factors[1, 4] = wrong
    with pytest.raises(ValueError, match="environment 1"):
        vec_env.reset(options={"factors": factors})


def test_an_episode_restored_from_its_factors_has_the_same_state_and_layout():
    vec_env, _ = make_env(4)
    for _ in range(20):
        obs, *_, infos = vec_env.step(vec_env.behaviour_action())
    again, _ = vec_env.reset(seed=0, options={"factors": infos["factors"]})
    for name in obs:
        torch.testing.assert_close(obs[name], again[name])


def test_writing_into_returned_infos_does_not_change_the_env():
    vec_env = ForageVectorEnv(2)
    obs, infos = vec_env.reset(seed=0)
    assert isinstance(obs, dict)
    kept = {name: part.copy() for name, part in {**obs, **infos}.items()}
    for _ in range(5):
        vec_env.step(vec_env.expert_action())
    for name, part in {**obs, **infos}.items():
        np.testing.assert_array_equal(part, kept[name], err_msg=name)


def test_the_hazard_stays_in_the_arena_where_the_path_runs_along_a_border():
    start, flag = torch.tensor([[0.05, 0.05]]), torch.tensor([[0.05, 0.95]])
    for aside in (0.0, 0.999):
        hazard, radius = sample_hazard(torch.tensor([[1.0, 0.5, aside]]), start, flag)
        torch.testing.assert_close(hazard, torch.tensor([[0.15, 0.5]]), atol=1e-3, rtol=0)
        torch.testing.assert_close(radius, torch.tensor([0.2]))


def test_directed_exploration_leads_everywhere_and_to_food_twice_as_often():
    sampled, u = layouts(8000), uniform(keys_from_seeds(range(8000), CPU), 4)[0]
    target = sample_target(sampled, u)
    at_food = distance(sampled.food, target[:, None]) == 0
    fractions = [*at_food.float().mean(0).tolist()]
    fractions += [(distance(p, target) == 0).float().mean() for p in (sampled.flag, sampled.hazard)]
    assert fractions == pytest.approx([1 / 5] * 4, abs=0.02)
    known = torch.cat([sampled.food, sampled.flag[:, None], sampled.hazard[:, None]], 1)
    anywhere = target[(distance(known, target[:, None]) > 0).all(-1)]
    assert len(anywhere) / 8000 == pytest.approx(1 / 5, abs=0.02)
    for side in (0, 1):
        low, middle, high = anywhere[:, side].quantile(torch.tensor([0.0, 0.5, 1.0])).tolist()
        assert (low, middle, high) == pytest.approx((-0.6, 0.5, 1.6), abs=0.05)
        assert min(low + 0.6, 1.6 - high) > 0


def test_the_exploring_expert_begins_in_the_nearest_corner():
    vec_env, _ = make_env(60, task="explore")
    corner = (vec_env.state.layout.start > 0.5).float()
    state = vec_env.state._replace(record=blank(vec_env.state.record))
    for _ in range(30):
        state = state._replace(position=move(state.position, expert_explore(state)))
    middle = (corner * 5 + 0.5) / 6
    torch.testing.assert_close(state.position, middle)


def blank(record):
    return record._replace(visited=torch.zeros_like(record.visited, dtype=torch.bool))


@pytest.mark.parametrize(("difference", "there"), [(0.0599, True), (0.0601, False)])
def test_the_flag_is_reached_within_its_ring(difference, there):
    vec_env, _ = make_env(16, task="flag")
    flag = vec_env.state.layout.flag
    infos = put(vec_env, beside(flag, difference))
    assert (infos["final_success"] == there).all()


def test_exploring_succeeds_with_29_cells():
    vec_env, _ = make_env(32, task="explore")
    for _ in range(vec_env.max_episode_steps):
        *_, infos = vec_env.step(vec_env.expert_action())
        assert ((infos["cells"] >= 29) == infos["final_success"]).all()


def test_the_picture_frames_the_arena():
    vec_env, _ = make_env(1)
    corners = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    (left, top), (right, bottom) = vec_env.factors_to_pixels(corners).round().int().tolist()
    picture = vec_env.render()[0][:290]
    dark = (picture < 100).all(-1)
    rows, columns = dark.mean(1) > 0.8, dark.mean(0) > 0.8
    for line, first, last in ((rows, top, bottom), (columns, left, right)):
        where = np.flatnonzero(line)
        assert abs(where.min() - first) <= 3
        assert abs(where.max() - last) <= 3
