"""What must fit together in a Config before its first lesson is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from ami_agent import config_io
from ami_agent.adapters.env import EnvConfig, EnvironmentSpec
from ami_agent.adapters.spaces import check_same_spaces
from ami_agent.config import Config, stages
from ami_agent.sizing import check_size
from ami_agent.training import (
    AmortizePlanning,
    CollectRandom,
    CollectWithPlanner,
    DistillPlanner,
    DistillShortestPaths,
    GoalConditionedBC,
    NoStage,
    OfflineActorCritic,
    OnlineActorCritic,
    SelectLandmarks,
    TrainHierarchy,
    TrainValue,
)
from ami_agent.training.actor_critic import ActorCriticStage
from ami_agent.training.hindsight import check_reward_fn
from modules.actor.policy import StuckPerturbationConfig
from modules.actor.subgoals import LandmarkGraphConfig
from modules.configurator import TaskSpec
from modules.cost.cost import NoGoalCriticConfig, ValueCriticsConfig
from modules.memory.short_term import NoMemoryConfig
from modules.types import ConfigError
from modules.world_model.hjepa import HierarchicalJEPAConfig
from modules.world_model.jepa import NoInteroceptionConfig


def check_config(config: Config) -> None:
    """Raises ConfigError for what can be known to fail before any time is spent on training:
    settings, stages, environments and memory."""
    config_io.to_json(config)
    check_stages(config)
    spec = check_envs(config)
    _check_goal(config)
    check_size(config, spec)


def check_all(configs: Mapping[str, Config]) -> None:
    """The same for every variant of a study; names all that can't be trained."""
    errors = {}
    for name, config in configs.items():
        try:
            check_config(config)
        except ConfigError as error:
            errors[name] = f"{name}: {error}"
    if errors:
        raise ConfigError("; ".join(errors.values()))


def check_stages(config: Config) -> None:
    """Raises ConfigError for lessons that could not be taken."""
    _check_trainable(config)
    _check_short_term_memory(config)
    _check_subgoals(config)
    _check_tasks(config)
    _check_windows(config)


def _check_trainable(config: Config) -> None:
    """Whoever is taught is there."""
    if isinstance(config.goal_critic, NoGoalCriticConfig):
        for name in ("train_goal_critic", "distill_paths"):
            if not isinstance(getattr(config, name), NoStage):
                raise ConfigError(
                    f"an agent without a critic can't teach it: {name} must be NoLesson "
                    "(on the command line, --without goal_critic)"
                )
    has_value_critics = config.drives and isinstance(config.value_critics, ValueCriticsConfig)
    for name, stage_class in (
        ("train_values", TrainValue),
        ("actor_critic", (OnlineActorCritic, OfflineActorCritic)),
    ):
        if isinstance(getattr(config, name), stage_class) and not has_value_critics:
            raise ConfigError(f"{name} teaches critics of drives: it needs drives and foresight")
    if config.drives and isinstance(config.world_model.interoception_head, NoInteroceptionConfig):
        raise ConfigError(
            f"drives {', '.join(config.drives)} are of what is felt, but world_model.feeling is "
            "Numb"
        )


def _check_short_term_memory(config: Config) -> None:
    """Where states depend on what is recalled, nobody learns from moments without a past."""
    if isinstance(config.short_term_memory, NoMemoryConfig):
        return
    kind = type(config.short_term_memory).__qualname__.removesuffix("Config")
    if isinstance(config.amortize_policy, AmortizePlanning):
        raise ConfigError(
            f"amortise imagines from single moments, and recall {kind} makes more of a moment: "
            "amortise must be NoLesson, or recall NoMemory"
        )
    if (
        isinstance(config.actor_critic, ActorCriticStage)
        and not config.actor_critic.train_jepa.context_steps
    ):
        raise ConfigError(
            f"recall {kind} recalls what was before, but actor_critic.train_jepa.context_steps is 0: it must "
            "be the steps that there are to be recalled, at least 1"
        )


