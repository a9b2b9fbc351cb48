"""An environment that the framework does not know: trained, evaluated and resumed from the command
line, without a line of code."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.adapters.imports import import_path
from ami_agent.cli.main import main
from ami_agent.config import build, override
from ami_agent.storage import run_dir
from ami_agent.train import describe_discount
from modules.actor.policy import BoxActions, OneHotActions
from modules.types import ConfigError
from tests.conftest import error_line

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
    "--collect.steps",
    30,
    "--train-jepa.optim.steps",
    3,
    "--actor-critic.steps",
    12,
    "--actor-critic.optim.batch-size",
    8,
    "--actor-critic.train-jepa.optim.batch-size",
    8,
    "--episodes",
    2,
    "--planner.horizon",
    2,
    "--planner.iterations",
    1,
    "--planner.warm-iterations",
    1,
)


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield ("--env.import", "own.py", "--env.id", "ami-test/Own-v0")
    gymnasium.registry.pop("ami-test/Own-v0", None)


def test_the_environment_in_the_documentation_can_be_trained_in(tmp_path, monkeypatch):
    page = (Path(__file__).parent.parent / "docs" / "your-environment.md").read_text()
    (code,) = re.findall(r"```python\n(# my_env\.py\n.*?)```", page, re.DOTALL)
    (tmp_path / "my_env.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    env = ("--env.import", "my_env.py", "--env.id", "my/Catch-v0")
    assert run_cli("train", "gym", *env, "--out", "run", "--json", "found.json", *TINY) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["plan"]["length"]["mean"] == 11
    assert found["plan"]["success"]["mean"] == found["plan"]["return"]["mean"]
    del gymnasium.registry["my/Catch-v0"]


def run_cli(*argv):
    return main([str(arg) for arg in argv])


def test_a_file_of_the_users_own_is_enough(own, tmp_path, capsys):
    assert run_cli("train", "gym", *own, "--env.options", "lasts", 5, "--out", "run", *TINY) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["env"]["options"] == {"lasts": 5}
    assert config["env"]["imports"] == [str(tmp_path / "own.py")]
    agent = ami.load("run")
    assert set(agent.spec.modalities) == {"place", "view"}
    assert agent.spec.choices == (2, 3)
    assert run_cli("eval", "run", "--mode", "react", "--episodes", 3, "--json", "found.json") == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["length"]["mean"] == 5
    assert 0 <= found["return"]["mean"] <= 2 * 5
    assert found["success"]["mean"] in (0, 1 / 3, 2 / 3, 1)
    assert found["baselines"]["oracle"] is None
    assert run_cli("probe", "run") == 0
    assert "std_mean" in capsys.readouterr().out
    assert (
        run_cli(
            "train", "gym", *own, "--env.options", "lasts", 5, "--out", "run", "--resume", *TINY
        )
        == 0
    )
    assert run_cli("show", "run", "--episodes", 1, "--mode", "both") == 0
    assert "only of the agent's states" in capsys.readouterr().out
    assert (tmp_path / "run" / "show" / "episode-0-react.gif").exists()


SENSOR = """
from pathlib import Path

import gymnasium
import numpy as np


