"""Run folders of unknown origin, or damaged ones, under every command that reads one:
the command is carried out, or refused in one line, and nothing that a folder names is executed."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import event, note
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import ami_agent.cli.main as cli
from ami_agent import recipes, viewer
from ami_agent.adapters.env import EnvConfig
from ami_agent.config import Config, override
from ami_agent.logger import Logger
from ami_agent.probing import data
from ami_agent.storage import checkpoint, run_dir
from ami_agent.train import Trainer, train
from ami_agent.viewer import projectors
from tests import damage
from tests.conftest import small
from tests.fuzz import SECONDS, Begun, answer, fuzzed

MARKER = "executed"
MARKER_CODE = f"open({MARKER!r}, 'w').close()\n"
"""Code that a run folder would have executed."""


class Pickled:
    """Executes the code wherever it is unpickled."""

    def __reduce__(self) -> Any:
        return exec, (MARKER_CODE,)


def brief_config() -> Config:
    """The default recipe, trained in a second and evaluated in a few steps."""
    config = small(recipes.two_rooms(), steps=3)
    planner = replace(config.actor.planner, horizon=2, iterations=2, warm_iterations=1)
    config = override(config, {"actor.planner": planner})
    return replace(config, eval_env=replace(config.eval_env, options={"max_episode_steps": 3}))


class Stops(Logger):
    """Ends a run in the middle of a stage."""

    def log_scalars(self, stage: str, step: int, values: Any) -> None:
        if stage == "train_goal_critic":
            raise Begun


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Finished runs with their replay buffers, and one that stopped within a stage."""
    torch.set_num_threads(1)
    where, config = tmp_path_factory.mktemp("made"), brief_config()
    agent = train(config, out=where / "finished", keep_replay_buffer=True)
    results = cli.evaluate_modes(agent, config.eval_env, episodes=1)
    run_dir.write_json(where / "finished" / "eval.json", results)
    recorded = small(recipes.gym(EnvConfig(id="CartPole-v1")), steps=2)
    train(recorded, out=where / "recorded", keep_replay_buffer=True)
    with pytest.raises(Begun):
        train(config, out=where / "stopped", logger=Stops(), save_every=0.0)
    return where


