"""An agent that knows several tasks, told on the command line which one it is to do."""

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
from ami_agent.build import Config, build
from ami_agent.cli import main
from ami_agent.evaluate import _shares
from ami_agent.latency import latency
from ami_agent.life import WorldConfig
from ami_agent.report import Silence
from ami_agent.runs import load
from ami_agent.show import landscape
from ami_agent.show.episodes import watch
from ami_agent.show.scenes import seen
from ami_agent.show.views import ReadOut
from ami_agent.train import train
from modules.types import UnusableInput
from tests.conftest import refuse, small
from tests.test_show_page import Parts

BUDGET = 10
TASKS = ("eat", "flag", "explore", "stay")
FELT = {"energy", "damage", "meal"}


def brief(config: Config) -> Config:
    """Short episodes, short thoughts."""
    world = replace(
        config.evaluation, options={**config.evaluation.options, "max_episode_steps": BUDGET}
    )
    planner = replace(config.planner, horizon=3, steps=2, warm_steps=1)
    return replace(small(config), evaluation=world, planner=planner)


@pytest.fixture(scope="module")
def forager(tmp_path_factory) -> Path:
    """A finished run, hardly trained."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "forage"
    train(brief(recipes.forage()), out=folder)
    return folder


def judged(run: Path, told: Path, *flags: object) -> dict[str, Any]:
    """The figures of `ami eval`."""
    argv = ["eval", run, "--episodes", 2, "--json", told, *flags]
    assert main([str(a) for a in argv]) == 0
    return json.loads(told.read_text())


def assert_estimate(figure: dict[str, Any]) -> None:
    low, high = figure["ci95"]
    assert low <= figure["mean"] <= high
    assert math.isfinite(figure["mean"])


@pytest.mark.parametrize("task", TASKS)
def test_eval_judges_the_task_it_is_told(forager, tmp_path, capsys, task):
    found = judged(forager, tmp_path / "eval.json", "--task", task)
    assert (found["recipe"], found["task"]) == ("forage", task)
    assert found["options"] == {"split": "test", "max_episode_steps": BUDGET, "task": task}
    assert found["deliberated"] == 1
    assert found["violated"] == 0
    assert set(found["baselines"]) == {"random", "oracle"}
    for who in (found, *found["baselines"].values()):
        assert set(who["felt"]) == FELT
        for figure in (who["score"], who["return"], *who["felt"].values()):
            assert_estimate(figure)
    said = capsys.readouterr().out
    assert all(who in said for who in ("agent, plan", "random", "oracle", "score", "meal"))
    assert "…" not in said  # no figure is cut


def test_each_task_has_a_judge_of_its_own(forager, tmp_path):
    """Whoever stays where it is told to has done so from the first, and found no flag."""
    stay, flag = (
        judged(forager, tmp_path / task, "--task", task, "--mode", "react")["baselines"]["oracle"]
        for task in ("stay", "flag")
    )
    assert stay["success"]["mean"] == 1
    assert flag["success"]["mean"] < 1
    assert stay["score"] != flag["score"]


def test_the_first_task_is_done_unless_told(forager, tmp_path):
    assert judged(forager, tmp_path / "eval.json", "--mode", "react")["task"] == TASKS[0]


@pytest.mark.parametrize("command", ["eval", "show"])
def test_a_task_that_nobody_knows_is_refused_and_the_known_ones_are_named(forager, capsys, command):
    said = refuse(capsys, command, forager, "--task", "fly", "--episodes", 1)
    assert said == f"ami: no task 'fly'; this agent knows {', '.join(TASKS)}\n"


@pytest.mark.parametrize(("mode", "share"), [("react", (0, 0)), ("plan", (1, 1)), ("auto", (0, 1))])
def test_eval_says_in_which_share_of_the_moments_it_thought(forager, tmp_path, mode, share):
    found = judged(forager, tmp_path / "eval.json", "--mode", mode, "--task", "stay")
    assert found["mode"] == mode
    assert share[0] <= found["deliberated"] <= share[1]
    moments = found["deliberated"] * 2 * BUDGET  # a share of so many
    assert moments == pytest.approx(round(moments), abs=1e-4)


def test_show_draws_the_task_it_is_told(forager, tmp_path, monkeypatch):
    monkeypatch.setattr(landscape, "SIDE", 5)
    argv = ["show", forager, "--task", "flag", "--episodes", 1, "--out", tmp_path / "show"]
    assert main([str(a) for a in argv]) == 0
    page = (tmp_path / "show" / "index.html").read_text()
    (chapter,) = Parts(page).story["chapters"]
    assert [len(act["steps"]) for act in chapter["acts"]] == [BUDGET]
    assert len(page) < 5e6


@pytest.mark.parametrize("task", ["eat", "stay"])
def test_pictures_show_a_mind_where_it_is_whatever_its_task_primes_it_for(forager, task):
    agent = load(forager)
    assignment = agent.assignments[task]
    world = brief(recipes.forage()).evaluation.under(assignment)
    readout = ReadOut(agent, world, 0, assignment)
    lives = watch(agent, world, readout.camera, 4, ("react",), 0, assignment, Silence())
    episodes = [seen(life, readout) for (life,) in lives]
    gaps = [moment.chosen[0] - moment.place for one in episodes for moment in one.moments]
    assert np.linalg.norm(gaps, axis=-1).mean() < 2 * readout.error < 100


def two_rooms_as_forage() -> Config:
    world = WorldConfig(id="ami/TwoRooms-v0", variant="fixed")
    forage = recipes.forage()
    tasks = {name: replace(task, options={}) for name, task in forage.tasks.items()}
    return replace(forage, world=world, evaluation=world, tasks=tasks)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (replace(recipes.forage(), drives=("hunger", "greed")), "'greed'; there are hunger, pain"),
        (two_rooms_as_forage(), "'hunger' feels 'energy', which this world does not declare"),
    ],
)
def test_drives_that_nobody_knows_or_this_body_cannot_feel_are_refused(config, complaint):
    world = config.world.build(1)
    with pytest.raises(UnusableInput, match=complaint) as caught:
        build(config, world.spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--drives", "hunger", "greed"], "no drive is called 'greed'; there are hunger, pain"),
        (["--drives", "pain"], "no cost is called 'hunger'; there are reach, effort"),
        (["--world.options.split", "moon"], "choose one of all, train, test"),
        (["--objective.primed", "-1"], "primed is -1"),
        (["--auto.tolerance", "-1"], "tolerance is -1"),
        (["--foresee.length", "300"], "foresee.length is 300, but a life has 205 steps"),
    ],
)
def test_bad_settings_of_a_forager_get_one_line_and_leave_no_run(flags, said, capsys, tmp_path):
    out = tmp_path / "run"
    assert said in refuse(capsys, "train", "forage", "--out", out, *flags)
    assert not (out / "config.json").exists()


def test_a_world_in_which_drives_feel_nothing_gets_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("ami_agent.cli.recipe", lambda name: two_rooms_as_forage())
    said = refuse(capsys, "train", "forage", "--out", tmp_path / "run")
    assert "'hunger' feels 'energy', which this world does not declare; it declares reward" in said


def test_only_the_steps_of_an_episode_are_judged():
    """Of two worlds the first is over after one step, the second after three."""

    def so(*told: bool) -> Tensor:
        return torch.tensor(told)

    heard = [(so(True, True), so(False, False)), (so(True, False), so(True, False)),
             (so(True, False), so(True, True))]  # fmt: skip
    more = [(so(False), so(True))]
    assert _shares([heard, more], torch.tensor([1.0, 3.0, 1.0])) == pytest.approx([2 / 5, 2 / 5])


def test_the_clock_of_one_world_alone_runs_in_episodes_that_are_judged(forager, monkeypatch):
    """Each has been told its task, however short they are."""
    agent = load(forager)
    told = []
    begin = agent.begin
    monkeypatch.setattr(agent, "begin", lambda fresh=None: (told.append(1), begin(fresh)))
    world = replace(brief(recipes.forage()).evaluation, options={"max_episode_steps": 20})
    latency(agent, world, "react", agent.assigned("flag"), 0, actions=30)
    assert len(told) == 2 * 2  # 40 steps each way, 20 to an episode
