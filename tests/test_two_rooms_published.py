"""Two Rooms beside the original environments: what their code gave for the same states and actions,
recorded as numbers. EB-JEPA: facebookresearch/eb_jepa at 966e61e; PLDM: vladisai/PLDM at cbaf674;
swm: galilai-group/stable-worldmodel at addbab4."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from envs.rng import keys_from_seeds
from envs.two_rooms import VARIANTS, TwoRoomsVectorEnv
from envs.two_rooms.dynamics import refuse
from envs.two_rooms.env import sample_initial
from envs.two_rooms.variants import layout_table, recorded_tasks

CPU = torch.device("cpu")

# Layout, start, action, a number n that replaces both normal numbers that the rebound draws, the
# next position, and whether the move met something: `check_wall_intersect` of EB-JEPA's and of
# PLDM's code, which is the same.
# fmt: off
REBOUNDS = {
    "eb-fixed": [
        (32, 18, 30.07, 24.82, 1.14, 2.33, 0.13, 30.935, 26.7858, 1),
        (32, 18, 33.34, 23.55, -2.34, 0.7, 1.13, 33.565, 24.2167, 1),
        (32, 18, 31.13, 21.14, -0.7, 2.2, -0.05, 30.43, 23.34, 0),
        (32, 18, 32.83, 15.2, 0.75, -2.3, -0.43, 33.58, 12.9, 0),
        (32, 18, 33.59, 14.44, -1.65, 0.55, 2.14, 31.94, 14.99, 0),
        (32, 18, 29.84, 16.64, 1.85, -0.09, 1.13, 31.69, 16.55, 0),
        (32, 18, 30.8, 14.25, 1.71, -0.31, 0.54, 32.449, 14.27, 1),
        (32, 18, 48.46, 59.7, -0.85, 1.29, 0.07, 48.2973, 59.965, 1),
        (32, 18, 35.03, 43.08, 1.91, -0.2, -0.64, 36.94, 42.88, 0),
        (32, 18, 33.37, 24.71, -1.82, 1.3, 0.16, 33.08, 25.0543, 1),
        (32, 18, 29.85, 23.29, 1.63, -1.4, -0.19, 30.905, 22.2073, 1),
        (32, 18, 33.13, 15.4, -0.71, -1.41, 0.14, 32.495, 14.07, 1),
        (32, 18, 32.18, 14.47, 0.26, -1.59, 0.46, 32.4869, 14.23, 1),
        (32, 18, 33.24, 14.28, -1.59, 0.67, 0.49, 31.65, 14.95, 0),
        (32, 18, 33.63, 15.29, -2.16, -0.16, -0.1, 31.47, 15.13, 0),
        (32, 18, 30.87, 21.9, 0.4, -1.87, -1, 31.27, 20.03, 0),
        (32, 18, 42.78, 5.1, 1.88, -1.65, -0.21, 43.9283, 4.105, 1),
        (32, 18, 33.38, 53.74, 1.12, -1.46, 0.43, 34.5, 52.28, 0),
        (32, 18, 33.44, 25.06, -2.04, -0.33, 0.02, 33.01, 24.9988, 1),
        (32, 18, 29.67, 23.72, 1.06, -0.03, 0.84, 30.73, 23.69, 0),
        (32, 18, 30.73, 21.2, -0.53, 2.34, -0.39, 30.2, 23.54, 0),
        (32, 18, 31.51, 14.8, -0.76, -2.39, -1.02, 30.7456, 14.51, 1),
        (32, 18, 30.85, 17.9, 1.97, 1.31, -0.99, 32.82, 19.21, 0),
        (32, 18, 33.59, 16.18, -1.81, 0.06, -0.61, 31.78, 16.24, 0),
        (32, 18, 30.67, 13.51, 0.52, 0.26, -1.67, 30.165, 12.84, 1),
        (32, 18, 59.75, 40.61, 2.33, 1.07, -1.18, 59.41, 40.1348, 1),
        (32, 18, 29.29, 25.03, -2.03, 1.51, -0.9, 27.26, 26.54, 0),
    ],
    "eb-random": [
        (20, 52, 18.35, 57.1, 2.36, -1.64, -0.45, 18.775, 56.4233, 1),
        (27, 31, 24.01, 38.02, 2.3, 0.09, 1.31, 25.345, 38.7529, 1),
        (42, 22, 42.52, 19.16, -0.65, -2.08, 0.18, 42.2475, 18.09, 1),
        (39, 23, 38.17, 20.59, 0.53, -1.22, -0.38, 38.7, 19.37, 0),
        (43, 28, 40.94, 25.63, 1.79, 0.83, -0.39, 42.73, 26.46, 0),
        (34, 54, 32.78, 50.21, 1.72, -1.1, 0.64, 33.4284, 50.32, 1),
        (32, 33, 33.21, 28.74, -1.51, -1.47, -0.33, 33.165, 28.3706, 1),
        (20, 38, 4.52, 11.68, -1.71, -0.41, 0.54, 4.27, 11.8253, 1),
        (38, 31, 36.07, 54.94, -0.06, 0.27, 0.18, 36.01, 55.21, 0),
        (43, 50, 44.37, 44.27, -1.86, 2.12, -0.29, 44.145, 44.5467, 1),
        (30, 46, 27.41, 41.83, 2.16, -1.31, -0.16, 28.92, 40.7857, 1),
        (40, 43, 41.18, 46.23, -0.14, 1.54, 1.12, 41.04, 47.77, 0),
        (35, 16, 36.18, 13.03, -0.4, -1.34, -1.1, 35.3225, 12.55, 1),
        (36, 23, 37.17, 19.62, -2.06, -1.06, 1.73, 36.8301, 19.865, 1),
        (40, 28, 38.78, 31.28, 1.66, -0.65, -0.13, 40.44, 30.63, 0),
        (27, 44, 25.97, 40.44, 0.59, -2.19, 0.47, 26.3235, 40.235, 1),
        (32, 50, 22.17, 59.84, 1.5, 1.26, 2.81, 23.7655, 58.595, 1),
        (29, 47, 26.24, 27.48, -0.12, -0.62, 0.26, 26.12, 26.86, 0),
        (26, 20, 28.68, 15.7, -1.14, 1.68, 0.45, 27.54, 17.38, 0),
        (39, 31, 40.98, 37.59, -1.39, -1.77, -1.76, 40.88, 35.4621, 1),
        (24, 15, 23.14, 12.18, -0.21, -1.47, -0.06, 22.93, 10.71, 0),
        (24, 35, 23.35, 38.81, 0.67, 1.7, 1.18, 24.0149, 38.41, 1),
        (31, 33, 33.03, 34.19, -2.26, 0.1, 0.07, 30.77, 34.29, 0),
        (21, 46, 19.1, 43.68, 2.16, 1.08, 0.07, 21.26, 44.76, 0),
        (43, 46, 44.06, 49.59, -2.31, -1.78, -1.17, 41.75, 47.81, 0),
        (21, 21, 59.17, 35.51, 2.11, -0.14, 0.41, 59.795, 35.6599, 1),
        (35, 28, 37.84, 55.29, 0.29, -1.88, 1.48, 38.13, 53.41, 0),
    ],
    "pldm": [
        (32, 10, 29.65, 4.27, 1.48, 1.95, 0.23, 31.13, 6.22, 0),
        (32, 10, 33.61, 4.48, -1.21, 2.14, -1.06, 33.53, 5.0288, 1),
        (32, 10, 31.63, 6.56, 0.08, -2.36, 0.2, 31.749, 6.1, 1),
        (32, 10, 31.6, 13.88, 0.35, 2.38, 0.55, 31.8926, 13.725, 1),
        (32, 10, 29.97, 11.07, 1.62, 0.26, -0.46, 31.59, 11.33, 0),
        (32, 10, 33.57, 12.54, -1.78, -0.12, -0.79, 31.79, 12.42, 0),
        (32, 10, 30.87, 14.36, 0.45, 2.44, 0.05, 30.975, 15.0899, 1),
        (32, 10, 58.99, 10.75, 1.13, 0.66, 0.23, 59.885, 11.4549, 1),
        (32, 10, 30.82, 18, -0.35, 1.36, 0.82, 30.47, 19.36, 0),
        (32, 10, 29.65, 14.12, 1.07, 0.52, -1.3, 30.72, 14.64, 0),
        (32, 10, 34.71, 5.68, -2.35, 1.33, 1.09, 32.36, 7.01, 0),
        (32, 10, 30.53, 12.54, -0.6, 1.73, 1.35, 29.93, 14.27, 0),
        (32, 10, 32.42, 13.65, -0.55, 2.07, -0.89, 31.882, 13.555, 1),
        (32, 10, 30.13, 13.75, 2.08, -1.34, -1.04, 32.21, 12.41, 0),
        (32, 10, 30.9, 13, 2.17, -0.98, -0.61, 33.07, 12.02, 0),
        (32, 10, 33.39, 6, -1.96, 0.67, 0.33, 31.43, 6.67, 0),
        (32, 10, 5.01, 21.27, -2.36, 0.8, 0.38, 4.19, 21.8024, 1),
        (32, 10, 29.73, 30.61, -0.29, -1.79, 0.16, 29.44, 28.82, 0),
        (32, 10, 33.68, 4.23, -1.6, -0.45, -1.59, 33.795, 4.3, 1),
        (32, 10, 34.22, 4.66, -1.69, -1.34, -0.96, 33.3, 4.48, 1),
        (32, 10, 32.21, 6.61, 0.24, -1.95, 0.62, 32.5951, 6.31, 1),
        (32, 10, 32.16, 7.07, 0.2, -1.52, 0.22, 32.4108, 6.11, 1),
        (32, 10, 33.9, 13.01, -2.38, 0.01, -0.17, 31.52, 13.02, 0),
        (32, 10, 30.59, 12.63, 1.97, -1.15, 0.67, 32.56, 11.48, 0),
        (32, 10, 33.34, 13.81, -0.95, -1.6, 0.94, 32.39, 12.21, 0),
        (32, 10, 4.32, 49.67, -1.87, -0.51, -1.5, 4.75, 48.8327, 1),
        (32, 10, 34.16, 56.76, 2.44, 1.33, -0.56, 36.6, 58.09, 0),
    ],
}
# Start, action, next position and whether it differs from start + 5 x action: `TwoRoomEnv.step`.
SWM_MOVES = [
    (126.85, 77.6, -0.51, -0.58, 124.3, 74.7, 0),
    (124.74, 81.49, -0.99, 0.11, 124.5, 82.04, 1),
    (123.77, 36.48, -0.1, -0.7, 124.5, 32.98, 1),
    (124.33, 56.66, -0.77, -0.06, 120.48, 56.36, 0),
    (124.44, 31.42, -0.52, -0.53, 124.5, 28.77, 1),
    (18.9, 18.93, 0.69, 0.28, 22.35, 21, 1),
    (138.6, 142.29, 0.79, -1.33, 142.55, 137.29, 1),
    (126.2, 29.8, -0.74, 0.54, 124.5, 32.5, 1),
    (126.07, 76.53, -0.93, -0.32, 124.5, 74.93, 1),
    (112.75, 61.39, -0.2, 0.96, 124.5, 66.19, 1),
    (98.07, 39.33, 0.74, -0.62, 101.77, 36.23, 0),
    (98.14, 33.48, 0.65, 0.2, 101.39, 34.48, 0),
    (16.78, 208.84, -0.04, 0.52, 21, 203, 1),
    (183.08, 151.12, 1.39, 0.85, 188.08, 155.37, 1),
    (99.45, 73.61, 0.78, 0.31, 99.5, 75.16, 1),
    (96.06, 79.45, 0.87, -0.31, 99.5, 77.9, 1),
    (100.98, 34.12, -0.02, -0.99, 99.5, 29.17, 1),
    (98.55, 63.34, 0.76, 0.59, 99.5, 66.29, 1),
    (125.16, 31.89, -0.96, 0.65, 120.36, 35.14, 0),
    (17.73, 206.08, 0.55, 0.73, 21, 203, 1),
    (154.4, 165.15, -1.35, -0.8, 149.4, 161.15, 1),
    (96.55, 75.09, 0.84, -0.94, 99.5, 70.39, 1),
    (127.59, 26.5, -0.93, -0.3, 124.5, 25, 1),
    (107.17, 63.18, -0.21, 0.64, 99.5, 66.38, 1),
    (126.67, 39.63, -0.63, -0.32, 123.52, 38.03, 0),
    (98.37, 66.99, 0.65, -0.18, 99.5, 66.09, 1),
    (19.75, 21.01, 0.83, -0.01, 23.9, 21, 1),
    (48.51, 88.94, -1.3, -0.89, 43.51, 84.49, 1),
]
# fmt: on


def runs(values):
    """Values in a row -> `(value, count)` of each run of equal ones."""
    ends = np.flatnonzero(np.diff(values)) + 1
    parts = np.split(np.asarray(values), ends)
    return [(int(part[0]), len(part)) for part in parts]


def recorded(rows):
    return torch.tensor(rows, dtype=torch.float32)


@pytest.mark.parametrize("name", REBOUNDS)
def test_moves_rebound_where_the_original_ones_do(name):
    variant, rows = VARIANTS[name], recorded(REBOUNDS[name])
    layout, start, action, noise = rows[:, :2], rows[:, 2:4], rows[:, 4:6], rows[:, 6:7]
    move = variant.motion.move(action)
    end = variant.motion.contact(variant.arena, start, move, layout, noise.expand(-1, 2))
    torch.testing.assert_close(end, rows[:, 7:9], atol=2e-4, rtol=0)
    free = (end - start - action).abs().amax(-1) < 1e-4
    assert free.tolist() == (rows[:, 9] == 0).tolist()


@pytest.mark.parametrize("name", REBOUNDS)
def test_the_published_data_refuse_the_moves_that_would_rebound(name):
    """`WallDataset.generate_transitions` leaves the dot where it is in the same moves."""
    variant, rows = VARIANTS[name], recorded(REBOUNDS[name])
    end = refuse(variant.arena, rows[:, 2:4], rows[:, 4:6], rows[:, :2])
    stays = torch.where(rows[:, 9:] == 1, rows[:, 2:4], rows[:, 2:4] + rows[:, 4:6])
    torch.testing.assert_close(end, stays, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["swm", "swm-25"])
def test_swm_moves_end_where_the_original_ones_do(name):
    variant, rows = VARIANTS[name], recorded(SWM_MOVES)
    layout = torch.tensor([[112.0, 49.0]]).expand(len(rows), -1)
    start, move = rows[:, :2], variant.motion.move(rows[:, 2:4])
    end = variant.motion.contact(variant.arena, start, move, layout)
    torch.testing.assert_close(end, rows[:, 4:6], atol=2e-4, rtol=0)
    differs = (end - start - 5 * rows[:, 2:4]).abs().amax(-1) > 1e-3
    assert differs.tolist() == (rows[:, 6] == 1).tolist()


def test_the_rebound_is_half_normal_away_from_the_wall_and_normal_along_it():
    """20,000 moves from (30, 40) by (2, 1): the original's mean and standard deviation were 30.601
    and 0.302 in x, never above 31, and 40.495 and 0.502 in y."""

    def pushes(seed, count=300, steps=40):
        """Ends [steps, count, 2] of the same move, over and over."""
        envs = TwoRoomsVectorEnv(count, variant="eb-fixed")
        envs._observe_at = lambda walls, position, distractors: position
        state = envs._reset_state(keys_from_seeds(range(seed, seed + count), CPU), {})
        start, action = torch.tensor([30.0, 40.0]), torch.tensor([2.0, 1.0])
        ends = []
        for _ in range(steps):
            again = state._replace(position=start.expand(count, -1))
            state = envs._step_state(again, action.expand(count, -1))
            ends.append(state.position)
        return torch.stack(ends)

    ends = pushes(seed=0)
    end = ends.flatten(0, 1)
    torch.testing.assert_close(end.mean(0), torch.tensor([30.601, 40.5]), atol=0.015, rtol=0)
    torch.testing.assert_close(end.std(0), torch.tensor([0.302, 0.502]), atol=0.01, rtol=0)
    assert end[:, 0].max() < 31
    assert end[:, 0].min() > 28.4
    assert torch.corrcoef(end.T)[0, 1].abs() < 0.03
    correlation = torch.corrcoef(ends[:2, :, 1])[0, 1]  # of one step's noise and the next one's
    assert correlation.abs() < 0.2
    assert torch.equal(pushes(seed=0, count=1, steps=3)[:, 0], ends[:3, 0])  # its own stream
    assert not torch.equal(pushes(seed=1, count=1, steps=3)[:, 0], ends[:3, 0])


def test_without_noise_the_rebound_is_its_mean():
    variant, start = VARIANTS["eb-fixed"], torch.tensor([[30.0, 40.0]])
    layout, move = torch.tensor([[32.0, 18.0]]), torch.tensor([[2.0, 1.0]])
    end = variant.motion.contact(variant.arena, start, move, layout, None)
    torch.testing.assert_close(end, torch.tensor([[30.601, 40.5]]), atol=1e-3, rtol=0)


def test_an_exactly_vertical_move_meets_what_its_neighbours_meet():
    """The original divides by zero there: into a border the dot's x becomes NaN, and from within
    the door the dot passes into the wall."""
    variant, noise = VARIANTS["eb-fixed"], torch.zeros(2, 2)
    start, layout = torch.tensor([[20.0, 59.0], [32.0, 21.0]]), torch.tensor([[32.0, 18.0]] * 2)
    move = torch.tensor([[0.0, 2.0]] * 2)
    end = variant.motion.contact(variant.arena, start, move, layout, noise)
    torch.testing.assert_close(end, torch.tensor([[20.0, 59.7], [32.0, 22.0]]))


def test_the_picture_of_the_original_eb_env():
    """A dot at (20.3, 40.7), a wall at 32 and a door at 18."""
    canvas = VARIANTS["eb-fixed"].canvas
    walls = canvas.draw_walls(torch.tensor([[32.0, 18.0]]))
    dot, walls = canvas.observe(walls, torch.tensor([[20.3, 40.7]]))[0].numpy()
    across = [(5, 4), (65, 1), (5, 9), (2, 9), (5, 37), (65, 1), (5, 4)]
    down = [(2, 4), (65, 1), (2, 26), (56, 3), (2, 26), (65, 1), (2, 4)]
    assert runs((walls == 255).sum(1)) == across
    assert runs((walls == 255).sum(0)) == down
    assert set(np.unique(walls)) == {0, 255}
    expected = [
        [1, 6, 17, 28, 25, 12, 3],
        [4, 22, 65, 105, 93, 46, 12],
        [8, 46, 133, 214, 190, 93, 25],
        [9, 51, 150, 241, 214, 105, 28],
        [6, 32, 93, 150, 133, 65, 17],
        [2, 11, 32, 51, 46, 22, 6],
        [0, 2, 6, 9, 8, 4, 1],
    ]
    np.testing.assert_array_equal(dot[38:45, 17:24], expected)
    assert dot.sum() == 2664


def test_the_picture_of_the_original_swm_env():
    """A dot at (60.3, 150.7), and one at (104.5, 80), beside and partly on the wall. One of 255
    levels is missing from the original's red in a hundredth of the pixels, by rounding."""
    canvas = VARIANTS["swm"].canvas
    walls = canvas.draw_walls(torch.tensor([[112.0, 49.0]]))
    across = [
        (19, 10),
        (224, 4),
        (19, 21),
        (8, 29),
        (19, 87),
        (20, 1),
        (19, 58),
        (224, 4),
        (19, 10),
    ]
    down = [(8, 10), (224, 4), (8, 46), (9, 1), (8, 46), (195, 11), (8, 92), (224, 4), (8, 10)]
    red, green, blue = canvas.observe(walls, torch.tensor([[60.3, 150.7]]))[0].numpy()
    np.testing.assert_array_equal(green, blue)
    assert runs((green == 0).sum(1)) == across
    assert runs((green == 0).sum(0)) == down
    expected = [
        [42, 30, 21, 18, 19, 24, 34],
        [33, 19, 11, 7, 8, 14, 24],
        [27, 14, 5, 1, 2, 8, 19],
        [26, 13, 4, 0, 1, 7, 18],
        [30, 17, 8, 4, 5, 11, 21],
        [38, 25, 17, 13, 14, 19, 30],
    ]
    np.testing.assert_array_equal(green[148:154, 57:64], expected)
    assert green.astype(int).sum() == pytest.approx(11289917, abs=100)
    assert (red == 0).sum() == 5577
    assert set(np.unique(red)) == {0, 255}
    red, green, _ = canvas.observe(walls, torch.tensor([[104.5, 80.0]]))[0].numpy()
    on_wall = [255, 255, 255, 255, 255, 255, 255, 239, 225, 207, 187, 166]
    assert np.abs(red[80, 100:112].astype(int) - on_wall).max() <= 1
    assert green[80, 100:112].tolist() == [47, 29, 15, 5, 0, 0, 5, 0, 0, 0, 0, 0]


