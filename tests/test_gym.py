"""A world that the framework has never seen: trained, judged and taken up again from the command
line, without a line of code."""

from __future__ import annotations

import json
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import ami_agent as ami
from ami_agent.build import build
from ami_agent.cli import main
from ami_agent.life import WorldConfig
from modules.bounds import Box, Choice
from modules.types import UnusableInput
from tests.conftest import refuse

OWN = '''
import gymnasium
import numpy as np


class Own(gymnasium.Env):
    """Numbers and a picture; two choices at once."""

    def __init__(self, lasts=9):
        self.observation_space = gymnasium.spaces.Dict(
            place=gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64),
            view=gymnasium.spaces.Box(0, 255, (16, 12, 3), np.uint8),
        )
        self.action_space = gymnasium.spaces.MultiDiscrete([2, 3])
        self.lasts = lasts

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.moment = 0
        return self.look(), {}

    def step(self, action):
        self.moment += 1
        done = {"is_success": bool(action[0])}
        return self.look(), float(action[1]), self.moment == self.lasts, False, done

    def look(self):
        return {
            "place": self.np_random.normal(size=2),
            "view": np.full((16, 12, 3), self.moment, np.uint8),
        }


gymnasium.register("ami-test/Own-v0", entry_point=Own)
'''
TINY = (
    "--life.steps", 30, "--objective.learning.steps", 3, "--interact.steps", 12,
    "--interact.learning.batch", 8, "--interact.objective.learning.batch", 8, "--episodes", 2,
    "--planner.horizon", 2, "--planner.steps", 1, "--planner.warm-steps", 1,
)  # fmt: skip


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield ("--env.import", "own.py", "--env.id", "ami-test/Own-v0")
    gymnasium.registry.pop("ami-test/Own-v0", None)


