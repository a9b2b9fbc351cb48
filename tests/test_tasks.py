"""An agent with several tasks, of which the command line names one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ami_agent import recipes
from ami_agent.adapters.env import EnvConfig
from ami_agent.agent import Controller
from ami_agent.cli.main import main
from ami_agent.config import Config, build, override
from ami_agent.evaluation.evaluate import _step_fractions, latency
from ami_agent.logger import Logger
from ami_agent.storage.run_dir import load
from ami_agent.train import train
from ami_agent.viewer import projectors
from ami_agent.viewer.projectors import ProbeProjector, project
from ami_agent.viewer.record import EpisodeSelection, record_episodes
from modules.types import ConfigError
from tests.conftest import error_line, small
from tests.test_show_page import Parts

BUDGET = 10
TASKS = ("eat", "flag", "explore", "stay")
SIGNALS = {"energy", "damage", "meal"}


def brief(config: Config) -> Config:
    """Short episodes, short plans."""
    env = replace(config.eval_env, options={**config.eval_env.options, "max_episode_steps": BUDGET})
    planner = replace(config.actor.planner, horizon=3, iterations=2, warm_iterations=1)
    return override(small(config), {"eval_env": env, "actor.planner": planner})


@pytest.fixture(scope="module")
def forager(tmp_path_factory) -> Path:
    """A finished run with a handful of updates."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "forage"
    train(brief(recipes.forage()), out=folder)
    return folder


def evaluated(run: Path, output: Path, *flags: object) -> dict[str, Any]:
    """The figures of `ami eval`."""
    argv = ["eval", run, "--episodes", 2, "--json", output, *flags]
    assert main([str(a) for a in argv]) == 0
    return json.loads(output.read_text())


def assert_estimate(figure: dict[str, Any]) -> None:
    low, high = figure["ci95"]
    assert low <= figure["mean"] <= high
    assert math.isfinite(figure["mean"])


@pytest.mark.parametrize("task", TASKS)
def test_eval_evaluates_the_task_that_is_named(forager, tmp_path, capsys, task):
    found = evaluated(forager, tmp_path / "eval.json", "--task", task)
    assert (found["recipe"], found["task"]) == ("forage", task)
    assert found["options"] == {"split": "test", "max_episode_steps": BUDGET, "task": task}
    assert found["planned"] == 1
    assert found["violated"] == 0
    assert set(found["baselines"]) == {"random", "oracle"}
    for label in (found, *found["baselines"].values()):
        assert set(label["signal_sums"]) == SIGNALS
        for figure in (label["score"], label["return"], *label["signal_sums"].values()):
            assert_estimate(figure)
    message = capsys.readouterr().out
    assert all(label in message for label in ("agent, plan", "random", "oracle", "score", "meal"))
    assert "…" not in message  # no figure is cut


def test_each_task_has_an_evaluation_of_its_own(forager, tmp_path):
    """An agent that stays where it is has done so from the first, and found no flag."""
    stay, flag = (
        evaluated(forager, tmp_path / task, "--task", task, "--mode", "react")["baselines"][
            "oracle"
        ]
        for task in ("stay", "flag")
    )
    assert stay["success"]["mean"] == 1
    assert flag["success"]["mean"] < 1
    assert stay["score"] != flag["score"]


def test_the_first_task_is_the_default(forager, tmp_path):
    assert evaluated(forager, tmp_path / "eval.json", "--mode", "react")["task"] == TASKS[0]


@pytest.mark.parametrize("command", ["eval", "show"])
def test_an_unknown_task_is_refused_and_the_known_ones_are_named(forager, capsys, command):
    message = error_line(capsys, command, forager, "--task", "fly", "--episodes", 1)
    assert message == f"ami: no task 'fly'; this agent has {', '.join(TASKS)}\n"


@pytest.mark.parametrize(
    ("mode", "fraction"), [("react", (0, 0)), ("plan", (1, 1)), ("auto", (0, 1))]
)
def test_eval_reports_the_fraction_of_steps_with_planning(forager, tmp_path, mode, fraction):
    found = evaluated(forager, tmp_path / "eval.json", "--mode", mode, "--task", "stay")
    assert found["mode"] == mode
    assert fraction[0] <= found["planned"] <= fraction[1]
    projected_steps = found["planned"] * 2 * BUDGET  # a fraction of so many
    assert projected_steps == pytest.approx(round(projected_steps), abs=1e-4)


