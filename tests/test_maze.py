"""Mazes."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from scipy import stats
from scipy.sparse.csgraph import connected_components, shortest_path

from envs.maze import MAPS, MazeEnv, MazeVectorEnv
from envs.maze.dynamics import (
    BANDS,
    UNREACHABLE,
    SampledMaze,
    cell_of,
    half_of,
    read_map,
    sample_index,
    sample_split_edges,
)
from envs.rng import keys_from_seeds

CPU = torch.device("cpu")
RADIUS = 0.15


def mazes(count, size=5, loop_prob=0.0, split="all", seed=0):
    return SampledMaze(size, loop_prob, split)(keys_from_seeds(range(seed, seed + count), CPU))


def make_env(count=1, **settings):
    """Environments with tensors as output, at the beginning of seed 0."""
    vec_env = MazeVectorEnv(count, output="torch", **settings)
    return vec_env, vec_env.reset(seed=0)[1]


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


def graph(upright, level):
    """Walls of one maze -> which cells are neighbours, [N, N], read off cell by cell."""
    size = len(upright)
    near = np.zeros((size * size, size * size), bool)
    for row in range(size):
        for column in range(size):
            here = row * size + column
            if column + 1 < size and not upright[row, column + 1]:
                near[here, here + 1] = near[here + 1, here] = True
            if row + 1 < size and not level[row + 1, column]:
                near[here, here + size] = near[here + size, here] = True
    return near


def paths(maze, i):
    return shortest_path(
        graph(maze.vertical_walls[i].numpy(), maze.horizontal_walls[i].numpy()), unweighted=True
    )


def distinct(maze):
    """Every maze as something that can be compared."""
    walls = torch.cat([maze.vertical_walls.flatten(1), maze.horizontal_walls.flatten(1)], -1)
    return {row.tobytes() for row in walls.numpy()}


@pytest.mark.parametrize("settings", [{"split": "train"}, {"map": "medium", "obs_type": "state"}])
@pytest.mark.parametrize("label", ["noise", "walk", "oracle"])
def test_an_env_gives_the_same_episode_alone_and_in_a_batch(label, settings):
    settings |= {"max_episode_steps": 40, "goal_distance": "medium", "directed_fraction": 0.5}
    many, single = (MazeVectorEnv(n, **settings) for n in (5, 1))
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
    vec_env = MazeVectorEnv(4, max_episode_steps=60)
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


def test_every_episode_has_a_maze_of_its_own_and_envs_end_independently():
    vec_env, _ = make_env(3, max_episode_steps=2)
    walls = [vec_env.state.walls]
    for _ in range(2):
        for _ in range(3):
            *_, truncated, _ = vec_env.step(rest(vec_env))
        walls.append(vec_env.state.walls)
    assert not truncated.any()
    assert all((a != b).flatten(1).any(-1).all() for a, b in [walls[:2], walls[1:], walls[::2]])
    vec_env._steps[1] = 1
    kept = vec_env.state
    vec_env.step(rest(vec_env))
    vec_env.step(rest(vec_env))
    for part, old in zip(vec_env.state.maze, kept.maze, strict=True):
        assert torch.equal(part[[0, 2]], old[[0, 2]])
    assert not torch.equal(vec_env.state.maze.path_length[1], kept.maze.path_length[1])


def test_the_step_after_the_end_begins_a_new_episode_and_ignores_its_action():
    vec_env = MazeVectorEnv(2, max_episode_steps=3)
    _, born = vec_env.reset(seed=0)
    ends = []
    for _ in range(8):
        _, reward, terminated, truncated, infos = vec_env.step(np.ones((2, 2), np.float32))
        assert not terminated.any()
        ends.append(bool(truncated.all()))
        if ends[-1]:
            np.testing.assert_array_equal(infos["goal_factors"], born["goal_factors"])
            obs, reward, _, truncated, born = vec_env.step(np.full((2, 2), np.nan, np.float32))
            assert not truncated.any()
            assert not reward.any()
            assert not born["factors"][:, 2:].any()
            np.testing.assert_array_equal(obs[:, 1], obs[:, 2])
            assert (born["goal_factors"] != infos["goal_factors"])[:, :2].all()
    assert ends == [False, False, True] * 2 + [False, False]


@pytest.mark.parametrize("size", [3, 4, 5, 8, 15])
def test_a_sampled_maze_has_exactly_one_path_between_any_two_cells(size):
    maze = mazes(20, size)
    openings = (~maze.vertical_walls).flatten(1).sum(-1) + (~maze.horizontal_walls).flatten(1).sum(
        -1
    )
    assert (openings == size * size - 1).all()
    for i in range(20):
        near = graph(maze.vertical_walls[i].numpy(), maze.horizontal_walls[i].numpy())
        assert connected_components(near)[0] == 1
    for border in (maze.vertical_walls[..., [0, -1]], maze.horizontal_walls[:, [0, -1]]):
        assert border.all()
    assert not maze.solid.any()


def test_mazes_are_diverse():
    """Each of the 192 mazes of 3 by 3 cells is drawn, none of them often; walls everywhere."""
    assert len(distinct(mazes(6000, 3))) == 192
    assert len(distinct(mazes(3000, 5))) > 2990
    maze = mazes(3000, 5)
    for walls in (maze.vertical_walls[..., 1:-1], maze.horizontal_walls[:, 1:-1]):
        fraction = walls.float().mean(0)
        assert fraction.min() > 0.25
        assert fraction.max() < 0.5
    upright, level = (
        w.float().mean() for w in (maze.vertical_walls[..., 1:-1], maze.horizontal_walls[:, 1:-1])
    )
    assert abs(upright - level) < 0.02
    torch.testing.assert_close(upright + level, torch.tensor(0.8), atol=1e-3, rtol=0)


def test_loops_open_a_fraction_of_the_remaining_walls():
    keys = keys_from_seeds(range(2000), CPU)
    tree, looped = (sample_split_edges(keys, 6, loop_prob, "all") for loop_prob in (0.0, 0.3))
    assert (looped >= tree).all()
    assert looped[~tree].float().mean() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(("size", "loop_prob"), [(3, 0.0), (3, 0.9), (5, 0.0), (7, 0.3)])
def test_train_and_test_never_share_a_maze_and_all_has_both(size, loop_prob):
    text_out = {s: distinct(mazes(1500, size, loop_prob, s)) for s in ("train", "test", "all")}
    assert not text_out["train"] & text_out["test"]
    assert min(len(text_out["train"]), len(text_out["test"])) > (5 if size == 3 else 1000)
    if size == 3:
        assert text_out["all"] <= text_out["train"] | text_out["test"]
    if not loop_prob:
        fraction = (
            half_of(sample_split_edges(keys_from_seeds(range(4000), CPU), size, loop_prob, "all"))
            .float()
            .mean()
        )
        assert 0.4 < fraction < 0.6


def test_the_splits_are_the_mazes_of_the_envs():
    for split in ("train", "test"):
        vec_env, _ = make_env(30, split=split, max_episode_steps=1)
        assert torch.equal(vec_env.state.maze.vertical_walls, mazes(30, split=split).vertical_walls)
        vec_env.step(rest(vec_env))
        vec_env.step(rest(vec_env))
        again = distinct(vec_env.state.maze)
        other = {"train": "test", "test": "train"}[split]
        assert not again & distinct(mazes(2000, split=other))


def test_a_maze_seed_gives_one_maze_in_every_env_and_episode():
    vec_env, _ = make_env(4, maze_seed=17, max_episode_steps=2, split="test")
    for _ in range(5):
        for part, own in zip(vec_env.state.maze, mazes(1, seed=17), strict=True):
            assert torch.equal(part, own.expand_as(part))
        vec_env.step(rest(vec_env))
    assert len({tuple(p) for p in vec_env.state.body.position.tolist()}) == 4
    other, _ = make_env(1, maze_seed=18)
    assert not torch.equal(other.state.walls[0], vec_env.state.walls[0])


def test_the_given_maps_have_their_known_cells_and_lengths():
    for name, size, free, longest in (
        *(("u", 3, 7, 6), ("medium", 6, 26, 11)),
        *(("large", 10, 46, 19), ("four-rooms", 11, 104, 20)),
    ):
        maze = read_map(MAPS[name], CPU)
        assert (maze.size, int((~maze.solid).sum())) == (size, free)
        assert int(maze.longest) == longest
        near = graph(maze.vertical_walls[0].numpy(), maze.horizontal_walls[0].numpy())
        labels = connected_components(near)[1][~maze.solid.flatten().numpy()]
        assert len(set(labels)) == 1
        sampled = np.array([list(row) for row in MAPS[name].split()]) == "#"
        np.testing.assert_array_equal(maze.solid[0], sampled)
        free_pair = ~sampled[:, 1:] & ~sampled[:, :-1]
        np.testing.assert_array_equal(~maze.vertical_walls[0, :, 1:-1], free_pair)
        np.testing.assert_array_equal(~maze.horizontal_walls[0, 1:-1], ~sampled[1:] & ~sampled[:-1])


@pytest.mark.parametrize(("size", "loop_prob"), [(3, 0.0), (6, 0.0), (6, 0.3), (11, 0.1)])
def test_path_lengths_are_those_of_dijkstra(size, loop_prob):
    maze = mazes(12, size, loop_prob)
    for i in range(12):
        np.testing.assert_array_equal(maze.path_length[i], paths(maze, i))


@pytest.mark.parametrize("name", MAPS)
def test_path_lengths_around_solid_cells_are_those_of_dijkstra(name):
    maze = read_map(MAPS[name], CPU)
    far = paths(maze, 0)
    np.testing.assert_array_equal(maze.path_length[0], np.where(np.isinf(far), UNREACHABLE, far))


def ends(vec_env):
    """Start and goal cells of the episodes, [B] each."""
    size = vec_env.mazes.size
    return cell_of(vec_env.state.body.position, size), cell_of(vec_env.state.goal, size)


SETTINGS = [{"size": 5}, {"size": 8, "loop_prob": 0.2}, *({"map": name} for name in MAPS)]


@pytest.mark.parametrize("goals", BANDS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_goals_are_as_far_as_their_band_says(settings, goals):
    vec_env, infos = make_env(600, goal_distance=goals, **settings)
    maze, (start, goal) = vec_env.state.maze, ends(vec_env)
    path = maze.path_length[torch.arange(600), start, goal].numpy()
    np.testing.assert_array_equal(infos["path"], path)
    longest = maze.longest.numpy()
    far = np.array([max(math.ceil(3 * n / 5), min(4, n)) for n in longest.tolist()])
    assert (path >= 1).all()
    if goals == "short":
        assert set(path.tolist()) == {1, 2, 3}
    elif goals == "long":
        assert (path >= far).all()
        assert (path > 0.85 * longest).any()
        assert (path == far).any()
    elif goals == "medium" and settings != {"map": "u"}:
        assert (path >= 4).all()
        assert ((path < far) | (far <= 4)).all()
        assert (path == far - 1).any()
    elif goals == "medium":  # has no such pairs, so those that come nearest
        assert set(path.tolist()) == {3, 4}
    else:
        assert (path == 1).any()
        assert (path >= far).any()
    solid = maze.solid.flatten(1)
    assert not solid.gather(1, torch.stack([start, goal], 1)).any()


def test_pairs_of_a_band_are_uniformly_distributed():
    vec_env, _ = make_env(20000, map="u", goal_distance="long", obs_type="state")
    start, goal = ends(vec_env)
    pairs, counts = np.unique((9 * start + goal).numpy(), return_counts=True)
    far = vec_env.state.maze.path_length[0].flatten()
    np.testing.assert_array_equal(pairs, ((far >= 4) & (far < UNREACHABLE)).nonzero().flatten())
    assert stats.chisquare(counts).pvalue > 1e-3


def test_positions_fill_the_free_part_of_a_cell():
    vec_env, _ = make_env(4000, size=3)
    for position in (vec_env.state.body.position, vec_env.state.goal):
        fraction = ((position % 1) - RADIUS) / (1 - 2 * RADIUS)
        assert fraction.min() >= -1e-6
        assert fraction.max() <= 1 + 1e-6
        for side in fraction.unbind(-1):
            assert stats.kstest(side.numpy(), "uniform").pvalue > 1e-3


def test_sampling_follows_the_weights():
    weight = torch.tensor([[0, 2, 0, 1, 1, 0]]).expand(8, -1)
    u = torch.tensor([0, 0.2, 0.499, 0.5, 0.7, 0.75, 0.99, 1 - 2**-24])
    assert sample_index(weight, u).tolist() == [1, 1, 1, 3, 3, 4, 4, 4]


def place_at(vec_env, position, goal, pace=(0.0, 0.0), **settings):
    """The environments with agents and goals at cells that the test chooses."""
    size = vec_env.mazes.size
    body = [position[0] / size, position[1] / size, *pace]
    goal = [goal[0] / size, goal[1] / size, 0, 0]
    options = {"factors": [body], "goal_factors": [goal]}
    return vec_env.reset(seed=0, options=options, **settings)


def test_success_is_kept_and_final_success_is_not():
    vec_env, _ = make_env(1, map="four-rooms")
    _, infos = place_at(vec_env, (1.2, 2.5), (1.5, 2.5))
    assert infos["success"].item()
    text_out = [vec_env.step(torch.tensor([[1.0, 0.0]])) for _ in range(8)]
    near = [abs(float(t[4]["factors"][0, 0]) * 11 - 1.5) < 0.4 for t in text_out]
    assert near == [True] * 5 + [False] * 3
    assert [bool(t[4]["final_success"]) for t in text_out] == near
    assert [float(t[1]) for t in text_out] == near
    assert all(t[4]["success"] for t in text_out)


def test_a_goal_behind_a_wall_is_not_reached():
    vec_env, _ = make_env(1, map="u", obs_type="state")
    _, infos = place_at(vec_env, (2.5, 0.82), (2.5, 1.18))
    assert infos["distance"].item() == pytest.approx(0.36, abs=1e-5)
    assert infos["final_success"].item()
    sampled, _ = make_env(1)
    row, line = sampled.state.maze.vertical_walls[0, :, 1:-1].nonzero()[0].tolist()
    _, infos = place_at(sampled, (line + 0.82, row + 0.5), (line + 1.18, row + 0.5))
    assert infos["distance"].item() == pytest.approx(0.36, abs=1e-5)
    assert infos["path"].item() >= 3
    assert not infos["success"].item()
    assert not infos["final_success"].item()


@pytest.mark.parametrize(
    ("settings", "pixels"),
    [({"size": 5}, 32), ({"size": 3}, 20), ({"size": 15}, 92), ({"map": "medium"}, 40)],
)
def test_the_image_shows_walls_agent_and_its_previous_position(settings, pixels):
    vec_env = MazeVectorEnv(12, **settings)
    obs, infos = vec_env.reset(seed=1)
    assert obs.shape == (12, 3, pixels, pixels)
    assert vec_env.observation_space.contains(obs)
    np.testing.assert_array_equal(obs[:, 1], obs[:, 2])
    size, positions = vec_env.mazes.size, [infos["factors"][:, :2]]
    for step in range(20):
        obs, *_, infos = vec_env.step(noise(step, 0, 12))
        positions.append(infos["factors"][:, :2])
        origin = (pixels - 6 * size - 1) // 2
        for dot, position in ((obs[:, 1], positions[-1]), (obs[:, 2], positions[-2])):
            bright = dot.reshape(12, -1).argmax(-1)
            observed = np.stack([bright % pixels, bright // pixels], -1)
            assert np.abs(observed - 6 * size * position - origin).max() <= 0.51
            assert dot.max() > 190
    walls = obs[:, 0, origin:, origin:]
    maze = vec_env.state.maze
    for i in range(12):
        for row in range(size):
            np.testing.assert_array_equal(
                walls[i, 6 * row + 3, : 6 * size + 1 : 6] == 255, maze.vertical_walls[i, row]
            )
            np.testing.assert_array_equal(
                walls[i, : 6 * size + 1 : 6, 6 * row + 3] == 255, maze.horizontal_walls[i, :, row]
            )
        middles = walls[i, 3 : 6 * size : 6, 3 : 6 * size : 6] == 255
        np.testing.assert_array_equal(middles, maze.solid[i])


def test_the_goal_image_is_the_observation_on_arrival():
    vec_env = MazeVectorEnv(4)
    _, infos = vec_env.reset(seed=2)
    obs, _ = vec_env.reset(seed=2, options={"factors": infos["goal_factors"]})
    np.testing.assert_allclose(obs.astype(int), infos["goal"].astype(int), atol=1)


def test_the_state_is_position_and_velocity():
    vec_env = MazeVectorEnv(30, map="large", obs_type="state")
    obs, infos = vec_env.reset(seed=0)
    assert not infos["goal"][:, 2:].any()
    np.testing.assert_allclose(infos["goal"][:, :2], 2 * infos["goal_factors"][:, :2] - 1)
    for step in range(60):
        before = infos["factors"]
        obs, *_, infos = vec_env.step(noise(step, 0, 30))
        assert vec_env.observation_space.contains(obs)
        factors = infos["factors"]
        np.testing.assert_allclose(obs[:, :2], 2 * factors[:, :2] - 1, atol=1e-6)
        np.testing.assert_allclose(obs[:, 2:], factors[:, 2:], atol=1e-6)
        way, free = 10 * (factors - before)[:, :2], factors[:, 2:] != 0
        np.testing.assert_allclose(way[free], 0.3 * factors[:, 2:][free], atol=1e-5)
    assert np.abs(obs[:, 2:]).max() > 0.3


def test_a_picture_shows_agent_goal_and_walls_where_the_factors_say():
    vec_env = MazeVectorEnv(6, goal_distance="long")
    _, infos = vec_env.reset(seed=0)
    body, goal = (vec_env.factors_to_pixels(infos[name]) for name in ("factors", "goal_factors"))
    maze, lines = (
        vec_env.state.maze,
        vec_env.factors_to_pixels(np.arange(6)[:, None].repeat(4, 1) / 5)[:, 0],
    )
    line, middle = lines.round().astype(int), ((lines[1:] + lines[:-1]) / 2).round().astype(int)
    for i, picture in enumerate(vec_env.render()):
        assert picture.shape == (320, 320, 3)
        assert picture.dtype == np.uint8
        x, y = body[i].round().astype(int)
        red, _, blue = picture[y, x].astype(int)
        assert blue - red > 150
        green = (picture[..., 1].astype(int) - picture[..., 0]) > 100
        green &= picture[..., 2] < 150
        down, across = np.nonzero(green)
        reach = np.hypot(across - goal[i, 0], down - goal[i, 1])
        assert np.quantile(reach, [0.05, 0.95]) == pytest.approx([24, 24], abs=2)
        plain = np.ptp(picture, -1) < 30  # neither agent nor ring
        middles = np.ix_(middle, line)
        dark = picture.max(-1) < 70
        assert plain[middles].mean() > 0.8
        assert (dark[middles] == maze.vertical_walls[i].numpy())[plain[middles]].all()
        assert (maze.horizontal_walls[i].numpy() == dark.T[middles].T)[plain.T[middles].T].all()


def test_torch_and_numpy_give_the_same_numbers():
    text_out = {}
    for output in ("numpy", "torch"):
        vec_env = MazeVectorEnv(2, output=output)
        obs, infos = vec_env.reset(seed=5)
        text_out[output] = (
            obs,
            infos["path"],
            vec_env.expert_action(),
            *vec_env.step(vec_env.behaviour_action())[:4],
        )
    for tensor, array in zip(text_out["torch"], text_out["numpy"], strict=True):
        assert isinstance(tensor, torch.Tensor)
        assert tensor.numpy().dtype == array.dtype
        np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("settings", [{}, {"map": "u", "obs_type": "state"}], ids=str)
def test_gymnasium_accepts_the_env(settings):
    made = gymnasium.make("ami/Maze-v0", render_mode="rgb_array", **settings).unwrapped
    check_env(made)
    assert isinstance(made, MazeEnv)
    assert made.factor_names == ("body x", "body y", "velocity x", "velocity y")


@pytest.mark.parametrize("mode", [None, "sync", "vector_entry_point"])
def test_gymnasium_makes_the_same_envs_by_every_function(mode):
    vec_env = gymnasium.make_vec("ami/Maze-v0", num_envs=3, vectorization_mode=mode, split="test")
    obs, infos = vec_env.reset(seed=8)
    own, own_infos = gymnasium.make("ami/Maze-v0", split="test").reset(seed=10)
    np.testing.assert_array_equal(obs[2], own)
    assert infos["path"][2] == own_infos["path"]
    np.testing.assert_array_equal(infos["goal"][2], own_infos["goal"])
    assert infos["_path"].all()


def test_the_time_limit_is_six_steps_for_each_cell_of_the_longest_path():
    settings = [{}, {"size": 9}, {"map": "u"}, {"map": "large"}, {"max_episode_steps": 7}]
    budgets = [MazeVectorEnv(1, **s).max_episode_steps for s in settings]
    assert budgets == [6 * 24, 6 * 80, 6 * 6, 6 * 19, 7]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"map": "labyrinth"}, "random, u, medium, large, four-rooms"),
        ({"split": "some"}, "train"),
        ({"goal_distance": "far"}, "any, short, medium, long"),
        ({"obs_type": "smell", "map": "u"}, "image, state"),
        ({"obs_type": "state"}, "doesn't show the maze"),
        ({"output": "jax"}, "torch"),
        ({"size": 2}, "size"),
        ({"size": 16}, "size"),
        ({"loop_prob": -0.1}, "loop_prob"),
        ({"loop_prob": 1.0}, "loop_prob"),
        ({"map": "u", "loop_prob": 0.1}, "is one maze"),
        ({"map": "u", "maze_seed": 1}, "is one maze"),
        ({"max_episode_steps": 0}, "max_episode_steps"),
        ({"directed_fraction": 1.5}, "directed_fraction"),
        ({"num_envs": 0}, "num_envs"),
    ],
)
def test_unusable_settings_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        MazeVectorEnv(**settings)


@pytest.mark.parametrize("name", ["factors", "goal_factors"])
def test_unusable_factors_are_refused_by_name_and_env(name):
    vec_env, infos = make_env(3, map="medium")
    good = infos["factors"].clone()
    with pytest.raises(ValueError, match=rf"{name} has shape \[2, 4\]; it must be \[3, 4\]"):
        vec_env.reset(options={name: good[:2]})
    for column, wrong, named in (
        (0, 1.2, "environment 1 body x is 1.2;"),
        (1, math.nan, "environment 1 body y is nan;"),
        (2, -1.5, "environment 1 velocity x is -1.5;"),
        (0, 0.02 / 6, "in environment 1 .* wall"),
    ):
        factors = good.clone()
        factors[1, column] = wrong
        with pytest.raises(ValueError, match=f"{name}: .*{named}"):
            vec_env.reset(options={name: factors})
    solid = good.clone()
    solid[2, :2] = torch.tensor([2.5, 0.5]) / 6
    with pytest.raises(ValueError, match="in environment 2"):
        vec_env.reset(options={name: solid})


def test_an_episode_restored_from_its_factors_has_the_same_state_and_maze():
    vec_env, _ = make_env(4)
    for _ in range(20):
        obs, *_, infos = vec_env.step(vec_env.expert_action())
    again, text_out = vec_env.reset(
        seed=0, options={"factors": infos["factors"], "goal_factors": infos["goal_factors"]}
    )
    torch.testing.assert_close(text_out["factors"], infos["factors"])
    torch.testing.assert_close(text_out["goal_factors"], infos["goal_factors"])
    assert (obs[:, :2].int() - again[:, :2].int()).abs().max() <= 1
    free = (infos["factors"][:, 2:] != 0).all(-1)
    assert (obs[free].int() - again[free].int()).abs().max() <= 1


def test_with_a_given_start_goals_are_in_the_band_as_near_as_possible():
    vec_env, _ = make_env(500, map="u", goal_distance="long")
    factors = torch.tensor([[2.5, 1.5, 0, 0]]).expand(500, -1) / 3  # in the middle of the way
    _, infos = vec_env.reset(seed=0, options={"factors": factors})
    assert set(infos["path"].tolist()) == {3}
    assert len({tuple(c) for c in (3 * infos["goal_factors"][:, :2]).floor().tolist()}) == 2


def test_writing_into_returned_infos_does_not_change_the_env():
    vec_env = MazeVectorEnv(2)
    obs, infos = vec_env.reset(seed=0)
    kept = {name: part.copy() for name, part in {"obs": obs, **infos}.items()}
    for _ in range(5):
        vec_env.step(vec_env.expert_action())
    for name, part in {"obs": obs, **infos}.items():
        np.testing.assert_array_equal(part, kept[name], err_msg=name)


def test_unusable_actions_are_refused_by_env():
    vec_env = MazeVectorEnv(3)
    vec_env.reset(seed=0)
    actions = np.zeros((3, 2), np.float32)
    actions[2, 1] = np.inf
    with pytest.raises(ValueError, match="environment 2"):
        vec_env.step(actions)
