"""How agents move in a maze, and the policies that move them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from envs.maze import MAPS, MazeVectorEnv
from envs.maze.dynamics import (
    PointState,
    SampledMaze,
    at_rest,
    cell_of,
    is_free,
    read_map,
    sample_in_cell,
    step_points,
)
from envs.maze.env import DIRECTIONS
from envs.rng import keys_from_seeds, uniform

CPU = torch.device("cpu")
RADIUS, KEPT, PUSH, TERMINAL = 0.15, 0.8, 0.06, 0.3


def many(count, numbers=1, seed=0):
    return uniform(keys_from_seeds(range(seed, seed + count), CPU), numbers)[0]


def mazes(count, size=5, loop_prob=0.0):
    return SampledMaze(size, loop_prob, "all")(keys_from_seeds(range(count), CPU))


def overlaps(maze, position, radius=RADIUS - 2e-4):
    """[B] bool: a square about the position meets any wall, checked singly, or a solid cell;
    independent of the physics' own geometry."""
    size, position = maze.size, position.double()
    low, high = position[:, None, None] - radius, position[:, None, None] + radius  # [B, 1, 1, 2]

    def meets(start, length):
        return (low < start + torch.tensor(length)).all(-1) & (high > start).all(-1)

    row, line = torch.meshgrid(torch.arange(size), torch.arange(size + 1), indexing="ij")
    upright = maze.vertical_walls & meets(torch.stack([line, row], -1), [0, 1])
    level = maze.horizontal_walls & meets(torch.stack([row, line], -1).transpose(0, 1), [1, 0])
    column = torch.stack(torch.meshgrid(*[torch.arange(size)] * 2, indexing="xy"), -1)
    solid = maze.solid & meets(column, [1, 1])
    outside = ((position < radius) | (position > size - radius)).any(-1)
    return (upright.flatten(1) | level.flatten(1)).any(-1) | solid.flatten(1).any(-1) | outside


def one(name, position, pace=(0.0, 0.0)):
    """An agent in a well-known map."""
    position, pace = torch.tensor([position]), torch.tensor([pace])
    return read_map(MAPS[name], CPU), PointState(position, pace, position)


def pushed(maze, body, action, steps):
    for _ in range(steps):
        body = step_points(maze, body, torch.tensor([action]))
    return body


