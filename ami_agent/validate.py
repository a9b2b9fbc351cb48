"""What must fit together in a Config before its first stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace

from ami_agent import config_io
from ami_agent.adapters.env import EnvConfig, EnvironmentSpec, check_same_spaces
from ami_agent.config import Config, class_name
from ami_agent.sizing import check_size
from ami_agent.training import (
    AmortizePlanning,
    CollectRandom,
    CollectWithPlanner,
    DistillPlanner,
    DistillShortestPaths,
    FinetuneDynamics,
    GoalConditionedBC,
    SelectLandmarks,
    TrainHierarchy,
    TrainJEPA,
    TrainQuasimetric,
    TrainTDDistance,
    TrainValue,
)
from ami_agent.training.actor_critic import ActorCriticStage
from ami_agent.training.hindsight import check_reward_fn
from modules.actor.policy import StuckPerturbationConfig
from modules.actor.subgoals import LandmarkGraphConfig
from modules.configurator import TaskSpec
from modules.cost.cost import NoGoalCriticConfig, ValueCriticsConfig
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
    """Raises ConfigError for a stage that could not be taken."""
    _check_trainable(config)
    _check_short_term_memory(config)
    _check_subgoals(config)
    _check_tasks(config)
    _check_windows(config)


def _check_trainable(config: Config) -> None:
    """What a stage trains is a part of the agent."""
    if isinstance(config.cost.goal_critic, NoGoalCriticConfig):
        for name in ("train_goal_critic", "distill_paths"):
            if name in config.stages:
                raise ConfigError(
                    f"the agent has no goal critic, which the stage {name} trains: leave the stage "
                    "out (on the command line, --without goal_critic)"
                )
    has_value_critics = bool(config.cost.drives) and isinstance(
        config.cost.value_critics, ValueCriticsConfig
    )
    for name, stage in config.stages.items():
        if isinstance(stage, (TrainValue, ActorCriticStage)) and not has_value_critics:
            raise ConfigError(
                f"the stage {name} trains the critics of drives: it needs drives and value_critics"
            )
    head = config.world_model.interoception_head
    if config.cost.drives and isinstance(head, NoInteroceptionConfig):
        raise ConfigError(
            f"the drives {', '.join(config.cost.drives)} are costs of interoceptive signals, which "
            "the world model does not predict: world_model.interoception_head is NoInteroception"
        )


def _check_short_term_memory(config: Config) -> None:
    """Where states depend on what was before, no stage learns from single observations."""
    kind = class_name(config.memory.short_term)
    if kind == "NoMemory":
        return
    for name, stage in config.stages.items():
        if isinstance(stage, AmortizePlanning):
            raise ConfigError(
                f"the stage {name} imagines from single observations, and a state of {kind} "
                f"depends on those before: leave {name} out, or short_term must be NoMemory"
            )
        if isinstance(stage, ActorCriticStage) and not stage.train_jepa.context_steps:
            raise ConfigError(
                f"a state of {kind} depends on the observations before, but "
                f"{name}.train_jepa.context_steps is 0: it must be at least 1"
            )


def _check_subgoals(config: Config) -> None:
    """The levels above are trained by the stage that suits them, and fit what is below."""
    subgoals, kind = config.actor.subgoals, class_name(config.actor.subgoals)
    for name, trained in (
        ("select_landmarks", "LandmarkGraph"),
        ("train_hierarchy", "HierarchicalJEPA"),
    ):
        if name in config.stages and kind != trained:
            raise ConfigError(
                f"the stage {name} trains a {trained}, and subgoals is {kind}: it must be "
                f"{trained}, or leave the stage out (on the command line, --without hierarchy)"
            )
        if kind == trained and name not in config.stages:
            raise ConfigError(f"subgoals {kind} needs the stage {name}, which trains it")
    if kind == "Flat":
        return
    if isinstance(config.actor.stuck_recovery, StuckPerturbationConfig):
        raise ConfigError(
            "stuck_recovery StuckPerturbation takes a subgoal that stays ahead for being stuck: "
            f"with subgoals {kind} it must be NoStuckRecovery"
        )
    weights = config.configurator.modality_weights
    for name, task in config.tasks.items():
        if {**weights, **task.modality_weights} != weights:
            raise ConfigError(
                f"task {name!r} has other modality_weights than the configurator, with which the "
                f"levels above were trained: with subgoals {kind} they must be the same"
            )
    if isinstance(subgoals, LandmarkGraphConfig):
        _check_landmarks(config, subgoals)
    if isinstance(subgoals, HierarchicalJEPAConfig):
        _check_levels(config, subgoals)


def _check_landmarks(config: Config, subgoals: LandmarkGraphConfig) -> None:
    """There are states to choose landmarks from, and a critic that measures distances."""
    if isinstance(config.cost.goal_critic, NoGoalCriticConfig):
        raise ConfigError("subgoals LandmarkGraph needs the goal critic for distances")
    stage, steps = config.find(SelectLandmarks), config.collect.steps
    assert stage is not None
    if stage.num_candidates < subgoals.num_landmarks:
        raise ConfigError(
            f"select_landmarks.num_candidates is {stage.num_candidates}, but "
            f"{subgoals.num_landmarks} landmarks are to be chosen from them"
        )
    if stage.length > steps:
        raise ConfigError(
            f"select_landmarks.length is {stage.length}, but an episode has {steps} steps"
        )


def _check_levels(config: Config, subgoals: HierarchicalJEPAConfig) -> None:
    """An episode is long enough for the top level to learn from."""
    stage, steps = config.find(TrainHierarchy), config.collect.steps
    assert stage is not None
    window = stage.steps(subgoals.steps_per_level)
    if window > steps:
        per_level = " x ".join(map(str, subgoals.steps_per_level))
        raise ConfigError(
            f"train_hierarchy.length {stage.length} with {per_level} steps per level takes "
            f"{window} steps, but an episode has {steps}: nothing for the top level to learn from"
        )


def _check_tasks(config: Config) -> None:
    """The tasks of a stage exist; those that it imagines depend on one observation alone."""
    for name, stage in config.stages.items():
        if isinstance(stage, DistillPlanner):
            _check_task_names(config.tasks, f"{name}.imitated_tasks", stage.imitated_tasks)
        elif isinstance(stage, AmortizePlanning):
            _check_imagined_tasks(config.tasks, name, stage)
        elif isinstance(stage, ActorCriticStage):
            if stage.task:
                _check_task_names(config.tasks, f"{name}.task", [stage.task])
            task = stage.task or next(iter(config.tasks), "")
            if task and config.tasks[task].goal_source != "none":
                raise ConfigError(
                    f"the stage {name} learns a task of drives, but the goal_source of {task!r} "
                    f"is {config.tasks[task].goal_source!r}; it must be 'none'"
                )
        elif isinstance(stage, GoalConditionedBC) and all(
            task.goal_source != "env" for task in config.tasks.values()
        ):
            raise ConfigError(f"the stage {name} learns ways to goals, and no task has one")


def _check_task_names(tasks: Mapping[str, TaskSpec], setting: str, named: Sequence[str]) -> None:
    for name in named:
        if name not in tasks:
            raise ConfigError(f"{setting} names {name!r}; there are {', '.join(tasks)}")


def _check_imagined_tasks(
    tasks: Mapping[str, TaskSpec], stage_name: str, stage: AmortizePlanning
) -> None:
    _check_task_names(tasks, f"{stage_name}.tasks", stage.tasks)
    for name in stage.tasks or tasks:
        if tasks[name].weights.get("boredom"):
            allowed = [n for n, task in tasks.items() if not task.weights.get("boredom")]
            raise ConfigError(
                f"the stage {stage_name} can't practise {name!r}: boredom depends on the episode "
                f"so far; {stage_name}.tasks may name {', '.join(allowed) or 'none of these tasks'}"
            )


def _check_windows(config: Config) -> None:
    """No window of recorded steps is longer than an episode."""
    steps = config.collect.steps
    rollouts = config.find(CollectWithPlanner)
    recent_steps = rollouts.env_steps if rollouts else steps
    for name, stage in config.stages.items():
        most = recent_steps if isinstance(stage, FinetuneDynamics) else steps
        kinds = (TrainJEPA, FinetuneDynamics, TrainQuasimetric, TrainTDDistance, TrainValue)
        if isinstance(stage, kinds):
            length = getattr(stage, "length", 1) + getattr(stage, "context_steps", 0)
            if length > most:
                raise ConfigError(f"{name}.length is {length}, but an episode has {most} steps")
        elif isinstance(stage, GoalConditionedBC) and stage.max_goal_offset > steps:
            raise ConfigError(
                f"{name}.max_goal_offset is {stage.max_goal_offset}, but an episode has "
                f"{steps} steps"
            )
        elif isinstance(stage, DistillShortestPaths) and stage.nodes_per_graph > steps + 1:
            raise ConfigError(
                f"{name}.nodes_per_graph is {stage.nodes_per_graph}, but an episode of {steps} "
                f"steps has {steps + 1} observations"
            )


def check_envs(config: Config) -> EnvironmentSpec:
    """Raises ConfigError unless every environment that a stage, a task or the evaluation makes
    can be made, and has the spaces of the first; returns those."""
    spec = _spec_of(config.env)
    actor_critic = config.find(ActorCriticStage)
    if actor_critic and actor_critic.hindsight_fraction:
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
            label = "env and eval_env must be alike" if setting == "eval_env" else setting
            raise ConfigError(f"{label}: {error}") from None
    return spec


def _environments(config: Config) -> Iterator[tuple[str, EnvConfig]]:
    """Every environment but the first, by the setting that makes it another."""
    yield "eval_env", config.eval_env
    for name, stage in config.stages.items():
        if isinstance(stage, (CollectRandom, CollectWithPlanner, DistillPlanner)) and stage.options:
            options = {**config.env.options, **stage.options}
            yield config_io.flag_of(f"{name}.options"), replace(config.env, options=options)
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
            f"task {env_goal_tasks[0]!r} has the goal that the environment names in info['goal'], "
            f"and {config.env.id} names none there"
        )
