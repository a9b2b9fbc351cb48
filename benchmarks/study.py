"""A study: agents by name and seed, and what they do in the same episodes.

Whatever was trained or found once is kept in a folder, so a study that was stopped goes on where it
was. A figure is known by the weights it is of and by what was asked, not by the code that found it:
after a change of the code, delete `figures` in that folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

import ami_agent as ami
from ami_agent import ablation
from ami_agent.adapters.env import EnvConfig
from ami_agent.evaluation.evaluate import FIRST_EVAL_SEED, evaluate_modes
from ami_agent.logger import RunLogger, table
from ami_agent.storage import checkpoint, run_dir

Table = tuple[list[str], list[list[str]]]
"""Columns and rows."""

Look = Callable[[ami.Agent, EnvConfig, int], Any]
"""An agent, the world it is judged in, the seed of the first episode -> what is found."""


class Study:
    """So many episodes with agents of these seeds, whose runs are kept in the folder `home`."""

    def __init__(self, home: Path, seeds: Sequence[int], episodes: int, console: Console) -> None:
        self.home, self.seeds, self.episodes, self.console = home, seeds, episodes, console
        self.trained: dict[tuple[str, int], Path] = {}

    def config(self, name: str) -> ami.Config:
        """`recipe` or `recipe without part` or `recipe with box=choice`."""
        recipe, _, part = name.partition(" without ")
        if part:
            return ablation.without(ami.recipes.recipe(recipe), part)
        recipe, _, phrase = name.partition(" with ")
        config = ami.recipes.recipe(recipe)
        return ablation.swap(config, phrase) if phrase else config

    def of_seed(self, name: str, seed: int) -> ami.Config:
        """The settings of one run; the world, too, may depend on its seed."""
        return self.config(name)

    def run(self, name: str, seed: int) -> Path:
        """The run folder, trained if it isn't yet."""
        if (name, seed) not in self.trained:
            self.trained[name, seed] = self._train(name, seed)
        return self.trained[name, seed]

    def _train(self, name: str, seed: int) -> Path:
        config, folder = self.of_seed(name, seed), name.replace(" ", "-").replace("=", "-")
        run = self.home / folder / str(seed)
        started = (run / "config.json").exists()
        if started:
            run_dir.check_same(run, config, seed)
        with closing(RunLogger(run, self.console)) as logger:
            logger.info(f"== {run}")
            ami.train(config, out=run, seed=seed, logger=logger, resume=started)
        return run

    def figure(self, requested: str, find: Callable[[], Any]) -> Any:
        """What was found once for what is asked."""
        kept = self.home / "figures" / f"{sha256(requested.encode()).hexdigest()[:16]}.json"
        if not kept.exists():
            found = find()
            kept.parent.mkdir(parents=True, exist_ok=True)
            run_dir.write_json(kept, {"asked": requested, "found": found})
        return run_dir.read_json(kept)["found"]

    def of_agents(self, name: str, requested: str, find: Look, **changes: Any) -> list[Any]:
        """What is found of the agent of each seed, its settings changed after training."""
        found = []
        for seed in self.seeds:
            run = self.run(name, seed)
            weights = run_dir.read_json(checkpoint.latest(run) / "metadata.json")["sha256"]
            whole = repr((weights, requested, changes, self.episodes, seed))

            def look(run: Path = run, start: int = first_episode(seed)) -> Any:
                config = replace(run_dir.config_of(run), **changes)
                return find(ami.load(run, config=config), config.eval_env, start)

            found.append(self.figure(whole, look))
        return found

    def judged(self, name: str, task: str, **changes: Any) -> list[Any]:
        """The figures of Mode-2, of every seed."""
        return [found["plan"] for found in self.compared(name, task, ("plan",), **changes)]

    def compared(self, name: str, task: str, modes: Sequence[str], **changes: Any) -> list[Any]:
        """The figures of every seed by mode, one after the other in the same minutes."""

        def find(agent: ami.Agent, env: EnvConfig, start: int) -> Any:
            return evaluate_modes(
                agent, env, modes=modes, task=task, episodes=self.episodes, seed=start
            )

        return self.of_agents(name, f"{task} {' '.join(modes)}", find, **changes)


S = TypeVar("S", bound=Study)


def first_episode(seed: int) -> int:
    """Its own episodes for every seed."""
    return FIRST_EVAL_SEED + 10_000 * seed


def score(figures: Mapping[str, Any]) -> float:
    """The world's own measure, success where it has none."""
    measure = figures["score"] or figures["final_success"]
    return float(measure["mean"])


def percent(figures: Mapping[str, Any]) -> float:
    """The same, in percent of the oracle's."""
    return 100 * score(figures) / score(figures["baselines"]["oracle"])


def told(found: Sequence[float], digits: int = 2) -> str:
    """The mean, and each seed by itself."""
    each = " ".join(f"{value:.{digits}f}" for value in found)
    return f"{sum(found) / len(found):.{digits}f} ({each})"


def report(doc: str, kind: type[S], home: Path, claims: Mapping[str, Callable[[S], Table]]) -> None:
    """The command line of a study: the table of every claim, or of those named."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--only", nargs="*", choices=list(claims), default=list(claims))
    flags, console = parser.parse_args(), Console(width=140)
    study = kind(home, range(flags.seeds), flags.episodes, console)
    for name in flags.only:
        title = f"{name}: mean ({flags.seeds} seeds), {flags.episodes} episodes each"
        console.print(table(title, *claims[name](study)))
