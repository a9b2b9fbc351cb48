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

from ami_agent.ablation.executors import Executor, Job, JobResult, finished_metrics
from ami_agent.ablation.stats import main_measure, minimal_detectable_effect, seeds_needed
from ami_agent.ablation.study import MODES, RunInfo, Study, table_rows, write
from ami_agent.config import Config
from ami_agent.interrupt import Interrupted
from ami_agent.logger import format_duration, print_line, print_table
from ami_agent.storage import run_dir
from ami_agent.storage.run_lock import locked
from ami_agent.validate import check_all
from modules.types import ConfigError


def run_study(
    name: str, configs: Mapping[str, Config], *, out: Path, seeds: int, episodes: int, device: str,
    executor: Executor, console: Console, question: str = "",
) -> Study:  # fmt: skip
    """Trains and evaluates every variant with every seed, seed by seed, so that a study that is
    stopped early compares all; runs already finished are not repeated. Writes study.json and
    study.csv into `out`; where they can't be written, prints what was found.

    Raises ConfigError for settings that can't be, folders that hold something else, and where
    another process is at work in `out`."""
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}; there must be at least 1")
    run_dir.check_folder(out)
    check_all(configs)
    with locked(out):
        return _run_study(name, configs, out, seeds, episodes, device, executor, console, question)


def _run_study(
    name: str, configs: Mapping[str, Config], out: Path, seeds: int, episodes: int, device: str,
    executor: Executor, console: Console, question: str,
) -> Study:  # fmt: skip
    variant_dirs = {variant: out / folder for variant, folder in folders(configs).items()}
    jobs = [
        Job(variant, config, variant_dirs[variant] / str(seed), seed, episodes, device)
        for seed in range(seeds)
        for variant, config in configs.items()
    ]
    previous = {(j.variant, j.seed): finished_metrics(j) for j in jobs}
    remaining = [j for j in jobs if previous[j.variant, j.seed] is None]
    _print_power(console, seeds, len(jobs), len(remaining))
    _print_estimate(console, [j for j in jobs if previous[j.variant, j.seed]], remaining)
    for job in remaining:
        if (job.out / "config.json").exists():
            run_dir.check_same(job.out, job.config, job.seed)
    results = {
        key: JobResult(*key, metrics) for key, metrics in previous.items() if metrics is not None
    }
    started, work_seconds = time.monotonic(), 0.0
    try:
        with closing(executor.run(remaining)) as new_results:
            for count, result in enumerate(new_results, 1):
                results[result.variant, result.seed] = result
                work_seconds += result.seconds
                _print_progress(console, result, count, len(remaining), time.monotonic() - started)
    except Interrupted as interruption:
        finished = sum(1 for result in results.values() if result.metrics is not None)
        raise Interrupted(
            f"{interruption.message.partition(';')[0]}; {finished} of {len(jobs)} runs in {out} are "
            "finished, and the same command goes on with the rest"
        ) from interruption
    if remaining:
        _print_time(console, work_seconds, time.monotonic() - started)
    by_variant = {name: [results[name, seed] for seed in range(seeds)] for name in configs}
    run_infos = {
        variant: [RunInfo.load(variant_dirs[variant] / str(o.seed)) for o in results if o.metrics]
        for variant, results in by_variant.items()
    }
    study = Study(name, configs, seeds, by_variant, run_infos, question)
    try:
        write(out, study)
    except OSError:
        print_study(console, study)
        raise
    return study


def print_study(console: Console, study: Study) -> None:
    """What was found, for people."""
    print_table(console, f"{study.name}, {study.seeds} seeds", *table_rows(study))
    print_line(console, "\n".join(study.sentences()))


MAX_VARIANT_CHARS = 100
"""Characters of a folder's name that come from a variant's."""
RESERVED_NAMES = {"", ".", "..", "index.html", "study.json", "study.csv", "study.png"}
"""What no folder of a variant can be called."""


def folders(variants: Iterable[str]) -> dict[str, str]:
    """What the runs of each variant lie in: its name without what a path can't hold. Where that is
    no name, or another variant's (on file systems that ignore case, too), the later one's folder
    has a checksum of its name as well."""
    names: dict[str, str] = {}
    used = set(RESERVED_NAMES)
    for variant in variants:
        safe = "".join(c if c.isalnum() or c in "._+" else "-" for c in variant)
        name = safe[:MAX_VARIANT_CHARS]
        if name != safe or _normalized(name) in used:
            checksum = hashlib.sha256(variant.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            name = f"{name.lstrip('.')}-{checksum}"
        used.add(_normalized(name))
        names[variant] = name
    return names


def _normalized(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _print_power(console: Console, seeds: int, jobs: int, remaining: int) -> None:
    """What so many seeds can tell, before anything is spent."""
    if seeds == 1:
        power = "one seed has no interval: nothing will follow from a difference"
    else:
        power = (
            f"{seeds} seeds tell a difference from chance where it is {minimal_detectable_effect(seeds):.2g} "
            f"times the spread between seeds; one as large as the spread takes {seeds_needed(1.0)}, "
            f"half as large {seeds_needed(0.5)}"
        )
    finished = f", {jobs - remaining} of them finished before" if remaining < jobs else ""
    print_line(console, f"{jobs} runs{finished}; {power}")


def _print_estimate(console: Console, finished: Sequence[Job], remaining: Sequence[Job]) -> None:
    """How long the rest takes, as far as finished runs tell: of this study, or else of the recipe
    wherever commands leave them."""
    if not remaining:
        return
    recipe, runs_dir = remaining[0].config.recipe, Path("runs")
    other_runs = [*sorted((runs_dir / recipe).glob("*")), runs_dir / "reference" / recipe]
    seconds: dict[Path, float] = {}
    for run in [job.out for job in finished] or [
        r for r in other_runs if (r / "eval.json").exists()
    ]:
        with suppress(ConfigError):  # another's run may be anything
            seconds[run] = run_dir.seconds_of(run)
    if seconds:
        typical, num_others = median(seconds.values()), len(seconds) - 1
        source = f"{next(iter(seconds))}{f' and {num_others} more' if num_others else ''}"
        message = f"about {format_duration(typical * len(remaining))} of training, as {source} took {format_duration(typical)}"
    else:
        message = f"no finished run of {recipe} tells how long it takes; the first will"
    print_line(console, message)


def _print_time(console: Console, work_seconds: float, seconds: float) -> None:
    """Where the time went: what is not work is the study's own, or waiting for the last run."""
    message = f"{format_duration(work_seconds)} of work in {format_duration(seconds)}: {work_seconds / seconds:.2f} at a time"
    print_line(console, message)


def _print_progress(
    console: Console, result: JobResult, count: int, total: int, seconds: float
) -> None:
    message = f"failed: {result.failure}"
    if result.metrics is not None:
        write_error = f"; {result.failure}" if result.failure else ""
        measure = main_measure(result.metrics["plan"])
        values = (f"{mode} {measure.value(result.metrics[mode]):.3g}" for mode in MODES)
        message = f"{', '.join(values)} {measure.unit}{write_error}"
    minutes = ceil(seconds / count * (total - count) / 60)
    time_left = f"; about {minutes} min left" if count < total else ""
    print_line(
        console, f"{count} of {total}: {result.variant}, seed {result.seed}: {message}{time_left}"
    )
