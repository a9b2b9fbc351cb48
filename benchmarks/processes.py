"""Updates per second of the stages of `two-rooms` in one process and in several, in turns.

torchrun --nproc-per-node 2 benchmarks/processes.py

Both columns are measured by the same processes: while process 0 works alone, the others wait.
`work` is the CPU time of process 0 alone, divided by its CPU time among several: what the ratio
would be if no process ever waited for a core.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

import torch
from rich.console import Console

import ami_agent as ami
from ami_agent.config import Config, buffer_steps, build, override
from ami_agent.logger import table
from ami_agent.training import distributed
from ami_agent.training.base import SGDStageRun
from ami_agent.training.policy import DAggerRun


def settings(batch: int) -> Config:
    """The recipe with batches `batch` times as large."""
    config = ami.recipes.two_rooms()
    names = [name for name in config.stages if name != "collect"]
    sizes = {n: batch * config.stages[n].optim.batch_size for n in names}  # type: ignore[attr-defined]
    changes = {f"stages.{name}.optim.batch_size": size for name, size in sizes.items()}
    shorter = {"stages.collect.num_envs": 300, "stages.distill_policy.steps": 2}
    return override(config, {**changes, **shorter})


def updates(batch: int, stages: list[str]) -> dict[str, Callable[[], object]]:
    """One update of each stage, by name."""
    config = settings(batch)
    env = config.env.build(1)
    agent = build(config, env.spec, num_envs=300, buffer_size=buffer_steps(config))
    collect = config.stages["collect"].start(agent, config.env, 1)
    while collect.step < collect.total:
        collect.update()
    found: dict[str, Callable[[], object]] = {}
    for name in stages or list(config.stages)[1:]:
        run = config.stages[name].start(agent, config.env, 1)
        run.update()  # labels the first states, where there are any
        if isinstance(run, DAggerRun):
            found["plans of distill_policy"] = lambda run=run: run._collect_labels(0)  # type: ignore[misc]
        found[f"{name}, x{batch}"] = lambda run=run: SGDStageRun.update(run)  # type: ignore[misc]
    return found


def timed(update: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Seconds and CPU seconds of an update, in as many as take process 0 so many seconds."""
    start = time.monotonic()
    update()
    affordable = max(1, int(seconds / (time.monotonic() - start)))
    count = int(distributed.gather(torch.tensor([affordable]))[0])
    start, cpu = time.monotonic(), time.process_time()
    for _ in range(count):
        update()
    return (time.monotonic() - start) / count, (time.process_time() - cpu) / count


def alone(update: Callable[[], object], seconds: float) -> tuple[float, float]:
    """The same in process 0 alone."""
    together = distributed.world()
    result = (0.0, 0.0)
    if not together.rank:
        distributed._world = distributed.World()
        result = timed(update, seconds)
        distributed._world = together
    distributed.barrier()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a measurement")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 8], help="factors on batches")
    parser.add_argument("--stages", nargs="*", default=[], help="by default all")
    flags, rows = parser.parse_args(), []
    torch.set_num_threads(1)
    with distributed.joined("cpu", "benchmark"):
        for batch in flags.batch:
            for name, update in updates(batch, flags.stages).items():
                pairs = [
                    (alone(update, flags.seconds), timed(update, flags.seconds))
                    for _ in range(flags.rounds)
                ]
                one, several = (median(pair[i][0] for pair in pairs) for i in (0, 1))
                ratios = sorted(pair[0][0] / pair[1][0] for pair in pairs)
                work = median(pair[0][1] / pair[1][1] for pair in pairs)
                rows.append([
                    name, f"{1 / one if one else 0:.3g}", f"{1 / several:.3g}",
                    f"{median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]", f"{work:.2f}",
                ])  # fmt: skip
                if not distributed.world().rank:
                    print(rows[-1], flush=True)
        if not distributed.world().rank:
            size, load = distributed.world().size, os.getloadavg()[0]
            columns = ["stage", "updates/s alone", f"in {size} processes", "ratio", "work"]
            Console(width=120).print(table(f"load {load:.1f} at the end", columns, rows))


if __name__ == "__main__":
    main()