# Of 8000 resets of EB-JEPA's `DotWall`: fraction of starts in the left room, mean and standard
# deviation of the distance to the goal, quantiles (0, 1/4, 1/2, 3/4, 1) of the starts' x and y.
STARTS = {
    "eb-fixed": (
        *(0.507, 35.29, 10.08, (6.61, 17.39, 28.13, 46.45, 57.39)),
        (6.60, 19.32, 31.83, 44.56, 57.39),
    ),
    "eb-random": (
        *(0.497, 35.40, 10.43, (6.62, 16.16, 31.76, 47.86, 57.39)),
        (6.60, 19.08, 31.64, 44.35, 57.39),
    ),
}


@pytest.mark.parametrize("name", STARTS)
def test_starts_and_goals_lie_where_the_original_ones_do(name):
    left, mean, std, across, down = STARTS[name]
    variant = VARIANTS[name]
    layouts = layout_table(variant, "all")
    start, goal, layout = sample_initial(variant, layouts, keys_from_seeds(range(8000), CPU))
    distance = (start - goal).norm(dim=-1)
    assert (start[:, 0] < layout[:, 0]).float().mean() == pytest.approx(left, abs=0.02)
    assert distance.mean() == pytest.approx(mean, abs=0.4)
    assert distance.std() == pytest.approx(std, abs=0.3)
    quantiles = torch.quantile(start, torch.linspace(0, 1, 5), 0).T.numpy()
    between = np.abs(quantiles - [across, down])
    in_between = between[:, [1, 3]] if name == "eb-fixed" else between[:, 1:4]  # half: the wall
    assert in_between.max() < 1.2
    assert between[:, [0, 4]].max() < 0.05
    assert (start - layout)[:, 0].abs().min() == pytest.approx(3.6, abs=0.03)


