"""Windy rooms."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from scipy import stats

from envs.windy_rooms import (
    PIT_LAYOUTS,
    Box,
    WindyRoomsEnv,
    WindyRoomsVectorEnv,
    expert_action,
    move_and_fall,
    sample_pit,
)

CPU = torch.device("cpu")
ROOM = (0.17, 0.5)  # in the middle of the left room, where no gust leads into anything
EVERY_LAYOUT = pytest.mark.parametrize("layout", range(4))


def make_env(count=1, **settings):
    """Environments with tensors as output, at the beginning of seed 0."""
    vec_env = WindyRoomsVectorEnv(count, output="torch", **settings)
    return vec_env, vec_env.reset(seed=0)[1]


def put(vec_env, body, goal=(0.9, 0.9)):
    """The environments with agents and goals where the test puts them."""
    target = {"factors": body, "goal_factors": goal}
    shape = (vec_env.num_envs, 2)
    options = {name: torch.as_tensor(position).expand(shape) for name, position in target.items()}
    return vec_env.reset(seed=0, options=options)[1]


def rest(vec_env):
    return torch.zeros(vec_env.num_envs, 2)


def noise(step, start, count):
    rng = [np.random.default_rng((step // 5, start + i)) for i in range(count)]
    return np.stack([r.uniform(-1.5, 1.5, 2) for r in rng]).astype(np.float32)


def collect_data(vec_env, steps, seed, act):
    """Observations, infos and actions over some steps."""
    obs, infos = vec_env.reset(seed=seed)
    text_out = [{"obs": obs, **infos}]
    for step in range(steps):
        actions = act(step)
        obs, reward, _, truncated, infos = vec_env.step(actions)
        ends = {"reward": reward, "truncated": truncated, "actions": actions}
        text_out.append({"obs": obs, **infos, **ends})
    return text_out


def mean_return(act, count=500, **settings):
    """The infos at the end of an episode."""
    vec_env, infos = make_env(count, **settings)
    for _ in range(vec_env.max_episode_steps):
        *_, infos = vec_env.step(act(vec_env))
    return infos


def ignore_hazards(vec_env):
    """The shorter way, at the pit's very border."""
    return expert_action(vec_env.pit, vec_env.state.position, vec_env.state.goal, gap=0.01)


def gap_to(pit, position):
    """Positions [..., 2] -> their distance to the pit [...]."""
    return torch.maximum(pit.low - position, position - pit.high).clamp(min=0).norm(dim=-1)