def _check_subgoals(config: Config) -> None:
    """Whoever plans above has been taught by what suits it, and is understood below."""
    kind = type(config.subgoals).__qualname__.removesuffix("Config")
    for name, stage_class in (
        ("select_landmarks", "LandmarkGraph"),
        ("train_hierarchy", "HierarchicalJEPA"),
    ):
        is_trained = not isinstance(getattr(config, name), NoStage)
        if is_trained and kind != stage_class:
            raise ConfigError(
                f"{name} teaches a {stage_class}, and hierarchy is {kind}: it must be {stage_class}, or "
                f"{name} NoLesson (on the command line, --without hierarchy)"
            )
        if kind == stage_class and not is_trained:
            raise ConfigError(f"hierarchy {kind} knows nothing unless {name} teaches it")
    if kind == "Flat":
        return
    if isinstance(config.stuck_recovery, StuckPerturbationConfig):
        raise ConfigError(
            f"temper Restless takes a subgoal that stays ahead for being stuck: with hierarchy "
            f"{kind} it must be Calm"
        )
    for name, task in config.tasks.items():
        if {
            **config.configurator.modality_weights,
            **task.modality_weights,
        } != config.configurator.modality_weights:
            raise ConfigError(
                f"task {name!r} primes perception otherwise than the levels above perceived: with "
                f"hierarchy {kind} attend must be that of the configurator"
            )
    _check_landmarks(config)
    _check_levels(config)


def _check_landmarks(config: Config) -> None:
    """There are states to choose landmarks from, and somebody who knows how far it is."""
    if not isinstance(config.subgoals, LandmarkGraphConfig):
        return
    if isinstance(config.goal_critic, NoGoalCriticConfig):
        raise ConfigError("hierarchy LandmarkGraph asks the critic how far landmarks are apart")
    assert isinstance(config.select_landmarks, SelectLandmarks)
    if config.select_landmarks.num_candidates < config.subgoals.num_landmarks:
        raise ConfigError(
            f"select_landmarks.remembered is {config.select_landmarks.num_candidates}, but {config.subgoals.num_landmarks} "
            "landmarks are to be chosen from them"
        )
    if config.select_landmarks.length > config.collect.steps:
        raise ConfigError(
            f"select_landmarks.length is {config.select_landmarks.length}, but a life has {config.collect.steps} steps"
        )


def _check_levels(config: Config) -> None:
    """A life is long enough for the top level to learn from."""
    if not isinstance(config.subgoals, HierarchicalJEPAConfig):
        return
    assert isinstance(config.train_hierarchy, TrainHierarchy)
    window = config.train_hierarchy.steps(config.subgoals.steps_per_level)
    if window > config.collect.steps:
        strides = " x ".join(map(str, config.subgoals.steps_per_level))
        raise ConfigError(
            f"train_hierarchy.length {config.train_hierarchy.length} in strides of {strides} takes {window} steps, "
            f"but a life has {config.collect.steps}: nothing for the top level to learn from"
        )


def _check_tasks(config: Config) -> None:
    """The tasks that are practised are known; those that are imagined, plain from one moment."""
    if isinstance(config.distill_policy, DistillPlanner):
        _check_task_names(
            config.tasks, "distill_policy.imitated_tasks", config.distill_policy.imitated_tasks
        )
    if isinstance(config.amortize_policy, AmortizePlanning):
        _check_imagined_tasks(config.tasks, config.amortize_policy)
    if isinstance(config.actor_critic, ActorCriticStage):
        if config.actor_critic.task:
            _check_task_names(config.tasks, "actor_critic.task", [config.actor_critic.task])
        name = config.actor_critic.task or next(iter(config.tasks), "")
        if name and config.tasks[name].goal_source != "none":
            raise ConfigError(
                f"interact learns a task of drives, but the aim of {name!r} is "
                f"{config.tasks[name].goal_source!r}; it must be 'none'"
            )
    goals = any(task.goal_source == "env" for task in config.tasks.values())
    if isinstance(config.goal_bc, GoalConditionedBC) and not goals:
        raise ConfigError("retrace teaches ways to goals, and no task has one")


