"""A run: reproducible, resumable, honest about failure."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ami_agent as ami
from ami_agent import checkpoint, runs
from ami_agent.build import lessons
from ami_agent.probe import verdict
from ami_agent.report import Silence
from ami_agent.train import lesson_seed, train
from modules.planners import CEM
from modules.targets import MovingAverage
from modules.types import Diverged, UnusableInput
from tests.conftest import small

ROOT = Path(__file__).parent.parent
training = sys.modules[train.__module__]


def same_weights(one, other) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_seed_decides_every_weight(tiny, tmp_path):
    agents = [train(tiny, out=tmp_path / str(i), seed=s) for i, s in enumerate([3, 3, 4])]
    assert same_weights(agents[0], agents[1])
    assert not same_weights(agents[0], agents[2])


def test_a_run_leaves_what_the_readme_names(tiny, tmp_path):
    train(tiny, out=tmp_path / "run", seed=5)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["seed"] == 5
    assert set(manifest["seconds"]) == set(lessons(tiny))
    assert runs.config_of(tmp_path / "run") == tiny
    assert not (tmp_path / "run" / "memory").exists()


def test_an_agent_comes_back_as_it_was(tiny, tmp_path):
    agent = train(tiny, out=tmp_path / "run")
    assert same_weights(agent, ami.load(tmp_path / "run"))
    other = ami.load(tmp_path / "run", config=replace(tiny, planner=CEM.Config()))
    assert same_weights(agent, other)
    assert isinstance(other.planner, CEM)


class Killed(Exception):
    """Stands for the moment of a kill, inside one process."""


class KilledAt:
    """A reporter that kills the run after so many logged updates of a lesson."""

    def __init__(self, stage: str) -> None:
        self.silence, self.stage = Silence(), stage

    def scalars(self, stage, step, values) -> None:
        if stage == self.stage and step >= 4:
            raise Killed

    def __getattr__(self, name):
        return getattr(self.silence, name)


STAGES = {
    "two-rooms-random": ("objective", "teacher", "paths", "practice", "refine", "distil"),
    "forage": ("objective", "foresee", "amortise", "distil"),
}


@pytest.mark.parametrize(
    ("recipe", "stage"), [(name, stage) for name, stages in STAGES.items() for stage in stages]
)
def test_killed_and_resumed_ends_as_never_killed(recipe, stage, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 2)
    config = small(ami.recipes.recipe(recipe))
    config = replace(config, objective=replace(config.objective, target=MovingAverage.Config()))
    whole = train(config, out=tmp_path / "whole", seed=1)
    with pytest.raises(Killed):
        train(config, out=tmp_path / "cut", seed=1, report=KilledAt(stage), save_every=0)
    resumed = train(config, out=tmp_path / "cut", seed=1, resume=True, save_every=0)
    assert same_weights(whole, resumed)


@pytest.mark.parametrize("life", ["life", "practice"])
def test_killed_when_a_life_was_kept_but_no_checkpoint_says_so(life, tmp_path, monkeypatch):
    config = small(ami.recipes.two_rooms_random())
    whole = train(config, out=tmp_path / "whole", seed=1)
    index, save = list(lessons(config)).index(life), training.Training._save

    def killed(run, pupil):
        if run.reached.lesson == index + 1:
            raise Killed
        save(run, pupil)

    monkeypatch.setattr(training.Training, "_save", killed)
    with pytest.raises(Killed):
        train(config, out=tmp_path / "cut", seed=1)
    monkeypatch.undo()
    assert same_weights(whole, train(config, out=tmp_path / "cut", seed=1, resume=True))


def test_a_process_killed_for_good_can_be_resumed(tiny, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.conftest import small; import ami_agent as ami\n"
        "import torch; torch.set_num_threads(1)\n"
        "ami.train(small(ami.recipes.two_rooms(), 500), out=sys.argv[2], save_every=0.05)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(ROOT), str(tmp_path / "run")])
    deadline = time.monotonic() + 60
    while len(checkpoint.checkpoints(tmp_path / "run")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    config = small(ami.recipes.two_rooms(), 500)
    resumed = train(config, out=tmp_path / "run", resume=True)
    assert same_weights(resumed, train(config, out=tmp_path / "whole"))


def test_resuming_with_other_settings_is_refused(tiny, tmp_path):
    train(tiny, out=tmp_path / "run")
    other = replace(tiny, planner=replace(tiny.planner, horizon=3))
    with pytest.raises(UnusableInput, match=r"planner\.horizon is 8, not 3"):
        train(other, out=tmp_path / "run", resume=True)
    with pytest.raises(UnusableInput, match="seed is 0, not 1"):
        train(tiny, out=tmp_path / "run", seed=1, resume=True)
    with pytest.raises(UnusableInput, match="holds a run already"):
        train(tiny, out=tmp_path / "run")


def test_what_is_left_of_a_run_is_never_mixed_with_another(tiny, tmp_path):
    train(tiny, out=tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(UnusableInput, match="holds a run already"):
        train(tiny, out=tmp_path / "run", seed=1)


def test_a_run_of_another_version_can_be_loaded_but_not_resumed(tiny, tmp_path):
    agent = train(tiny, out=tmp_path / "run")
    newest = checkpoint.latest(tmp_path / "run")
    tensors, facts = checkpoint.load(newest)
    del facts["lessons"]
    checkpoint.save(newest, tensors, facts)
    assert same_weights(agent, ami.load(tmp_path / "run"))
    with pytest.raises(UnusableInput, match="can be loaded, but not resumed"):
        train(tiny, out=tmp_path / "run", resume=True)


def test_a_run_whose_memory_is_gone_is_not_resumed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 2)
    with pytest.raises(Killed):
        train(tiny, out=tmp_path / "run", report=KilledAt("teacher"), save_every=0)
    shutil.rmtree(tmp_path / "run" / "replay")
    with pytest.raises(UnusableInput, match="replay buffer"):
        train(tiny, out=tmp_path / "run", resume=True)


def test_lessons_and_seeds_live_far_apart():
    names = list(lessons(ami.recipes.two_rooms()))
    starts = sorted(lesson_seed(seed, lesson) for seed in range(60) for lesson in names)
    assert min(b - a for a, b in itertools.pairwise(starts)) > 5000
    assert all(0 <= lesson_seed(2**31 - 1, lesson) < 2**30 for lesson in names)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    learning = replace(tiny.objective.learning)
    object.__setattr__(learning, "lr", 1e30)  # beyond what a setting may be
    config = replace(tiny, objective=replace(tiny.objective, learning=learning))
    with pytest.raises(Diverged, match=r"objective: .* became (nan|inf) by step 2"):
        train(config, out=tmp_path / "run", save_every=0)
    tensors, facts = checkpoint.load(checkpoint.latest(tmp_path / "run"))
    assert facts["lesson"] == 1  # life was lived, nothing was learnt
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())


def test_a_collapsed_run_says_so(tiny, tmp_path):
    said = []

    class Listener:
        def say(self, text):
            said.append(text)

        def __getattr__(self, name):
            return getattr(Silence(), name)

    weights = replace(tiny.objective.weights, variance=0.0, covariance=0.0, similarity=100.0)
    learning = replace(tiny.objective.learning, steps=150, lr=3e-3)
    objective = replace(tiny.objective, weights=weights, learning=learning)
    train(replace(tiny, objective=objective), out=tmp_path / "run", report=Listener())
    told = [text for text in said if text.startswith("objective")]
    assert "COLLAPSED" in told[-1]
    assert told[0] == "objective 0: nothing learnt yet"


@pytest.mark.parametrize(
    ("std", "rank", "said"), [(1, 20, "alive"), (0.05, 20, "hardly"), (1, 1.4, "along a line")]
)
def test_the_verdict_names_both_ways_to_collapse(std, rank, said):
    assert said in verdict({"std_mean": std, "std_min": std, "effective_rank": rank})
