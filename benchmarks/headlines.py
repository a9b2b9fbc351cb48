"""The figures of the README's table, made again by the code that is there.

    python benchmarks/headlines.py                      # all of them; a night on two cores
    python benchmarks/headlines.py two-rooms --seeds 3  # one of them
    python benchmarks/headlines.py --table              # the table alone, from what was measured

Each figure is stored in benchmarks/headlines.json with the commit that made it, the settings of its
agents and the golden numbers (tests/golden.json) of their recipes. A figure is older than the code
if these settings or numbers have changed since; the table says so, and a test holds the table to
it. Agents and results are kept under runs/headlines/COMMIT: a command that was stopped continues.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

from agent_modules import percent
from hierarchy import Mazes
from rich.console import Console
from study import Study, success
from uncertainty import Winds

import ami_agent as ami
from ami_agent import components, config_io
from ami_agent.ablation.variants import load_configs
from ami_agent.adapters.env import EnvConfig
from ami_agent.bench.baselines import SB3Comparison
from ami_agent.bench.suites import MODES, SuiteComparison
from ami_agent.config import override
from ami_agent.evaluation.intervals import rate
from ami_agent.logger import print_line
from ami_agent.recipes.ogbench import CHANCE, NUM_TASKS
from ami_agent.storage import run_dir
from modules.types import ConfigError

ROOT = Path(__file__).resolve().parents[1]
RECORDS = Path(__file__).with_suffix(".json")
README = ROOT / "README.md"
GOLDEN = ROOT / "tests" / "golden.json"
BEGIN, END = "<!-- headlines: written by benchmarks/headlines.py -->", "<!-- end of headlines -->"
POINT_MAZES, DATA_RULES = ("medium", "large", "giant", "teleport"), ("navigate", "stitch")


class Figure(NamedTuple):
    """A measured number of each seed."""

    by_seed: list[float]
    unit: str = "%"
    episodes: int = 0
    """Of each seed, if the number is the percentage of those that succeed; 0: it is another."""

    def __str__(self) -> str:
        mean = sum(self.by_seed) / len(self.by_seed)
        text = f"{mean:.0f}" if self.unit == "steps" else f"{mean:.1f}".removesuffix(".0")
        if not self.episodes:
            return f"{text} {self.unit}"
        num_successes = [round(value * self.episodes / 100) for value in self.by_seed]
        total = self.episodes * len(self.by_seed)
        ci95 = rate([1] * sum(num_successes) + [0] * (total - sum(num_successes)))["ci95"]
        assert ci95 is not None
        low, high = (f"{100 * bound:.1f}".removesuffix(".0") for bound in ci95)
        return f"{text} % [{low}, {high}]"


Figures: TypeAlias = dict[str, Figure]
"""By what was measured."""


@dataclass(frozen=True)
class Headline:
    """A row of the table."""

    what: str
    """In Markdown."""
    measure: Callable[[Any], Figures]
    """With a study of that kind."""
    agents: tuple[str, ...]
    """Their names in the study."""
    kind: type[Study] = Study
    golden: tuple[str, ...] = ()
    """The entries of the golden numbers that these agents' recipes make."""

    def study(self, folder: Path, num_seeds: int, episodes: int, console: Console) -> Study:
        return self.kind(folder, range(num_seeds), episodes, console)


class Objectives(Study):
    """Agents that are named as the variants of the study of collapse."""

    def config(self, name: str) -> ami.Config:
        return load_configs(f"{Path(__file__).with_name('objectives.py')}:collapse")[name]


class GymnasiumEnvs(Study):
    """Agents that are named as their environments."""

    def config(self, name: str) -> ami.Config:
        return ami.recipes.gym(EnvConfig(id=name))


class PointMazes(Study):
    """The settings of agents of OGBench's point mazes, without its package and its data."""

    def config(self, name: str) -> ami.Config:
        return override(ami.recipes.recipe(name), CHANCE)


def rates(study: Study, metrics: Iterable[Mapping[str, Any]]) -> Figure:
    """Success at the last step, from the metrics of each seed."""
    return Figure([success(of_seed) for of_seed in metrics], episodes=study.episodes)


def both_modes(recipe: str) -> Callable[[Study], Figures]:
    """Success of Mode-2 and of Mode-1 in the episodes of a recipe's evaluation."""

    def measure(study: Study) -> Figures:
        task = next(iter(study.config(recipe).tasks))
        by_seed = study.metrics_by_mode(recipe, task, tuple(MODES))
        return {label: rates(study, [m[mode] for m in by_seed]) for mode, label in MODES.items()}

    return measure


def four_tasks(study: Study) -> Figures:
    found = {task: study.plan_metrics("forage", task) for task in study.config("forage").tasks}
    return {task: Figure([percent(m) for m in metrics]) for task, metrics in found.items()}


