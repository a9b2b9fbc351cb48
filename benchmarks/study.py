"""Agents by name and seed, trained once, and evaluated in the same episodes.

Runs and results are kept in a folder, so a study that was stopped continues with what is missing. A
result is kept by the weights of its agent and by its key, whatever the version of the code: after
a change of the code, delete `figures` in that folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

import ami_agent as ami
from ami_agent import ablation
from ami_agent.adapters.env import EnvConfig
from ami_agent.config import override
from ami_agent.evaluation.evaluate import FIRST_EVAL_SEED, evaluate_modes
from ami_agent.logger import RunLogger, table
from ami_agent.storage import checkpoint, run_dir

Table = tuple[list[str], list[list[str]]]
"""Columns and rows."""

NO_CHANGES: Mapping[str, Any] = {}

EvalFn = Callable[[ami.Agent, EnvConfig, int], Any]
"""An agent, its evaluation environment, the seed of the first episode -> the result."""


class Study:
    """Agents of these seeds, evaluated in so many episodes; runs are kept in `folder`."""

    def __init__(self, folder: Path, seeds: Sequence[int], episodes: int, console: Console) -> None:
        self.folder, self.seeds, self.episodes, self.console = folder, seeds, episodes, console
        self.trained: dict[tuple[str, int], Path] = {}

    def config(self, name: str) -> ami.Config:
        """`recipe` or `recipe without part` or `recipe with component=choice`."""
        recipe, _, part = name.partition(" without ")
        if part:
            return ablation.without(ami.recipes.recipe(recipe), part)
        recipe, _, swap_spec = name.partition(" with ")
        config = ami.recipes.recipe(recipe)
        return ablation.swap(config, swap_spec) if swap_spec else config

    def of_seed(self, name: str, seed: int) -> ami.Config:
        """The settings of one run; the environment, too, may depend on the seed."""
        return self.config(name)

    def run(self, name: str, seed: int) -> Path:
        """The run folder, trained if it isn't yet."""
        if (name, seed) not in self.trained:
            self.trained[name, seed] = self._train(name, seed)
        return self.trained[name, seed]

    def _train(self, name: str, seed: int) -> Path:
        config, folder = self.of_seed(name, seed), name.replace(" ", "-").replace("=", "-")
        run = self.folder / folder / str(seed)
        started = (run / "config.json").exists()
        if started:
            run_dir.check_same(run, config, seed)
        with closing(RunLogger(run, self.console)) as logger:
            logger.info(f"== {run}")
            ami.train(config, out=run, seed=seed, logger=logger, resume=started)
        return run

    def cached(self, key: str, compute: Callable[[], Any]) -> Any:
        """The result of that key, computed once."""
        kept = self.folder / "figures" / f"{sha256(key.encode()).hexdigest()[:16]}.json"
        if not kept.exists():
            found = compute()
            kept.parent.mkdir(parents=True, exist_ok=True)
            run_dir.write_json(kept, {"settings": key, "found": found})
        return run_dir.read_json(kept)["found"]

    def of_agents(
        self, name: str, key: str, evaluate: EvalFn, changes: Mapping[str, Any] = NO_CHANGES
    ) -> list[Any]:
        """The result for the agent of each seed; `changes` are settings that `override` replaces
        after training."""
        found = []
        for seed in self.seeds:
            run = self.run(name, seed)
            weights = run_dir.read_json(checkpoint.latest(run) / "metadata.json")["sha256"]

            def compute(run: Path = run, first_seed: int = first_eval_seed(seed)) -> Any:
                config = override(run_dir.config_of(run), changes)
                return evaluate(ami.load(run, config=config), config.eval_env, first_seed)

            whole_key = repr((weights, key, dict(changes), self.episodes, seed))
            found.append(self.cached(whole_key, compute))
        return found

    def plan_metrics(
        self, name: str, task: str, changes: Mapping[str, Any] = NO_CHANGES
    ) -> list[Any]:
        """The metrics of Mode-2, for every seed."""
        by_mode = self.metrics_by_mode(name, task, ("plan",), changes)
        return [metrics["plan"] for metrics in by_mode]

    def metrics_by_mode(
        self, name: str, task: str, modes: Sequence[str], changes: Mapping[str, Any] = NO_CHANGES
    ) -> list[Any]:
        """The metrics by mode, for every seed."""

        def evaluate(agent: ami.Agent, env: EnvConfig, first_seed: int) -> Any:
            return evaluate_modes(
                agent, env, modes=modes, task=task, episodes=self.episodes, seed=first_seed
            )

        return self.of_agents(name, f"{task} {' '.join(modes)}", evaluate, changes)


S = TypeVar("S", bound=Study)


def first_eval_seed(seed: int) -> int:
    """The seed of the first evaluation episode; each training seed has episodes of its own."""
    return FIRST_EVAL_SEED + 10_000 * seed


def score(metrics: Mapping[str, Any]) -> float:
    """The environment's own score, or success where it has none."""
    measure = metrics["score"] or metrics["final_success"]
    return float(measure["mean"])


def percent(metrics: Mapping[str, Any]) -> float:
    """The score in percent of the oracle's."""
    return 100 * score(metrics) / score(metrics["baselines"]["oracle"])


def success(metrics: Mapping[str, Any]) -> float:
    """Percent of the episodes that end in success."""
    return 100 * float(metrics["final_success"]["mean"])


def mean_and_seeds(values: Iterable[float], digits: int = 2) -> str:
    """The mean, and the value of each seed in brackets."""
    numbers = list(values)
    by_seed = " ".join(f"{value:.{digits}f}" for value in numbers)
    return f"{sum(numbers) / len(numbers):.{digits}f} ({by_seed})"


def main(doc: str, kind: type[S], folder: Path, tables: Mapping[str, Callable[[S], Table]]) -> None:
    """The command line of a study: prints all tables, or those that are named."""
    parser = argparse.ArgumentParser(description=doc.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--only", nargs="*", choices=list(tables), default=list(tables))
    flags, console = parser.parse_args(), Console(width=140)
    study = kind(folder, range(flags.seeds), flags.episodes, console)
    for name in flags.only:
        title = f"{name}: mean ({flags.seeds} seeds), {flags.episodes} episodes each"
        console.print(table(title, *tables[name](study)))
