"""Benchmarks of others, judged as they judge: this agent beside floors, a ceiling and what is
published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Literal

from rich.console import Console

from ami_agent import config_io
from ami_agent.adapters.env import EnvConfig
from ami_agent.bench import ogbench_references as point_mazes
from ami_agent.bench.cache import measured_once
from ami_agent.bench.ogbench_references import reference_policies
from ami_agent.cli.command_flags import CommandFlags, Device, resolve_device
from ami_agent.config import Config, override
from ami_agent.data.make_ogbench import make_ogbench
from ami_agent.evaluation.evaluate import evaluate_modes, evaluate_policies
from ami_agent.evaluation.intervals import format_percent
from ami_agent.evaluation.progress import PolicyProgress
from ami_agent.logger import ConsoleLogger, RunLogger, print_line, print_table
from ami_agent.recipes.ogbench import NUM_TASKS, ogbench
from ami_agent.storage import files
from ami_agent.train import train
from ami_agent.training import LoadDataset
from modules.types import ConfigError

QUICK_EPISODES = 200
QUICK_CHANGES: Mapping[str, Any] = {"stages.train_goal_critic.optim.steps": 3000}
MODES = {"plan": "Mode-2", "react": "Mode-1"}


@dataclass(frozen=True, kw_only=True)
class SuiteComparison(CommandFlags):
    """This agent on data sets of OGBench, beside floors, a ceiling and published results.

    Data that are missing are made again by the package's own rule; they are not the published
    files. Runs are kept: a command that was stopped continues."""

    only: tuple[Literal["ogbench"], ...] = ()
    """The suites; all by default."""
    datasets: tuple[str, ...] = (
        "pointmaze-medium-navigate",
        "pointmaze-large-navigate",
        "pointmaze-giant-navigate",
        "pointmaze-teleport-navigate",
    )
    quick: bool = False
    """The first data set alone, with a fifth of its episodes and one seed: about ten minutes."""
    seeds: Annotated[int, (1, 10_000)] = 3
    episodes: Annotated[int, (1, 10_000)] = 20
    """Episodes of each of the five tasks; the paper has 50."""
    out: str = "runs/suites"
    """Folder of data, runs and results."""
    device: Device = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for dataset in self.datasets:
            point_mazes.check_dataset(dataset)
        if not self.datasets:
            raise ConfigError("--datasets is (); it must be names of data sets")

    def measure(self, console: Console) -> dict[str, Any]:
        """By data set: success of each mode, of the baselines and of the published learners."""
        names = [point_mazes.check_dataset(name) for name in self.datasets]
        found = {name: self._compare(name, console) for name in names[: 1 if self.quick else None]}
        for name, comparison in found.items():
            print_table(console, f"{name}: success, %", COLUMNS, _rows(comparison))
        print_line(
            console,
            f"Ours: data made again by OGBench's own rule, not its published files. Published: "
            f"{point_mazes.SOURCE}.",
        )
        return {"ogbench": found}

    def _compare(self, dataset: str, console: Console) -> dict[str, Any]:
        config = self._config(dataset, console)
        seeds = range(1 if self.quick else self.seeds)
        runs = {str(seed): self._run(config, dataset, seed, console) for seed in seeds}
        references = self._references(config, dataset, console)
        random = next(iter(runs["0"].values()))["baselines"]["random"]
        learners = zip(point_mazes.PUBLISHED_LEARNERS, point_mazes.PUBLISHED[dataset], strict=True)
        return {
            "data": f"made again by OGBench's own rule, {config.collect.steps:,} steps",
            "episodes_per_task": self.episodes,
            "seeds": runs,
            "baselines": {"random": random, **references},
            "published": {"source": point_mazes.SOURCE, "success": dict(learners)},
        }

    def _config(self, dataset: str, console: Console) -> Config:
        """The recipe of a data set, whose data are made where they are missing."""
        label = f"{dataset}-quick" if self.quick else dataset
        path = Path(self.out) / "data" / f"{label}-v0.npz"
        if not path.exists():
            episodes = QUICK_EPISODES if self.quick else 0
            make_ogbench(dataset, path, episodes=episodes, seed=0, console=console)
        config = ogbench(EnvConfig(id=dataset), LoadDataset(path=str(path)))
        return override(config, QUICK_CHANGES) if self.quick else config

    def _folder(self, dataset: str) -> Path:
        return Path(self.out) / (f"{dataset}-quick" if self.quick else dataset)

    def _run(self, config: Config, dataset: str, seed: int, console: Console) -> dict[str, Any]:
        """The results of one seed, by mode."""
        folder, episodes = self._folder(dataset) / str(seed), NUM_TASKS * self.episodes

        def measure() -> dict[str, Any]:
            print_line(console, f"{dataset}, seed {seed}")
            with files.locked(folder), closing(RunLogger(folder, console)) as logger:
                agent = train(
                    config, out=folder, seed=seed, device=resolve_device(self.device),
                    resume=(folder / "config.json").exists(), logger=logger,
                )  # fmt: skip
                return evaluate_modes(
                    agent,
                    config.eval_env,
                    modes=tuple(MODES),
                    episodes=episodes,
                    progress=PolicyProgress(logger),
                )

        path = folder / f"suite-{self.episodes}.json"
        return measured_once(path, config_io.to_json(config), "results", measure)

    def _references(self, config: Config, dataset: str, console: Console) -> dict[str, Any]:
        """Floor and ceiling."""
        makers = reference_policies()

        def measure() -> dict[str, Any]:
            print_line(console, f"{dataset}: {', '.join(makers)}")
            episodes, logger = NUM_TASKS * self.episodes, ConsoleLogger(console)
            return evaluate_policies(makers, config, episodes, logger=logger)

        path = self._folder(dataset) / f"references-{self.episodes}.json"
        return measured_once(path, config_io.to_json(config), "results", measure)


COLUMNS = ["agent", "five tasks", "by task"]


def _rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """The printed table of a data set: ours, the baselines and the published learners."""
    by_agent = {
        f"AMI, {label}": [run[mode] for run in comparison["seeds"].values()]
        for mode, label in MODES.items()
    } | {name: [results] for name, results in comparison["baselines"].items()}
    rows = []
    for agent, results in by_agent.items():
        by_task = [
            mean(result["by_task"][f"task{number}"]["success"]["mean"] for result in results)
            for number in range(1, NUM_TASKS + 1)
        ]
        rows.append([agent, _success(results), " ".join(map(_percent, by_task))])
    published = comparison["published"]["success"].items()
    return [*rows, *([f"{name} (published)", _percent(value), ""] for name, value in published)]


def _success(results: Sequence[Mapping[str, Any]]) -> str:
    """The mean over seeds and each seed's, or of a single one its interval."""
    means = [result["success"]["mean"] for result in results]
    if len(means) == 1:
        return format_percent(results[0]["success"])
    return f"{_percent(mean(means))} ({', '.join(map(_percent, means))})"


def _percent(value: float) -> str:
    return f"{100 * value:.0f}"