def far_goals(study: Mazes) -> Figures:
    kinds = {"landmark graph": False, "flat planning": True}
    return {
        label: rates(study, study.plan_metrics_of("maze 1500", "long", flat=flat))
        for label, flat in kinds.items()
    }


def gusts(study: Winds) -> Figures:
    found = {
        "with a latent variable": study.plan("sparse 0.2", 1.0),
        "without": study.plan("none 0.2", 1.0),
    }
    return {
        label: Figure([row["success"] for row in rows], episodes=study.episodes)
        for label, rows in found.items()
    }


def planners(study: Mazes) -> Figures:
    choices = {
        "gradient": {},
        "CEM": {"actor.planner": components.CEMConfig()},
        "MPPI": {"actor.planner": components.MPPIConfig()},
    }
    figures: Figures = {}
    for label, changes in choices.items():
        metrics = study.plan_metrics_of("maze 1500", "long", flat=False, changes=changes)
        figures[label] = rates(study, metrics)
        figures[f"{label}, one action"] = Figure(
            [m["ms_per_action_batched"] for m in metrics], "ms"
        )
    return figures


def steps_until_solved(study: Study) -> Figures:
    comparison = SB3Comparison(
        env=EnvConfig(id="Pendulum-v1"), seeds=len(study.seeds), out=str(study.folder)
    ).measure(study.console)["Pendulum-v1"]
    threshold = comparison["solved_at"]

    def first(curve: Sequence[Sequence[float]]) -> float:
        return next((steps for steps, mean, *_ in curve if mean >= threshold), float("inf"))

    labels = {"AMI": "ami", "SAC of Stable-Baselines3": "sac"}
    curves = {label: comparison["curves"][name] for label, name in labels.items()}
    return {label: Figure([first(c) for c in found], "steps") for label, found in curves.items()}


def without_variance(study: Objectives) -> Figures:
    variants = {"VICReg": "VICReg", "without variance": "no variance"}
    return {
        label: rates(study, study.plan_metrics(name, "reach")) for label, name in variants.items()
    }