def test_show_draws_the_task_that_is_named(forager, tmp_path, monkeypatch):
    monkeypatch.setattr(projectors, "GRID_SIZE", 5)
    argv = ["show", forager, "--task", "flag", "--episodes", 1, "--out", tmp_path / "show"]
    assert main([str(a) for a in argv]) == 0
    page = (tmp_path / "show" / "index.html").read_text()
    (seed_record,) = Parts(page).data["seeds"]
    assert [len(act["frames"]) for act in seed_record["modes"]] == [BUDGET]
    assert len(page) < 5e6


@pytest.mark.parametrize("task", ["eat", "stay"])
def test_pictures_show_the_agent_at_its_position_whatever_the_modality_weights(forager, task):
    agent = load(forager)
    assignment = agent.tasks[task]
    env = brief(recipes.forage()).eval_env.for_task(assignment)
    projector = ProbeProjector(agent, env, 0, assignment)
    selection = EpisodeSelection(episodes=4, mode="react", task=task)
    recordings = record_episodes(agent, env, projector.camera, selection, Logger())
    episodes = [project(episode, projector) for (episode,) in recordings]
    differences = [
        projected_step.planned[0] - projected_step.position
        for one in episodes
        for projected_step in one.projected_steps
    ]
    assert np.linalg.norm(differences, axis=-1).mean() < 2 * projector.error < 100


def two_rooms_as_forage() -> Config:
    env = EnvConfig(id="ami/TwoRooms-v0", variant="fixed")
    forage = recipes.forage()
    tasks = {name: replace(task, options={}) for name, task in forage.tasks.items()}
    return replace(forage, env=env, eval_env=env, tasks=tasks)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            override(recipes.forage(), {"cost.drives": ("hunger", "greed")}),
            "'greed'; there are hunger, pain",
        ),
        (two_rooms_as_forage(), "'hunger' needs the signal 'energy'"),
    ],
)
def test_unknown_drives_and_drives_without_a_signal_are_refused(config, message):
    env = config.env.build(1)
    with pytest.raises(ConfigError, match=message) as raised:
        build(config, env.spec)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--drives", "hunger", "greed"], "no drive is called 'greed'; there are hunger, pain"),
        (["--drives", "pain"], "no cost is called 'hunger'; there are goal_distance, control_cost"),
        (["--env.options.split", "moon"], "choose one of all, train, test"),
        (["--train-jepa.task-modality-prob", "-1"], "--train-jepa.task-modality-prob is -1"),
        (["--adaptive.tolerance", "-1"], "--adaptive.tolerance is -1"),
        (
            ["--train-values.length", "300"],
            "train_values.length is 300, but an episode has 205 steps",
        ),
    ],
)
def test_bad_settings_of_forage_get_one_line_and_leave_no_run(flags, message, capsys, tmp_path):
    out = tmp_path / "run"
    assert message in error_line(capsys, "train", "forage", "--out", out, *flags)
    assert not (out / "config.json").exists()


def test_an_env_without_the_signals_of_drives_gets_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("ami_agent.cli.main.recipe", lambda name: two_rooms_as_forage())
    message = error_line(capsys, "train", "forage", "--out", tmp_path / "run")
    assert (
        "'hunger' needs the signal 'energy', which this environment does not "
        "declare; it declares reward" in message
    )


def test_only_the_steps_of_an_episode_are_evaluated():
    """Of two environments the first ends after one step, the second after three."""

    def so(*output: bool) -> Tensor:
        return torch.tensor(output)

    messages = [(so(True, True), so(False, False)), (so(True, False), so(True, False)),
             (so(True, False), so(True, True))]  # fmt: skip
    more = [(so(False), so(True))]
    assert _step_fractions([messages, more], torch.tensor([1.0, 3.0, 1.0])) == pytest.approx(
        [2 / 5, 2 / 5]
    )


def test_timing_in_one_env_acts_in_whole_episodes_of_the_task(forager, monkeypatch):
    """Each has been given its task, however short the episodes are."""
    agent = load(forager)
    output = []
    reset = Controller.reset
    monkeypatch.setattr(
        Controller, "reset", lambda self, done=None: (output.append(1), reset(self, done))
    )
    env = replace(brief(recipes.forage()).eval_env, options={"max_episode_steps": 20})
    monkeypatch.setattr("ami_agent.evaluation.evaluate.TIMED_ACTIONS", 30)
    monkeypatch.setattr("ami_agent.evaluation.evaluate.WARM_UP_ACTIONS", 10)
    latency(agent, env, "react", agent.task_spec("flag"), 0)
    assert len(output) == 2 * 2  # 40 steps each way, 20 to an episode