@pytest.fixture(autouse=True)
def _brief(made, monkeypatch, tmp_path_factory):
    """Commands run in a folder with a module that must not be imported, and do little work."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    Path("marks.py").write_text(MARKER_CODE)
    config, update = brief_config(), Trainer._update

    def begun(*args: Any) -> Any:
        raise Begun

    def once(self: Any, name: str, stage_run: Any) -> None:
        update(self, name, stage_run)
        raise Begun

    monkeypatch.setattr(cli, "recipe", lambda name: config)
    monkeypatch.setattr(Trainer, "_update", once)
    monkeypatch.setattr(viewer, "log_episode", begun)
    if not SECONDS:  # these are slow
        monkeypatch.setattr(projectors, "compute_critic_map", begun)
        monkeypatch.setattr(cli, "compute_scorecard", begun)
    monkeypatch.setattr(data, "NUM_ENVS", 8)


# --- damage to a whole folder --------------------------------------------------------------------


def all_files(run: Path) -> list[Path]:
    files = [path for path in run.rglob("*") if path.is_file()]
    return sorted(path for path in files if path.stat().st_size <= damage.LARGE)


BEYOND_HARM = (ValueError, LookupError, OSError, RecursionError, SafetensorError)
"""The errors of a harm in what an earlier harm left."""


def one_file(run: Path, rng: random.Random) -> str:
    """Damages one file, the more important ones more often."""
    important = [p for p in all_files(run) if p.name in ("config.json", "tensors.safetensors")]
    path = rng.choice([*all_files(run), *important])
    harms = [damage.any_bytes, damage.other_kind]
    if path.suffix == ".json":
        harms += [damage.json_file] * 4
    if path.name == checkpoint.TENSORS:
        harms += [damage.tensors_header, damage.tensors_values] * 2
    chosen = rng.choice(harms)
    with suppress(*BEYOND_HARM):
        chosen(path, rng)
    return f"{chosen.__name__} {path.relative_to(run)}"


def no_file(run: Path, rng: random.Random) -> str:
    """Removes a file or a folder."""
    path = rng.choice([path for path in run.rglob("*") if path.name != "config.json"])
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return f"without {path.relative_to(run)}"


def other_file(run: Path, rng: random.Random) -> str:
    """Puts one file in the place of another."""
    one, other = rng.sample(all_files(run), 2)
    shutil.copyfile(one, other)
    return f"{one.relative_to(run)} as {other.relative_to(run)}"


def pickled(run: Path, rng: random.Random) -> str:
    """Puts a pickle in the place of a file."""
    path = rng.choice(all_files(run))
    if rng.random() < 0.5:
        torch.save({"agent.x": Pickled()}, path)
    else:
        path.write_bytes(pickle.dumps(Pickled()))
    return f"pickle as {path.relative_to(run)}"


def code(run: Path, rng: random.Random) -> str:
    """Names code in the settings, in one of the ways in which they can."""
    if run / "config.json" not in all_files(run):
        raise ValueError("an earlier harm left no settings")
    settings = json.loads((run / "config.json").read_text())
    (run / "marks.py").write_text(MARKER_CODE)
    file = rng.choice(["marks.py", str(run / "marks.py"), "marks", "./marks.py", "../marks.py"])
    env = rng.choice(["env", "eval_env", "eval_env"])
    changes: list[tuple[tuple[str, ...], Any]] = [
        ((env, "imports"), [file]),
        ((env, "id"), f"{rng.choice(['marks', 'marks.x', 'marks.py', '../marks'])}:X-v0"),
        ((env, "options", "env_id"), "marks:X-v0"),
        ((env, "options", "entry_point"), "marks:X"),
        ((env, "variant"), "marks:X-v0"),
        (("actor", "planner", "_type"), "marks.X"),
        (("perception", "_type"), "marks.X"),
        (("cost", "intrinsic"), {"x": {"_type": "marks.X"}}),
        (("recipe",), "marks.py:X"),
    ]
    for path, value in rng.sample([*changes[:2] * 2, *changes[2:]], rng.choice([1, 1, 2])):
        settings = damage.changed(settings, path, value)
    (run / "config.json").write_text(json.dumps(settings))
    return "code"


def folders(run: Path, rng: random.Random) -> str:
    """Puts folders in the way, loops and names that look like those of checkpoints."""
    checkpoints, replay = run / "checkpoints", run / "replay"
    saved = sorted(checkpoints.glob("step-*"))
    path = rng.choice([run / ".lock", checkpoints, replay, run / "memory", run / "show",
                       run / "probe.png", run / "eval.json", *saved])  # fmt: skip
    kind = rng.randrange(5)
    if kind == 0 and saved:
        name = rng.choice(["step-", "step-x", "step-" + "9" * 30, "step-00099999", "step--1",
                           "step-٣", "step-1e3"])  # fmt: skip
        made = checkpoints / name
        if rng.random() < 0.5:
            made.mkdir()
        else:
            shutil.copytree(saved[-1], made, symlinks=True)
        return f"checkpoint {name}"
    if kind == 1:
        name = rng.choice(["0-1", "000000000000-999999999999", f"{'9' * 30}-{'9' * 31}", "5-2",
                           "x-y", "٣-٤", "-"])  # fmt: skip
        (replay / name).mkdir(parents=True)
        return f"chunk {name}"
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if kind == 2:
        path.mkdir()
    elif kind == 3:
        path.symlink_to(rng.choice([path, run, Path(".."), Path("nowhere"), Path("/proc/self/fd")]))
    else:
        path.write_text(rng.choice(["", "1", "x", str(os.getpid())]))
    return f"folder {kind} {path.relative_to(run)}"


HARMS: list[Callable[[Path, random.Random], str]] = [
    *[one_file] * 8, no_file, other_file, pickled, code, code, folders, folders,
]  # fmt: skip

# --- commands that read one ----------------------------------------------------------------------

COMMANDS: dict[str, list[str]] = {
    "eval react": ["eval", "finished", "--episodes", "1", "--mode", "react"],
    "eval plan": ["eval", "finished", "--episodes", "1"],
    "eval auto": ["eval", "stopped", "--episodes", "1", "--mode", "auto", "--json", "eval.json"],
    "show": ["show", "finished", "--episodes", "1", "--mode", "react"],
    "probe": ["probe", "finished"],
    "resume": ["train", "two-rooms", "--out", "stopped", "--resume", "--episodes", "1"],
    "resume finished": ["train", "two-rooms", "--out", "finished", "--resume", "--episodes", "1"],
    "train": ["train", "two-rooms", "--out", "stopped"],
    "data": ["train", "gym", "--env.id", "CartPole-v1", "--data.run", "recorded"],
    "ablate": ["ablate", "two-rooms", "--out", "study", "--seeds", "1", "--episodes", "1",
               "--without", "goal_critic"],
    "bench": ["bench", "planning-speed", "--run", "finished", "--seconds", "0.01",
              "--num-envs", "1"],
}  # fmt: skip


UNUSED = {"train": "holds a run already"}
"""Commands that do not read a whole folder, and what they say."""


def folder_for(command: str, made: Path) -> Path:
    """A fresh copy of the run that the command reads."""
    for left_over in Path().iterdir():
        if left_over.is_dir():
            shutil.rmtree(left_over)
    kind = next(name for name in (*COMMANDS[command], "finished") if (made / name).is_dir())
    return Path(shutil.copytree(made / kind, "study/base/0" if command == "ablate" else kind))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_whole_run_folder_is_read(made, command):
    folder_for(command, made)
    found = answer(*COMMANDS[command])
    assert UNUSED.get(command, "") in found.error
    assert found.code == (2 if command in UNUSED else 0)


@fuzzed(st.sampled_from(sorted(COMMANDS)), st.integers(0, 2**32), examples=40)
def test_a_run_folder_is_read_or_refused_in_one_line(made, command, seed):
    run, rng = folder_for(command, made), random.Random(seed)
    for _ in range(rng.choice([1, 1, 1, 2])):
        with suppress(*BEYOND_HARM):
            note(rng.choice(HARMS)(run, rng))
    found = answer(*COMMANDS[command])
    event(f"{command} {found.code}")
    assert not Path(MARKER).exists()
    if found.code:
        assert re.search(rf"{run.parts[0]}|environment '|but the agent is made for", found.error)


@pytest.mark.parametrize("value", ["x", -1, True, None, [], 2.5])
@pytest.mark.parametrize(
    ("file", "name"), [("manifest.json", run_dir.CHANGED), ("memory/metadata.json", "stage_index")]
)
def test_a_value_of_another_kind_is_refused_in_one_line(made, file, name, value):
    """Also where the metadata are signed again."""
    path = folder_for("resume finished", made) / file
    data = json.loads(path.read_text())
    part = data.get("metadata", data)
    path.write_text(json.dumps({**data, "metadata": {**part, name: value}, name: value}))
    damage.signed(path.parent)
    found = answer(*COMMANDS["resume finished"])
    assert found.code == (2 if value != [] or name == "stage_index" else 0)
    assert value == [] or "finished" in found.error


def test_a_buffer_whose_parts_have_no_rows_is_refused(made):
    path = folder_for("data", made) / "memory" / checkpoint.TENSORS
    save_file({**load_file(path), "ended": torch.ones(())}, path)
    damage.signed(path.parent)
    assert "memory holds no replay buffer" in answer(*COMMANDS["data"]).error


def test_an_error_does_not_quote_a_whole_file(made):
    run = folder_for("eval react", made)
    spaces = json.loads((run / "spaces.json").read_text())
    (run / "spaces.json").write_text(json.dumps({**spaces, "interoception": "a" * 10_000}))
    found = answer(*COMMANDS["eval react"])
    assert "spaces.json describes no spaces: TypeError interoception is 'aaaa" in found.error
    assert len(found.error) < 600


@pytest.mark.parametrize("change", [("imports", ["marks.py"]), ("id", "marks:X-v0")])
def test_the_marker_file_would_show_that_code_is_executed(made, change, monkeypatch):
    """These tests would notice: without the check, the code is executed."""
    monkeypatch.setattr(run_dir, "check_trusted", lambda config, *args: config)
    run = folder_for("eval react", made)
    settings = json.loads((run / "config.json").read_text())
    harmed = damage.changed(settings, ("eval_env", change[0]), change[1])
    (run / "config.json").write_text(json.dumps(harmed))
    monkeypatch.delitem(sys.modules, "marks", raising=False)
    answer(*COMMANDS["eval react"])
    assert Path(MARKER).exists()
    monkeypatch.delitem(sys.modules, "marks", raising=False)