@pytest.mark.parametrize("obs_type", ["state", "image"])
@pytest.mark.parametrize("label", ["noise", "walk", "oracle"])
def test_an_env_gives_the_same_episode_alone_and_in_a_batch(label, obs_type):
    many, single = (WindyRoomsVectorEnv(n, obs_type=obs_type, max_episode_steps=40) for n in (5, 1))
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
    vec_env = WindyRoomsVectorEnv(4)
    first, again, other = (
        np.stack(
            [
                t["factors"]
                for t in collect_data(vec_env, 100, seed, lambda _: vec_env.behaviour_action())
            ]
        )
        for seed in (1, 1, 2**40)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max(axis=(0, 2)).min() > 0.05


def test_episodes_end_at_the_time_limit_and_fallen_agents_start_anew():
    vec_env, _ = make_env(3, max_episode_steps=4)
    born = [put(vec_env, vec_env.pit.low + 0.05)]
    ends = []
    for _ in range(10):
        _, reward, terminated, truncated, infos = vec_env.step(rest(vec_env))
        assert not terminated.any()
        ends.append(truncated.all().item())
        if len(ends) in (5, 10):
            born.append(infos)
            assert not reward.any()
    assert ends == [False, False, False, True, False] * 2
    assert [text_out["fallen"].tolist() for text_out in born] == [
        [True] * 3,
        [False] * 3,
        [False] * 3,
    ]
    assert (born[1]["goal_factors"] != born[2]["goal_factors"]).all()
    assert WindyRoomsVectorEnv().max_episode_steps == 60


@pytest.mark.parametrize("wind", [0.0, 1.0])
def test_in_the_pit_mobility_is_a_fraction_of_a_step_and_no_gust_helps(wind):
    vec_env, _ = make_env(1, pit_mobility=0.1, gust_prob=wind)
    left = vec_env.pit.low[0]
    put(vec_env, torch.stack([left + 0.0125, torch.tensor(0.5)]))
    observed = [vec_env.step(torch.tensor([[-1.0, 0.0]]))[-1] for _ in range(2)]
    at = [infos["factors"][0, 0].item() - left.item() for infos in observed]
    assert at == pytest.approx([0.0075, 0.0025], abs=1e-6)
    assert all(infos["fallen"] for infos in observed)
    if not wind:
        assert not vec_env.step(torch.tensor([[-1.0, 0.0]]))[-1]["fallen"]


@pytest.mark.parametrize("count", [1000])
def test_pits_differ_and_leave_wide_passages(count):
    pits = [sample_pit(layout, CPU) for layout in range(count)]
    low, high = torch.stack([p.low for p in pits]), torch.stack([p.high for p in pits])
    sampled = torch.cat([high - low, (low + high) / 2], -1)
    bounds = ((0.16, 0.24), (0.40, 0.50), (0.47, 0.53), (0.44, 0.56))
    for side, (least, most) in zip(sampled.T.numpy(), bounds, strict=True):
        assert stats.kstest(side, "uniform", (least, most - least)).pvalue > 1e-3
    assert torch.minimum(low, 1 - high).min() >= 0.19 - 1e-6
    assert make_env(2, layout_seed=7)[0].pit.low.tolist() == pits[7].low.tolist()


@EVERY_LAYOUT
def test_start_and_goal_are_in_different_rooms_away_from_pit_and_walls(layout):
    vec_env, infos = make_env(2000, layout_seed=layout)
    start, goal, pit = infos["factors"], infos["goal_factors"], vec_env.pit
    right = start[:, 0] > 0.5
    for position, difference, side in ((start, 0.05, right), (goal, 0.12, ~right)):
        beside = torch.where(side, position[:, 0] - pit.high[0], pit.low[0] - position[:, 0])
        assert beside.min() > difference - 1e-6
        assert torch.minimum(position, 1 - position).min() > 0.05 - 1e-6
        for here, low, high in (
            (position[side], [pit.high[0] + difference, 0.05], [0.95, 0.95]),
            (position[~side], [0.05, 0.05], [pit.low[0] - difference, 0.95]),
        ):
            fraction = (here - torch.tensor(low)) / (torch.tensor(high) - torch.tensor(low))
            assert all(stats.kstest(s.numpy(), "uniform").pvalue > 1e-3 for s in fraction.T)
    assert right.float().mean() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2000))
    assert not infos["fallen"].any()
    assert not infos["success"].any()


def test_random_starts_are_uniform_over_the_floor():
    vec_env, infos = make_env(20000, start_region="anywhere")
    pit, start = vec_env.pit, infos["factors"]
    assert not infos["fallen"].any()
    grid = (torch.arange(400) + 0.5) / 400
    floor = torch.cartesian_prod(grid, grid)
    floor = floor[~pit.contains(floor)]
    expected, observed = (
        np.histogramdd(p.numpy(), bins=6, range=((0, 1), (0, 1)))[0].flatten()
        for p in (floor, start)
    )
    assert stats.chisquare(observed, expected * len(start) / len(floor)).pvalue > 1e-3
    other = infos["goal_factors"][:, 0] > 0.5
    assert ((start[:, 0] < (pit.low + pit.high)[0] / 2) == other).all()


def test_the_agent_moves_by_its_action_at_most_a_step_and_walls_stop_it():
    vec_env, _ = make_env(5, gust_prob=0.0)
    put(vec_env, torch.tensor([[0.2, 0.5], [0.2, 0.5], [0.98, 0.5], [0.2, 0.5], [0.0, 1.0]]))
    vec_env.step(torch.tensor([[0.5, -0.2], [3.0, 4.0], [0.8, 0.6], [3e38, -3e38], [-1.0, 0.0]]))
    half = 0.05 / math.sqrt(2)
    ends = [[0.225, 0.49], [0.23, 0.54], [1.0, 0.53], [0.2 + half, 0.5 - half], [0.0, 1.0]]
    torch.testing.assert_close(vec_env.state.position, torch.tensor(ends))


