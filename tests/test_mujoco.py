"""Environments that MuJoCo simulates."""

from __future__ import annotations

import subprocess
import sys

import mujoco
import numpy as np
import pytest
import torch

from ami_agent.adapters.env import EnvConfig
from envs.mujoco import Simulator, compile_model
from envs.point_maze import max_boxes, to_mjcf, wall_boxes
from envs.rng import keys_from_seeds, uniform
from modules.types import ConfigError

SIZE = 3


def between(*gates):
    """A ball in a maze of 3 by 3 cells with all walls but those upright ones."""
    upright = torch.ones(SIZE, SIZE + 1, dtype=torch.bool)
    for row, line in gates:
        upright[row, line] = False
    return compile_model(
        to_mjcf(SIZE, wall_boxes(upright, torch.ones(SIZE + 1, SIZE, dtype=torch.bool)))
    )


def anywhere(count):
    """Positions, velocities and forces, [count, 2] each."""
    numbers, _ = uniform(keys_from_seeds(range(count), torch.device("cpu")), 6)
    position, speed, force = numbers.split(2, dim=-1)
    return 0.2 + 0.6 * position + (SIZE * position).floor(), 6 * speed - 3, 2 * force - 1


def stepped(model, position, speed, force, substeps):
    """What MuJoCo itself computes for one environment that begins just now."""
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:], data.ctrl[:] = position, speed, force
    mujoco.mj_step(model, data, substeps)
    return np.concatenate([data.qpos, data.qvel]).astype(np.float32)


@pytest.mark.parametrize("threads", [1, 2])
def test_envs_stepped_as_a_batch_are_equal_to_envs_stepped_singly(threads):
    models = [between(), between((0, 1), (1, 2))] * 20
    torch.set_num_threads(threads)
    simulate = Simulator(models[0], 7)
    torch.set_num_threads(1)
    given = anywhere(40)
    for _ in range(3):  # and no state is left over for the next call
        position, speed = simulate(models, *given)
        for i, model in enumerate(models):
            own = stepped(model, *(part[i] for part in given), 7)
            np.testing.assert_array_equal(torch.cat([position[i], speed[i]]), own)


def test_all_mazes_of_a_size_have_models_of_one_size():
    """Otherwise what one thread keeps of one would not fit the next."""
    every_other = (torch.arange(SIZE + 1) % 2 == 0).expand(SIZE, -1)
    stand = [
        [],
        wall_boxes(every_other, every_other.T),
        wall_boxes(every_other.flip(-1), every_other.T),
    ]
    models = [between(), *(compile_model(to_mjcf(SIZE, some)) for some in stand)]
    names = ["nq", "nv", "ngeom", "nbvh", "nbvhstatic", "narena", "signature"]
    for name in names if hasattr(models[0], "signature") else names[:-1]:  # new in MuJoCo 3.3.1
        assert len({getattr(model, name) for model in models}) == 1, name
    assert models[0].ngeom == max_boxes(SIZE) + 1


def test_envs_are_registered_without_mujoco():
    vec_env = "envs, envs.reach, envs.point_maze, envs.push"
    quiet = f"import sys, {vec_env}; sys.exit('mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", quiet], check=False).returncode == 0


@pytest.mark.parametrize("name", ["ami/PointMaze-v0", "ami/Reach-v0", "ami/Push-v0"])
def test_a_missing_mujoco_is_reported_in_one_line(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ConfigError, match=f"{name}' can't be made: ") as output:
        EnvConfig(id=name).build(2)
    assert "this environment needs MuJoCo: pip install 'ami-agent[mujoco]'" in str(output.value)
    assert "\n" not in str(output.value)
