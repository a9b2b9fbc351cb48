"""What a study found, and how it is told: to people in a table and sentences, to machines."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ami_agent import config_io
from ami_agent.ablation.executors import JobResult
from ami_agent.ablation.stats import (
    Difference,
    Measure,
    effect_sentence,
    interquartile_mean,
    main_measure,
    paired_difference,
    probability_of_improvement,
)
from ami_agent.config import Config
from ami_agent.evaluation.intervals import Estimate
from ami_agent.storage import run_dir
from ami_agent.storage.atomic import write_text
from modules.types import ConfigError

MODE_NAMES = {"plan": "Mode-2", "react": "Mode-1"}
MODES = tuple(MODE_NAMES)


class RunInfo(NamedTuple):
    """What is known of a run beside what it reached."""

    seconds: float  # of training
    state: Mapping[str, Any]  # what was said last of its states; nothing where nobody looked

    @classmethod
    def load(cls, run: Path) -> RunInfo:
        return cls(run_dir.seconds_of(run), run_dir.last_metrics(run, "state"))


@dataclass(frozen=True)
class Study:
    """What was found; the first variant is the base that the others are compared with."""

    name: str
    configs: Mapping[str, Config]
    seeds: int
    results: Mapping[str, Sequence[JobResult]]  # by variant, in the order of the seeds
    run_infos: Mapping[str, Sequence[RunInfo]]  # by variant, of runs that finished
    question: str = ""  # what it is to find out

    @property
    def base(self) -> str:
        return next(iter(self.configs))

    @property
    def measure(self) -> Measure | None:
        """None where no run finished."""
        finished = (
            o.metrics["plan"] for results in self.results.values() for o in results if o.metrics
        )
        metrics = next(finished, None)
        return None if metrics is None else main_measure(metrics)

    def check(self, out: Path) -> None:
        """Raises ConfigError where no run finished."""
        if self.measure is None:
            raise ConfigError(f"no run finished; why is in {out / 'study.json'}")

    def values_by_seed(self, variant: str, mode: str) -> dict[int, float]:
        """What was reached, by seed."""
        measure = self.measure
        assert measure is not None
        return {o.seed: measure.value(o.metrics[mode]) for o in self.results[variant] if o.metrics}

    def difference(self, variant: str, mode: str, other_variant: str = "") -> Difference:
        """Of a variant beside another, or beside the base."""
        measure, reference = self.measure, other_variant or self.base
        assert measure is not None
        return paired_difference(
            self.values_by_seed(reference, mode),
            self.values_by_seed(variant, mode),
            measure.max_difference,
        )

    def changes(self, variant: str) -> list[str]:
        """The settings in which a variant differs from the base: what each is, not what it is
        there."""
        base, other = (config_io.to_json(self.configs[n]) for n in (self.base, variant))
        return config_io.differences(other, base)

    def sentences(self) -> list[str]:
        """What each variant is worth, and what failed."""
        measure = self.measure
        if measure is None:
            return ["no run finished", *self.failures()]
        lines = [
            f"{name}, {sentence}"
            for name in list(self.configs)[1:]
            for sentence in self.effects(name).values()
        ]
        return [*lines, *self.ties(), *self.failures()]

    def ties(self) -> list[str]:
        """A sentence for each mode that tells no variant apart."""
        return [
            f"{MODE_NAMES[mode]}: no variant is different from {self.base} in any seed"
            for mode in self.tied_modes
        ]

    def effects(self, variant: str) -> dict[str, str]:
        """A sentence for each mode that tells variants apart."""
        measure = self.measure
        if measure is None:
            return {}
        modes = [mode for mode in MODES if mode not in self.tied_modes]
        return {
            m: effect_sentence(MODE_NAMES[m], self.difference(variant, m), measure, self.base)
            for m in modes
        }

    @property
    def tied_modes(self) -> list[str]:
        """The modes in which no variant is different in any seed."""
        names = list(self.configs)[1:]
        return [
            mode
            for mode in MODES
            if len(names) > 1 and all(self.difference(name, mode).is_zero for name in names)
        ]

    def failures(self) -> list[str]:
        return [
            f"{o.variant}, seed {o.seed} failed: {o.failure}"
            for results in self.results.values()
            for o in results
            if o.metrics is None
        ]

    def to_dict(self) -> dict[str, Any]:
        """All of it, for machines."""
        measure = self.measure
        variants = {}
        for name, results in self.results.items():
            summary = {
                "changes": self.changes(name),
                "runs": [
                    {"seed": o.seed, **(o.metrics or {"failure": o.failure})} for o in results
                ],
            }
            if measure is not None:
                summary |= {mode: self._estimates(name, mode) for mode in MODES}
            variants[name] = summary
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
        values, base_values = (
            list(self.values_by_seed(n, mode).values()) for n in (name, self.base)
        )
        difference = self.difference(name, mode)
        return {
            "by_seed": values,
            "interquartile_mean": interquartile_mean(values),
            "difference": {**difference._asdict(), "significant": difference.significant},
            "probability_of_improvement": probability_of_improvement(values, base_values),
        }


COLUMNS = ("variant", "seed", "mode", "success", "final_success", "score", "return", "steps",
           "length", "ms_per_action_batched", "failure")  # fmt: skip


def write(out: Path, study: Study) -> None:
    """Writes study.json and study.csv; raises NotWritten."""
    run_dir.write_json(out / "study.json", study.to_dict())
    table = io.StringIO(newline="")
    table_rows = csv.writer(table)
    table_rows.writerow(COLUMNS)
    for result in (o for results in study.results.values() for o in results):
        for mode, metrics in (result.metrics or {"": {}}).items():
            figures = (_scalar(metrics.get(key)) for key in COLUMNS[3:-1])
            table_rows.writerow([result.variant, result.seed, mode, *figures, result.failure])
    write_text(out / "study.csv", table.getvalue())


def _scalar(figure: Any) -> Any:
    return figure["mean"] if isinstance(figure, Mapping) else figure


TERMINAL_COLUMNS = (*MODE_NAMES.values(), "Mode-2 beside the base")
"""What a terminal has room for."""

ALL_COLUMNS = (
    *TERMINAL_COLUMNS, "probability of improvement", "spread of states", "effective rank", "training, s",
)  # fmt: skip


def table_rows(
    study: Study, columns: Sequence[str] = TERMINAL_COLUMNS
) -> tuple[list[str], list[list[str]]]:
    """The table people read: `shown` of the figures of every variant."""
    figures = {name: cells(study, name) for name in study.configs}
    return ["variant", *columns], [[n, *(row[s] for s in columns)] for n, row in figures.items()]


def cells(study: Study, name: str) -> dict[str, str]:
    """All figures of a variant as text, by what they are."""
    if study.measure is None:
        return dict.fromkeys(ALL_COLUMNS, "failed")
    plan, react = (list(study.values_by_seed(name, mode).values()) for mode in MODES)
    difference, seconds = (
        study.difference(name, "plan"),
        [run.seconds for run in study.run_infos[name]],
    )
    comparison = "-"
    if name != study.base and difference.ci95 is not None:
        text = f"{difference.mean:+.3g} [{difference.ci95[0]:.3g}, {difference.ci95[1]:.3g}]"
        comparison = text if difference.significant else f"{text}, chance may do"
    probability = probability_of_improvement(
        plan, list(study.values_by_seed(study.base, "plan").values())
    )
    figures = (
        format_estimate(interquartile_mean(plan)),
        format_estimate(interquartile_mean(react)),
        comparison,
        "-" if name == study.base else format_estimate(probability),
        *spectrum(study, name).values(),
        _mean(seconds, 0),
    )
    return dict(zip(ALL_COLUMNS, figures, strict=True))


def spectrum(study: Study, name: str) -> dict[str, str]:
    """What is known of a variant's states, mean over its runs."""
    states = [run.state for run in study.run_infos[name]]
    return {
        "spread of states": _mean([state.get("std_mean") for state in states], 2),
        "effective rank": _mean([state.get("effective_rank") for state in states], 1),
    }


def _mean(numbers: Sequence[float | None], digits: int) -> str:
    """Of what is known."""
    finite = [number for number in numbers if number is not None]
    return f"{sum(finite) / len(finite):.{digits}f}" if finite else "-"


def format_by_seed(values: Sequence[float]) -> str:
    """What was reached, seed by seed."""
    return " ".join(f"{value:.3g}" for value in values)


def format_estimate(estimate: Estimate) -> str:
    if estimate["mean"] is None:
        return "failed"
    interval = estimate["ci95"]
    return f"{estimate['mean']:.3g}" + (
        f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else ""
    )