@pytest.mark.parametrize("loop_prob", [0.0, 0.6])
@pytest.mark.parametrize("hold", [1, 12])
def test_the_agent_is_never_in_a_wall(loop_prob, hold):
    """100 000 steps, of a new action each or of held ones, which press into corners and reach the
    terminal speed."""
    maze = mazes(500, loop_prob=loop_prob)
    body = at_rest(sample_in_cell((25 * many(500)[:, 0]).long(), 5, many(500, 2, seed=9)))
    fastest = torch.zeros(())
    for step in range(200):
        actions = 3 * many(500, 2, seed=1000 * (step // hold)) - 1.5
        body = step_points(maze, body, actions)
        assert not overlaps(maze, body.position).any()
        assert is_free(maze, body.position).all()
        fastest = torch.maximum(fastest, body.velocity.norm(dim=-1).max())
    assert fastest <= TERMINAL + 1e-6
    assert fastest > (0.15, 0.28)[hold > 1]


@pytest.mark.parametrize("name", MAPS)
def test_the_agent_is_never_in_a_solid_cell(name):
    envs = MazeVectorEnv(200, map=name, output="torch", obs_type="state")
    envs.reset(seed=0)
    for step in range(300):
        envs.step(3 * many(200, 2, seed=1000 * (step // 8)) - 1.5)
        assert not overlaps(envs.state.maze, envs.state.body.position).any()


def test_the_trajectory_never_crosses_a_wall():
    """From step to step an agent comes into a neighbouring cell that is open to it, or stays."""
    maze = mazes(400)
    body = at_rest(sample_in_cell((25 * many(400)[:, 0]).long(), 5, many(400, 2, seed=9)))
    rows, far = torch.arange(400), []
    for step in range(250):
        here = cell_of(body.position, 5)
        body = step_points(maze, body, 3 * many(400, 2, seed=1000 * (step // 10)) - 1.5)
        far.append(maze.path_length[rows, here, cell_of(body.position, 5)])
    assert torch.stack(far).max() <= 2  # 2: round the end of a wall, through the corner's opening
    assert (torch.stack(far) == 1).sum() > 3000


def test_free_positions_are_those_without_contact():
    for maze in (mazes(4000, 4, 0.3), read_map(MAPS["medium"], CPU)):
        maze = type(maze)(*(part.expand(4000, *part.shape[1:]) for part in maze))
        position = (maze.size + 0.4) * many(4000, 2, seed=3) - 0.2
        free = is_free(maze, position)
        surely, maybe = ~overlaps(maze, position, RADIUS), ~overlaps(maze, position)
        assert (free >= surely).all()
        assert (free <= maybe).all()
        assert 0.2 < free.float().mean() < 0.7


def test_momentum_is_conserved_and_actions_add_to_it():
    maze, body = one("four-rooms", (0.5, 2.5))
    position, pace = 0.5, 0.0
    for action in (1.0, 1.0, 0.5, 0.0, 0.0, -1.0):
        body = step_points(maze, body, torch.tensor([[action, 0.0]]))
        before, pace = position, KEPT * pace + PUSH * action
        position += pace
        torch.testing.assert_close(body.position, torch.tensor([[position, 2.5]]))
        torch.testing.assert_close(body.velocity, torch.tensor([[pace, 0.0]]))
        torch.testing.assert_close(body.previous_position, torch.tensor([[before, 2.5]]))


def test_full_actions_reach_the_terminal_speed_and_longer_ones_are_clipped():
    maze, body = one("four-rooms", (0.3, 2.5))
    assert pushed(maze, body, [9.0, 0.0], 28).velocity[0, 0] == pytest.approx(TERMINAL, rel=3e-3)
    step = pushed(maze, body, [5.0, 5.0], 1).velocity
    torch.testing.assert_close(step, torch.full((1, 2), PUSH / 2**0.5))


@pytest.mark.parametrize("way", DIRECTIONS)
def test_a_wall_stops_the_agent_at_contact_and_lets_it_slide(way):
    """Against every side of a maze without inner walls, at an angle."""
    maze, ahead = read_map("....\n" * 4, CPU), torch.tensor(way)
    slant = 0.9 * ahead + 0.4 * ahead.flip(0)
    body = pushed(maze, at_rest(torch.tensor([[2.0, 2.0]])), slant.tolist(), 12)
    axis = int(ahead.abs().argmax())
    side = 4 - RADIUS if ahead.sum() > 0 else RADIUS
    assert body.position[0, axis] == pytest.approx(side, abs=1e-6)
    assert body.velocity[0, axis] == 0
    assert body.velocity[0, 1 - axis].abs() > 0.1


def test_after_a_collision_the_velocity_is_zero():
    maze, body = one("u", (0.5, 0.5))
    body = pushed(maze, body, [0.0, 1.0], 10)
    assert body.velocity.tolist() == [[0, 0]]
    assert body.position[0, 1] == pytest.approx(1 - RADIUS, abs=1e-6)
    assert pushed(maze, body, [0.0, -1.0], 1).velocity[0, 1] == pytest.approx(-PUSH)


@pytest.mark.parametrize("y", [0.9, 1.1])
def test_the_end_of_a_wall_stops_an_agent_that_straddles_its_line(y):
    """In a maze whose only inner wall is horizontal, from (1, 1) to (2, 1)."""
    open_maze = read_map("...\n...\n...", CPU)
    level = open_maze.horizontal_walls.clone()
    level[:, 1, 1] = True
    maze, start = open_maze._replace(horizontal_walls=level), torch.tensor([[0.4, y]])
    body = pushed(maze, at_rest(start), [1.0, 0.0], 20)
    assert body.position[0, 0] == pytest.approx(1 - RADIUS, abs=1e-6)
    beside = torch.tensor([[0.4, 1.0 + 1.6 * (y - 1)]])
    assert pushed(maze, at_rest(beside), [1.0, 0.0], 20).position[0, 0] > 2
    body = pushed(maze, at_rest(torch.tensor([[2.6, y]])), [-1.0, 0.0], 20)
    assert body.position[0, 0] == pytest.approx(2 + RADIUS, abs=1e-6)
    turned = maze._replace(
        vertical_walls=maze.horizontal_walls.mT, horizontal_walls=maze.vertical_walls.mT
    )
    body = pushed(turned, at_rest(start.flip(1)), [0.0, 1.0], 20)
    assert body.position[0, 1] == pytest.approx(1 - RADIUS, abs=1e-6)


MAZES = [{"size": 5}, {"size": 7}, {"size": 9}, {"size": 7, "loop_prob": 0.3}]
MAZES += [{"map": name} for name in MAPS]


@pytest.mark.parametrize("settings", MAZES, ids=str)
def test_the_oracle_reaches_the_farthest_goals_and_stays(settings):
    envs = MazeVectorEnv(200, goal_distance="long", output="torch", **settings)
    _, infos = envs.reset(seed=0)
    path, arrived = infos["path"], torch.full((200,), envs.max_episode_steps)
    for step in range(envs.max_episode_steps):
        actions = envs.expert_action()
        assert actions.norm(dim=-1).max() <= 1.00001
        _, reward, *_, infos = envs.step(actions)
        there = infos["final_success"]
        arrived = torch.where(there & (arrived > step), step, arrived)
        assert torch.equal(there, arrived <= step)  # none leaves again
        assert torch.equal(reward, there.float())
    assert there.float().mean() >= 0.99
    assert infos["distance"].max() < 0.1  # it rests there
    assert (arrived / path).mean() < 4.5  # at full speed a cell takes 3.3 steps


@pytest.mark.parametrize("goals", ["short", "medium", "any"])
def test_the_oracle_reaches_nearer_goals_too(goals):
    envs = MazeVectorEnv(400, size=7, goal_distance=goals, output="torch")
    envs.reset(seed=0)
    for _ in range(envs.max_episode_steps // 2):
        *_, infos = envs.step(envs.expert_action())
    assert infos["final_success"].float().mean() >= 0.99


def strolled(steps=50, **settings):
    """Velocities and actions [steps, B, 2] of the behaviour policy after some steps, and how many
    cells each has been in, [B]."""
    envs = MazeVectorEnv(300, output="torch", max_episode_steps=1000, **settings)
    envs.reset(seed=0)
    output = []
    for _ in range(30 + steps):
        actions = envs.behaviour_action()
        envs.step(actions)
        output.append(torch.stack([*envs.state.body[:2], actions]))
    positions, paces, actions = torch.stack(output, 1)[:, 30:]
    observed = torch.zeros(300, envs.mazes.size**2, dtype=torch.bool)
    for position in positions:
        observed[torch.arange(300), cell_of(position, envs.mazes.size)] = True
    return paces, actions, observed.sum(-1).float()


def test_the_behaviour_policy_explores_nearby_and_directed_exploration_leads_further():
    paces, actions, cells = strolled()
    _, _, directed_fraction = strolled(directed_fraction=1.0)
    assert 2 <= cells.median() <= 4
    assert directed_fraction.median() >= 2 * cells.median()
    strength = actions.norm(dim=-1)
    assert strength.max() < 1.00001
    assert 0.05 < (strength == 0).float().mean() < 0.2
    assert (strength > 0.95).float().mean() > 0.25
    assert (0 < strength[strength > 0].min() < 0.25).all()
    assert 0.1 < (paces == 0).any(-1).float().mean() < 0.5  # at a wall, or at rest
    turned = torch.nn.functional.cosine_similarity(actions[1:], actions[:-1], dim=-1)
    assert turned[strength[1:] * strength[:-1] > 0].mean() > 0.6  # it holds a heading


def test_behaviour_action_does_not_move_the_agent():
    envs = MazeVectorEnv(3, directed_fraction=0.5)
    _, infos = envs.reset(seed=0)
    for _ in range(5):
        envs.behaviour_action()
    *_, after = envs.step(np.zeros((3, 2), np.float32))
    np.testing.assert_array_equal(after["factors"], infos["factors"])


@pytest.mark.parametrize("settings", [{"split": "test"}, {"size": 3}, {"map": "u"}], ids=str)
def test_the_dynamics_tests_distinguish_a_wall_from_an_opening(settings):
    envs = MazeVectorEnv(1, **settings)
    wall, opening = (envs.dynamics_tests(seed=4)[name] for name in ("wall", "open"))
    space = envs.single_observation_space.shape
    for dynamics_test in (wall, opening):
        assert dynamics_test.obs.shape == (64, *space)
        assert dynamics_test.actions.shape == (64, 5, 2)
        np.testing.assert_array_equal(np.abs(dynamics_test.actions).sum(-1), 1)
        assert not dynamics_test.start_factors[:, 2:].any()
    size = envs.mazes.size
    moved = {}
    for name, dynamics_test in (("wall", wall), ("open", opening)):
        way = size * (dynamics_test.end_factors - dynamics_test.start_factors)[:, :2]
        moved[name] = (way * dynamics_test.actions[:, 0]).sum(-1)
        np.testing.assert_allclose(
            way, moved[name][:, None] * dynamics_test.actions[:, 0], atol=1e-5
        )
    assert moved["wall"].min() > 0.01
    assert moved["wall"].max() <= TERMINAL + 1e-5
    assert not np.abs(wall.end_factors[:, 2:]).any()
    cells = [size * e[:, :2] // 1 for e in (wall.start_factors, wall.end_factors)]
    np.testing.assert_array_equal(*cells)
    free = PUSH * sum(1 - KEPT**k for k in range(1, 6)) / (1 - KEPT)
    np.testing.assert_allclose(moved["open"], free, rtol=1e-4)
    crossed = (
        size * opening.end_factors[:, :2] // 1 - size * opening.start_factors[:, :2] // 1
    ).sum(-1)
    np.testing.assert_array_equal(np.abs(crossed), 1)
    assert len(np.unique(wall.actions[:, 0], axis=0)) >= (2 if size > 3 else 1)
    np.testing.assert_array_equal(wall.obs, envs.dynamics_tests(seed=4)["wall"].obs)
    beyond = size * wall.start_factors[:, :2] + wall.actions[:, 0]
    assert ((beyond > 0) & (beyond < size)).all()  # between two cells, not the maze's border
