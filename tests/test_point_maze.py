"""A ball in a maze."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from envs.geometry import direction
from envs.maze import MAPS
from envs.maze.dynamics import (
    FixedMaze,
    PointState,
    SampledMaze,
    at_rest,
    cell_of,
    read_map,
    sample_in_cell,
)
from envs.maze.dynamics import is_free as has_room_for_a_square
from envs.point_maze import BallPhysics, PointMazeVectorEnv, is_free
from envs.rng import keys_from_seeds, uniform

CPU = torch.device("cpu")
BALL, WALL, KEPT, PUSH, TERMINAL = 0.12, 0.03, 0.8, 0.06, 0.3


def many(count, numbers=1, seed=0):
    return uniform(keys_from_seeds(range(seed, seed + count), CPU), numbers)[0]


def mazes(count, size=4, loop_prob=0.0):
    return SampledMaze(size, loop_prob, "all")(keys_from_seeds(range(count), CPU))


def scattered(count):
    """BallPhysics at rest in mazes of 4 by 4 cells."""
    return at_rest(sample_in_cell((16 * many(count)[:, 0]).long(), 4, many(count, 2, seed=9)))


def gaps(maze, position):
    """[B] the distance of positions to the nearest wall's surface, each wall checked by itself."""
    size, nearest = maze.size, torch.full((len(position),), torch.inf)
    for lines, flip in ((maze.vertical_walls, False), (maze.horizontal_walls.mT, True)):
        x, y = (position.flip(-1) if flip else position).unbind(-1)
        for lane in range(size):
            for line in range(size + 1):
                across = ((x - line).abs() - WALL).clamp(min=0)
                along = ((y - lane - 0.5).abs() - 0.5).clamp(min=0)
                difference = torch.where(
                    lines[:, lane, line], torch.hypot(across, along), torch.inf
                )
                nearest = torch.minimum(nearest, difference)
    return nearest


def known(name, count=1):
    return FixedMaze(read_map(MAPS[name], CPU))(torch.zeros(count))