@pytest.mark.parametrize(
    ("name", "other_room", "mean", "std", "solved", "quantiles"),
    [
        # 1500 resets of `TwoRoomEnv`
        ("swm", 0.487, 103.4, 49, 0.023, None),
        # 58,391 pairs of positions 25 steps apart, in 1500 episodes of its `ExpertPolicy` with the
        # settings of its data (noise 2, at most 100 steps)
        ("swm-25", 0.192, 41.94, 18.39, 0.081, (17.82, 41.38, 66.30)),
    ],
)
def test_swm_goals_are_as_far_as_the_original_ones(name, other_room, mean, std, solved, quantiles):
    variant = VARIANTS[name]
    layouts = layout_table(variant, "all")
    start, goal, _ = sample_initial(variant, layouts, keys_from_seeds(range(20000), CPU))
    distance = (start - goal).norm(dim=-1)
    crosses = (start[:, 0] > 112) != (goal[:, 0] > 112)
    assert crosses.float().mean() == pytest.approx(other_room, abs=0.03)
    assert distance.mean() == pytest.approx(mean, rel=0.03)
    assert distance.std() == pytest.approx(std, rel=0.03)
    assert (distance < 16).float().mean() == pytest.approx(solved, abs=0.01)
    if quantiles is not None:
        levels = torch.tensor([0.1, 0.5, 0.9])
        assert torch.quantile(distance, levels).tolist() == pytest.approx(quantiles, rel=0.05)


