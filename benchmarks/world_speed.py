"""How fast the world lives: steps per second with images, batched against Gymnasium's own
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
    for variant in ("fixed", "random", "eb-random", "swm"):
        for worlds in (1, 64, 256):
            made = [
                gymnasium.make_vec("ami/TwoRooms-v0", worlds, mode, variant=variant)
                for mode in ("vector_entry_point", "sync")
            ]
            batched, sync = (speed(envs) for envs in made)
            rows.append(
                [variant, worlds, f"{batched:,.0f}", f"{sync:,.0f}", f"{batched / sync:.1f}"]
            )
    columns = ["variant", "worlds", "batched, steps/s", "SyncVectorEnv, steps/s", "ratio"]
    console.print(table(f"{torch.get_num_threads()} threads", columns, rows))


if __name__ == "__main__":
    main()