@EVERY_LAYOUT
def test_no_step_jumps_over_the_pit_or_a_corner_of_it(layout):
    """Ways of the longest gust from about the pit, each checked at 2000 points."""
    pit, rng = sample_pit(layout, CPU), torch.Generator().manual_seed(layout)
    body = pit.low - 0.15 + torch.rand(3000, 2, generator=rng) * (pit.high - pit.low + 0.3)
    body = body[~pit.contains(body)]
    angle = 2 * math.pi * torch.rand(len(body), generator=rng)
    move = 0.15 * torch.stack([angle.cos(), angle.sin()], -1)
    path = body + torch.linspace(0, 1, 2001)[:, None, None] * move
    inside = pit.contains(path)
    crosses = inside.any(0)
    end = move_and_fall(pit, body, move)
    grazes = crosses != pit.contains(end)
    assert grazes.float().mean() < 2e-3
    passes = ~crosses & ~grazes
    torch.testing.assert_close(end[passes], (body + move).clamp(0, 1)[passes])
    corner = crosses & ~inside[-1]
    assert corner.sum() > 30
    assert pit.contains(end[corner & ~grazes]).all()
    entry = path[inside.int().argmax(0), torch.arange(len(body))][crosses]
    inner = pit.expanded(-0.02)
    within = torch.minimum(torch.maximum(entry, inner.low), inner.high)
    torch.testing.assert_close(end[crosses], within, atol=2e-4, rtol=0)


def test_the_pit_is_a_trap():
    vec_env, _ = make_env(64, gust_prob=1.0, gust_length=0.15)
    beside = torch.stack([vec_env.pit.low[0] - 0.03, vec_env.pit.low[1] + 0.2])
    put(vec_env, beside)
    right = torch.tensor([1.0, 0.0]).expand(64, 2)
    _, reward, terminated, _, infos = vec_env.step(right)
    assert infos["fallen"].all()
    lies = infos["factors"]
    torch.testing.assert_close(lies, (beside + torch.tensor([0.05, 0])).expand(64, 2))
    for step in range(58):
        _, reward, terminated, truncated, infos = vec_env.step(torch.tensor(noise(step, 0, 64)))
        assert torch.equal(infos["factors"], lies)
        assert infos["fallen"].all()
        assert (infos["interoception"] == 1).all()
        assert not terminated.any()
        assert not truncated.any()
        assert not reward.any()


def test_an_agent_at_the_border_of_the_pit_does_not_move():
    vec_env, _ = make_env(4, gust_prob=1.0)
    position = torch.stack([vec_env.pit.low[0] + 0.005, vec_env.pit.high[1] - 0.005])
    put(vec_env, position)
    for _ in range(5):
        *_, infos = vec_env.step(torch.tensor([-1.0, 1.0]).expand(4, 2))
        assert torch.equal(infos["factors"], position.expand(4, 2))


def test_a_gust_has_its_probability_and_mean_zero():
    count, wind, gust = 20000, 0.2, 0.1
    vec_env, _ = make_env(count)
    put(vec_env, ROOM)
    steps = []
    for _ in range(2):
        before = vec_env.state.position
        steps.append(vec_env.step(rest(vec_env))[4]["factors"] - before)
        vec_env._state = vec_env.state._replace(position=before)
    for way in steps:
        length = way.norm(dim=-1)
        blown = length > 0
        sigma = math.sqrt(wind * (1 - wind) / count)
        assert blown.float().mean() == pytest.approx(wind, abs=4 * sigma)
        torch.testing.assert_close(length[blown], torch.full_like(length[blown], gust))
        assert way.mean(0).abs().max() < 4 * gust * math.sqrt(wind / 2 / count)
        turn = torch.atan2(way[blown, 1], way[blown, 0]).numpy()
        assert stats.kstest(turn, "uniform", (-math.pi, 2 * math.pi)).pvalue > 1e-3
    both = [(way != 0).any(-1).float() for way in steps]
    together = (both[0] * both[1]).mean().item()
    assert together == pytest.approx(wind**2, abs=4 * wind / math.sqrt(count))