def test_recorded_tasks_are_made_once_and_are_the_same():
    first = recorded_tasks(VARIANTS["swm-25"], CPU)
    assert recorded_tasks(VARIANTS["swm-25"], CPU) is first
    assert len(first) == pytest.approx(10_000 * 58_391 / 1500, rel=0.05)
    assert first.shape[1:] == (2, 2)


def test_goals_that_are_more_recorded_steps_away_are_farther():
    nearest, *others = (recorded_tasks(VARIANTS[f"swm-{n}"], CPU) for n in (25, 50, 75, 100))
    distance = [(tasks[:, 0] - tasks[:, 1]).norm(dim=-1).mean() for tasks in (nearest, *others)]
    assert distance == sorted(distance)
    assert distance[-1] > 2.5 * distance[0]
    assert all(len(tasks) > 1000 for tasks in others)


def test_swm_episodes_end_at_their_goal():
    envs = TwoRoomsVectorEnv(2, variant="swm", output="torch")
    factors = torch.tensor([[0.2, 0.5, 98 / 195, 35 / 195], [0.8, 0.5, 98 / 195, 35 / 195]])
    goals = torch.tensor([[0.3, 0.5, 0.5, 0.18], [0.1, 0.5, 0.5, 0.18]])
    envs.reset(seed=0, options={"factors": factors, "goal_factors": goals})
    ended = [envs.step(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))[2].tolist() for _ in range(2)]
    assert ended == [[True, False], [False, False]]  # after 5 of 19.5 px; then it begins anew


