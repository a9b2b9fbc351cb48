"""What a study found, and how it is told: to people in a table and sentences, to machines."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ami_agent import runs, settings
from ami_agent.ablate.jobs import Outcome
from ami_agent.ablate.verdict import (
    Difference,
    Measure,
    difference,
    improvement,
    interquartile,
    measure_of,
    words,
)
from ami_agent.atomic import write_text
from ami_agent.build import Config
from ami_agent.statistics import Estimate
from modules.types import UnusableInput

LABEL = {"plan": "Mode-2", "react": "Mode-1"}
MODES = tuple(LABEL)


class Trained(NamedTuple):
    """What is known of a run beside what it reached."""

    seconds: float  # of training
    state: Mapping[str, Any]  # what was said last of its states; nothing where nobody looked

    @classmethod
    def of(cls, run: Path) -> Trained:
        return cls(runs.seconds_of(run), runs.last(run, "state"))


@dataclass(frozen=True)
class Study:
    """What was found; the first variant is the base that the others are compared with."""

    name: str
    configs: Mapping[str, Config]
    seeds: int
    outcomes: Mapping[str, Sequence[Outcome]]  # by variant, in the order of the seeds
    trained: Mapping[str, Sequence[Trained]]  # by variant, of runs that finished
    asked: str = ""  # what it is to find out

    @property
    def base(self) -> str:
        return next(iter(self.configs))

    @property
    def measure(self) -> Measure | None:
        """None where no run finished."""
        done = (o.marks["plan"] for each in self.outcomes.values() for o in each if o.marks)
        first = next(done, None)
        return None if first is None else measure_of(first)

    def check(self, out: Path) -> None:
        """Raises UnusableInput where no run finished."""
        if self.measure is None:
            raise UnusableInput(f"no run finished; why is in {out / 'study.json'}")

    def marks(self, variant: str, mode: str) -> dict[int, float]:
        """What was reached, by seed."""
        measure = self.measure
        assert measure is not None
        return {o.seed: measure.of(o.marks[mode]) for o in self.outcomes[variant] if o.marks}

    def gap(self, variant: str, mode: str, beside: str = "") -> Difference:
        """Of a variant beside another, or beside the base."""
        measure, other = self.measure, beside or self.base
        assert measure is not None
        return difference(self.marks(other, mode), self.marks(variant, mode), measure.most)

    def changes(self, variant: str) -> list[str]:
        """The settings in which a variant differs from the base: what each is, not what it is
        there."""
        base, other = (settings.to_json(self.configs[n]) for n in (self.base, variant))
        return settings.differences(other, base)

    def sentences(self) -> list[str]:
        """What each variant is worth, and what failed."""
        measure = self.measure
        if measure is None:
            return ["no run finished", *self.failures()]
        said = [
            f"{name}, {sentence}"
            for name in list(self.configs)[1:]
            for sentence in self.worth(name).values()
        ]
        return [*said, *self.same(), *self.failures()]

    def same(self) -> list[str]:
        """A sentence for each mode that tells no variant apart."""
        return [
            f"{LABEL[mode]}: no variant is different from {self.base} in any seed"
            for mode in self.alike
        ]

    def worth(self, variant: str) -> dict[str, str]:
        """A sentence for each mode that tells variants apart."""
        measure = self.measure
        if measure is None:
            return {}
        modes = [mode for mode in MODES if mode not in self.alike]
        return {m: words(LABEL[m], self.gap(variant, m), measure, self.base) for m in modes}

    @property
    def alike(self) -> list[str]:
        """The modes in which no variant is different in any seed."""
        names = list(self.configs)[1:]
        return [
            mode
            for mode in MODES
            if len(names) > 1 and all(self.gap(name, mode).none for name in names)
        ]

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
            "asked": self.asked,
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


COLUMNS = ("variant", "seed", "mode", "success", "final_success", "score", "return", "steps",
           "length", "ms_per_action_batched", "failure")  # fmt: skip


def write(out: Path, done: Study) -> None:
    """Writes study.json and study.csv; raises NotWritten."""
    runs.write_json(out / "study.json", done.told())
    table = io.StringIO(newline="")
    rows = csv.writer(table)
    rows.writerow(COLUMNS)
    for outcome in (o for each in done.outcomes.values() for o in each):
        for mode, marks in (outcome.marks or {"": {}}).items():
            figures = (_plain(marks.get(key)) for key in COLUMNS[3:-1])
            rows.writerow([outcome.variant, outcome.seed, mode, *figures, outcome.failure])
    write_text(out / "study.csv", table.getvalue())


def _plain(figure: Any) -> Any:
    return figure["mean"] if isinstance(figure, Mapping) else figure


SHOWN = (*LABEL.values(), "Mode-2 beside the base")
"""What a terminal has room for."""

ALL = (
    *SHOWN, "probability of improvement", "spread of states", "effective rank", "training, s",
)  # fmt: skip


def rows(done: Study, shown: Sequence[str] = SHOWN) -> tuple[list[str], list[list[str]]]:
    """The table people read: `shown` of the figures of every variant."""
    figures = {name: cells(done, name) for name in done.configs}
    return ["variant", *shown], [[n, *(each[s] for s in shown)] for n, each in figures.items()]


def cells(done: Study, name: str) -> dict[str, str]:
    """All figures of a variant as text, by what they are."""
    if done.measure is None:
        return dict.fromkeys(ALL, "failed")
    plan, react = (list(done.marks(name, mode).values()) for mode in MODES)
    gap, seconds = done.gap(name, "plan"), [run.seconds for run in done.trained[name]]
    beside = "-"
    if name != done.base and gap.ci95 is not None:
        span = f"{gap.mean:+.3g} [{gap.ci95[0]:.3g}, {gap.ci95[1]:.3g}]"
        beside = span if gap.real else f"{span}, chance may do"
    better = improvement(plan, list(done.marks(done.base, "plan").values()))
    figures = (
        told(interquartile(plan)),
        told(interquartile(react)),
        beside,
        "-" if name == done.base else told(better),
        *spectrum(done, name).values(),
        _mean(seconds, 0),
    )
    return dict(zip(ALL, figures, strict=True))


def spectrum(done: Study, name: str) -> dict[str, str]:
    """What is known of a variant's states, mean over its runs."""
    states = [run.state for run in done.trained[name]]
    return {
        "spread of states": _mean([state.get("std_mean") for state in states], 2),
        "effective rank": _mean([state.get("effective_rank") for state in states], 1),
    }


def _mean(found: Sequence[float | None], digits: int) -> str:
    """Of what is known."""
    known = [number for number in found if number is not None]
    return f"{sum(known) / len(known):.{digits}f}" if known else "-"


def each(marks: Sequence[float]) -> str:
    """What was reached, seed by seed."""
    return " ".join(f"{mark:.3g}" for mark in marks)


def told(found: Estimate) -> str:
    if found["mean"] is None:
        return "failed"
    span = found["ci95"]
    return f"{found['mean']:.3g}" + (f" [{span[0]:.3g}, {span[1]:.3g}]" if span else "")