def test_the_environment_in_the_documentation_can_be_trained_in(tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "environments.md").read_text()
    (code,) = re.findall(r"```python\n(# my_world\.py\n.*?)```", page, re.DOTALL)
    (tmp_path / "my_world.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    world = ("--env.import", "my_world.py", "--env.id", "my/Catch-v0")
    assert ask("train", "gym", *world, "--out", "run", "--json", "found.json", *TINY) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["plan"]["length"]["mean"] == 11
    assert found["plan"]["success"]["mean"] == found["plan"]["return"]["mean"]
    del gymnasium.registry["my/Catch-v0"]


def ask(*argv):
    return main([str(arg) for arg in argv])


def test_a_file_of_ones_own_is_all_it_takes(own, tmp_path, capsys):
    assert ask("train", "gym", *own, "--env.options", "lasts", 5, "--out", "run", *TINY) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["world"]["options"] == {"lasts": 5}
    assert config["world"]["imports"] == [str(tmp_path / "own.py")]
    agent = ami.load("run")
    assert set(agent.spec.senses) == {"place", "view"}
    assert agent.spec.choices == (2, 3)
    assert ask("eval", "run", "--mode", "react", "--episodes", 3, "--json", "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["length"]["mean"] == 5
    assert 0 <= found["return"]["mean"] <= 2 * 5
    assert found["success"]["mean"] in (0, 1 / 3, 2 / 3, 1)
    assert found["baselines"]["oracle"] is None
    assert ask("probe", "run") == 0
    assert "std_mean" in capsys.readouterr().out
    assert (
        ask("train", "gym", *own, "--env.options", "lasts", 5, "--out", "run", "--resume", *TINY)
        == 0
    )
    assert ask("show", "run", "--episodes", 1, "--mode", "both") == 0
    assert "only of the agent's states" in capsys.readouterr().out
    assert (tmp_path / "run" / "show" / "episode-0-react.gif").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--env.id", "NoSuch-v0"), "NoSuch.*--env.import"),
        (("--env.id", "CartPole-v1", "--env.options", "colour", "red"), "colour"),
        (("--env.id", "CartPole-v1", "--env.repeat", "0"), "repeat is 0"),
        (("--env.id", "CartPole-v1", "--no-such-flag", "0"), "no-such-flag"),
        (("--env.id", "CartPole-v1", "--interact.trace", "2"), "trace is 2"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_begun(flags, said, tmp_path, capsys):
    told = refuse(capsys, "train", "gym", "--out", tmp_path / "run", *flags)
    assert re.search(said, told)
    assert not (tmp_path / "run").exists()


STRANGE = """
import gymnasium
import numpy as np


class Strange(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.moment = 0
        return np.zeros(3, np.float32), {"goal": np.zeros(2)}

    def step(self, action):
        self.moment += 1
        return np.zeros(3, np.float32), 0.0, self.moment == 9, False, {"factors": {"a": 1}}

    def close(self):
        raise RuntimeError("will not end")


gymnasium.register("ami-test/Strange-v0", entry_point=Strange)
"""


def test_what_a_world_tells_beside_gymnasium_s_interface_is_its_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "strange.py").write_text(STRANGE)
    monkeypatch.chdir(tmp_path)
    world = ("--env.import", "strange.py", "--env.id", "ami-test/Strange-v0")
    try:
        assert ask("train", "gym", *world, "--out", "run", *TINY) == 0
        assert ask("show", "run", "--episodes", 1) == 0
    finally:
        gymnasium.registry.pop("ami-test/Strange-v0", None)


def test_episodes_of_one_step_are_learnt_from_without_a_flag(own, capsys):
    world = (*own, "--env.options", "lasts", 1)
    assert ask("train", "gym", *world, "--out", "run", *TINY) == 0


def test_what_a_world_calls_its_goal_must_be_one_where_goals_are_pursued():
    with closing(WorldConfig(id="CartPole-v1").build(1)) as world:
        for goal in (np.zeros((1, 2)), "left", {"x": 1}, np.zeros(1)):
            with pytest.raises(UnusableInput, match=r"goal, info\['goal'\], is not of its space"):
                world.goal({"goal": goal})


def test_a_choice_and_a_number_are_told_apart_where_an_agent_does_not_fit(own, capsys):
    assert ask("train", "gym", *own, "--out", "run", *TINY) == 0
    capsys.readouterr()
    assert ask("eval", "run", "--env", "Pendulum-v1", "--episodes", 1) == 2
    told = capsys.readouterr().err
    assert "and 1 actions, but" in told
    assert "choices of one of 2 and one of 3" in told


def test_the_recipe_reads_off_the_spaces_what_the_mind_is_made_of():
    pole, swing = (ami.recipes.gym(WorldConfig(id=n)) for n in ("CartPole-v1", "Pendulum-v1"))
    assert pole.bounds == Choice(sizes=(2,))
    assert swing.bounds == Box()
    for config in (pole, swing):
        assert config.world.mortal
        assert config.world == config.evaluation
        world = config.world.build(3)
        assert world.spec.interoception == ("reward", "alive")
        world.close()


def test_a_choice_is_made_whole_and_its_gradient_is_that_of_its_chance():
    bounds = Choice(sizes=(2, 3))
    free = torch.randn(7, 5, requires_grad=True, generator=torch.Generator().manual_seed(0))
    done = bounds.bound(free)
    assert set(done.detach().unique().tolist()) <= {0, 1} or torch.allclose(done, done.round())
    assert torch.allclose(done[:, :2].sum(-1), torch.ones(7))
    assert torch.equal(done[:, 2:].argmax(-1), free[:, 2:].argmax(-1))
    worth = torch.randn(5, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad((done * worth).sum(), free)
    soft = torch.cat([part.softmax(-1) for part in free.split((2, 3), -1)], -1)
    (by_chance,) = torch.autograd.grad((soft * worth).sum(), free)
    torch.testing.assert_close(slope, by_chance)
    kept = bounds.bound(bounds.free(bounds.project(torch.rand(9, 5))))
    assert torch.allclose(kept, bounds.project(kept))


@pytest.mark.parametrize("name", ["GradientPlanner", "CEM", "MPPI", "Collocation"])
def test_every_planner_chooses_whole(name):
    config = ami.recipes.gym(WorldConfig(id="CartPole-v1"))
    config = replace(config, planner=getattr(ami.boxes, name).Config(horizon=3))
    world = config.world.build(4)
    agent = build(config, world.spec)
    obs, _ = world.reset(0)
    agent.configure(agent.assigned("").task(None, "plan"))
    plan = agent.act(obs)
    assert torch.allclose(plan.actions.sort(-1).values, torch.tensor([0.0, 1.0]))
    done = world.to_world(plan.action)
    assert np.array_equal(done, plan.action.argmax(-1).numpy())
    world.close()


@pytest.mark.parametrize(
    ("world", "discount"),
    [
        (WorldConfig(id="Pendulum-v1"), 0.975),  # 200 steps
        (WorldConfig(id="Pendulum-v1", limit=150), 1 - 5 / 150),
        (WorldConfig(id="Pendulum-v1", limit=1000), 0.975),  # its own time still runs out
        (WorldConfig(id="Pendulum-v1", repeat=2), 0.95),
        (WorldConfig(id="CartPole-v1"), 0.99),
    ],
)
def test_how_far_is_foreseen_follows_from_how_long_an_episode_lasts(world, discount):
    assert ami.recipes.gym(world).foresight.discount == pytest.approx(discount)


def test_who_imitates_a_choice_goes_on_until_it_is_sure():
    """The right one is likeliest already, by little: there is still something to learn."""
    bounds = Choice(sizes=(2, 3))
    free = torch.tensor([[0.1, 0.0, 0.0, 0.0, 0.2]], requires_grad=True)
    wanted = bounds.bound(free.detach())
    missed = bounds.missed(free, wanted)
    by_hand = -free[0, :2].log_softmax(0)[0] - free[0, 2:].log_softmax(0)[2]
    torch.testing.assert_close(missed, by_hand[None])
    (slope,) = torch.autograd.grad(missed.sum(), free)
    assert (slope.abs() > 0.1).all()
    numbers = Box().missed(torch.tensor([[0.3, 0.0]]), torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(numbers, torch.tensor([0.3]).tanh().square() + 1)
