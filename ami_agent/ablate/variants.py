"""Ablation is substitution: every variant is the recipe with one value replaced."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ami_agent.build import Config
from ami_agent.catalogue import choices
from ami_agent.lessons import Ascend, NoLesson, Predict, Survey
from ami_agent.lessons.rehearse import Improve
from ami_agent.vectors import called, function_of
from modules.actor import NoHabit
from modules.cost import NoCritic, NoForesight
from modules.hierarchy import Flat, LandmarkGraph, MacroLevels
from modules.latents import NoLatent
from modules.recall import NoRecall
from modules.types import UnusableInput

Change = Callable[[Config], Config]

WITHOUT: Mapping[str, Change] = {
    "critic": lambda c: c if isinstance(c.critic, NoCritic.Config) else replace(
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
        c, retrace=NoLesson(), amortise=NoLesson(), distil=NoLesson(), habit=NoHabit.Config()
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
    def less(lesson: Predict) -> Predict:
        return replace(lesson, weights=replace(lesson.weights, **{term: 0.0}))

    def change(config: Config) -> Config:
        changed = replace(config, objective=less(config.objective))
        if isinstance(config.interact, Improve):
            online = replace(config.interact, objective=less(config.interact.objective))
            changed = replace(changed, interact=online)
        return changed

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
    if box == "hierarchy":
        changed = _taught(changed)
    return _changed(config, changed, f"--swap {phrase}")


def _taught(config: Config) -> Config:
    """With the lessons that its hierarchy needs, and no others."""
    above = config.hierarchy
    survey = config.survey if isinstance(config.survey, Survey) else Survey()
    ascend = config.ascend if isinstance(config.ascend, Ascend) else Ascend()
    return replace(
        config,
        survey=survey if isinstance(above, LandmarkGraph.Config) else NoLesson(),
        ascend=ascend if isinstance(above, MacroLevels.Config) else NoLesson(),
    )


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


STUDY = "the Configs of a study"


def question(name: str) -> str:
    """What a study asks: that of a recipe what its parts are worth; one's own, `FILE.py:FUNCTION`,
    what the docstring of its function says, if there is one."""
    if ".py:" not in name:
        return f"What is each of these parts worth to an agent of the recipe {name}?"
    return inspect.getdoc(function_of(name, STUDY)) or ""


def named(place: str) -> dict[str, Config]:
    """A study of one's own, `FILE.py:FUNCTION`: what the function returns, Configs by name, the
    first of which the others are compared with. UnusableInput where it doesn't."""
    found = called(place, STUDY)
    if not isinstance(found, Mapping) or not all(isinstance(c, Config) for c in found.values()):
        raise UnusableInput(f"{place} must return Configs by name, not {type(found).__name__}")
    if len(found) < 2:
        raise UnusableInput(f"{place} returns {len(found)} Configs; a study compares at least 2")
    configs = {str(variant): config for variant, config in found.items()}
    (base, first), *others = configs.items()
    for variant, config in others:
        if config == first:
            raise UnusableInput(f"{place}: {variant!r} is no different from {base!r}")
    return configs
