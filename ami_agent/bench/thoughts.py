"""How many actions a mind finds in a second: by mode, by the number of worlds it acts in at once,
and by device, all in one run."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from ami_agent import runs
from ami_agent.agent import Agent
from ami_agent.bench.turns import ROUNDS, check_counts, in_turns, per_second
from ami_agent.evaluate import EPISODES_FROM
from ami_agent.flags import Mode, device
from ami_agent.life import WorldConfig
from ami_agent.players import Scene, mind
from ami_agent.report import print_table, say
from modules.types import UnusableInput, require


@dataclass(frozen=True, kw_only=True)
class Thoughts:
    """Actions per second of a trained agent, from observation to action, on the CPU and, where
    there is one, on the GPU; Mode-1 beside Mode-2."""

    of: str = "runs/reference/two-rooms"
    """Run folder of the agent."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Files (x.py) and modules that make its environments known."""
    trust: bool = False
    """Import whatever the run folder names."""
    counts: tuple[int, ...] = (1, 64, 1024)
    """Worlds that it acts in at once."""
    modes: tuple[Mode, ...] = ("react", "plan")
    seconds: float = 2.0
    """Measured for each mode, count and device."""
    json: str = ""
    """A file for the results."""

    def __post_init__(self) -> None:
        require(self, seconds=(0.0, 1e6), counts=(1, 1_000_000))
        check_counts(self.counts)
        if not self.modes:
            raise UnusableInput("--modes names none; there are react, plan and auto")

    def run(self, console: Console) -> dict[str, Any]:
        """By mode and count, the actions per second on each device."""
        folder = Path(self.of)
        config = runs.config_of(folder, self.imports, self.trust)
        minds = {name: runs.load(folder, name, config) for name in {"cpu": 0, device("auto"): 0}}
        world = config.evaluation
        found: dict[str, Any] = {mode: {} for mode in self.modes}
        for mode, count in product(self.modes, self.counts):
            say(console, f"{mode}, {count} at once")
            found[mode][str(count)] = in_turns(
                {
                    name: _rates(agent, world, mode, count, self.seconds / ROUNDS)
                    for name, agent in minds.items()
                }
            )
        title = f"actions per second, {self.of}"
        print_table(console, title, ["mode", "at once", *minds, "to cpu"], list(_rows(found)))
        return found


def _rates(
    agent: Agent, config: WorldConfig, mode: str, count: int, seconds: float
) -> Generator[float]:
    """Actions per second, again and again; the worlds stand still."""
    with closing(config.build(count, agent.device)) as world:
        obs, info = world.reset(EPISODES_FROM)
        begin = mind(agent, mode, agent.assigned(""), controller=agent.controller(count))
        act = begin(Scene(world, obs, info), EPISODES_FROM)

        def think() -> int:
            act(obs).cpu()  # the action is there only when the device is done
            return count

        yield from per_second(think, seconds)


def _rows(found: dict[str, Any]) -> Iterable[list[str]]:
    for mode, counts in found.items():
        for count, rates in counts.items():
            ratio = list(rates.values())[-1] / rates["cpu"]
            yield [mode, count, *(f"{rate:,.0f}" for rate in rates.values()), f"{ratio:.1f} x"]
