"""A GPU, or a CPU, in a few minutes: actions per second, the training of the default recipe, how
much of it the device computes, and how often the host waits for it.

python benchmarks/gpu.py --json gpu.json

Both are measured in float32 and, where the device has it, with losses in bf16. `--short` leaves out
the whole trainings, and `--compile` adds plans by compiled functions.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

import ami_agent as ami
from ami_agent import HOME, recipes
from ami_agent.bench.speed import PlanningSpeed
from ami_agent.cli.command_flags import resolve_device
from ami_agent.config import Config, buffer_steps, build
from ami_agent.logger import print_table
from ami_agent.storage.run_dir import manifest_of, write_json
from ami_agent.train import stage_seed
from ami_agent.training.precision import Precision, check_available, losses_in
from modules.types import ConfigError

SHIPPED = HOME / "runs" / "reference" / "two-rooms"
WARM_UP, MEASURED = 20, 50
"""Updates of a stage before it is measured, and those that are."""


class StageUse(NamedTuple):
    """How the updates of a training stage use the device."""

    updates_per_second: float
    busy: float | None
    """Fraction of the time in which the device computes; None for a CPU."""
    waits: int | None
    """Waits of the host for the device in one update; None for a CPU."""


def stage_uses(config: Config, device: str, measured: int = MEASURED) -> dict[str, StageUse]:
    """By training stage. Every stage but the one that collects is left after that many updates."""
    with closing(config.env.build(1)) as env:
        spec = env.spec
    agent = build(
        config, spec, seed=0, device=device,
        num_envs=config.collect.num_envs, buffer_size=buffer_steps(config),
    )  # fmt: skip
    found = {}
    for name, stage in config.stages.items():
        run = stage.start(agent, config.env, stage_seed(0, name))
        last = run.total if stage.env_steps else min(run.total, WARM_UP + measured + 1)
        warm_up = min(WARM_UP, last - measured - 1)
        while run.step < max(warm_up, 0):
            run.update()
        if warm_up >= 0:
            found[name] = _use(run.update, device, measured)
        while run.step < last:
            run.update()
        run.finish()
    return found


def _use(update: Callable[[], Any], device: str, updates: int) -> StageUse:
    if not device.startswith("cuda"):
        start = time.perf_counter()
        for _ in range(updates):
            update()
        return StageUse(updates / (time.perf_counter() - start), None, None)
    waits = count_waits(update)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        start = time.perf_counter()
        for _ in range(updates):
            update()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    microseconds = sum(event.self_device_time_total for event in profile.key_averages())
    return StageUse(updates / seconds, microseconds / 1e6 / seconds, waits)


def count_waits(function: Callable[[], Any]) -> int:
    """How often the host waits for a CUDA device in one call."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def available(device: str, console: Console) -> list[Precision]:
    """The precisions in which losses are measured."""
    try:
        check_available("bf16", device)
    except ConfigError as error:
        console.print(f"left out: {error}")
        return ["float32"]
    return ["float32", "bf16"]


def trained(
    config: Config, device: str, episodes: int, precision: Precision = "float32"
) -> dict[str, Any]:
    """Seconds of every stage of a whole training, and the success of its agent in both modes."""
    with tempfile.TemporaryDirectory() as folder:
        agent = ami.train(config, out=Path(folder) / "run", device=device, precision=precision)
        seconds = manifest_of(Path(folder) / "run")["seconds"]
    modes = {
        mode: ami.evaluate(agent, config.eval_env, mode=mode, episodes=episodes)["final_success"]
        for mode in ("plan", "react")
    }
    return {"seconds": seconds, "success": modes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="compiled plans too")
    parser.add_argument("--short", action="store_true", help="no whole training")
    parser.add_argument("--recipe", default="two-rooms")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--json", type=Path)
    flags, console = parser.parse_args(), Console(width=120)
    device, config = resolve_device(flags.device), recipes.recipe(flags.recipe)
    speed = PlanningSpeed(run=str(SHIPPED), num_envs=(1, 1024), compile=flags.compile)
    figures: dict[str, Any] = {"device": device, "actions per second": speed.measure(console)}
    precisions, all_rows = available(device, console), []
    figures["updates"] = {}
    for precision in precisions:
        with losses_in(precision):
            uses = stage_uses(config, device)
        figures["updates"][precision] = {name: use._asdict() for name, use in uses.items()}
        all_rows += [
            [name, precision, f"{use.updates_per_second:,.1f}",
             "-" if use.busy is None else f"{100 * use.busy:.0f} %",
             "-" if use.waits is None else str(use.waits)]
            for name, use in uses.items()
        ]  # fmt: skip
    columns = ["stage", "losses in", "updates per second", "device busy",
               "waits of the host in an update"]  # fmt: skip
    print_table(console, f"{flags.recipe} on {device}", columns, all_rows)
    figures["training"] = {}
    for precision in () if flags.short else precisions:
        found = trained(config, device, flags.episodes, precision)
        figures["training"][precision] = found
        rows = [[name, f"{seconds:.1f}"] for name, seconds in found["seconds"].items()]
        rows.append(["all", f"{sum(found['seconds'].values()):.1f}"])
        title = f"{flags.recipe}, trained on {device}, losses in {precision}"
        print_table(console, title, ["stage", "seconds"], rows)
        for mode, success in found["success"].items():
            low, high = success["ci95"]
            console.print(f"{mode}: {success['mean']:.1%} [{low:.1%}, {high:.1%}]")
    if flags.json:
        write_json(flags.json, figures)


if __name__ == "__main__":
    main()
