"""Actions per second of an agent, by mode, number of environments and device."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from ami_agent.adapters.env import EnvConfig
from ami_agent.agent import Agent
from ami_agent.bench.interleave import ROUNDS, check_num_envs, interleave, measure_rates
from ami_agent.cli.args import Mode, device
from ami_agent.evaluation.evaluate import FIRST_EVAL_SEED
from ami_agent.evaluation.policies import EpisodeStart, agent_policy_factory
from ami_agent.logger import print_line, print_table
from ami_agent.storage import run_dir
from modules.types import ConfigError, validate_ranges


@dataclass(frozen=True, kw_only=True)
class PlanningSpeed:
    """Actions per second of a trained agent, from observation to action, in Mode-1 and Mode-2, on
    the CPU and, where there is one, on the GPU."""

    run: str = "runs/reference/two-rooms"
    """Run folder of the agent."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Files (x.py) and modules that register its environments."""
    trust: bool = False
    """Import all modules that the run folder names."""
    num_envs: tuple[int, ...] = (1, 64, 1024)
    """Numbers of environments that the agent acts in at once."""
    modes: tuple[Mode, ...] = ("react", "plan")
    seconds: float = 2.0
    """Of measurement for each mode, number and device."""
    json: str = ""
    """A file for the results."""

    def __post_init__(self) -> None:
        validate_ranges(self, seconds=(0.0, 1e6), num_envs=(1, 1_000_000))
        check_num_envs(self.num_envs)
        if not self.modes:
            raise ConfigError("--modes is empty; choose from react, plan and auto")

    def measure(self, console: Console) -> dict[str, Any]:
        """By mode and number of environments, the actions per second on each device."""
        folder = Path(self.run)
        config = run_dir.config_of(folder, self.imports, self.trust)
        devices = dict.fromkeys(["cpu", device("auto")])
        agents = {name: run_dir.load(folder, name, config) for name in devices}
        env_config = config.eval_env
        rates: dict[str, Any] = {mode: {} for mode in self.modes}
        for mode, num_envs in product(self.modes, self.num_envs):
            print_line(console, f"{mode}, {num_envs} at once")
            generators = {
                name: _rates(agent, env_config, mode, num_envs, self.seconds / ROUNDS)
                for name, agent in agents.items()
            }
            rates[mode][str(num_envs)] = interleave(generators)
        title = f"actions per second, {self.run}"
        print_table(console, title, ["mode", "at once", *agents, "speed-up"], list(_rows(rates)))
        return rates


def _rates(
    agent: Agent, config: EnvConfig, mode: str, num_envs: int, seconds: float
) -> Generator[float]:
    """Actions per second, measured again at every `next`; the environments are not stepped."""
    with closing(config.build(num_envs, agent.device)) as env:
        obs, info = env.reset(FIRST_EVAL_SEED)
        start_episode = agent_policy_factory(agent, mode, agent.task_spec(""))
        act = start_episode(EpisodeStart(env, obs, info), FIRST_EVAL_SEED)

        def act_once() -> int:
            act(obs).cpu()  # waits for the device
            return num_envs

        yield from measure_rates(act_once, seconds)


def _rows(rates_by_mode: dict[str, Any]) -> Iterable[list[str]]:
    for mode, by_num_envs in rates_by_mode.items():
        for num_envs, rates in by_num_envs.items():
            ratio = list(rates.values())[-1] / rates["cpu"]
            yield [mode, num_envs, *(f"{rate:,.0f}" for rate in rates.values()), f"{ratio:.1f} x"]