@pytest.mark.parametrize(("wind", "fraction"), [(0.0, 0.0), (1.0, 1.0)])
def test_gusts_of_probability_zero_and_one(wind, fraction):
    vec_env, _ = make_env(500, gust_prob=wind)
    put(vec_env, ROOM)
    *_, infos = vec_env.step(rest(vec_env))
    moved_at_all = (infos["factors"] != torch.tensor(ROOM)).any(-1)
    assert moved_at_all.float().mean() == fraction


def test_the_wind_does_not_depend_on_the_agents_actions():
    """After a fall it goes on, so that no action shifts the random numbers of others."""
    left, right = (make_env(300, gust_prob=0.5)[0] for _ in range(2))
    put(left, ROOM), put(right, ROOM)
    push = torch.tensor([1.0, 0.0]).expand(300, 2)
    ends = [w.step(a)[4]["factors"] for w, a in ((left, rest(left)), (right, push))]
    torch.testing.assert_close(ends[1] - ends[0], 0.05 * push, atol=1e-6, rtol=0)
    for _ in range(40):
        left.step(rest(left))
        right.step(push)
    assert right.state.fallen.float().mean() > 0.4
    assert left.state.fallen.float().mean() < right.state.fallen.float().mean()
    assert torch.equal(left.state.wind_key, right.state.wind_key)
    middle = torch.tensor(ROOM).expand(300, 2)
    for vec_env in (left, right):
        vec_env._state = vec_env.state._replace(position=middle, fallen=torch.zeros(300).bool())
        vec_env.step(rest(vec_env))
    assert torch.equal(left.state.position, right.state.position)
    assert (left.state.position != middle).any()


def test_after_a_fall_by_its_own_step_no_gust_moves_the_agent():
    vec_env, _ = make_env(200, gust_prob=1.0)
    pit = vec_env.pit
    put(vec_env, torch.stack([pit.low[0] - 0.04, pit.low[1] + 0.15]))
    vec_env.step(torch.tensor([1.0, 0.0]).expand(200, 2))
    torch.testing.assert_close(vec_env.state.position[:, 0], (pit.low[0] + 0.02).expand(200))
    assert vec_env.state.position[:, 1].std() < 1e-6


def test_success_is_kept_and_final_success_is_not():
    vec_env, _ = make_env(1, gust_prob=0.0)
    infos = put(vec_env, (0.1, 0.145), goal=(0.1, 0.2))
    text_out = [(0.0, infos["success"].item(), infos["final_success"].item())]
    for _ in range(3):
        _, reward, *_, infos = vec_env.step(torch.tensor([[0.0, 1.0]]))
        text_out.append((reward.item(), infos["success"].item(), infos["final_success"].item()))
    assert text_out == [(0, True, True), (1, True, True), (1, True, True), (0, True, False)]
    infos = put(vec_env, (0.1, 0.139), goal=(0.1, 0.2))
    assert not infos["success"].item()


def test_a_fallen_agent_does_not_arrive():
    vec_env, _ = make_env(1, gust_prob=0.0)
    goal = torch.stack([vec_env.pit.low[0] - 0.01, vec_env.pit.low[1] + 0.1])
    infos = put(vec_env, goal + torch.tensor([0.03, 0.0]), goal)
    assert infos["distance"].item() == pytest.approx(0.03, abs=1e-6)
    assert infos["fallen"].item()
    assert not infos["success"].item()


@EVERY_LAYOUT
def test_the_oracle_arrives_and_a_policy_along_the_pit_falls(layout):
    oracle = mean_return(lambda vec_env: vec_env.expert_action(), layout_seed=layout)
    assert oracle["success"].float().mean() >= 0.97
    assert oracle["fallen"].float().mean() <= 0.03
    calm = mean_return(ignore_hazards, gust_prob=0.0, layout_seed=layout)
    assert calm["success"].all()
    assert not calm["fallen"].any()


def test_avoiding_the_wind_is_worth_30_points_of_success():
    risk_averse, risk_neutral = (
        torch.cat([mean_return(act, layout_seed=layout)["success"].float() for layout in range(4)])
        for act in (lambda vec_env: vec_env.expert_action(), ignore_hazards)
    )
    assert risk_averse.mean() - risk_neutral.mean() >= 0.3


