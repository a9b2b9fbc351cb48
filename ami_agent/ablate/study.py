"""A study: variants by seeds, each run in a folder, and what follows from them."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from rich.console import Console

from ami_agent import runs, settings
from ami_agent.ablate.jobs import Crew, Job, Outcome, known
from ami_agent.ablate.verdict import (
    Difference,
    Measure,
    detectable,
    difference,
    improvement,
    interquartile,
    measure_of,
    seeds_for,
    words,
)
from ami_agent.build import Config
from ami_agent.checks import check_lessons
from ami_agent.statistics import Estimate
from modules.types import UnusableInput

MODES = ("plan", "react")


@dataclass(frozen=True)
class Study:
    """What was found; the first variant is the base that the others are compared with."""

    name: str
    configs: Mapping[str, Config]
    seeds: int
    outcomes: Mapping[str, Sequence[Outcome]]  # by variant, in the order of the seeds
    seconds: Mapping[str, Sequence[float]]  # of training, by variant, of runs that finished

    @property
    def base(self) -> str:
        return next(iter(self.configs))

    @property
    def measure(self) -> Measure | None:
        """None where no run finished."""
        done = (o.marks["plan"] for each in self.outcomes.values() for o in each if o.marks)
        first = next(done, None)
        return None if first is None else measure_of(first)

    def marks(self, variant: str, mode: str) -> dict[int, float]:
        """What was reached, by seed."""
        measure = self.measure
        assert measure is not None
        return {o.seed: measure.of(o.marks[mode]) for o in self.outcomes[variant] if o.marks}

    def gap(self, variant: str, mode: str) -> Difference:
        return difference(self.marks(self.base, mode), self.marks(variant, mode))

    def changes(self, variant: str) -> list[str]:
        """The settings in which a variant differs from the base."""
        base, other = (settings.to_json(self.configs[n]) for n in (self.base, variant))
        return settings.differences(base, other)

    def sentences(self) -> list[str]:
        """What each variant is worth, and what failed."""
        measure = self.measure
        if measure is None:
            return ["no run finished", *self.failures()]
        said = [
            words(f"{name}, Mode-{2 - index}", self.gap(name, mode), measure, self.base)
            for name in list(self.configs)[1:]
            for index, mode in enumerate(MODES)
        ]
        return [*said, *self.failures()]

    def failures(self) -> list[str]:
        return [
            f"{o.variant}, seed {o.seed} failed: {o.failure}"
            for each in self.outcomes.values()
            for o in each
            if o.marks is None
        ]

    def told(self) -> dict[str, Any]:
        """All of it, for machines."""
        measure = self.measure
        variants = {}
        for name, each in self.outcomes.items():
            found = {
                "changes": self.changes(name),
                "runs": [{"seed": o.seed, **(o.marks or {"failure": o.failure})} for o in each],
            }
            if measure is not None:
                found |= {mode: self._estimates(name, mode) for mode in MODES}
            variants[name] = found
        return {
            "study": self.name,
            "base": self.base,
            "seeds": self.seeds,
            "measure": measure.key if measure else None,
            "variants": variants,
            "verdict": self.sentences(),
        }

    def _estimates(self, name: str, mode: str) -> dict[str, Any]:
        ours, theirs = (list(self.marks(n, mode).values()) for n in (name, self.base))
        gap = self.gap(name, mode)
        return {
            "by_seed": ours,
            "interquartile_mean": interquartile(ours),
            "difference": {**gap._asdict(), "real": gap.real},
            "probability_of_improvement": improvement(ours, theirs),
        }


def study(
    name: str, configs: Mapping[str, Config], *, out: Path, seeds: int, episodes: int, device: str,
    crew: Crew, console: Console,
) -> Study:  # fmt: skip
    """Trains and evaluates every variant with every seed, seed by seed, so that a study that is
    stopped early compares all; runs already finished are not repeated. Writes study.json and
    study.csv into `out`.

    Raises UnusableInput for settings that can't be, and folders that hold something else."""
    if seeds < 1:
        raise UnusableInput(f"--seeds is {seeds}; there must be at least 1")
    runs.check_folder(out)
    for config in configs.values():
        check_lessons(config)
    jobs = [
        Job(variant, config, out / folder(variant) / str(seed), seed, episodes, device)
        for seed in range(seeds)
        for variant, config in configs.items()
    ]
    before = {(j.variant, j.seed): known(j) for j in jobs}
    left = [j for j in jobs if before[j.variant, j.seed] is None]
    _foretell(console, seeds, len(jobs), len(left))
    for job in left:
        if (job.run / "config.json").exists():
            runs.check_same(job.run, job.config, job.seed)
    found = {key: Outcome(*key, marks) for key, marks in before.items() if marks is not None}
    began = time.monotonic()
    for count, outcome in enumerate(crew.work(left), 1):
        found[outcome.variant, outcome.seed] = outcome
        _progress(console, outcome, count, len(left), time.monotonic() - began)
    outcomes = {name: [found[name, seed] for seed in range(seeds)] for name in configs}
    seconds = {
        variant: [_seconds(out / folder(variant) / str(o.seed)) for o in each if o.marks]
        for variant, each in outcomes.items()
    }
    done = Study(name, configs, seeds, outcomes, seconds)
    runs.write_json(out / "study.json", done.told())
    _write_csv(out / "study.csv", done)
    return done