def _check_task_names(tasks: Mapping[str, TaskSpec], setting: str, named: Sequence[str]) -> None:
    for name in named:
        if name not in tasks:
            raise ConfigError(f"{setting} names {name!r}; there are {', '.join(tasks)}")


def _check_imagined_tasks(tasks: Mapping[str, TaskSpec], stage: AmortizePlanning) -> None:
    _check_task_names(tasks, "amortize_policy.tasks", stage.tasks)
    for name in stage.tasks or tasks:
        if tasks[name].weights.get("boredom"):
            allowed = [n for n, task in tasks.items() if not task.weights.get("boredom")]
            raise ConfigError(
                f"amortise can't practise {name!r}: boredom depends on what was lived before; "
                f"amortize_policy.tasks may name {', '.join(allowed) or 'none of these tasks'}"
            )


def _check_windows(config: Config) -> None:
    """No stretch of life that is learnt from is longer than a life."""
    steps, rollout_steps = (
        config.collect.steps,
        config.planner_rollouts.env_steps or config.collect.steps,
    )
    for name, stage, max_steps in (
        ("train_jepa", config.train_jepa, steps),
        ("train_goal_critic", config.train_goal_critic, steps),
        ("train_values", config.train_values, steps),
        ("finetune_dynamics", config.finetune_dynamics, rollout_steps),
    ):
        length = getattr(stage, "length", 1) + getattr(stage, "context_steps", 0)
        if length > max_steps:
            raise ConfigError(f"{name}.length is {length}, but a life has {max_steps} steps")
    if isinstance(config.goal_bc, GoalConditionedBC) and config.goal_bc.max_goal_offset > steps:
        raise ConfigError(
            f"goal_bc.max_goal_offset is {config.goal_bc.max_goal_offset}, but a life has {steps} steps"
        )
    if (
        isinstance(config.distill_paths, DistillShortestPaths)
        and config.distill_paths.nodes_per_graph > steps + 1
    ):
        raise ConfigError(
            f"distill_paths.nodes_per_graph is {config.distill_paths.nodes_per_graph}, but a life of {steps} steps has {steps + 1}"
        )


def check_envs(config: Config) -> EnvironmentSpec:
    """Raises ConfigError unless every environment that a stage, a task or the evaluation makes
    can be made, and has the spaces of the first; returns those."""
    spec = _spec_of(config.env)
    if isinstance(config.actor_critic, ActorCriticStage) and config.actor_critic.hindsight_fraction:
        check_reward_fn(spec, config.env)
    checked = [config.env]
    for setting, env in _environments(config):
        if env in checked:
            continue
        checked.append(env)
        try:
            other_spec = _spec_of(env)
        except ConfigError as error:
            raise ConfigError(f"{setting}: {error}" if setting != "eval_env" else error) from None
        try:
            check_same_spaces(spec, other_spec, env)
        except ConfigError as error:
            label = "world and evaluation must be alike" if setting == "eval_env" else setting
            raise ConfigError(f"{label}: {error}") from None
    return spec


def _environments(config: Config) -> Iterator[tuple[str, EnvConfig]]:
    """Every environment but the first, by the setting that makes it another."""
    yield "eval_env", config.eval_env
    for name, stage in stages(config).items():
        if isinstance(stage, (CollectRandom, CollectWithPlanner, DistillPlanner)) and stage.options:
            options = {**config.env.options, **stage.options}
            yield f"--{name}.options", replace(config.env, options=options)
    for name, task in config.tasks.items():
        if task.options:
            yield f"task {name!r}, options", config.eval_env.for_task(task)


def _spec_of(config: EnvConfig) -> EnvironmentSpec:
    with closing(config.build(1)) as env:
        return env.spec


def _check_goal(config: Config) -> None:
    """Where a task has the goal that the environment names, the environment names one."""
    env_goal_tasks = [name for name, task in config.tasks.items() if task.goal_source == "env"]
    if not env_goal_tasks:
        return
    with closing(config.env.build(1)) as env:
        _, info = env.reset(0)
    if "goal" not in info:
        raise ConfigError(
            f"task {env_goal_tasks[0]!r} has the goal that the environment names in info['goal'], and "
            f"{config.env.id} names none there"
        )