def test_a_ledge_is_narrower_than_a_gust_and_separates_start_and_goal():
    pits = [sample_pit(layout, CPU, PIT_LAYOUTS["ledge"]) for layout in range(1000)]
    top, bottom = (torch.stack([side[1] for side in sides]) for sides in zip(*pits, strict=True))
    assert top.min() > 0.05 - 1e-6
    assert top.max() < 0.07 + 1e-6 < 0.1
    assert bottom.max() < 1 - 2 * 0.19
    vec_env, infos = make_env(2000, pit_layout="ledge", layout_seed=3)
    assert torch.equal(vec_env.pit.low, pits[3].low)
    start, goal = infos["factors"], infos["goal_factors"]
    assert (((start - 0.5) * (goal - 0.5))[:, 0] < 0).all()
    for height in (start[:, 1], goal[:, 1]):
        assert stats.kstest(height.numpy(), "uniform", (0.05, 0.1)).pvalue > 1e-3


@EVERY_LAYOUT
@pytest.mark.parametrize("wind", [0.0, 0.1])
def test_a_ledge_is_the_short_and_risky_way_that_the_oracle_does_not_take(layout, wind):
    fell, steps = {}, {}
    for label, act in (
        ("oracle", lambda vec_env: vec_env.expert_action()),
        ("careless", ignore_hazards),
    ):
        vec_env, infos = make_env(500, pit_layout="ledge", layout_seed=layout, gust_prob=wind)
        first, above = torch.full((500,), math.nan), torch.zeros(500).bool()
        for step in range(60):
            *_, infos = vec_env.step(act(vec_env))
            new = infos["final_success"] & first.isnan()
            first = torch.where(new, torch.tensor(step + 1.0), first)
            x, y = infos["factors"].unbind(-1)
            above |= ((x - 0.5).abs() < 0.05) & (y < vec_env.pit.low[1])
        fell[label], steps[label] = infos["fallen"].float().mean().item(), first.nanmean().item()
        fraction = above.float().mean()
        assert fraction > 0.8 if label == "careless" else fraction < 0.01
    assert fell["oracle"] <= 0.01
    assert fell["careless"] == 0 if not wind else 0.15 < fell["careless"] < 0.3
    assert steps["oracle"] - steps["careless"] > 6


def test_from_the_ledge_the_oracle_leaves_it():
    """By the nearest way that leads anywhere, which the wall beside it does not."""
    vec_env, _ = make_env(4, pit_layout="ledge", gust_prob=0.0)
    (left, _), (right, _) = vec_env.pit.low.tolist(), vec_env.pit.high.tolist()
    across = torch.linspace(left + 0.01, right - 0.01, 4)
    put(vec_env, torch.stack([across, torch.tensor([0.0, 0.02, 0.03, 0.05])], -1), goal=(0.9, 0.1))
    for _ in range(60):
        *_, infos = vec_env.step(vec_env.expert_action())
    assert infos["success"].all()
    assert not infos["fallen"].any()


@EVERY_LAYOUT
def test_without_wind_the_oracle_keeps_clear_of_the_pit(layout):
    vec_env, infos = make_env(500, layout_seed=layout, gust_prob=0.0)
    for _ in range(60):
        before = gap_to(vec_env.pit, infos["factors"])
        *_, infos = vec_env.step(vec_env.expert_action())
        after = gap_to(vec_env.pit, infos["factors"])
        assert (after >= torch.minimum(before, torch.tensor(0.12 - 2e-3))).all()
    assert infos["final_success"].all()


@EVERY_LAYOUT
def test_the_oracle_takes_the_shorter_way_round(layout):
    vec_env, infos = make_env(500, layout_seed=layout, gust_prob=0.0)
    start, goal = infos["factors"], infos["goal_factors"]
    zone, arrived, above = (
        vec_env.pit.expanded(0.12),
        torch.full((500,), 99),
        torch.zeros(500).bool(),
    )
    for step in range(60):
        *_, infos = vec_env.step(vec_env.expert_action())
        x, y = infos["factors"].unbind(-1)
        above |= ((x - 0.5).abs() < 0.05) & (y < vec_env.pit.low[1])
        arrived = torch.where(infos["final_success"] & (arrived > step), step + 1, arrived)
    leftward = start[:, :1] > goal[:, :1]
    left, right = torch.where(leftward, goal, start), torch.where(leftward, start, goal)
    ways = []
    for height in (zone.low[1], zone.high[1]):
        one, other = (torch.stack([side, height]) for side in (zone.low[0], zone.high[0]))
        onward = (other - one).norm() + (right - other).norm(dim=-1)
        ways.append((left - one).norm(dim=-1) + onward)
    differ = (ways[0] - ways[1]).abs() > 0.15
    assert differ.sum() > 250
    assert (above == (ways[0] < ways[1]))[differ].all()
    # Two bends and leaving the pit's side cost a part of a step each, and that a little way too.
    assert (0.05 * arrived <= torch.minimum(*ways) + 0.17).all()


