"""Runs a study: every variant with every seed, each in a run folder; prints its progress."""

from __future__ import annotations

import hashlib
import time
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
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
from ami_agent.storage.files import locked
from ami_agent.validate import check_all
from modules.types import ConfigError


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What a study trains and evaluates; the first Config is the base."""

    name: str
    configs: Mapping[str, Config]
    """The settings of each variant, by its name."""
    seeds: int = 3
    episodes: int = 100
    """Episodes of the evaluation of each run."""
    device: str = "cpu"
    question: str = ""
    """The question that the study answers."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ConfigError(f"--seeds is {self.seeds}; it must be at least 1")


def run_study(plan: StudyPlan, *, out: Path, executor: Executor, console: Console) -> Study:
    """Trains and evaluates every variant, seed by seed, so that a study that is stopped early
    compares all variants; finished runs are not repeated. Writes study.json and study.csv into
    `out`. Raises ConfigError for invalid settings, for folders that hold something else, and where
    another process works in `out`."""
    run_dir.check_folder(out)
    check_all(plan.configs)
    configs, seeds = plan.configs, plan.seeds
    variant_dirs = {variant: out / folder for variant, folder in folders(configs).items()}
    jobs = [
        Job(variant, config, variant_dirs[variant] / str(seed), seed, plan.episodes, plan.device)
        for seed in range(seeds)
        for variant, config in configs.items()
    ]
    with locked(out):
        results = _run_jobs(jobs, out, seeds, executor, console)
        by_variant = {name: [results[name, seed] for seed in range(seeds)] for name in configs}
        run_infos = {
            name: [RunInfo.load(variant_dirs[name] / str(r.seed)) for r in by_seed if r.metrics]
            for name, by_seed in by_variant.items()
        }
        study = Study(plan.name, configs, seeds, by_variant, run_infos, plan.question)
        try:
            write(out, study)
        except OSError:
            print_study(console, study)
            raise
    return study


def _run_jobs(
    jobs: Sequence[Job], out: Path, seeds: int, executor: Executor, console: Console
) -> dict[tuple[str, int], JobResult]:
    """The results of the finished jobs and of those that are executed now, by variant and seed."""
    results: dict[tuple[str, int], JobResult] = {}
    for job in jobs:
        if metrics := finished_metrics(job):
            results[job.variant, job.seed] = JobResult(job.variant, job.seed, metrics)
    remaining = [job for job in jobs if (job.variant, job.seed) not in results]
    _print_power(console, seeds, len(jobs), len(results))
    _print_estimate(console, [job.out for job in jobs if job not in remaining], remaining)
    for job in remaining:
        if (job.out / "config.json").exists():
            run_dir.check_same(job.out, job.config, job.seed)
    started, work_seconds = time.monotonic(), 0.0
    try:
        with closing(executor.run(remaining)) as new_results:
            for count, result in enumerate(new_results, 1):
                results[result.variant, result.seed] = result
                work_seconds += result.seconds
                _print_progress(console, result, count, len(remaining), time.monotonic() - started)
    except Interrupted as interruption:
        num_finished = sum(result.metrics is not None for result in results.values())
        message = interruption.message.partition(";")[0]
        raise Interrupted(
            f"{message}; {num_finished} of {len(jobs)} runs in {out} are finished, and the same "
            "command continues with the others"
        ) from interruption
    if remaining:
        taken = time.monotonic() - started
        print_line(
            console,
            f"{format_duration(work_seconds)} of work in {format_duration(taken)}: "
            f"{work_seconds / taken:.2f} runs at a time",
        )
    return results


def print_study(console: Console, study: Study) -> None:
    """Prints the table of results and a sentence for each variant."""
    print_table(console, f"{study.name}, {study.seeds} seeds", *table_rows(study))
    print_line(console, "\n".join(study.sentences()))


MAX_VARIANT_CHARS = 100  # characters of a variant's name in the name of its folder, at most
RESERVED_NAMES = {"", ".", "..", "index.html", "study.json", "study.csv", "study.png"}
"""Names that no folder of a variant may have."""


def folders(variants: Iterable[str]) -> dict[str, str]:
    """The folder of each variant: its name in letters, digits and "._+". Where that changes the
    name, or two folders would differ in case alone, a checksum of the name is added."""
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


def _print_power(console: Console, seeds: int, jobs: int, num_finished: int) -> None:
    """Prints which effect this number of seeds can detect."""
    if seeds == 1:
        power = "one seed gives no interval, so no difference can be significant"
    else:
        power = (
            f"{seeds} seeds detect a difference of {minimal_detectable_effect(seeds):.2g} times "
            f"the spread between seeds; a difference of once the spread takes {seeds_needed(1.0)} "
            f"seeds, of half the spread {seeds_needed(0.5)}"
        )
    finished = f", {num_finished} of them already finished" if num_finished else ""
    print_line(console, f"{jobs} runs{finished}; {power}")


def _print_estimate(console: Console, finished: Sequence[Path], remaining: Sequence[Job]) -> None:
    """Prints how long the remaining runs take, as finished runs of this study or recipe did."""
    if not remaining:
        return
    recipe, runs_dir = remaining[0].config.recipe, Path("runs")
    other_runs = [*sorted((runs_dir / recipe).glob("*")), runs_dir / "reference" / recipe]
    seconds: dict[Path, float] = {}
    for run in finished or [other for other in other_runs if (other / "eval.json").exists()]:
        with suppress(ConfigError):  # the folder may hold anything
            seconds[run] = run_dir.seconds_of(run)
    if seconds:
        typical, num_others = median(seconds.values()), len(seconds) - 1
        source = f"{next(iter(seconds))}{f' and {num_others} more' if num_others else ''}"
        total = format_duration(typical * len(remaining))
        message = f"about {total} of training, as {source} took {format_duration(typical)}"
    else:
        message = f"the training time is unknown until the first run of {recipe} finishes"
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
