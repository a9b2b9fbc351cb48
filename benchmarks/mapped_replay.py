"""How fast an agent trains on recorded pictures in a file that is mapped into memory, as data that
are larger than memory: updates of the stage `train_jepa` beside the same updates on data in memory.

    python benchmarks/mapped_replay.py --gib 1 --updates 30 --out runs/mapped

The updates take turns, so that other load on the machine slows all alike. "cached": the pages of
the file are in memory, as those of a file that fits. "from disk": every page is dropped from memory
before each update, which is worse than any file that is only partly in memory. `--large-gib 40`
adds a file of that size, which should be larger than the memory of the machine.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from contextlib import closing
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import median, quantiles

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from rich.console import Console

import ami_agent as ami
from ami_agent.agent import Agent
from ami_agent.logger import table
from ami_agent.storage.memory_map import MappedStorage
from modules.memory.replay_buffer import ReplayBuffer
from modules.types import Trajectory

SIDE, STEPS = 64, 200  # of a picture, of an episode
MS_SYNC, MADV_PAGEOUT = 4, 21  # Linux: writes pages to the disk; drops pages from memory


class Pictures(gymnasium.Env):
    """Only lends its spaces."""

    observation_space = spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((SIDE, SIDE, 3), np.uint8), {}

    def step(self, action):
        return np.zeros((SIDE, SIDE, 3), np.uint8), 0.0, False, False, {}


def episode(generator: torch.Generator) -> Trajectory:
    """Random pictures."""
    size = (1, STEPS + 1, 3, SIDE, SIDE)
    return Trajectory(
        torch.randint(256, size, dtype=torch.uint8, generator=generator),
        2 * torch.rand(1, STEPS, 2, generator=generator) - 1,
        torch.ones(1, STEPS, 2, dtype=torch.float64),
        torch.zeros(1, STEPS, dtype=torch.bool), torch.zeros(()),
    )  # fmt: skip


def filled(config: ami.Config, num_episodes: int, folder: Path | None) -> Agent:
    """An agent with so many episodes, in files of the folder or in memory."""
    with closing(config.env.build(1)) as env:
        agent = ami.build(config, env.spec)
        agent.replay_buffer = ReplayBuffer(
            num_episodes * (STEPS + 1), env.spec.empty_transition(1),
            storage=None if folder is None else MappedStorage(folder),
        )  # fmt: skip
    recorded = episode(torch.Generator().manual_seed(0))
    for _ in range(num_episodes):
        agent.replay_buffer.add_episode(recorded)
    return agent


def drop_pages(agent: Agent) -> None:
    """Drops the pages of mapped steps from memory."""
    for part in agent.replay_buffer.state_dict().values():
        if part.nbytes > 2**20:
            start, page = part.data_ptr(), 4096
            aligned = -(-start // page) * page
            size = (start + part.nbytes - aligned) // page * page
            libc, place = ctypes.CDLL(None, use_errno=True), ctypes.c_void_p(aligned)
            for call, flag in ((libc.msync, MS_SYNC), (libc.madvise, MADV_PAGEOUT)):
                if call(place, ctypes.c_size_t(size), flag):  # only written pages are dropped
                    raise OSError(ctypes.get_errno(), call.__name__)


def mib_read() -> float:
    """MiB that this process has read from disks."""
    return getrusage(RUSAGE_SELF).ru_inblock * 512 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--gib", type=float, default=1.0, help="of pictures")
    parser.add_argument("--large-gib", type=float, default=0.0)
    parser.add_argument("--updates", type=int, default=30, help="of each kind")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/mapped"), help="a folder on the disk"
    )
    flags, console = parser.parse_args(), Console(width=120)
    gymnasium.register("benchmark/Pictures-v0", entry_point=Pictures, max_episode_steps=STEPS)
    config = ami.override(
        ami.recipes.gym(ami.EnvConfig(id="benchmark/Pictures-v0")),
        {"stages.train_jepa.optim.batch_size": flags.batch_size},
    )
    num_episodes, num_large = (
        round(gib * 2**30 / (SIDE * SIDE * 3 * STEPS)) for gib in (flags.gib, flags.large_gib)
    )
    console.print(f"{num_episodes * STEPS:,} pictures of {SIDE}x{SIDE}x3")
    agents = {
        "in memory": filled(config, num_episodes, None),
        "mapped, cached": filled(config, num_episodes, flags.out),
    }
    agents["mapped, from disk"] = filled(config, num_episodes, flags.out)
    if num_large:
        agents[f"mapped, {flags.large_gib:g} GiB"] = filled(config, num_large, flags.out)
    runs = {
        name: config.stages["train_jepa"].start(agent, config.env, 0)
        for name, agent in agents.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    read: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(flags.updates + 2):
        for name, run in runs.items():
            if name == "mapped, from disk":
                drop_pages(agents[name])
            before, start = mib_read(), time.perf_counter()
            run.update()
            if number >= 2:  # the first updates allocate
                seconds[name].append(time.perf_counter() - start)
                read[name].append(mib_read() - before)
    rows = []
    for name, found in seconds.items():
        ratios = [a / b for a, b in zip(seconds["in memory"], found, strict=True)]
        low, middle, high = quantiles(ratios, n=4)
        ratio = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
        rows.append([name, f"{1000 * median(found):.1f}", f"{median(read[name]):.1f}", ratio])
    columns = ["replay buffer", "ms an update", "MiB read from disk", "speed, in memory = 1"]
    console.print(table("", columns, rows))


if __name__ == "__main__":
    main()