def test_the_behaviour_policy_goes_everywhere_at_every_speed_and_sometimes_falls():
    vec_env, _ = make_env(500, start_region="anywhere")
    lengths, observed = [], []
    for _ in range(60):
        actions = vec_env.behaviour_action()
        lengths.append(actions.norm(dim=-1))
        observed.append(vec_env.step(actions)[4]["factors"])
    length, positions = torch.stack(lengths), torch.cat(observed)
    assert length.max() < 1.00001
    assert (length == 0).float().mean() == pytest.approx(0.1, abs=0.01)
    assert (length > 0.95).float().mean() > 0.25
    assert (length < 0.5).float().mean() > 0.25
    free = positions[~vec_env.pit.contains(positions)]
    counts = np.histogramdd(free.numpy(), bins=5, range=((0, 1), (0, 1)))[0]
    edges = np.delete(counts.flatten(), [11, 12, 13])  # all but the pit
    assert edges.min() > 0.25 * edges.mean()
    assert 0.25 < vec_env.state.fallen.float().mean() < 0.6


def test_the_heading_of_the_behaviour_policy_drifts():
    vec_env, _ = make_env(500, gust_prob=0.0)
    actions = torch.stack([vec_env.behaviour_action() for _ in range(30)])
    turn = torch.nn.functional.cosine_similarity
    moving = actions.norm(dim=-1) > 0
    for lag in (1, 5, 20):
        both = moving[:-lag] & moving[lag:]
        alike = turn(actions[:-lag], actions[lag:], -1)[both].mean()
        assert alike == pytest.approx(0.893**lag, abs=0.04)  # von Mises noise of kappa 5


def test_the_dynamics_tests_have_no_wind_and_no_falls():
    for layout in range(20):
        vec_env = WindyRoomsVectorEnv(1, gust_prob=1.0, layout_seed=layout, obs_type="image")
        requested = vec_env.dynamics_tests(seed=4)
        assert list(requested) == ["open", "edge"]
        for name, test in requested.items():
            assert test.actions.shape == (64, 5, 2)
            assert test.obs.shape == (64, 2, 32, 32)
            np.testing.assert_allclose(
                test.end_factors - test.start_factors, [[0.25, 0]] * 64, atol=1e-6
            )
            path = test.start_factors[:, None] + np.linspace(0, 1, 50)[:, None] * [0.25, 0]
            difference = gap_to(vec_env.pit, torch.tensor(path).float()).amin(-1)
            least, most = {"open": (0.04, 1), "edge": (0.01, 0.05)}[name]
            assert difference.min() >= least
            assert difference.max() <= most
            assert (path >= 0.04).all()
            assert (path <= 0.96).all()
        again, other = (
            vec_env.dynamics_tests(seed=4)["edge"],
            vec_env.dynamics_tests(seed=99)["edge"],
        )
        np.testing.assert_array_equal(again.obs, requested["edge"].obs)
        assert (other.start_factors != again.start_factors).any()


def test_the_state_is_the_position_from_minus_one_to_one():
    vec_env = WindyRoomsVectorEnv(30)
    obs, infos = vec_env.reset(seed=0)
    np.testing.assert_allclose(infos["goal"], 2 * infos["goal_factors"] - 1, atol=1e-6)
    for step in range(60):
        assert vec_env.observation_space.contains(obs)
        np.testing.assert_allclose(obs, 2 * infos["factors"] - 1, atol=1e-6)
        obs, *_, infos = vec_env.step(noise(step, 0, 30))


