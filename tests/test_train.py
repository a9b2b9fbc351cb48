"""A run: reproducible, resumable, and clear about failures."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import ami_agent as ami
from ami_agent.config import override
from ami_agent.logger import Logger
from ami_agent.probing.probe import describe_collapse, spectrum
from ami_agent.storage import checkpoint, run_dir
from ami_agent.train import stage_seed, train
from modules.actor.planning import CEM, CEMConfig
from modules.perception.target_encoder import EMATargetConfig
from modules.types import ConfigError, DivergenceError
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


def test_a_run_writes_the_files_that_the_readme_names(tiny, tmp_path):
    train(tiny, out=tmp_path / "run", seed=5)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["seed"] == 5
    assert set(manifest["seconds"]) == set(tiny.stages)
    assert run_dir.config_of(tmp_path / "run") == tiny
    assert not (tmp_path / "run" / "memory").exists()


def test_a_loaded_agent_is_the_saved_one(tiny, tmp_path):
    agent = train(tiny, out=tmp_path / "run")
    assert same_weights(agent, ami.load(tmp_path / "run"))
    other = ami.load(tmp_path / "run", config=override(tiny, {"actor.planner": CEMConfig()}))
    assert same_weights(agent, other)
    assert isinstance(other.planner, CEM)


class Killed(Exception):
    """Stands for a kill, inside one process."""


class KilledAt:
    """A logger that kills the run after so many logged updates of a stage."""

    def __init__(self, stage: str) -> None:
        self.silence, self.stage = Logger(), stage

    def log_scalars(self, stage, step, values) -> None:
        if stage == self.stage and step >= 4:
            raise Killed

    def __getattr__(self, name):
        return getattr(self.silence, name)


STAGES = {
    "two-rooms-random": (
        "train_jepa",
        "train_goal_critic",
        "distill_paths",
        "planner_rollouts",
        "finetune_dynamics",
        "distill_policy",
    ),
    "forage": ("train_jepa", "train_values", "amortize_policy", "distill_policy"),
}


class CopiedAt(KilledAt):
    """A logger that copies the run folder after so many logged updates of each of some stages: what
    a kill would leave there."""

    def __init__(self, run: Path, stages: Sequence[str], copies: Path) -> None:
        self.silence, self.run, self.left, self.copies = Logger(), run, [*stages], copies

    def log_scalars(self, stage, step, values) -> None:
        if stage in self.left and step >= 4:
            self.left.remove(stage)
            shutil.copytree(self.run, self.copies / stage, ignore=shutil.ignore_patterns(".lock"))


class Whole(NamedTuple):
    """A run that was never killed, and its folder as it was within each of its stages."""

    config: ami.Config
    agent: ami.Agent
    copies: Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Callable[[str], Whole]:
    @cache
    def of_recipe(name: str) -> Whole:
        folder = tmp_path_factory.mktemp("whole")
        config = override(
            small(ami.recipes.recipe(name), iterations=2),
            {"stages.train_jepa.target_encoder": EMATargetConfig()},
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "LOG_EVERY", 2)
            agent = train(config, out=folder / "run", seed=1)
            logger = CopiedAt(folder / "saved", STAGES[name], folder / "copies")
            saved = train(config, out=folder / "saved", seed=1, logger=logger, save_every=0)
        assert same_weights(agent, saved)
        return Whole(config, agent, folder / "copies")

    return of_recipe


@pytest.mark.parametrize(
    ("recipe", "stage"), [(name, stage) for name, stages in STAGES.items() for stage in stages]
)
def test_killed_and_resumed_it_ends_as_if_never_killed(recipe, stage, whole, tmp_path, monkeypatch):
    config, agent, copies = whole(recipe)
    monkeypatch.setattr(training, "LOG_EVERY", 2)
    cut = shutil.copytree(copies / stage, tmp_path / "cut")
    reached = checkpoint.load(checkpoint.latest(cut))[1]
    assert reached["stages"][reached["stage_index"]] == stage
    assert same_weights(agent, train(config, out=cut, seed=1, resume=True, save_every=0))


@pytest.mark.parametrize("episode", ["collect", "planner_rollouts"])
def test_killed_between_buffer_and_checkpoint_it_resumes(episode, whole, tmp_path, monkeypatch):
    config, agent, _ = whole("two-rooms-random")
    index, save = list(config.stages).index(episode), training.Trainer._save

    def killed(run, stage_run):
        if run.stage_index == index + 1:
            raise Killed
        save(run, stage_run)

    monkeypatch.setattr(training.Trainer, "_save", killed)
    with pytest.raises(Killed):
        train(config, out=tmp_path / "cut", seed=1)
    monkeypatch.undo()
    assert same_weights(agent, train(config, out=tmp_path / "cut", seed=1, resume=True))


def test_a_process_killed_by_sigkill_can_be_resumed(tiny, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.conftest import small; import ami_agent as ami\n"
        "import torch; torch.set_num_threads(1)\n"
        "ami.train(small(ami.recipes.two_rooms(), 150, 2), out=sys.argv[2], save_every=0.05)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(ROOT), str(tmp_path / "run")])
    deadline = time.monotonic() + 60
    while len(checkpoint.checkpoints(tmp_path / "run")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    config = small(ami.recipes.two_rooms(), 150, 2)
    resumed = train(config, out=tmp_path / "run", resume=True)
    assert same_weights(resumed, train(config, out=tmp_path / "whole"))


def test_an_unknown_option_is_refused_before_anything_is_written(tiny, tmp_path):
    with pytest.raises(TypeError, match="'save_evry'"):
        train(tiny, out=tmp_path / "run", save_evry=1.0)
    assert not (tmp_path / "run").exists()


def test_resuming_with_other_settings_is_refused(tiny, tmp_path):
    train(tiny, out=tmp_path / "run")
    other = override(tiny, {"actor.planner.horizon": 3})
    with pytest.raises(ConfigError, match=r"planner\.horizon is 8, not 3"):
        train(other, out=tmp_path / "run", resume=True)
    with pytest.raises(ConfigError, match="seed is 0, not 1"):
        train(tiny, out=tmp_path / "run", seed=1, resume=True)
    with pytest.raises(ConfigError, match="holds a run already"):
        train(tiny, out=tmp_path / "run")


def test_a_run_is_never_mixed_with_the_remains_of_another(tiny, tmp_path):
    train(tiny, out=tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(ConfigError, match="holds a run already"):
        train(tiny, out=tmp_path / "run", seed=1)


def test_a_run_of_another_version_can_be_loaded_but_not_resumed(tiny, tmp_path):
    agent = train(tiny, out=tmp_path / "run")
    newest = checkpoint.latest(tmp_path / "run")
    tensors, facts = checkpoint.load(newest)
    del facts["stages"]
    checkpoint.save(newest, tensors, facts)
    assert same_weights(agent, ami.load(tmp_path / "run"))
    with pytest.raises(ConfigError, match="can be loaded, but not resumed"):
        train(tiny, out=tmp_path / "run", resume=True)


def test_a_run_without_its_replay_buffer_is_not_resumed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 2)
    with pytest.raises(Killed):
        train(tiny, out=tmp_path / "run", logger=KilledAt("train_goal_critic"), save_every=0)
    shutil.rmtree(tmp_path / "run" / "replay")
    with pytest.raises(ConfigError, match="replay buffer"):
        train(tiny, out=tmp_path / "run", resume=True)


def test_stages_and_seeds_have_distant_random_streams():
    names = list(ami.recipes.two_rooms().stages)
    starts = sorted(stage_seed(seed, stage) for seed in range(60) for stage in names)
    assert min(b - a for a, b in itertools.pairwise(starts)) > 5000
    assert all(0 <= stage_seed(2**31 - 1, stage) < 2**30 for stage in names)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    optim = replace(tiny.stages["train_jepa"].optim)
    object.__setattr__(optim, "lr", 1e30)  # beyond what a setting may be
    config = override(tiny, {"stages.train_jepa.optim": optim})
    with pytest.raises(DivergenceError, match=r"train_jepa: .* became (nan|inf) by step 2"):
        train(config, out=tmp_path / "run", save_every=0)
    tensors, facts = checkpoint.load(checkpoint.latest(tmp_path / "run"))
    assert facts["stage_index"] == 1  # episodes were collected, nothing was trained
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())


def test_a_collapsed_run_says_so(tiny, tmp_path):
    message = []

    class Listener:
        def info(self, text):
            message.append(text)

        def __getattr__(self, name):
            return getattr(Logger(), name)

    weights = replace(
        tiny.stages["train_jepa"].weights, variance=0.0, covariance=0.0, temporal_similarity=100.0
    )
    optim = replace(tiny.stages["train_jepa"].optim, steps=150, lr=3e-3)
    objective = replace(tiny.stages["train_jepa"], weights=weights, optim=optim)
    train(override(tiny, {"stages.train_jepa": objective}), out=tmp_path / "run", logger=Listener())
    steps = tiny.collect.steps
    assert f"collect: {steps} steps in each of 8 environments, {8 * steps} steps in all" in message
    output = [text for text in message if text.startswith("train_jepa")]
    assert "COLLAPSED" in output[-1]
    assert output[0] == "train_jepa 0: nothing learnt yet"


@pytest.mark.parametrize(
    ("std", "rank", "message"),
    [(1, 20, "no collapse"), (0.05, 20, "hardly"), (1, 1.4, "along a line")],
)
def test_the_summary_names_both_kinds_of_collapse(std, rank, message):
    metrics = {"std_mean": std, "std_min": std, "num_constant": 0, "effective_rank": rank}
    assert message in describe_collapse(metrics)


@pytest.mark.parametrize(
    ("num_constant", "message"),
    [
        (0, r"least 0\.\d+, effective rank [\d.]+$"),
        (1, "; 1 number of the state does not vary$"),
        (3, "least 0.00, .*; 3 numbers of the state do not vary$"),
    ],
)
def test_numbers_of_the_state_that_do_not_vary_are_counted(num_constant, message):
    states = torch.randn(256, 12, generator=torch.Generator().manual_seed(0))
    states[:, :num_constant] *= 1e-3
    assert re.search(message, describe_collapse(spectrum(states)))


@pytest.mark.parametrize("seed", range(12))
def test_the_effective_rank_is_found_with_few_states_and_mostly_constant_dimensions(seed):
    """As in MiniGrid, whose symbols hardly vary: many eigenvalues are the same."""
    rng = torch.Generator().manual_seed(seed)
    kinds = torch.zeros(24, 151)
    varied = torch.randperm(151, generator=rng)[:32]
    kinds[:, varied] = 2.0 * torch.randint(0, 2, (24, 32), generator=rng)
    metrics = spectrum(kinds[torch.randint(24, (512,), generator=rng)])
    assert metrics["std_min"] == 0
    assert 10 < metrics["effective_rank"] < 24
