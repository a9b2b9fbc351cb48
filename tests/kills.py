"""Trains in processes that are killed at random moments, until one comes to its end: the weights
and the log must be those of a run that was never killed.

    python -m tests.kills KILLS [KIND ...]
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import torch._dynamo  # the first optimiser of a process imports it, which takes seconds
from gymnasium.spaces import Box
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ami_agent as ami
from ami_agent import checkpoint
from ami_agent.ablate import Alone, study
from ami_agent.build import Config
from ami_agent.learning import Learning
from ami_agent.lessons import Live
from ami_agent.life import WorldConfig
from tests.conftest import small

KINDS = ("collect", "world model", "interact", "distil", "checkpoints", "ablate")


class Line(gymnasium.Env):
    """A place on a line, which is left at 1."""

    observation_space = Box(-2, 2, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform(-0.9, 0.9))
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.place += 0.1 * float(action[0]) + 0.01 * float(self.np_random.normal())
        over = abs(self.place) > 1
        return np.array([self.place], np.float32), 1 - abs(self.place), over, False, {}


class Restless(Line):
    """The same with randomness that no seed decides."""

    def step(self, action):
        self.place += 0.01 * float(np.random.default_rng().normal())
        return super().step(action)


if "ami-test/Killed-v0" not in gymnasium.registry:
    gymnasium.register("ami-test/Killed-v0", entry_point=Line, max_episode_steps=20)
    gymnasium.register("ami-test/Restless-v0", entry_point=Restless, max_episode_steps=20)


def line(collect: int = 60, updates: int = 4, interact: int = 6) -> Config:
    """The generic recipe in that environment, as short as can be."""
    config = ami.recipes.gym(WorldConfig(id="ami-test/Killed-v0", imports=("tests.kills",)))
    learning = Learning(steps=0, batch=8)
    online = replace(
        config.interact, steps=interact, ratio=0.25, learning=learning,
        objective=replace(config.interact.objective, learning=learning),
    )  # fmt: skip
    return replace(
        config,
        planner=replace(config.planner, horizon=2, steps=1, warm_steps=1),
        life=Live(worlds=2, steps=collect),
        objective=replace(config.objective, learning=replace(learning, steps=updates)),
        interact=online,
    )


def config_of(kind: str) -> Config:
    if kind == "distil":
        return small(ami.recipes.two_rooms(), 8)
    sizes = {"collect": (400, 2, 2), "world model": (40, 110, 2), "ablate": (40, 4, 4)}
    return line(*sizes.get(kind, (40, 2, 60)))


def work(kind: str, out: Path) -> None:
    """Begins, or goes on, as somebody would who types the same command again."""
    torch.set_num_threads(1)
    if kind == "ablate":
        base, quiet = config_of(kind), Console(quiet=True)
        configs = {"base": base, "slower": replace(base, execute=2)}
        study(
            "killed", configs, out=out, seeds=1, episodes=1, device="cpu", crew=Alone(quiet),
            console=quiet,
        )  # fmt: skip
        return
    begun = (out / "config.json").exists()
    save_every = 0.0 if kind == "checkpoints" else 0.1
    ami.train(config_of(kind), out=out, seed=3, resume=begun, save_every=save_every)


def child(do: Callable[[], None], log: Path) -> int:
    """Does it in a process of its own, which has imported everything already; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        do()
        code = 0
    except BaseException:
        log.write_text(traceback.format_exc())
    finally:
        os._exit(code)


def rows(run: Path) -> list[dict[str, Any]]:
    """The log without what a clock says."""
    told = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in ("time", "seconds")} for row in told]


def board(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [
            (event.step, event.value)
            for event in sorted(events.Scalars(tag), key=lambda event: event.wall_time)
        ]
        for tag in events.Tags()["scalars"]
        if not tag.endswith("/seconds")
    }


def runs_in(kind: str, out: Path) -> list[Path]:
    return [out / "base" / "0", out / "slower" / "0"] if kind == "ablate" else [out]


def check_same(kind: str, whole: Path, killed: Path) -> None:
    for one, other in zip(runs_in(kind, whole), runs_in(kind, killed), strict=True):
        (ours, told), (theirs, said) = (
            checkpoint.load(checkpoint.latest(run)) for run in (one, other)
        )
        assert ours.keys() == theirs.keys()
        for name, part in ours.items():
            assert torch.equal(part, theirs[name]), name
        assert (told["updates"], told["lesson"]) == (said["updates"], said["lesson"])
        assert set(told["seconds"]) == set(said["seconds"])
        assert rows(one) == rows(other)
        assert board(one) == board(other)
        for run in (one, other):
            names = {path.name for path in run.iterdir()}
            assert not [n for n in names if n.endswith(".unfinished") or n in ("replay", ".lock")]


def kill(kind: str, kills: int, folder: Path, dice: random.Random) -> int:
    """Kills so many processes of such runs; returns how many of them were at work."""
    whole, log = folder / "whole", folder / "log.txt"
    began = time.monotonic()
    _end(child(lambda: work(kind, whole), log), log)
    lasts, done, at_work = time.monotonic() - began, 0, 0
    for number in range(kills):
        cut = folder / f"killed-{number}"
        while done < kills:
            pid = child(lambda: work(kind, cut), log)  # noqa: B023
            time.sleep(dice.uniform(0.02, 0.7) * lasts)
            os.kill(pid, signal.SIGKILL)
            done += 1
            ended_itself = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            at_work += not ended_itself
            if ended_itself or dice.random() < 0.3:
                break
        _end(child(lambda: work(kind, cut), log), log)  # noqa: B023
        check_same(kind, whole, cut)
        if done == kills:
            break
    return at_work


def _end(pid: int, log: Path) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, log.read_text() if log.exists() else code


if __name__ == "__main__":
    count, kinds = int(sys.argv[1]), sys.argv[2:] or KINDS
    for which in kinds:
        with tempfile.TemporaryDirectory() as place:
            started = time.monotonic()
            worked = kill(which, count, Path(place), random.Random(f"{count} {which}"))
            took = time.monotonic() - started
            print(
                f"{which}: {count} kills, {worked} at work, all the same, {took:.0f} s", flush=True
            )
