"""The course of a study: variants by seeds, each run in a folder, and what can be said of it before
it starts, as it goes on and when it is done."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import ceil
from pathlib import Path
from statistics import median

from rich.console import Console

from ami_agent import runs
from ami_agent.ablate.jobs import Crew, Job, Outcome, known
from ami_agent.ablate.study import MODES, Study, Trained, write_csv
from ami_agent.ablate.verdict import detectable, measure_of, seeds_for
from ami_agent.build import Config
from ami_agent.checks import check_all
from ami_agent.report import duration
from modules.types import UnusableInput


def study(
    name: str, configs: Mapping[str, Config], *, out: Path, seeds: int, episodes: int, device: str,
    crew: Crew, console: Console, asked: str = "",
) -> Study:  # fmt: skip
    """Trains and evaluates every variant with every seed, seed by seed, so that a study that is
    stopped early compares all; runs already finished are not repeated. Writes study.json and
    study.csv into `out`.

    Raises UnusableInput for settings that can't be, and folders that hold something else."""
    if seeds < 1:
        raise UnusableInput(f"--seeds is {seeds}; there must be at least 1")
    runs.check_folder(out)
    check_all(configs)
    jobs = [
        Job(variant, config, out / folder(variant) / str(seed), seed, episodes, device)
        for seed in range(seeds)
        for variant, config in configs.items()
    ]
    before = {(j.variant, j.seed): known(j) for j in jobs}
    left = [j for j in jobs if before[j.variant, j.seed] is None]
    _foretell(console, seeds, len(jobs), len(left))
    _estimate(console, [j for j in jobs if before[j.variant, j.seed]], left)
    for job in left:
        if (job.run / "config.json").exists():
            runs.check_same(job.run, job.config, job.seed)
    found = {key: Outcome(*key, marks) for key, marks in before.items() if marks is not None}
    began, worked = time.monotonic(), 0.0
    for count, outcome in enumerate(crew.work(left), 1):
        found[outcome.variant, outcome.seed] = outcome
        worked += outcome.seconds
        _progress(console, outcome, count, len(left), time.monotonic() - began)
    if left:
        _account(console, worked, time.monotonic() - began)
    outcomes = {name: [found[name, seed] for seed in range(seeds)] for name in configs}
    trained = {
        variant: [Trained.of(out / folder(variant) / str(o.seed)) for o in each if o.marks]
        for variant, each in outcomes.items()
    }
    done = Study(name, configs, seeds, outcomes, trained, asked)
    runs.write_json(out / "study.json", done.told())
    write_csv(out / "study.csv", done)
    return done


def folder(variant: str) -> str:
    """What a variant's runs lie in."""
    return "".join(c if c.isalnum() or c in "._+" else "-" for c in variant)


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


def _estimate(console: Console, known: Sequence[Job], left: Sequence[Job]) -> None:
    """How long the rest takes, as far as finished runs tell: of this study, or else of the recipe
    wherever commands leave them."""
    if not left:
        return
    recipe, home = left[0].config.recipe, Path("runs")
    elsewhere = [*sorted((home / recipe).glob("*")), home / "reference" / recipe]
    took: dict[Path, float] = {}
    for run in [job.run for job in known] or [r for r in elsewhere if (r / "eval.json").exists()]:
        with suppress(UnusableInput):  # another's run may be anything
            took[run] = runs.seconds_of(run)
    if took:
        each, others = median(took.values()), len(took) - 1
        who = f"{next(iter(took))}{f' and {others} more' if others else ''}"
        said = f"about {duration(each * len(left))} of training, as {who} took {duration(each)}"
    else:
        said = f"no finished run of {recipe} tells how long it takes; the first will"
    console.print(said, markup=False, highlight=False, soft_wrap=True)


def _account(console: Console, worked: float, seconds: float) -> None:
    """Where the time went: what is not work is the study's own, or waiting for the last run."""
    said = f"{duration(worked)} of work in {duration(seconds)}: {worked / seconds:.2f} at a time"
    console.print(said, highlight=False, soft_wrap=True)


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
