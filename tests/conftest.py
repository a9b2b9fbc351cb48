"""Small settings: everything real, nothing long."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ami_agent import recipes
from ami_agent.build import Config
from ami_agent.cli import main
from ami_agent.lessons import Distil, Interact, Live, NoLesson, Practise, Separate
from modules.hierarchy import LandmarkGraph, MacroLevels
from modules.types import Decide, Focus, Imagine, Pursue, Rollout


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny tensors: a second thread only waits for the first."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """The longest first: where several processes share the work, none is left alone with them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def wish(goal: Tensor, **told: Any) -> Focus:
    """The Configurator's word about goals `[B, D]`, as plain as can be but for what is told."""
    plain = Focus(
        mode="plan", goal=goal, weights={}, limits={}, gains={}, condition=goal[:, :0],
        horizon=3, steps=8, tail=1.0, lived=goal[:, None][:, :0], known=goal[:0],
        pace=goal.new_ones(len(goal)), hopes=goal[:, None, None][:, :0],
    )  # fmt: skip
    return plain._replace(**told)


def stepwise(imagine: Imagine) -> Pursue:
    """Deciding as one goes, one imagined step after the other."""

    def pursue(state: Tensor, decide: Decide, others: Tensor) -> Rollout:
        here, own = state, []
        for _ in range(others.shape[2]):
            own.append(decide(here))
            here = imagine(here, own[-1][:, None, None]).states[:, 0, -1]
        return imagine(state, torch.cat([torch.stack(own, 1)[:, None], others], 1))

    return pursue


def unasked(state, free):
    """What a level is told of where actions lead, when it has no business to ask."""
    raise AssertionError("nobody was to ask where actions lead")


def small(config: Config, steps: int = 6) -> Config:
    """The same boxes and lessons, with a handful of updates each."""

    def shorter(lesson, **changes):
        if isinstance(lesson, NoLesson):
            return lesson
        learning = replace(lesson.learning, steps=steps, batch=8, warmup=1)
        return replace(lesson, learning=learning, **changes)

    steps_lived = max(24, config.objective.context + config.objective.length + 1)
    paths = {} if isinstance(config.paths, NoLesson) else {"layouts": 2, "nodes": 20, "together": 4}
    practice = config.practice if isinstance(config.practice, NoLesson) else Practise(steps=7)
    amortise = {} if isinstance(config.amortise, NoLesson) else {"together": 4}
    retrace = {} if isinstance(config.retrace, NoLesson) else {"ahead": 10}
    teacher = {"together": 4} if isinstance(config.teacher, Separate) else {}
    mapped = isinstance(config.hierarchy, LandmarkGraph.Config)
    if isinstance(config.hierarchy, MacroLevels.Config):
        config = replace(config, hierarchy=replace(config.hierarchy, memories=40))
    return replace(
        config,
        hierarchy=replace(config.hierarchy, **({"landmarks": 6, "hops": 3} if mapped else {})),
        survey=replace(
            config.survey, **({"remembered": 40, "walks": 20, "length": 8} if mapped else {})
        ),
        life=Live(worlds=8, steps=steps_lived, options=config.life.options),
        objective=shorter(config.objective),
        teacher=shorter(config.teacher, **teacher),
        paths=shorter(config.paths, **paths),
        foresee=shorter(config.foresee),
        interact=shorter(config.interact, steps=steps, objective=shorter(config.objective))
        if isinstance(config.interact, Interact)
        else config.interact,
        ascend=shorter(config.ascend),
        practice=practice,
        refine=shorter(config.refine),
        retrace=shorter(config.retrace, **retrace),
        amortise=shorter(config.amortise, **amortise),
        distil=shorter(config.distil, rounds=2, worlds=4, steps=3)
        if isinstance(config.distil, Distil)
        else config.distil,
    )


@pytest.fixture
def tiny() -> Config:
    """The default recipe, trained in a second and judged in short episodes."""
    config = small(recipes.two_rooms())
    return replace(config, evaluation=replace(config.evaluation, options={"max_episode_steps": 40}))


def refuse(capsys, *argv: object) -> str:
    """The one line that such input is answered with; exit code 2."""
    assert main([str(a) for a in argv]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ami: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said
    return said
