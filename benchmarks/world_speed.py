"""How fast the world lives: steps per second with observations, batched against Gymnasium's own
vectorisation of the same world, side by side.

    python benchmarks/world_speed.py
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import torch
from rich.console import Console

import ami_agent  # noqa: F401  registers the worlds
from ami_agent.report import table

LIVES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"Two Rooms, {variant}": ("ami/TwoRooms-v0", {"variant": variant})
        for variant in ("fixed", "random", "eb-random", "swm")
    },
    "Forage": ("ami/Forage-v0", {}),
}


def speed(envs: Any, seconds: float = 3.0) -> float:
    """Steps of single worlds per second, observations included."""
    envs.reset(seed=0)
    actions, steps, began = envs.action_space.sample(), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        envs.step(actions)
        steps += envs.num_envs
    return steps / (time.perf_counter() - began)


def main() -> None:
    console, rows = Console(), []
    for name, (world, options) in LIVES.items():
        for worlds in (1, 64, 256):
            made = [
                gymnasium.make_vec(world, worlds, mode, **options)
                for mode in ("vector_entry_point", "sync")
            ]
            batched, sync = (speed(envs) for envs in made)
            rows.append([name, worlds, f"{batched:,.0f}", f"{sync:,.0f}", f"{batched / sync:.1f}"])
    columns = ["world", "worlds", "batched, steps/s", "SyncVectorEnv, steps/s", "ratio"]
    console.print(table(f"{torch.get_num_threads()} threads", columns, rows))


if __name__ == "__main__":
    main()