def test_the_image_shows_agent_and_pit_where_the_factors_say():
    vec_env = WindyRoomsVectorEnv(30, obs_type="image", layout_seed=3)
    low, high = (side.numpy() for side in vec_env.pit)
    obs, infos = vec_env.reset(seed=1)
    for step in range(30):
        assert vec_env.observation_space.contains(obs)
        bright = obs[:, 0].reshape(30, -1).argmax(-1)
        observed = np.stack([bright % 32, bright // 32], -1)
        assert np.abs((observed - 1) / 29 - infos["factors"]).max() <= 0.51 / 29
        down, across = np.nonzero(obs[0, 1])
        assert (obs[:, 1] == obs[0, 1]).all()
        assert set(np.unique(obs[:, 1])) == {0, 255}
        assert np.abs((np.array([across.min(), down.min()]) - 1) / 29 - low).max() <= 1 / 29
        assert np.abs((np.array([across.max(), down.max()]) - 1) / 29 - high).max() <= 1 / 29
        obs, *_, infos = vec_env.step(noise(step, 0, 30))


def test_the_goal_image_is_the_observation_on_arrival():
    vec_env = WindyRoomsVectorEnv(4, obs_type="image")
    _, infos = vec_env.reset(seed=2)
    obs, _ = vec_env.reset(seed=2, options={"factors": infos["goal_factors"]})
    np.testing.assert_array_equal(obs, infos["goal"])


def test_a_picture_shows_agent_goal_pit_and_walls_where_the_factors_say():
    vec_env = WindyRoomsVectorEnv(6, layout_seed=2)
    _, infos = vec_env.reset(seed=0)
    body, goal = (vec_env.factors_to_pixels(infos[name]) for name in ("factors", "goal_factors"))
    low, high = (vec_env.factors_to_pixels(side) for side in vec_env.pit)
    for i, picture in enumerate(vec_env.render()):
        assert picture.shape == (320, 320, 3)
        assert picture.dtype == np.uint8
        dark = picture.max(-1) < 40
        down, across = np.nonzero(dark)
        assert [across.min(), down.min()] == pytest.approx(low.tolist(), abs=1.5)
        assert [across.max(), down.max()] == pytest.approx(high.tolist(), abs=1.5)
        assert dark[down.min() : down.max() + 1, across.min() : across.max() + 1].mean() > 0.98
        x, y = body[i].round().astype(int)
        assert int(picture[y, x, 2]) - picture[y, x, 0] > 150
        green = (picture[..., 1].astype(int) - picture[..., 0]) > 100
        green &= picture[..., 2] < 150
        down, across = np.nonzero(green)
        reach = np.hypot(across - goal[i, 0], down - goal[i, 1])
        assert np.quantile(reach, [0.05, 0.95]) == pytest.approx([18, 18], abs=2)
        wall = (picture == [45, 50, 60]).all(-1)
        lines = np.flatnonzero(wall.mean(0) > 0.9)
        assert (lines.min(), lines.max()) == pytest.approx((8, 311), abs=2)
        assert (wall.T.mean(0) > 0.9).sum() == len(lines) == 6


def test_torch_and_numpy_give_the_same_numbers():
    text_out = {}
    for output in ("numpy", "torch"):
        vec_env = WindyRoomsVectorEnv(2, output=output)
        obs, infos = vec_env.reset(seed=5)
        text_out[output] = (
            obs,
            infos["fallen"],
            vec_env.expert_action(),
            *vec_env.step(vec_env.behaviour_action())[:4],
        )
    for tensor, array in zip(text_out["torch"], text_out["numpy"], strict=True):
        assert isinstance(tensor, torch.Tensor)
        assert tensor.numpy().dtype == array.dtype
        np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("obs_type", ["state", "image"])
def test_gymnasium_accepts_the_env(obs_type):
    made = gymnasium.make("ami/WindyRooms-v0", obs_type=obs_type, render_mode="rgb_array").unwrapped
    check_env(made)
    assert isinstance(made, WindyRoomsEnv)
    assert made.factor_names == ("body x", "body y")
    assert made.interoception_names == ("fallen",)
    _, infos = made.reset(seed=0)
    assert infos["interoception"].tolist() == [0]
    assert infos["interoception"].dtype == np.float32
    assert infos["fallen"] is False


@pytest.mark.parametrize("mode", [None, "sync", "vector_entry_point"])
def test_gymnasium_makes_the_same_envs_by_every_function(mode):
    vec_env = gymnasium.make_vec(
        "ami/WindyRooms-v0", num_envs=3, vectorization_mode=mode, layout_seed=5
    )
    obs, infos = vec_env.reset(seed=8)
    own, own_infos = gymnasium.make("ami/WindyRooms-v0", layout_seed=5).reset(seed=10)
    np.testing.assert_array_equal(obs[2], own)
    for name in ("goal", "interoception", "distance"):
        np.testing.assert_array_equal(infos[name][2], own_infos[name])
    assert infos["_fallen"].all()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"layout_seed": -1}, "layout_seed"),
        ({"gust_prob": 1.1}, "gust_prob"),
        ({"gust_prob": -0.1}, "gust_prob"),
        ({"gust_length": 0.16}, "gust_length"),
        ({"gust_length": -0.01}, "gust_length"),
        ({"gust_length": math.nan}, "gust_length"),
        ({"pit_mobility": -0.1}, "pit_mobility"),
        ({"pit_mobility": 1.1}, "pit_mobility"),
        ({"start_region": "here"}, "rooms, anywhere"),
        ({"pit_layout": "none"}, "wide, ledge"),
        ({"obs_type": "smell"}, "state, image"),
        ({"output": "jax"}, "torch"),
        ({"max_episode_steps": 0}, "max_episode_steps"),
        ({"num_envs": 0}, "num_envs"),
    ],
)
def test_unusable_settings_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        WindyRoomsVectorEnv(**settings)