def point_mazes(study: Study) -> Figures:
    names = {rule: tuple(f"pointmaze-{maze}-{rule}" for maze in POINT_MAZES) for rule in DATA_RULES}
    comparison = SuiteComparison(
        datasets=tuple(name for of_rule in names.values() for name in of_rule),
        seeds=len(study.seeds), episodes=max(1, study.episodes // NUM_TASKS), out=str(study.folder),
    ).measure(study.console)["ogbench"]  # fmt: skip
    return {
        f"{rule}, {label}": over_mazes([comparison[name]["seeds"] for name in of_rule], mode)
        for rule, of_rule in names.items()
        for mode, label in MODES.items()
    }


def over_mazes(mazes: Sequence[Mapping[str, Any]], mode: str) -> Figure:
    """Success of each seed's agents over all mazes, which have equally many episodes. `mazes`: of
    each the results by seed."""
    results = [[maze[seed][mode] for maze in mazes] for seed in mazes[0]]
    means = [100 * fmean(r["success"]["mean"] for r in of_seed) for of_seed in results]
    return Figure(means, episodes=sum(r["episodes"] for r in results[0]))


HEADLINES = {
    "ogbench": Headline(
        "[OGBench's point mazes](docs/results/ogbench.md) medium, large, giant and teleport, "
        "re-made data; the paper's best learners 82, 86, 68, 45 %, with data `stitch` 80, 84, 50, "
        "44 %",
        point_mazes, ("goals",), PointMazes, ("goals",),
    ),
    "two-rooms": Headline(
        "[one layout from 65x65 images](docs/results/two-rooms.md#one-layout), trained in minutes; "
        "random motion 0 %",
        both_modes("two-rooms"), ("two-rooms",), golden=("two_rooms",),
    ),
    "two-rooms-random": Headline(
        "[unseen layouts](docs/results/two-rooms.md#layouts-drawn-per-episode); random motion 1 %",
        both_modes("two-rooms-random"), ("two-rooms-random",), golden=("two_rooms_random",),
    ),
    "forage": Headline(
        "[one world model, four tasks](docs/results/tasks.md#four-tasks), in % of the oracle's "
        "score; random motion 8, 0, 22 and 7 %",
        four_tasks, ("forage",), golden=("forage",),
    ),
    "maze": Headline(
        "[far goals in a maze](docs/results/mazes.md#by-distance-and-training-of-the-critic)",
        far_goals, ("maze 1500",), Mazes, ("maze",),
    ),
    "windy-rooms": Headline(
        "[unpredictable gusts](docs/results/windy-rooms.md#probability-of-gusts)",
        gusts, ("sparse 0.2", "none 0.2"), Winds, ("windy_rooms",),
    ),
    "planners": Headline(
        "[the gradient planner against CEM and MPPI](docs/results/mazes.md#by-planner), the same "
        "goals",
        planners, ("maze 1500",), Mazes, ("maze",),
    ),
    "pendulum": Headline(
        "[`Pendulum-v1`](docs/results/gymnasium.md#any-gymnasium-environment) until solved",
        steps_until_solved, ("Pendulum-v1",), GymnasiumEnvs, ("pendulum",),
    ),
    "objectives": Headline(
        "[an objective against collapse](docs/results/objectives.md)",
        without_variance, ("VICReg", "no variance"), Objectives, ("two_rooms",),
    ),
}  # fmt: skip


def code_of(headline: Headline) -> dict[str, Any]:
    """What a figure depends on: the settings of its agents, and the golden numbers of the code."""
    study = headline.study(Path(), 1, 1, Console())
    golden = json.loads(GOLDEN.read_text())
    return {
        "settings": {name: config_io.to_json(study.of_seed(name, 0)) for name in headline.agents},
        "golden": {name: golden[name] for name in headline.golden},
    }


def changed_since(name: str, stored: Mapping[str, Any]) -> str | None:
    """The first thing that has changed since a figure was measured; None where nothing has."""
    if stored["code"] is None:
        return "it was measured before figures carried their settings"
    before = {**stored["code"], "settings": _completed(stored["code"]["settings"])}
    return next(iter(config_io.differences(before, code_of(HEADLINES[name]))), None)


def _completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Stored settings of agents with the defaults of fields that did not exist then; as they are
    where a field is gone since."""
    found = {}
    for name, config in settings.items():
        try:
            found[name] = config_io.to_json(config_io.from_json(config, name))
        except ConfigError:
            found[name] = config
    return found


def measure(name: str, study: Study) -> dict[str, Any]:
    """A headline as it is stored, without its commit."""
    figures = HEADLINES[name].measure(study)
    for label, figure in figures.items():
        print_line(study.console, f"{name}, {label}: {figure} {figure.by_seed}")
    return {
        "figures": {label: figure._asdict() for label, figure in figures.items()},
        "code": code_of(HEADLINES[name]),
    }


def table(records: Mapping[str, Any]) -> str:
    """The table of the README, in Markdown."""
    lines = ["| what | figure | commit | name |"]
    lines += ["| --- | --- | --- | --- |"]
    for name, headline in HEADLINES.items():
        if (stored := records.get(name)) is None:
            continue
        figures = {label: Figure(**fields) for label, fields in stored["figures"].items()}
        text = "; ".join(f"{label} {figure}" for label, figure in figures.items())
        seeds = " or ".join(map(str, sorted({len(figure.by_seed) for figure in figures.values()})))
        at = f"`{stored['commit']}`"
        if changed_since(name, stored):
            at += ", older than the code"
        lines.append(f"| {headline.what} | {text} ({seeds} seeds) | {at} | `{name}` |")
    return "\n".join(lines)


def with_table(readme: str, records: Mapping[str, Any]) -> str:
    """The README with the table of these records."""
    pattern = re.compile(f"({re.escape(BEGIN)}\n\n).*?(\n\n{re.escape(END)})", re.DOTALL)
    assert pattern.search(readme), f"README.md has no lines {BEGIN} and {END}"
    return pattern.sub(lambda found: found[1] + table(records) + found[2], readme)


def commit() -> str:
    """The commit of the code, which must not have been changed since."""
    changes = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=no", "--", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    if changes:
        raise SystemExit(f"commit these files first, for a figure carries its commit:\n{changes}")
    found = run_dir.source_commit()
    if found is None:
        raise SystemExit("a figure carries its commit: measure in a clone of the source")
    return found[:7]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(HEADLINES)}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    flags, console = parser.parse_args(), Console(width=120)
    if unknown := set(flags.names) - set(HEADLINES):
        parser.error(f"there is no {', '.join(unknown)}; names are {', '.join(HEADLINES)}")
    records = run_dir.read_json(RECORDS)
    for name in [] if flags.table else flags.names or HEADLINES:
        at = commit()
        folder = ROOT / "runs" / "headlines" / at / name
        study = HEADLINES[name].study(folder, flags.seeds, flags.episodes, console)
        date = datetime.now(timezone.utc).date().isoformat()
        records[name] = {"commit": at, "date": date, **measure(name, study)}
        run_dir.write_json(RECORDS, records)
        README.write_text(with_table(README.read_text(), records))
    README.write_text(with_table(README.read_text(), records))


if __name__ == "__main__":
    main()
