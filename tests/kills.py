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
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
import torch._dynamo  # the first optimiser of a process imports it, which takes seconds
from gymnasium.spaces import Box
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ami_agent as ami
from ami_agent.ablation import Serial, StudyPlan, run_study
from ami_agent.adapters.env import EnvConfig
from ami_agent.config import Config, override
from ami_agent.storage import checkpoint
from ami_agent.training import CollectBehaviour
from ami_agent.training.optim import OptimConfig
from tests.conftest import small

KINDS = ("collect", "world model", "actor_critic", "distill_policy", "checkpoints", "ablate")


class Line(gymnasium.Env):
    """A position on a line; an episode ends where it reaches 1."""

    observation_space = Box(-2, 2, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = float(self.np_random.uniform(-0.9, 0.9))
        return np.array([self.position], np.float32), {}

    def step(self, action):
        self.position += 0.1 * float(action[0]) + 0.01 * float(self.np_random.normal())
        done = abs(self.position) > 1
        return (
            np.array([self.position], np.float32),
            1 - abs(self.position),
            done,
            False,
            {},
        )


class Unseeded(Line):
    """The same with randomness that no seed decides."""

    def step(self, action):
        self.position += 0.01 * float(np.random.default_rng().normal())
        return super().step(action)


if "ami-test/Killed-v0" not in gymnasium.registry:
    gymnasium.register("ami-test/Killed-v0", entry_point=Line, max_episode_steps=20)
    gymnasium.register("ami-test/Restless-v0", entry_point=Unseeded, max_episode_steps=20)


def line(collect: int = 60, updates: int = 4, interact: int = 6) -> Config:
    """The generic recipe in that environment, as short as can be."""
    config = ami.recipes.gym(EnvConfig(id="ami-test/Killed-v0", imports=("tests.kills",)))
    optim = OptimConfig(steps=0, batch_size=8)
    online = replace(
        config.stages["actor_critic"], steps=interact, updates_per_step=0.25, optim=optim,
        train_jepa=replace(config.stages["actor_critic"].train_jepa, optim=optim),
    )  # fmt: skip
    return override(
        config,
        {
            "actor.planner.horizon": 2,
            "actor.planner.iterations": 1,
            "actor.planner.warm_iterations": 1,
            "stages.collect": CollectBehaviour(num_envs=2, steps=collect),
            "stages.train_jepa.optim": replace(optim, steps=updates),
            "stages.actor_critic": online,
        },
    )


def config_of(kind: str) -> Config:
    if kind == "distill_policy":
        return small(ami.recipes.two_rooms(), 8)
    sizes = {"collect": (400, 2, 2), "world model": (40, 110, 2), "ablate": (40, 4, 4)}
    return line(*sizes.get(kind, (40, 2, 60)))


def work(kind: str, out: Path) -> None:
    """Starts the command, or resumes it, as a user who types the same command again."""
    torch.set_num_threads(1)
    if kind == "ablate":
        base, quiet = config_of(kind), Console(quiet=True)
        configs = {"base": base, "slower": override(base, {"actor.receding_horizon": 2})}
        plan = StudyPlan(name="killed", configs=configs, seeds=1, episodes=1)
        run_study(plan, out=out, executor=Serial(quiet), console=quiet)
        return
    started = (out / "config.json").exists()
    save_every = 0.0 if kind == "checkpoints" else 0.1
    ami.train(config_of(kind), out=out, seed=3, resume=started, save_every=save_every)


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


class Printed(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    output: str
    errors: str


def printed(do: Callable[[], int]) -> Printed:
    """The answer of a command in a process of its own, as `child`, whose output goes into pipes.
    It must fit in these, which hold 64 KiB."""
    pipes = [os.pipe() for _ in range(2)]
    pid = os.fork()
    if not pid:
        code = 70
        try:
            sys.stdout, sys.stderr = (os.fdopen(end, "w") for _, end in pipes)
            code = do()
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
    for _, end in pipes:
        os.close(end)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    output, errors = (Path(f"/dev/fd/{end}").read_text() for end, _ in pipes)
    for end, _ in pipes:
        os.close(end)
    return Printed(code, output, errors)


def rows(run: Path) -> list[dict[str, Any]]:
    """The log without times."""
    output = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in ("time", "seconds")} for row in output]


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
        (ours, output), (theirs, message) = (
            checkpoint.load(checkpoint.latest(run)) for run in (one, other)
        )
        assert ours.keys() == theirs.keys()
        for name, part in ours.items():
            assert torch.equal(part, theirs[name]), name
        assert (output["updates"], output["stage_index"]) == (
            message["updates"],
            message["stage_index"],
        )
        assert set(output["seconds"]) == set(message["seconds"])
        assert rows(one) == rows(other)
        assert board(one) == board(other)
        for run in (one, other):
            names = {path.name for path in run.iterdir()}
            assert not [n for n in names if n.endswith(".unfinished") or n in ("replay", ".lock")]


def kill(kind: str, kills: int, folder: Path, rng: random.Random) -> int:
    """Kills so many processes of such runs; returns how many of them were at work."""
    whole, log = folder / "whole", folder / "log.txt"
    start_time = time.monotonic()
    _end(child(lambda: work(kind, whole), log), log)
    duration, done, at_work = time.monotonic() - start_time, 0, 0
    for number in range(kills):
        cut = folder / f"killed-{number}"
        while done < kills:
            pid = child(lambda: work(kind, cut), log)  # noqa: B023
            time.sleep(rng.uniform(0.02, 0.7) * duration)
            os.kill(pid, signal.SIGKILL)
            done += 1
            ended_itself = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            at_work += not ended_itself
            if ended_itself or rng.random() < 0.3:
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
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            worked = kill(which, count, Path(folder), random.Random(f"{count} {which}"))
            took = time.monotonic() - started
            print(
                f"{which}: {count} kills, {worked} at work, all the same, {took:.0f} s", flush=True
            )
