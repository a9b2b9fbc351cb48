"""Golden values: tiny trainings of several recipes, and the shipped run in every mode, give the
numbers that `golden.json` holds. A change of structure or of names alone changes none of them; a
change of behaviour is declared by `python -m tests.test_golden`, which writes the file anew."""

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch

import ami_agent as ami
from ami_agent import recipes
from ami_agent.storage import run_dir
from ami_agent.train import train
from tests.conftest import small

FILE = Path(__file__).with_name("golden.json")
SHIPPED = Path(__file__).parents[1] / "runs" / "reference" / "two-rooms"
TOLERANCE = 1e-4
"""Relative: other processors round differently in the last digits."""


def cartpole() -> ami.Config:
    return recipes.gym(ami.EnvConfig(id="CartPole-v1"))


def pendulum() -> ami.Config:
    return recipes.gym(ami.EnvConfig(id="Pendulum-v1"))


RECIPES = {
    "two_rooms": recipes.two_rooms,
    "two_rooms_slow": recipes.two_rooms_slow,
    "two_rooms_random": recipes.two_rooms_random,
    "two_rooms_distracted": recipes.two_rooms_distracted,
    "forage": recipes.forage,
    "cue_corridor": recipes.cue_corridor,
    "windy_rooms": recipes.windy_rooms,
    "push": recipes.push,
    "cartpole": cartpole,
    "pendulum": pendulum,
}


def weights(config: ami.Config, out: Path) -> list[float]:
    """Sum and sum of squares of all parameters after a training of a few updates."""
    agent = train(small(config), out=out)
    values = torch.cat([part.detach().double().flatten() for part in agent.parameters()])
    return [float(values.sum()), float(values.square().sum())]


def rollout(mode: str, steps: int = 20) -> list[float]:
    """Energy and action of each of the first steps of the shipped agent in two environments; an
    actor that imagines nothing has no energy."""
    agent = ami.load(SHIPPED)
    found: list[float] = []
    with closing(run_dir.settings_of(SHIPPED).env.build(2)) as env:
        obs, info = env.reset(seed=0)
        controller = agent.controller(2, ami.Task(goal=env.goal(info), mode=mode), tensors=True)
        for _ in range(steps):
            plan = controller.act(obs)
            found += [*plan.energy.nan_to_num().tolist(), *plan.action.flatten().tolist()]
            obs = env.step(obs, plan.action).transition.next_obs
    return found


def close_to(expected: list[float]):
    return pytest.approx(expected, rel=TOLERANCE, abs=1e-5)


@pytest.mark.parametrize("name", RECIPES)
def test_a_tiny_training_ends_with_the_golden_weights(name, tmp_path):
    assert weights(RECIPES[name](), tmp_path / "run") == close_to(GOLDEN[name])


@pytest.mark.parametrize("mode", ["react", "plan", "auto"])
def test_the_shipped_run_acts_with_the_golden_numbers(mode):
    assert rollout(mode) == close_to(GOLDEN[mode])


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = {name: weights(make(), Path(folder) / name) for name, make in RECIPES.items()}
    found |= {mode: rollout(mode) for mode in ("react", "plan", "auto")}
    FILE.write_text(json.dumps(found, indent=1) + "\n")
else:
    GOLDEN = json.loads(FILE.read_text())