@pytest.mark.parametrize("name", ["factors", "goal_factors"])
@pytest.mark.parametrize("wrong", [1.2, -0.1, math.nan])
def test_unusable_factors_are_refused_by_name_and_env(name, wrong):
    vec_env, infos = make_env(3)
    given = infos[name].clone()
    with pytest.raises(ValueError, match=rf"{name} has shape \[2, 2\]; it must be \[3, 2\]"):
        vec_env.reset(options={name: given[:2]})
    given[1, 1] = wrong
    with pytest.raises(ValueError, match=f"{name}: in environment 1"):
        vec_env.reset(options={name: given})


def test_goals_in_the_pit_are_refused_and_starts_are_not():
    vec_env, infos = make_env(3)
    given = infos["goal_factors"].clone()
    given[2] = (vec_env.pit.low + vec_env.pit.high) / 2
    with pytest.raises(ValueError, match=r"in environment 2 the goal .* in the pit"):
        vec_env.reset(options={"goal_factors": given})
    _, infos = vec_env.reset(options={"factors": given})
    assert infos["fallen"].tolist() == [False, False, True]


def test_an_episode_restored_from_its_factors_has_the_same_state():
    vec_env, _ = make_env(20, obs_type="image")
    for _ in range(30):
        obs, *_, infos = vec_env.step(vec_env.behaviour_action())
    options = {"factors": infos["factors"], "goal_factors": infos["goal_factors"]}
    again, text_out = vec_env.reset(seed=0, options=options)
    assert infos["fallen"].any()
    torch.testing.assert_close(obs, again)
    for name in ("factors", "goal", "goal_factors", "fallen", "distance", "final_success"):
        torch.testing.assert_close(text_out[name], infos[name])


def test_writing_into_returned_infos_does_not_change_the_env():
    vec_env = WindyRoomsVectorEnv(2)
    obs, infos = vec_env.reset(seed=0)
    kept = {name: part.copy() for name, part in {"obs": obs, **infos}.items()}
    for _ in range(5):
        vec_env.step(vec_env.expert_action())
    for name, part in {"obs": obs, **infos}.items():
        np.testing.assert_array_equal(part, kept[name], err_msg=name)


def test_a_box_contains_its_border():
    box = Box(torch.tensor([0.25, 0.25]), torch.tensor([0.5, 0.75]))
    positions = torch.tensor([[0.25, 0.5], [0.5, 0.75], [0.2, 0.5], [0.3, 0.8]])
    assert box.contains(positions).tolist() == [True, True, False, False]
