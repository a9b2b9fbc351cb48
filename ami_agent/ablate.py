"""Ablation is substitution: every variant is the recipe with one value replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ami_agent import runs
from ami_agent.build import Config
from ami_agent.catalogue import choices
from ami_agent.checks import check_lessons
from ami_agent.evaluate import EPISODES_FROM, judge
from ami_agent.lessons import NoLesson
from ami_agent.report import Report
from ami_agent.statistics import rate
from ami_agent.train import train
from modules.actor import NoHabit
from modules.cost import NoCritic, NoForesight
from modules.hierarchy import Flat
from modules.latents import NoLatent
from modules.recall import NoRecall
from modules.types import UnusableInput

Study = dict[str, Any]
Change = Callable[[Config], Config]

WITHOUT: Mapping[str, Change] = {
    "critic": lambda c: replace(
        c, critic=NoCritic.Config(), teacher=NoLesson(), paths=NoLesson(),
        hierarchy=Flat.Config(), ascend=NoLesson(), survey=NoLesson(),
        configurator=replace(c.configurator, reach=c.configurator.reach or 1.0, critic=0.0),
    ),
    "paths": lambda c: replace(c, paths=NoLesson()),
    "hierarchy": lambda c: replace(
        c, hierarchy=Flat.Config(), ascend=NoLesson(), survey=NoLesson()
    ),
    "latent": lambda c: replace(
        c, world_model=replace(c.world_model, latent=NoLatent.Config())
    ),
    "practice": lambda c: replace(c, practice=NoLesson(), refine=NoLesson()),
    "policy": lambda c: replace(
        c, amortise=NoLesson(), distil=NoLesson(), habit=NoHabit.Config()
    ),
    "habit": lambda c: replace(c, habit=NoHabit.Config()),
    "memory": lambda c: replace(c, recall=NoRecall.Config()),
    "priming": lambda c: replace(
        c, configurator=replace(c.configurator, attend={}),
        tasks={name: replace(task, attend={}) for name, task in c.tasks.items()},
    ),
    "foresight": lambda c: replace(
        c, foresight=NoForesight.Config(), foresee=NoLesson()
    ),
    "drives": lambda c: replace(
        c, drives=(), foresight=NoForesight.Config(), foresee=NoLesson(),
        configurator=replace(c.configurator, told=(), reach=c.configurator.reach or 1.0),
        tasks={
            name: replace(task, drives={}, limits={}, weights=task.weights or {"effort": 1.0})
            for name, task in c.tasks.items()
        },
    ),
}  # fmt: skip


def _without_term(term: str) -> Change:
    def change(config: Config) -> Config:
        weights = replace(config.objective.weights, **{term: 0.0})
        return replace(config, objective=replace(config.objective, weights=weights))

    return change


def without_names(config: Config) -> dict[str, Change]:
    """All that can be taken away."""
    terms = [field.name for field in fields(config.objective.weights)]
    return {**WITHOUT, **{f"objective.{term}": _without_term(term) for term in terms}}


def without(config: Config, name: str) -> Config:
    """The recipe without a part; raises UnusableInput for a name that is none, or no change."""
    known = without_names(config)
    if name not in known:
        raise UnusableInput(f"--without {name!r}: there are {', '.join(known)}")
    return _changed(config, known[name](config), f"--without {name}")


def swap(config: Config, phrase: str) -> Config:
    """`box=choice` (case does not matter) -> the recipe with the choice's defaults in that box."""
    box, _, choice = phrase.partition("=")
    boxes = choices()
    if box not in boxes:
        raise UnusableInput(f"--swap {phrase!r}: write box=choice; boxes are {', '.join(boxes)}")
    named = {name.lower(): kind for name, kind in boxes[box].items()}
    if choice.lower() not in named:
        raise UnusableInput(f"--swap {phrase!r}: {box} may be {', '.join(boxes[box])}")
    changed = _replace_at(config, box.split("."), named[choice.lower()]())
    return _changed(config, changed, f"--swap {phrase}")


def _replace_at(settings: Any, path: Sequence[str], value: Any) -> Any:
    first, *rest = path
    inner = _replace_at(getattr(settings, first), rest, value) if rest else value
    return replace(settings, **{first: inner})


def _changed(before: Config, after: Config, what: str) -> Config:
    if after == before:
        raise UnusableInput(f"{what} changes nothing in {before.recipe}")
    return after


def variants(config: Config, without_: Sequence[str], swaps: Sequence[str]) -> dict[str, Config]:
    """The recipe itself and every variant, by name."""
    return {
        config.recipe: config,
        **{f"without {name}": without(config, name) for name in without_},
        **{phrase: swap(config, phrase) for phrase in swaps},
    }


def study(
    configs: Mapping[str, Config], *, out: Path, seeds: int, episodes: int, device: str,
    console: Console,
) -> Study:  # fmt: skip
    """Trains and evaluates every variant with every seed; runs already finished are not repeated.

    By variant, a list over seeds of {"plan": ..., "react": ...} as `evaluate` gives them.
    """
    if seeds < 1:
        raise UnusableInput(f"--seeds is {seeds}; there must be at least 1")
    for config in configs.values():
        check_lessons(config)
    found: Study = {}
    for name, config in configs.items():
        folder = out / name.replace(" ", "-").replace("=", "-")
        found[name] = [
            _one(config, folder / str(seed), seed, episodes, device, console)
            for seed in range(seeds)
        ]
    runs.write_json(out / "study.json", found)
    return found


def _one(
    config: Config, run: Path, seed: int, episodes: int, device: str, console: Console
) -> dict[str, Any]:
    if (run / "eval.json").exists():
        runs.check_same(run, config, seed)
        known = runs.read_json(run / "eval.json")
        if known["plan"]["episodes"] == episodes:
            return known
    begun = (run / "config.json").exists()
    with closing(Report(run, console)) as report:
        report.say(f"== {run}")
        agent = train(config, out=run, seed=seed, device=device, resume=begun, report=report)
    found = judge(agent, config.evaluation, episodes=episodes, seed=EPISODES_FROM + 10_000 * seed)
    marks = {mode: {"recipe": config.recipe, **figures} for mode, figures in found.items()}
    runs.write_json(run / "eval.json", marks)
    return marks


def rows(study_: Study) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: success at the last step, all seeds pooled, and each seed by itself."""
    columns = ["variant", "plan", "by seed", "react", "ms per action (plan, batched)"]
    return columns, [[name, *_figures(marks)] for name, marks in study_.items()]


def _figures(marks: Sequence[Mapping[str, Any]]) -> list[str]:
    plan = [m["plan"]["final_success"]["mean"] for m in marks]
    react = [m["react"]["final_success"]["mean"] for m in marks]
    ms = [m["plan"]["ms_per_action_batched"] for m in marks]
    episodes = marks[0]["plan"]["episodes"]
    return [
        pooled(plan, episodes),
        " ".join(f"{100 * p:.0f}" for p in plan),
        pooled(react, episodes),
        f"{sum(ms) / len(ms):.2f}",
    ]


def pooled(shares: Sequence[float], episodes: int) -> str:
    """Success rates of several seeds -> one percentage with its 95 % interval."""
    outcomes = [
        o for s in shares for k in [round(s * episodes)] for o in [1] * k + [0] * (episodes - k)
    ]
    whole = rate(outcomes)
    if whole["mean"] is None or whole["ci95"] is None:
        return "-"
    low, high = whole["ci95"]
    return f"{100 * whole['mean']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
