"""What a second processor thread gains, and what it loses beside another process: updates per
second of the stages of `two-rooms`, and plans per second, in one process and in two side by side.

    python benchmarks/threads.py --rounds 3 --seconds 1

The settings take turns, so that other load on the machine slows all of them alike. A figure in
brackets is a ratio to one process with one thread; of two processes, the slower one counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from itertools import product
from statistics import median

from rich.console import Console

import ami_agent as ami
from ami_agent.bench.speed import measure_rates
from ami_agent.config import buffer_steps
from ami_agent.logger import table

NUM_ENVS = 128
NUM_PLANS = 8
THREADS = {
    "1": {"OMP_NUM_THREADS": "1"},
    "2": {"OMP_NUM_THREADS": "2"},
    "2 that spin": {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "300000"},
}
"""Environment variables; the last one is the default of PyTorch on two cores of Linux."""


def measure_here(seconds: float) -> dict[str, float]:
    """Updates per second of each stage, and plans per second, in this process."""
    short = {"collect.num_envs": NUM_ENVS, "distill_policy.num_envs": 8, "distill_policy.steps": 4}
    changes = {f"stages.{name}": value for name, value in short.items()}
    config = ami.override(ami.recipes.two_rooms(), changes)
    with closing(config.env.build(NUM_PLANS)) as env:
        agent = ami.build(config, env.spec, num_envs=NUM_ENVS, buffer_size=buffer_steps(config))
        obs, info = env.reset(0)
    stages = dict(config.stages)
    collect = stages.pop("collect").start(agent, config.env, 0)
    while collect.step < collect.total:
        collect.update()
    runs = {name: stage.start(agent, config.env, 0) for name, stage in stages.items()}
    controller = agent.controller(NUM_PLANS, ami.Task(goal=env.goal(info)), tensors=True)
    work = {name: counter(run.update) for name, run in runs.items()}
    return measure_rates(
        {**work, "plans": counter(lambda: controller.act(obs), NUM_PLANS)}, seconds
    )


def counter(call: Callable[[], object], count: int = 1) -> Callable[[], int]:
    """A function that calls another one, and returns `count`."""

    def count_call() -> int:
        call()
        return count

    return count_call


def measure(num_processes: int, variables: Mapping[str, str], seconds: float) -> dict[str, float]:
    """The rates of the slowest of so many processes side by side."""
    inherited = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    command = [sys.executable, __file__, "--seconds", str(seconds), "--one"]
    processes = [
        subprocess.Popen(command, env={**inherited, **variables}, stdout=subprocess.PIPE)
        for _ in range(num_processes)
    ]
    found = [json.loads(process.communicate()[0]) for process in processes]
    return {name: min(each[name] for each in found) for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each rate in each round")
    parser.add_argument("--one", action="store_true", help="prints the rates of this process")
    flags, console = parser.parse_args(), Console(width=120)
    if flags.one:
        print(json.dumps(measure_here(flags.seconds)))
        return
    settings = list(product((1, 2), THREADS))
    found: dict[tuple[int, str], list[dict[str, float]]] = {key: [] for key in settings}
    for _ in range(flags.rounds):
        for count, threads in settings:
            console.print(f"processes: {count}, threads of each: {threads}")
            found[count, threads].append(measure(count, THREADS[threads], flags.seconds))
    medians = {
        key: {name: median(each[name] for each in turns) for name in turns[0]}
        for key, turns in found.items()
    }
    base = medians[1, "1"]
    rows = [
        [*key, *(f"{rate:,.1f} ({rate / base[name]:.2f})" for name, rate in rates.items())]
        for key, rates in medians.items()
    ]
    console.print(table("per second", ["processes", "threads", *base], rows))


if __name__ == "__main__":
    main()
