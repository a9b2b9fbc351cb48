"""What must fit together in a Config before its first lesson is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from ami_agent import settings
from ami_agent.build import Config, lessons
from ami_agent.lessons import (
    Amortise,
    Ascend,
    Distil,
    Foresee,
    Interact,
    Live,
    NoLesson,
    Practise,
    Rehearse,
    Retrace,
    ShortestPaths,
    Survey,
)
from ami_agent.lessons.hindsight import check_earnings
from ami_agent.lessons.rehearse import Improve
from ami_agent.life import Spec, WorldConfig
from ami_agent.sizing import check_size
from ami_agent.spaces import check_same_spaces
from modules.actor import Restless
from modules.configurator import Assignment
from modules.cost import Foresight, NoCritic
from modules.hierarchy import LandmarkGraph, MacroLevels
from modules.recall import NoRecall
from modules.types import UnusableInput
from modules.world_model import Numb


def check_config(config: Config) -> None:
    """Raises UnusableInput for what can be known to fail before any time is spent on training:
    settings, stages, environments and memory."""
    settings.to_json(config)
    check_lessons(config)
    spec = check_worlds(config)
    _check_goal(config)
    check_size(config, spec)


def check_all(configs: Mapping[str, Config]) -> None:
    """The same for every variant of a study; names all that can't be trained."""
    faults = {}
    for name, config in configs.items():
        try:
            check_config(config)
        except UnusableInput as error:
            faults[name] = f"{name}: {error}"
    if faults:
        raise UnusableInput("; ".join(faults.values()))


def check_lessons(config: Config) -> None:
    """Raises UnusableInput for lessons that could not be taken."""
    _check_pupils(config)
    _check_recall(config)
    _check_hierarchy(config)
    _check_practised(config)
    _check_lives(config)


def _check_pupils(config: Config) -> None:
    """Whoever is taught is there."""
    if isinstance(config.critic, NoCritic.Config):
        for name in ("teacher", "paths"):
            if not isinstance(getattr(config, name), NoLesson):
                raise UnusableInput(
                    f"an agent without a critic can't teach it: {name} must be NoLesson "
                    "(on the command line, --without critic)"
                )
    able = config.drives and isinstance(config.foresight, Foresight.Config)
    for name, teaches in (("foresee", Foresee), ("interact", (Interact, Rehearse))):
        if isinstance(getattr(config, name), teaches) and not able:
            raise UnusableInput(f"{name} teaches critics of drives: it needs drives and foresight")
    if config.drives and isinstance(config.world_model.feeling, Numb.Config):
        raise UnusableInput(
            f"drives {', '.join(config.drives)} are of what is felt, but world_model.feeling is "
            "Numb"
        )


def _check_recall(config: Config) -> None:
    """Where states depend on what is recalled, nobody learns from moments without a past."""
    if isinstance(config.recall, NoRecall.Config):
        return
    kind = type(config.recall).__qualname__.removesuffix(".Config")
    if isinstance(config.amortise, Amortise):
        raise UnusableInput(
            f"amortise imagines from single moments, and recall {kind} makes more of a moment: "
            "amortise must be NoLesson, or recall NoRecall"
        )
    if isinstance(config.interact, Improve) and not config.interact.objective.context:
        raise UnusableInput(
            f"recall {kind} recalls what was before, but interact.objective.context is 0: it must "
            "be the steps that there are to be recalled, at least 1"
        )


def _check_hierarchy(config: Config) -> None:
    """Whoever plans above has been taught by what suits it, and is understood below."""
    kind = type(config.hierarchy).__qualname__.removesuffix(".Config")
    for name, teaches in (("survey", "LandmarkGraph"), ("ascend", "MacroLevels")):
        taught = not isinstance(getattr(config, name), NoLesson)
        if taught and kind != teaches:
            raise UnusableInput(
                f"{name} teaches a {teaches}, and hierarchy is {kind}: it must be {teaches}, or "
                f"{name} NoLesson (on the command line, --without hierarchy)"
            )
        if kind == teaches and not taught:
            raise UnusableInput(f"hierarchy {kind} knows nothing unless {name} teaches it")
    if kind == "Flat":
        return
    if isinstance(config.temper, Restless.Config):
        raise UnusableInput(
            f"temper Restless takes a subgoal that stays ahead for being stuck: with hierarchy "
            f"{kind} it must be Calm"
        )
    for name, task in config.tasks.items():
        if {**config.configurator.attend, **task.attend} != config.configurator.attend:
            raise UnusableInput(
                f"task {name!r} primes perception otherwise than the levels above perceived: with "
                f"hierarchy {kind} attend must be that of the configurator"
            )
    _check_landmarks(config)
    _check_strides(config)


def _check_landmarks(config: Config) -> None:
    """There are states to choose landmarks from, and somebody who knows how far it is."""
    if not isinstance(config.hierarchy, LandmarkGraph.Config):
        return
    if isinstance(config.critic, NoCritic.Config):
        raise UnusableInput("hierarchy LandmarkGraph asks the critic how far landmarks are apart")
    assert isinstance(config.survey, Survey)
    if config.survey.remembered < config.hierarchy.landmarks:
        raise UnusableInput(
            f"survey.remembered is {config.survey.remembered}, but {config.hierarchy.landmarks} "
            "landmarks are to be chosen from them"
        )
    if config.survey.length > config.life.steps:
        raise UnusableInput(
            f"survey.length is {config.survey.length}, but a life has {config.life.steps} steps"
        )