# Of walks of the original's data through the door, before anything stops them: fractions of starts
# on the border, in the wall and in the door, and quantiles (1/10, 1/4, 1/2, 3/4, 9/10) of x and y;
# 3000 of them.
CROSSING = {
    "start x": (7.66, 20.36, 31.69, 42.82, 55.63),
    "start y": (4.01, 7.36, 17.94, 28.69, 40.89),
}


def test_crossing_walks_start_where_the_original_ones_do():
    variant = VARIANTS["eb-fixed"]
    layout = torch.tensor([[32.0, 18.0]]).expand(10_000, -1)
    keys = keys_from_seeds(range(10_000), CPU)
    start, moves = variant.published_walk.sample(variant.arena, layout, keys, 1.0)
    assert moves.shape == (10_000, 90, 2)
    quantiles = torch.quantile(start, torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]), 0).T.numpy()
    np.testing.assert_allclose(quantiles, list(CROSSING.values()), atol=1.2)
    assert ((start < 4.02) | (start > 59.98)).any(1).float().mean() == pytest.approx(
        0.328, abs=0.025
    )
    across, along = (start - layout).abs().unbind(-1)
    in_wall, in_door = ((across <= 1) & closed for closed in (along > 4, along <= 4))
    assert in_wall.float().mean() == pytest.approx(0.033, abs=0.01)
    assert in_door.float().mean() == pytest.approx(0.013, abs=0.006)
    way = start[:, None] + moves.cumsum(1)  # where no border stops it, it goes through the door
    free = ((start > 4.02) & (start < 59.98)).all(1)
    passes = ((way - layout[:, None]).abs() <= torch.tensor([1.0, 4.0])).all(-1).any(1) | in_door
    assert passes[free].float().mean() > 0.98


