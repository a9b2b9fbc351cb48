"""What must fit together in a Config before its first stage; each stage checks its own part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace

from ami_agent import config_io
from ami_agent.adapters.env import EnvConfig, EnvironmentSpec, check_same_spaces
from ami_agent.config import Config
from ami_agent.memory_estimate import check_size
from ami_agent.user_components import class_name
from modules.types import ConfigError


def check_config(config: Config) -> None:
    """Raises ConfigError for what can be known to fail before any time is spent on training:
    settings, stages, environments and memory."""
    config_io.to_json(config)
    check_stages(config)
    spec = check_envs(config)
    _check_goal(config)
    agent = check_size(config, spec)
    for name, stage in config.stages.items():
        stage.check_agent(agent, name)


def check_all(configs: Mapping[str, Config]) -> None:
    """Checks every variant of a study as `check_config` does; the ConfigError names all variants
    that can't be trained."""
    errors = {}
    for name, config in configs.items():
        try:
            check_config(config)
        except ConfigError as error:
            errors[name] = f"{name}: {error}"
    if errors:
        raise ConfigError("; ".join(errors.values()))


def check_stages(config: Config) -> None:
    """Raises ConfigError for a stage that could not be taken, or that is missing."""
    if config.cost.drives and config.world_model.interoception_head is None:
        raise ConfigError(
            f"the drives {', '.join(config.cost.drives)} are costs of interoceptive signals, which "
            "the world model does not predict: world_model.interoception_head is None"
        )
    for name, stage in config.stages.items():
        stage.check(config, name)
    _check_subgoals(config)


def _check_subgoals(config: Config) -> None:
    """The levels above are trained, and fit what is below."""
    kind = class_name(config.actor.subgoals)
    if kind == "None":
        return
    training_stages = {"LandmarkGraph": "select_landmarks", "HierarchicalJEPA": "train_hierarchy"}
    stage = training_stages.get(kind)
    if stage and stage not in config.stages:
        raise ConfigError(f"subgoals {kind} needs the stage {stage}, which trains it")
    if config.actor.stuck_recovery is not None:
        raise ConfigError(
            "stuck_recovery StuckPerturbation takes a subgoal that stays ahead for being stuck: "
            f"with subgoals {kind} it must be None"
        )
    weights = config.configurator.modality_weights
    for name, task in config.tasks.items():
        if {**weights, **task.modality_weights} != weights:
            raise ConfigError(
                f"task {name!r} has other modality_weights than the configurator, with which the "
                f"levels above were trained: with subgoals {kind} they must be the same"
            )


def check_envs(config: Config) -> EnvironmentSpec:
    """Raises ConfigError unless every environment that a stage, a task or the evaluation makes
    can be made, and has the spaces of the first; returns those."""
    spec = _spec_of(config.env)
    for stage in config.stages.values():
        stage.check_env(spec, config.env)
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
            advice = ""
            if env.image_downsample != config.env.image_downsample:
                advice = (
                    f" (--env.image-downsample is {config.env.image_downsample}, "
                    f"--eval-env.image-downsample {env.image_downsample})"
                )
            raise ConfigError(f"{label}: {error}{advice}") from None
    return spec


def _environments(config: Config) -> Iterator[tuple[str, EnvConfig]]:
    """Every environment but the first, by the setting that makes it another."""
    yield "eval_env", config.eval_env
    for name, stage in config.stages.items():
        if stage.env_options:
            options = {**config.env.options, **stage.env_options}
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