def _check_strides(config: Config) -> None:
    """A life is long enough for the top level to learn from."""
    if not isinstance(config.hierarchy, MacroLevels.Config):
        return
    assert isinstance(config.ascend, Ascend)
    window = config.ascend.steps(config.hierarchy.strides)
    if window > config.life.steps:
        strides = " x ".join(map(str, config.hierarchy.strides))
        raise UnusableInput(
            f"ascend.length {config.ascend.length} in strides of {strides} takes {window} steps, "
            f"but a life has {config.life.steps}: nothing for the top level to learn from"
        )


def _check_practised(config: Config) -> None:
    """The tasks that are practised are known; those that are imagined, plain from one moment."""
    if isinstance(config.distil, Distil):
        _check_known(config.tasks, "distil.imitate", config.distil.imitate)
    if isinstance(config.amortise, Amortise):
        _check_imagined(config.tasks, config.amortise)
    if isinstance(config.interact, Improve):
        if config.interact.task:
            _check_known(config.tasks, "interact.task", [config.interact.task])
        name = config.interact.task or next(iter(config.tasks), "")
        if name and config.tasks[name].aim != "none":
            raise UnusableInput(
                f"interact learns a task of drives, but the aim of {name!r} is "
                f"{config.tasks[name].aim!r}; it must be 'none'"
            )
    goals = any(task.aim == "world" for task in config.tasks.values())
    if isinstance(config.retrace, Retrace) and not goals:
        raise UnusableInput("retrace teaches ways to goals, and no task has one")


def _check_known(tasks: Mapping[str, Assignment], setting: str, named: Sequence[str]) -> None:
    for name in named:
        if name not in tasks:
            raise UnusableInput(f"{setting} names {name!r}; there are {', '.join(tasks)}")


def _check_imagined(tasks: Mapping[str, Assignment], amortise: Amortise) -> None:
    _check_known(tasks, "amortise.tasks", amortise.tasks)
    for name in amortise.tasks or tasks:
        if tasks[name].weights.get("boredom"):
            fit = [n for n, task in tasks.items() if not task.weights.get("boredom")]
            raise UnusableInput(
                f"amortise can't practise {name!r}: boredom depends on what was lived before; "
                f"amortise.tasks may name {', '.join(fit) or 'none of these tasks'}"
            )


def _check_lives(config: Config) -> None:
    """No stretch of life that is learnt from is longer than a life."""
    steps, practice = config.life.steps, config.practice.lives or config.life.steps
    for name, lesson, most in (
        ("objective", config.objective, steps),
        ("teacher", config.teacher, steps),
        ("foresee", config.foresee, steps),
        ("refine", config.refine, practice),
    ):
        length = getattr(lesson, "length", 1) + getattr(lesson, "context", 0)
        if length > most:
            raise UnusableInput(f"{name}.length is {length}, but a life has {most} steps")
    if isinstance(config.retrace, Retrace) and config.retrace.ahead > steps:
        raise UnusableInput(
            f"retrace.ahead is {config.retrace.ahead}, but a life has {steps} steps"
        )
    if isinstance(config.paths, ShortestPaths) and config.paths.nodes > steps + 1:
        raise UnusableInput(
            f"paths.nodes is {config.paths.nodes}, but a life of {steps} steps has {steps + 1}"
        )


def check_worlds(config: Config) -> Spec:
    """Raises UnusableInput unless every environment that a stage, a task or the evaluation makes
    can be made, and has the spaces of the first; returns those."""
    spec = _spec_of(config.world)
    if isinstance(config.interact, Improve) and config.interact.hindsight:
        check_earnings(spec, config.world)
    tried = [config.world]
    for setting, world in _environments(config):
        if world in tried:
            continue
        tried.append(world)
        try:
            other = _spec_of(world)
        except UnusableInput as error:
            raise UnusableInput(
                f"{setting}: {error}" if setting != "evaluation" else error
            ) from None
        try:
            check_same_spaces(spec, other, world)
        except UnusableInput as error:
            alike = "world and evaluation must be alike" if setting == "evaluation" else setting
            raise UnusableInput(f"{alike}: {error}") from None
    return spec


def _environments(config: Config) -> Iterator[tuple[str, WorldConfig]]:
    """Every environment but the first, by the setting that makes it another."""
    yield "evaluation", config.evaluation
    for name, stage in lessons(config).items():
        if isinstance(stage, (Live, Practise, Distil)) and stage.options:
            options = {**config.world.options, **stage.options}
            yield f"--{name}.options", replace(config.world, options=options)
    for name, task in config.tasks.items():
        if task.options:
            yield f"task {name!r}, options", config.evaluation.under(task)


def _spec_of(config: WorldConfig) -> Spec:
    with closing(config.build(1)) as world:
        return world.spec


def _check_goal(config: Config) -> None:
    """Where a task has the goal that the environment names, the environment names one."""
    aims = [name for name, task in config.tasks.items() if task.aim == "world"]
    if not aims:
        return
    with closing(config.world.build(1)) as world:
        _, info = world.reset(0)
    if "goal" not in info:
        raise UnusableInput(
            f"task {aims[0]!r} has the goal that the environment names in info['goal'], and "
            f"{config.world.id} names none there"
        )
