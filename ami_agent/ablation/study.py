"""The results of a study, as tables and sentences for people and as files for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ami_agent import config_io
from ami_agent.ablation import stats
from ami_agent.ablation.executors import JobResult
from ami_agent.config import Config
from ami_agent.evaluation.intervals import Estimate
from ami_agent.storage import run_dir
from ami_agent.storage.files import write_text
from modules.types import ConfigError

MODE_NAMES = {"plan": "Mode-2", "react": "Mode-1"}
MODES = tuple(MODE_NAMES)


class RunInfo(NamedTuple):
    """Figures of a run beside its metrics."""

    seconds: float  # of training
    state: Mapping[str, Any]  # the last logged statistics of states; empty where none were logged

    @classmethod
    def load(cls, run: Path) -> RunInfo:
        return cls(run_dir.seconds_of(run), run_dir.last_metrics(run, "state"))


@dataclass(frozen=True)
class Study:
    """The results; the first variant is the base that the others are compared with."""

    name: str
    configs: Mapping[str, Config]
    seeds: int
    results: Mapping[str, Sequence[JobResult]]  # by variant, in the order of the seeds
    run_infos: Mapping[str, Sequence[RunInfo]]  # by variant, of runs that finished
    question: str = ""  # that the study answers

    @property
    def base(self) -> str:
        return next(iter(self.configs))

    @property
    def all_results(self) -> list[JobResult]:
        return list(chain.from_iterable(self.results.values()))

    @property
    def metrics(self) -> Mapping[str, Any] | None:
        """The metrics by mode of the first run that finished."""
        return next((result.metrics for result in self.all_results if result.metrics), None)

    @property
    def measure(self) -> stats.Measure | None:
        """The metric that is compared; None where no run finished."""
        return None if self.metrics is None else stats.main_measure(self.metrics["plan"])

    def check(self, out: Path) -> None:
        """Raises ConfigError where no run finished."""
        if self.measure is None:
            raise ConfigError(f"no run finished; {out / 'study.json'} holds the errors")

    def values_by_seed(self, variant: str, mode: str) -> dict[int, float]:
        """The main measure of a variant, by seed."""
        measure, results = self.measure, self.results[variant]
        assert measure is not None
        return {r.seed: measure.value(r.metrics[mode]) for r in results if r.metrics}

    def values(self, variant: str, mode: str) -> list[float]:
        """The main measure of a variant, for every seed that did not fail."""
        return list(self.values_by_seed(variant, mode).values())

    def difference(self, variant: str, mode: str, other_variant: str = "") -> stats.Difference:
        """A variant minus another one, by default the base."""
        measure, reference = self.measure, other_variant or self.base
        assert measure is not None
        return stats.paired_difference(
            self.values_by_seed(reference, mode),
            self.values_by_seed(variant, mode),
            measure.max_difference,
        )

    def changes(self, variant: str) -> list[str]:
        """The settings in which a variant differs from the base, a phrase for each."""
        base, other = (config_io.to_json(self.configs[name]) for name in (self.base, variant))
        return config_io.differences(other, base)

    def sentences(self) -> list[str]:
        """A sentence for the effect of each variant in each mode, and for each failure."""
        if self.measure is None:
            return ["no run finished", *self.failures()]
        effects = [
            f"{name}, {sentence}"
            for name in list(self.configs)[1:]
            for sentence in self.effects(name).values()
        ]
        return [*effects, *self.ties(), *self.failures()]

    def ties(self) -> list[str]:
        """A sentence for each mode in which no variant differs."""
        return [
            f"{MODE_NAMES[mode]}: no variant is different from {self.base} in any seed"
            for mode in self.tied_modes
        ]

    def effects(self, variant: str) -> dict[str, str]:
        """A sentence by mode, for the modes in which variants differ."""
        measure = self.measure
        if measure is None:
            return {}
        return {
            mode: stats.effect_sentence(name, self.difference(variant, mode), measure, self.base)
            for mode, name in MODE_NAMES.items()
            if mode not in self.tied_modes
        }

    @property
    def tied_modes(self) -> list[str]:
        """The modes in which no variant differs from the base in any seed."""
        names = list(self.configs)[1:]
        return [
            mode
            for mode in MODES
            if len(names) > 1 and all(self.difference(name, mode).is_zero for name in names)
        ]

    def failures(self) -> list[str]:
        return [
            f"{result.variant}, seed {result.seed} failed: {result.failure}"
            for result in self.all_results
            if result.metrics is None
        ]

    def to_dict(self) -> dict[str, Any]:
        """All results as plain data, for study.json."""
        measure = self.measure
        variants = {}
        for name, results in self.results.items():
            runs = [{"seed": r.seed, **(r.metrics or {"failure": r.failure})} for r in results]
            by_mode = {mode: self._estimates(name, mode) for mode in MODES} if measure else {}
            variants[name] = {"changes": self.changes(name), "runs": runs, **by_mode}
        return {
            "study": self.name,
            "question": self.question,
            "base": self.base,
            "seeds": self.seeds,
            "measure": measure.key if measure else None,
            "variants": variants,
            "verdict": self.sentences(),
        }

    def _estimates(self, name: str, mode: str) -> dict[str, Any]:
        values, base_values = self.values(name, mode), self.values(self.base, mode)
        difference = self.difference(name, mode)
        return {
            "by_seed": values,
            "interquartile_mean": stats.interquartile_mean(values),
            "difference": {**difference._asdict(), "significant": difference.significant},
            "probability_of_improvement": stats.probability_of_improvement(values, base_values),
        }


COLUMNS = ("variant", "seed", "mode", "success", "final_success", "score", "return", "steps",
           "length", "ms_per_action_batched", "failure")  # fmt: skip


def write(out: Path, study: Study) -> None:
    """Writes study.json and study.csv; raises NotWritten."""
    run_dir.write_json(out / "study.json", study.to_dict())
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(COLUMNS)
    for result in study.all_results:
        for mode, metrics in (result.metrics or {"": {}}).items():
            figures = [metrics.get(key) for key in COLUMNS[3:-1]]
            means = [f["mean"] if isinstance(f, Mapping) else f for f in figures]
            writer.writerow([result.variant, result.seed, mode, *means, result.failure])
    write_text(out / "study.csv", table.getvalue())


TERMINAL_COLUMNS = (*MODE_NAMES.values(), "Mode-2 minus the base")
"""The columns that fit into a terminal."""

ALL_COLUMNS = (
    *TERMINAL_COLUMNS, "probability of improvement", "spread of states", "effective rank",
    "training, s",
)  # fmt: skip


def table_rows(
    study: Study, columns: Sequence[str] = TERMINAL_COLUMNS
) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the table of variants, with these columns."""
    cells_by_name = {name: cells(study, name) for name in study.configs}
    rows = [[name, *(row[column] for column in columns)] for name, row in cells_by_name.items()]
    return ["variant", *columns], rows