@pytest.mark.parametrize("hold", [1, 12])
def test_no_ball_ever_crosses_a_wall(hold):
    """12 000 steps, of a new action each or of held ones, which press into corners and reach the
    terminal speed."""
    maze, rows = mazes(120), torch.arange(120)
    body, balls = scattered(120), BallPhysics(4)
    fastest, crossed = torch.zeros(()), 0
    for step in range(100):
        here = cell_of(body.position, 4)
        body = balls(maze, body, 3 * many(120, 2, seed=1000 * (step // hold)) - 1.5)
        far = maze.path_length[rows, here, cell_of(body.position, 4)]
        assert far.max() <= 2  # 2: round the end of a wall, through the corner's opening
        assert gaps(maze, body.position).min() > BALL - 0.03
        assert is_free(maze, body.position).all()
        fastest = torch.maximum(fastest, body.velocity.norm(dim=-1).max())
        crossed += int((far > 0).sum())
    assert crossed > 250
    assert (0.15, 0.28)[hold > 1] < fastest <= TERMINAL + 1e-5


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.0])
def test_a_wall_stops_a_ball_at_every_speed(angle):
    balls, maze = BallPhysics(11), known("four-rooms", 96)
    speed, difference = (0.01 + 0.29 * torch.linspace(0, 1, 16)).repeat(6), many(96)[:, 0] * 0.3
    position = torch.stack([11 - BALL - WALL - difference, torch.full((96,), 0.5)], -1)
    way = direction(torch.tensor(angle))
    output = [PointState(position, speed[:, None] * way, position)]
    for _ in range(12):
        output.append(balls(maze, output[-1], way.expand(96, 2)))
    assert max(body.position[:, 0].max() for body in output) < 11 - WALL - BALL + 0.03
    towards = torch.stack([body.velocity[:, 0] for body in output])
    assert towards.min() > -0.12 * TERMINAL  # it bounces back by little
    assert towards[-1].abs().max() < 0.01
    along = output[-1].velocity[:, 1]  # and nothing is lost along the wall
    free = KEPT**12 * speed * way[1] + TERMINAL * (1 - KEPT**12) * way[1]
    torch.testing.assert_close(along, free, atol=1e-4, rtol=1e-4)


def test_momentum_is_conserved_and_actions_add_to_it():
    balls, body, pace = BallPhysics(11), at_rest(torch.tensor([[1.5, 2.5]])), 0.0
    for action in (1.0, 1.0, 0.5, 0.0, 0.0, -1.0, -3.0):
        start = body.position
        body = balls(known("four-rooms"), body, torch.tensor([[action, 0.0]]))
        tenth = [KEPT ** (k / 10) for k in range(1, 11)]
        pull = TERMINAL * max(action, -1)  # the speed that the action would come to
        way = sum(pull + (pace - pull) * fraction for fraction in tenth) / 10
        pace = KEPT * pace + PUSH * max(action, -1)
        torch.testing.assert_close(body.velocity, torch.tensor([[pace, 0.0]]))
        torch.testing.assert_close(body.position, start + torch.tensor([[way, 0.0]]))
        torch.testing.assert_close(body.previous_position, start)


def test_without_a_push_energy_is_lost_at_every_collision():
    maze = mazes(200)
    body, balls = scattered(200), BallPhysics(4)
    body = body._replace(velocity=0.42 * (many(200, 2, seed=5) - 0.5))
    energy = body.velocity.square().sum(-1)
    for _ in range(25):
        body = balls(maze, body, torch.zeros(200, 2))
        energy = KEPT**2 * energy  # the speed of a ball without collisions
        assert (body.velocity.square().sum(-1) <= energy + 1e-6).all()
    assert body.velocity.abs().max() < 1e-3


def test_a_model_has_the_walls_of_its_maze_and_no_others():
    maze = mazes(40, size=3, loop_prob=0.3)
    balls, many_walls = (
        BallPhysics(3),
        torch.cat([maze.vertical_walls.flatten(1), maze.horizontal_walls.flatten(1)], -1),
    )
    models = balls.models(maze)
    assert len(set(map(id, models))) == len({tuple(row) for row in many_walls.tolist()})
    for model, row in zip(models, many_walls, strict=True):
        stand = model.geom_pos[:-1, 2] == 0
        sides = 2 * model.geom_size[:-1, :2][stand]
        assert sides.min() == pytest.approx(2 * WALL)
        assert sides.max(-1).sum() == pytest.approx(int(row.sum()))
    assert balls.models(type(maze)(*(part[:2] for part in maze))) == models[:2]
    assert len(balls.models.models) <= 2  # the others are gone


def test_the_next_state_depends_on_state_and_action_alone():
    """Not on other balls, their number, earlier steps, or the number of threads."""
    maze = mazes(64)
    body = scattered(64)._replace(velocity=0.4 * many(64, 2, seed=5) - 0.2)
    push = 2 * many(64, 2, seed=7) - 1
    balls = BallPhysics(4)
    together = balls(maze, body, push)
    torch.set_num_threads(2)
    shared = BallPhysics(4)(maze, body, push)
    torch.set_num_threads(1)
    for i in (0, 31, 63):
        row = slice(i, i + 1)
        own, to = (
            type(maze)(*(part[row] for part in maze)),
            PointState(*(part[row] for part in body)),
        )
        for _ in range(3):
            single = balls(own, to, push[row])
        for a, b, c in zip(single, together, shared, strict=True):
            assert torch.equal(a[0], b[i])
            assert torch.equal(a[0], c[i])


def test_where_there_is_room_for_a_square_there_is_room_for_a_ball():
    for maze in (mazes(4000, 3, 0.3), known("medium", 4000)):
        position = (maze.size + 0.4) * many(4000, 2, seed=3) - 0.2
        free, difference = is_free(maze, position), gaps(maze, position)
        assert (free >= has_room_for_a_square(maze, position)).all()
        assert (difference[free] >= BALL - 0.0301).all()
        solid = maze.solid.flatten(1)[torch.arange(4000), cell_of(position, maze.size)]
        assert not free[solid | ((position < 0) | (position > maze.size)).any(-1)].any()


def test_an_env_gives_the_same_episode_alone_and_in_a_batch():
    output = []
    for count, seed in ((4, 40), (1, 43)):
        vec_env = PointMazeVectorEnv(count, size=3, max_episode_steps=30, directed_fraction=0.5)
        vec_env.reset(seed=seed)
        output.append([vec_env.step(vec_env.behaviour_action()) for _ in range(70)])
    for together, single in zip(*output, strict=True):
        for a, b in zip(together[:4], single[:4], strict=True):
            np.testing.assert_array_equal(a[3], b[0])
        for name in single[4]:
            np.testing.assert_array_equal(together[4][name][3], single[4][name][0], err_msg=name)


@pytest.mark.parametrize(
    "settings", [{"map": "u"}, {"map": "medium"}, {"size": 4, "loop_prob": 0.2}], ids=str
)
def test_the_oracle_arrives_and_stays_and_random_actions_do_not(settings):
    fractions = {}
    for label in ("oracle", "random"):
        vec_env = PointMazeVectorEnv(60, goal_distance="long", output="torch", **settings)
        vec_env.reset(seed=0)
        for step in range(vec_env.max_episode_steps):
            act = vec_env.expert_action() if label == "oracle" else 2 * many(60, 2, 1000 * step) - 1
            *_, infos = vec_env.step(act)
        fractions[label] = infos["final_success"].float().mean()
    assert fractions["oracle"] >= 0.98
    assert fractions["random"] < 0.1


def test_success_is_near_the_goal():
    vec_env = PointMazeVectorEnv(2, map="u", output="torch")
    body = torch.tensor([[2.5, 0.8, 0, 0], [2.5, 0.8, 0, 0]]) / 3
    goal = torch.tensor([[2.5, 1.15, 0, 0], [2.5, 1.25, 0, 0]]) / 3
    _, infos = vec_env.reset(seed=0, options={"factors": body, "goal_factors": goal})
    assert infos["final_success"].tolist() == [True, False]
    *_, reward, _, _, infos = vec_env.step(torch.zeros(2, 2))
    assert reward.tolist() == [1, 0]


def test_the_observation_shows_where_the_ball_is():
    vec_env, numbers = (
        PointMazeVectorEnv(12, map="medium", obs_type=s) for s in ("image", "state")
    )
    obs, infos = vec_env.reset(seed=1)
    numbers.reset(seed=1)
    positions = [infos["factors"][:, :2]]
    for step in range(15):
        push = (3 * many(12, 2, 1000 * (step // 5)) - 1.5).numpy()
        (obs, *_, infos), (state, *_) = vec_env.step(push), numbers.step(push)
        assert vec_env.observation_space.contains(obs)
        assert numbers.observation_space.contains(state)
        np.testing.assert_allclose(state[:, :2], 2 * infos["factors"][:, :2] - 1, atol=1e-6)
        np.testing.assert_allclose(state[:, 2:], infos["factors"][:, 2:], atol=1e-6)
        positions.append(infos["factors"][:, :2])
        for dot, position in ((obs[:, 1], positions[-1]), (obs[:, 2], positions[-2])):
            bright = dot.reshape(12, -1).argmax(-1)
            observed = np.stack([bright % 40, bright // 40], -1)
            assert (
                np.abs(observed - 36 * position - 1).max() <= 0.51
            )  # 36 pixels, and 1 beside them


def test_an_episode_restored_from_its_factors_has_the_same_state():
    vec_env = PointMazeVectorEnv(50, size=3, output="torch")
    vec_env.reset(seed=0)
    for _ in range(20):
        *_, infos = vec_env.step(vec_env.behaviour_action())
    options = {"factors": infos["factors"], "goal_factors": infos["goal_factors"]}
    _, output = vec_env.reset(seed=0, options=options)
    torch.testing.assert_close(output["factors"], infos["factors"])
    options["factors"][7, :2] = torch.tensor([0.1, 1.5]) / 3
    with pytest.raises(ValueError, match=r"environment 7 .* inside a wall"):
        vec_env.reset(seed=0, options=options)


def test_the_dynamics_tests_distinguish_a_wall_from_an_opening():
    vec_env = PointMazeVectorEnv(1, map="u")
    moved = {}
    for name, dynamics_test in vec_env.dynamics_tests(seed=4).items():
        moved[name] = (
            3
            * (dynamics_test.end_factors - dynamics_test.start_factors)[:, :2]
            * dynamics_test.actions[:, 0]
        ).sum(-1)
    assert moved["wall"].max() < TERMINAL + 0.03
    assert moved["open"].min() > 0.55


def test_unusable_settings_are_refused_by_name():
    for settings, named in (
        *(
            ({"map": "labyrinth"}, "random, u, medium"),
            ({"obs_type": "state"}, "doesn't show the maze"),
        ),
        *(
            ({"size": 2}, "size"),
            ({"goal_distance": "far"}, "any, short"),
            ({"max_episode_steps": 0}, "max_episode_steps"),
        ),
    ):
        with pytest.raises(ValueError, match=named):
            PointMazeVectorEnv(**settings)


@pytest.mark.parametrize("settings", [{}, {"map": "u", "obs_type": "state"}], ids=str)
def test_gymnasium_accepts_the_env_and_makes_it_by_every_function(settings):
    made = gymnasium.make("ami/PointMaze-v0", render_mode="rgb_array", **settings).unwrapped
    check_env(made)
    vec_env = gymnasium.make_vec("ami/PointMaze-v0", num_envs=3, **settings)
    np.testing.assert_array_equal(vec_env.reset(seed=8)[0][2], made.reset(seed=10)[0])