class Sensor(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.moment = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.moment, self.steps = self.moment + 1, self.steps + 1
        if self.steps > 35 and Path("broken").exists():
            raise ValueError("sensor disconnected")
        return np.full(3, self.moment / 9, np.float32), 1.0, self.moment == 9, False, {}


gymnasium.register("ami-test/Sensor-v0", entry_point=Sensor)
"""


def test_a_run_whose_environment_failed_is_continued_without_its_flags(
    tmp_path, monkeypatch, capsys
):
    for name, text in (("sensor.py", SENSOR), ("broken", "")):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    flags = dict(zip(TINY[::2], TINY[1::2], strict=True)) | {"--actor-critic.steps": 40}
    argv = [each for flag in flags.items() for each in flag]
    try:
        train = ("train", "gym", "--import", "sensor.py", "--env.id", "ami-test/Sensor-v0")
        assert run_cli(*train, "--seed", 3, "--save-every", 0, *argv) == 1
        output, message = capsys.readouterr()
        run = "runs/gym/3"
        assert output.startswith(f"gym in ami-test/Sensor-v0, seed 3, on cpu, into {run}\n")
        assert message == (
            "ami: environment 'ami-test/Sensor-v0' failed in step: ValueError: sensor disconnected "
            f"(sensor.py:21); {run} is saved in actor_critic at step 38/40; continue with "
            "--resume\n"
        )
        (tmp_path / "broken").unlink()
        named = ("--episodes", 1, "--env.import", "sensor.py")
        assert run_cli("eval", run, "--mode", "react", *named) == 0
        assert f"{run} is unfinished: it was saved in actor_critic at step 38/40\n" in (
            capsys.readouterr().out
        )
        again = ("train", "gym", "--out", run, "--resume", *named)
        refused = error_line(capsys, *again, "--collect.steps", 31)
        assert "--collect.steps is 30, not 31, but the stage collect has begun" in refused
        assert "--env.id is 'ami-test/Sensor-v0', not 'CartPole-v1'" in error_line(
            capsys, *again, "--env.id", "CartPole-v1"
        )
        assert "recipe is 'gym', not 'goals'" in error_line(capsys, "train", "goals", *again[2:])
        assert run_cli(*again, "--env.step-timeout", 60) == 0
        output = capsys.readouterr().out
        assert "actor_critic  40/40" in output
        assert "\ngym in ami-test/Sensor-v0, seed 3\n" in output  # above the table
        assert run_dir.describe_progress(tmp_path / run) == ""
        other = error_line(capsys, "train", "gym", "--seed", 3, "--env.id", "CartPole-v1")
        assert "run already, in the environment ami-test/Sensor-v0, and this one is in" in other
        assert "CartPole-v1: choose another --out" in other
        unknown = error_line(capsys, "train", "gym", "--seed", 3, "--env.id", "NoSuch-v0")
        assert "'NoSuch-v0' can't be made" in unknown
    finally:
        gymnasium.registry.pop("ami-test/Sensor-v0", None)


ENDS_BADLY = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""Gymnasium before 1.3 raises where a batch of environments that was never closed is deleted."""


@ENDS_BADLY
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--env.id", "NoSuch-v0"), "NoSuch.*--env.import"),
        (("--env.id", "CartPole-v1", "--env.options", "colour", "red"), "colour"),
        (("--env.id", "CartPole-v1", "--env.action-repeat", "0"), "repeat is 0"),
        (("--env.id", "CartPole-v1", "--no-such-flag", "0"), "no-such-flag"),
        (
            ("--env.id", "CartPole-v1", "--actor-critic.td-lambda", "2"),
            "--actor-critic.td-lambda is 2",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line_and_no_run_is_created(flags, message, tmp_path, capsys):
    output = error_line(capsys, "train", "gym", "--out", tmp_path / "run", *flags)
    assert re.search(message, output)
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


@ENDS_BADLY
def test_infos_of_an_env_beyond_gymnasiums_interface_may_be_anything(tmp_path, monkeypatch, capsys):
    (tmp_path / "strange.py").write_text(STRANGE)
    monkeypatch.chdir(tmp_path)
    env = ("--env.import", "strange.py", "--env.id", "ami-test/Strange-v0")
    try:
        assert run_cli("train", "gym", *env, "--out", "run", *TINY) == 0
        assert run_cli("show", "run", "--episodes", 1) == 0
    finally:
        gymnasium.registry.pop("ami-test/Strange-v0", None)


@ENDS_BADLY
def test_episodes_of_one_step_are_learnt_from_without_a_flag(own, capsys):
    env = (*own, "--env.options", "lasts", 1)
    assert run_cli("train", "gym", *env, "--out", "run", *TINY) == 0


def test_a_goal_in_the_info_must_be_an_observation_where_goals_are_pursued():
    with closing(EnvConfig(id="CartPole-v1").build(1)) as env:
        for goal in (np.zeros((1, 2)), "left", {"x": 1}, np.zeros(1)):
            with pytest.raises(ConfigError, match=r"goal, info\['goal'\], is not of its space"):
                env.goal({"goal": goal})


def test_discrete_and_continuous_actions_are_distinguished_where_an_agent_does_not_fit(own, capsys):
    assert run_cli("train", "gym", *own, "--out", "run", *TINY) == 0
    capsys.readouterr()
    assert run_cli("eval", "run", "--env", "Pendulum-v1", "--episodes", 1) == 2
    output = capsys.readouterr().err
    assert "and 1 actions, but" in output
    assert "choices of one of 2 and one of 3" in output


def test_the_recipe_chooses_modules_by_the_spaces():
    pole, swing = (ami.recipes.gym(EnvConfig(id=n)) for n in ("CartPole-v1", "Pendulum-v1"))
    assert pole.action_space == OneHotActions(sizes=(2,))
    assert swing.action_space == BoxActions()
    for config in (pole, swing):
        assert config.env.terminal_channel
        assert config.env == config.eval_env
        env = config.env.build(3)
        assert env.spec.interoception == ("reward", "alive")
        env.close()


def test_a_choice_is_one_hot_and_its_gradient_is_that_of_its_probability():
    bounds = OneHotActions(sizes=(2, 3))
    free = torch.randn(7, 5, requires_grad=True, generator=torch.Generator().manual_seed(0))
    done = bounds.squash(free)
    assert set(done.detach().unique().tolist()) <= {0, 1} or torch.allclose(done, done.round())
    assert torch.allclose(done[:, :2].sum(-1), torch.ones(7))
    assert torch.equal(done[:, 2:].argmax(-1), free[:, 2:].argmax(-1))
    worth = torch.randn(5, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((done * worth).sum(), free)
    soft = torch.cat([part.softmax(-1) for part in free.split((2, 3), -1)], -1)
    (by_chance,) = torch.autograd.grad((soft * worth).sum(), free)
    torch.testing.assert_close(gradient, by_chance)
    kept = bounds.squash(bounds.unsquash(bounds.project(torch.rand(9, 5))))
    assert torch.allclose(kept, bounds.project(kept))


@pytest.mark.filterwarnings("ignore:.*maximum and minimum values are equal")
def test_layers_are_as_wide_as_what_varies_demands():
    """The 16 squares of a frozen lake are one number, and those whose bounds are equal none."""

    class Wide(gymnasium.Env):
        action_space = gymnasium.spaces.Box(-1, 1, (7,))

        def __init__(self, varying=9):
            high = np.r_[np.ones(varying), -np.ones(20)].astype(np.float32)
            self.observation_space = gymnasium.spaces.Box(-np.ones_like(high), high)

    gymnasium.register("ami-test/Wide-v0", entry_point=Wide)
    try:
        for env, options, hidden in (
            ("FrozenLake-v1", {}, 128),
            ("ami-test/Wide-v0", {}, 128),
            ("ami-test/Wide-v0", {"varying": 10}, 256),
        ):
            config = ami.recipes.gym(EnvConfig(id=env, options=options))
            assert config.actor.policy.hidden == hidden
    finally:
        gymnasium.registry.pop("ami-test/Wide-v0")


@pytest.mark.parametrize("name", ["GradientPlanner", "CEM", "MPPI", "Collocation", "TreeSearch"])
def test_every_planner_makes_one_hot_choices(name):
    config = ami.recipes.gym(EnvConfig(id="CartPole-v1"))
    config = override(
        config, {"actor.planner": getattr(ami.components, f"{name}Config")(horizon=3)}
    )
    env = config.env.build(4)
    agent = build(config, env.spec)
    controller = agent.controller(tensors=True)
    obs, _ = env.reset(0)
    controller.set_task(agent.task_spec("").to_task(None, "plan"))
    plan = controller.act(obs)
    assert torch.allclose(plan.actions.sort(-1).values, torch.tensor([0.0, 1.0]))
    done = env.to_env(plan.action)
    assert np.array_equal(done, plan.action.argmax(-1).numpy())
    env.close()


@pytest.mark.parametrize(
    ("env", "discount"),
    [
        (EnvConfig(id="Pendulum-v1"), 0.975),  # 200 steps
        (EnvConfig(id="Pendulum-v1", max_episode_steps=150), 1 - 5 / 150),
        (EnvConfig(id="Pendulum-v1", max_episode_steps=1000), 0.975),  # its own limit holds
        (EnvConfig(id="Pendulum-v1", action_repeat=2), 0.95),
        (EnvConfig(id="CartPole-v1"), 0.99),
    ],
)
def test_the_discount_follows_from_the_episode_length(env, discount):
    assert ami.recipes.gym(env).cost.value_critics.discount == pytest.approx(discount)


def test_a_limit_that_no_flag_set_is_not_a_flag_s_alone(own):
    import_path("own.py")
    config = ami.recipes.gym(EnvConfig(id="ami-test/Own-v0"))
    with closing(config.env.build(1)) as env:
        said = describe_discount(0, *env.max_episode_steps())
    assert "at most 1000 steps (set by the recipe, or by --env.max-episode-steps)" in said


def test_imitation_of_a_choice_continues_until_the_policy_is_certain():
    """The right option is the likeliest already, by little: there is still something to learn."""
    bounds = OneHotActions(sizes=(2, 3))
    free = torch.tensor([[0.1, 0.0, 0.0, 0.0, 0.2]], requires_grad=True)
    target = bounds.squash(free.detach())
    missed = bounds.imitation_loss(free, target)
    by_hand = -free[0, :2].log_softmax(0)[0] - free[0, 2:].log_softmax(0)[2]
    torch.testing.assert_close(missed, by_hand[None])
    (gradient,) = torch.autograd.grad(missed.sum(), free)
    assert (gradient.abs() > 0.1).all()
    numbers = BoxActions().imitation_loss(torch.tensor([[0.3, 0.0]]), torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(numbers, torch.tensor([0.3]).tanh().square() + 1)