def test_other_walks_start_anywhere_and_keep_out_of_the_wall():
    variant = VARIANTS["eb-fixed"]
    layout = torch.tensor([[32.0, 18.0]]).expand(10_000, -1)
    keys = keys_from_seeds(range(10_000), CPU)
    start, moves = variant.published_walk.sample(variant.arena, layout, keys, 0.0)
    assert (start[:, 0] < 32).float().mean() == pytest.approx(0.5, abs=0.02)
    assert start.min() >= 4
    assert start.max() <= 60
    across, along = (start - layout).abs().unbind(-1)
    assert not ((across < 1) & (along > 4)).any()
    assert (start[:, 1] < 18).float().mean() == pytest.approx(0.25, abs=0.02)
    heading = torch.atan2(moves[:, 0, 1], moves[:, 0, 0])
    assert heading.cos().mean() == pytest.approx(0.0, abs=0.03)
    assert moves.norm(dim=-1).mean() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("name", "visits", "ends", "refused", "margin"),
    [
        # 500 walks of EB-JEPA's `WallDataset`, and 2000 of PLDM's, with their settings
        ("eb-fixed", 0.258, 0.212, 0.296, 0.06),
        ("eb-random", 0.304, 0.242, 0.279, 0.06),
        ("pldm", 0.398, 0.310, 0.260, 0.04),
    ],
)
def test_the_published_data_visit_the_other_room_as_often(name, visits, ends, refused, margin):
    """Margins are about three standard errors."""
    envs = TwoRoomsVectorEnv(1500, variant=name, published_data=True)
    envs._observe_at = lambda walls, position, distractors: position
    state = envs._reset_state(keys_from_seeds(range(1500), CPU), {})
    positions, actions = [state.position], []
    for _ in range(89):
        behaviour, action = envs._behave(state)
        actions.append(action)
        state = envs._step_state(state._replace(behaviour=behaviour), action)
        positions.append(state.position)
    way = torch.stack(positions)
    right = way[..., 0] > state.layout[:, 0]
    assert (right != right[0]).any(0).float().mean() == pytest.approx(visits, abs=margin)
    assert (right[-1] != right[0]).float().mean() == pytest.approx(ends, abs=margin)
    moved = way.diff(dim=0)
    stays = (moved == 0).all(-1)
    assert stays.float().mean() == pytest.approx(refused, abs=0.03)
    torch.testing.assert_close(moved[~stays], torch.stack(actions)[~stays], atol=1e-4, rtol=0)


def test_published_data_are_episodes_of_the_env():
    envs = TwoRoomsVectorEnv(3, variant="pldm", published_data=True)
    assert envs.max_episode_steps == 90
    assert envs.directed_fraction == 0.6
    envs.reset(seed=0)
    first = envs.state.behaviour.walk.clone()
    for step in range(90):
        action = envs.behaviour_action()
        np.testing.assert_allclose(action, first[:, step].numpy(), rtol=1e-6)
        *_, truncated, _ = envs.step(action)
        assert truncated.all() == (step == 89)
    envs.step(action)
    assert not torch.equal(envs.state.behaviour.walk, first)
    again = TwoRoomsVectorEnv(1, variant="pldm", published_data=True)
    again.reset(seed=2)
    assert torch.equal(again.state.behaviour.walk[0], first[2])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"variant": "fixed"}, "eb-fixed, eb-random, pldm"),
        ({"variant": "swm"}, "eb-fixed, eb-random, pldm"),
        ({"variant": "pldm", "max_step": 2.0}, "max_step"),
        ({"variant": "pldm", "max_episode_steps": 91}, "max_episode_steps"),
    ],
)
def test_published_data_that_do_not_exist_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        TwoRoomsVectorEnv(1, published_data=True, **options)