def folder(variant: str) -> str:
    """What a variant's runs lie in."""
    return "".join(c if c.isalnum() or c in "._+" else "-" for c in variant)


def _seconds(run: Path) -> float:
    return sum(runs.manifest_of(run)["seconds"].values())


def _foretell(console: Console, seeds: int, jobs: int, left: int) -> None:
    """What so many seeds can tell, before anything is spent."""
    if seeds == 1:
        able = "one seed has no interval: nothing will follow from a difference"
    else:
        able = (
            f"{seeds} seeds tell a difference from chance where it is {detectable(seeds):.2g} "
            f"times the spread between seeds; one as large as the spread takes {seeds_for(1.0)}, "
            f"half as large {seeds_for(0.5)}"
        )
    done = f", {jobs - left} of them finished before" if left < jobs else ""
    console.print(f"{jobs} runs{done}; {able}", highlight=False, soft_wrap=True)


def _progress(console: Console, outcome: Outcome, count: int, total: int, seconds: float) -> None:
    said = f"failed: {outcome.failure}"
    if outcome.marks is not None:
        measure = measure_of(outcome.marks["plan"])
        marks = (f"{mode} {measure.of(outcome.marks[mode]):.3g}" for mode in MODES)
        said = f"{', '.join(marks)} {measure.unit}"
    left = ceil(seconds / count * (total - count) / 60)
    console.print(
        f"{count} of {total}: {outcome.variant}, seed {outcome.seed}: {said}"
        + (f"; about {left} min left" if count < total else ""),
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


COLUMNS = ("variant", "seed", "mode", "success", "final_success", "score", "return", "steps",
           "length", "ms_per_action_batched", "failure")  # fmt: skip


def _write_csv(path: Path, done: Study) -> None:
    draft = path.with_suffix(".unfinished")
    with draft.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for outcome in (o for each in done.outcomes.values() for o in each):
            for mode, marks in (outcome.marks or {"": {}}).items():
                figures = (_plain(marks.get(key)) for key in COLUMNS[3:-1])
                rows.writerow([outcome.variant, outcome.seed, mode, *figures, outcome.failure])
    draft.replace(path)


def _plain(figure: Any) -> Any:
    return figure["mean"] if isinstance(figure, Mapping) else figure


SHOWN = ("plan", "react", "beside the base")
"""What a terminal has room for."""


def rows(done: Study, shown: Sequence[str] = SHOWN) -> tuple[list[str], list[list[str]]]:
    """The table people read: `shown` of the figures of every variant."""
    figures = {name: cells(done, name) for name in done.configs}
    return ["variant", *shown], [[n, *(each[s] for s in shown)] for n, each in figures.items()]


def cells(done: Study, name: str) -> dict[str, str]:
    """All figures of a variant as text, by what they are."""
    if done.measure is None:
        return dict.fromkeys((*SHOWN, "by seed", "better than the base", "seconds"), "failed")
    plan, react = (list(done.marks(name, mode).values()) for mode in MODES)
    gap, seconds = done.gap(name, "plan"), done.seconds[name]
    beside = "-"
    if name != done.base and gap.ci95 is not None:
        span = f"{gap.mean:+.3g} [{gap.ci95[0]:.3g}, {gap.ci95[1]:.3g}]"
        beside = span if gap.real else f"{span}, chance may do"
    better = improvement(plan, list(done.marks(done.base, "plan").values()))
    return {
        "plan": told(interquartile(plan)),
        "react": told(interquartile(react)),
        "beside the base": beside,
        "by seed": " ".join(f"{mark:.3g}" for mark in plan),
        "better than the base": "-" if name == done.base else told(better),
        "seconds": f"{sum(seconds) / len(seconds):.0f}" if seconds else "-",
    }


def told(found: Estimate) -> str:
    if found["mean"] is None:
        return "failed"
    span = found["ci95"]
    return f"{found['mean']:.3g}" + (f" [{span[0]:.3g}, {span[1]:.3g}]" if span else "")