def cells(study: Study, name: str) -> dict[str, str]:
    """The figures of a variant as text, by column."""
    if study.measure is None:
        return dict.fromkeys(ALL_COLUMNS, "failed")
    plan, react = (study.values(name, mode) for mode in MODES)
    difference = study.difference(name, "plan")
    comparison = probability = "-"
    if name != study.base:
        estimate = stats.probability_of_improvement(plan, study.values(study.base, "plan"))
        probability = format_estimate(estimate)
        if difference.ci95 is not None:
            comparison = f"{difference.mean:+.3g} {stats.format_interval(difference.ci95)}"
            comparison += "" if difference.significant else ", not significant"
    figures = (
        format_estimate(stats.interquartile_mean(plan)),
        format_estimate(stats.interquartile_mean(react)),
        comparison,
        probability,
        *spectrum(study, name).values(),
        _mean([run.seconds for run in study.run_infos[name]], 0),
    )
    return dict(zip(ALL_COLUMNS, figures, strict=True))


def spectrum(study: Study, name: str) -> dict[str, str]:
    """The statistics of a variant's states, mean over its runs."""
    states = [run.state for run in study.run_infos[name]]
    return {
        "spread of states": _mean([state.get("std_mean") for state in states], 2),
        "effective rank": _mean([state.get("effective_rank") for state in states], 1),
    }


def _mean(numbers: Sequence[float | None], digits: int) -> str:
    """The mean of the known numbers; "-" where there are none."""
    known = [number for number in numbers if number is not None]
    return f"{sum(known) / len(known):.{digits}f}" if known else "-"


def format_estimate(estimate: Estimate) -> str:
    if estimate["mean"] is None:
        return "failed"
    return f"{estimate['mean']:.3g} {stats.format_interval(estimate['ci95'])}".rstrip()
