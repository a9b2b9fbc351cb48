"""The course of a study: variants by seeds, each run in a folder, and what can be said of it before
it starts, as it goes on and when it is done."""

from __future__ import annotations

import hashlib
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from math import ceil
from pathlib import Path
from statistics import median

from rich.console import Console

from ami_agent import runs
from ami_agent.ablate.jobs import Crew, Job, Outcome, known
from ami_agent.ablate.study import MODES, Study, Trained, rows, write
from ami_agent.ablate.verdict import detectable, measure_of, seeds_for
from ami_agent.build import Config
from ami_agent.checks import check_all
from ami_agent.interrupt import Interrupted
from ami_agent.report import duration, print_table, say
from ami_agent.run_lock import owned
from modules.types import UnusableInput


def study(
    name: str, configs: Mapping[str, Config], *, out: Path, seeds: int, episodes: int, device: str,
    crew: Crew, console: Console, asked: str = "",
) -> Study:  # fmt: skip
    """Trains and evaluates every variant with every seed, seed by seed, so that a study that is
    stopped early compares all; runs already finished are not repeated. Writes study.json and
    study.csv into `out`; where they can't be written, prints what was found.

    Raises UnusableInput for settings that can't be, folders that hold something else, and where
    another process is at work in `out`."""
    if seeds < 1:
        raise UnusableInput(f"--seeds is {seeds}; there must be at least 1")
    runs.check_folder(out)
    check_all(configs)
    with owned(out):
        return _study(name, configs, out, seeds, episodes, device, crew, console, asked)


def _study(
    name: str, configs: Mapping[str, Config], out: Path, seeds: int, episodes: int, device: str,
    crew: Crew, console: Console, asked: str,
) -> Study:  # fmt: skip
    homes = {variant: out / folder for variant, folder in folders(configs).items()}
    jobs = [
        Job(variant, config, homes[variant] / str(seed), seed, episodes, device)
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
    try:
        with closing(crew.work(left)) as outcomes_:
            for count, outcome in enumerate(outcomes_, 1):
                found[outcome.variant, outcome.seed] = outcome
                worked += outcome.seconds
                _progress(console, outcome, count, len(left), time.monotonic() - began)
    except Interrupted as stop:
        finished = sum(1 for outcome in found.values() if outcome.marks is not None)
        raise Interrupted(
            f"{stop.said.partition(';')[0]}; {finished} of {len(jobs)} runs in {out} are "
            "finished, and the same command goes on with the rest"
        ) from stop
    if left:
        _account(console, worked, time.monotonic() - began)
    outcomes = {name: [found[name, seed] for seed in range(seeds)] for name in configs}
    trained = {
        variant: [Trained.of(homes[variant] / str(o.seed)) for o in each if o.marks]
        for variant, each in outcomes.items()
    }
    done = Study(name, configs, seeds, outcomes, trained, asked)
    try:
        write(out, done)
    except OSError:
        show(console, done)
        raise
    return done


def show(console: Console, done: Study) -> None:
    """What was found, for people."""
    print_table(console, f"{done.name}, {done.seeds} seeds", *rows(done))
    say(console, "\n".join(done.sentences()))


LONGEST = 100
"""Characters of a folder's name that come from a variant's."""
TAKEN = {"", ".", "..", "index.html", "study.json", "study.csv", "study.png"}
"""What no folder of a variant can be called."""


def folders(variants: Iterable[str]) -> dict[str, str]:
    """What the runs of each variant lie in: its name without what a path can't hold. Where that is
    no name, or another variant's (on file systems that ignore case, too), the later one's folder
    has a checksum of its name as well."""
    found: dict[str, str] = {}
    taken = set(TAKEN)
    for variant in variants:
        plain = "".join(c if c.isalnum() or c in "._+" else "-" for c in variant)
        name = plain[:LONGEST]
        if name != plain or _alike(name) in taken:
            checksum = hashlib.sha256(variant.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            name = f"{name.lstrip('.')}-{checksum}"
        taken.add(_alike(name))
        found[variant] = name
    return found


def _alike(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


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
    say(console, f"{jobs} runs{done}; {able}")


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
    say(console, said)


def _account(console: Console, worked: float, seconds: float) -> None:
    """Where the time went: what is not work is the study's own, or waiting for the last run."""
    said = f"{duration(worked)} of work in {duration(seconds)}: {worked / seconds:.2f} at a time"
    say(console, said)


def _progress(console: Console, outcome: Outcome, count: int, total: int, seconds: float) -> None:
    said = f"failed: {outcome.failure}"
    if outcome.marks is not None:
        unwritten = f"; {outcome.failure}" if outcome.failure else ""
        measure = measure_of(outcome.marks["plan"])
        marks = (f"{mode} {measure.of(outcome.marks[mode]):.3g}" for mode in MODES)
        said = f"{', '.join(marks)} {measure.unit}{unwritten}"
    left = ceil(seconds / count * (total - count) / 60)
    ahead = f"; about {left} min left" if count < total else ""
    say(console, f"{count} of {total}: {outcome.variant}, seed {outcome.seed}: {said}{ahead}")
