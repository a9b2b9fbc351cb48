"""Ablation is substitution: every variant is the recipe with one value replaced."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ami_agent.adapters.imports import call_function, load_function
from ami_agent.config import Config, override
from ami_agent.config_io import component_of, find_component
from ami_agent.training import SelectLandmarks, TrainHierarchy
from ami_agent.training.actor_critic import ActorCriticStage
from ami_agent.training.representation_losses import LossWeights
from modules.actor.policy import NoPolicyProposalConfig
from modules.actor.subgoals import FlatConfig, LandmarkGraphConfig
from modules.configurator import TaskSpec
from modules.types import ConfigError
from modules.world_model.hjepa import HierarchicalJEPAConfig

ConfigChange = Callable[[Config], Config]


def _change(changes: Mapping[str, Any]) -> ConfigChange:
    return lambda config: override(config, changes)


FLAT = {
    "actor.subgoals": FlatConfig(),
    "stages.train_hierarchy": None,
    "stages.select_landmarks": None,
}
NO_VALUES = {"cost.value_critics": None, "stages.train_values": None}
NO_GOAL_CRITIC = {
    **FLAT,
    "cost.goal_critic": None,
    "stages.train_goal_critic": None,
    "stages.distill_paths": None,
    "configurator.critic": 0.0,
}


def _without_goal_critic(config: Config) -> Config:
    """The distance in representation space stands in for the critic."""
    if config.cost.goal_critic is None:
        return config
    weight = config.configurator.goal_distance or 1.0
    return override(config, {**NO_GOAL_CRITIC, "configurator.goal_distance": weight})


def _without_drives(config: Config) -> Config:
    def without(task: TaskSpec) -> TaskSpec:
        return replace(task, drives={}, limits={}, weights=task.weights or {"control_cost": 1.0})

    return override(
        config,
        {
            **NO_VALUES,
            "cost.drives": (),
            "configurator.conditioned_on": (),
            "configurator.goal_distance": config.configurator.goal_distance or 1.0,
            "tasks": {name: without(task) for name, task in config.tasks.items()},
        },
    )


def _without_priming(config: Config) -> Config:
    tasks = {name: replace(task, modality_weights={}) for name, task in config.tasks.items()}
    return override(config, {"configurator.modality_weights": {}, "tasks": tasks})


PART_REMOVALS: Mapping[str, ConfigChange] = {
    "goal_critic": _without_goal_critic,
    "path_distillation": _change({"stages.distill_paths": None}),
    "hierarchy": _change(FLAT),
    "latent": _change({"world_model.latent": None}),
    "planner_rollouts": _change(
        {"stages.planner_rollouts": None, "stages.finetune_dynamics": None}
    ),
    "policy": _change(
        {
            "stages.goal_bc": None,
            "stages.amortize_policy": None,
            "stages.distill_policy": None,
            "actor.policy_proposal": NoPolicyProposalConfig(),
        }
    ),
    "policy_proposal": _change({"actor.policy_proposal": NoPolicyProposalConfig()}),
    "memory": _change({"memory.short_term": None}),
    "priming": _without_priming,
    "value_critics": _change(NO_VALUES),
    "drives": _without_drives,
}


def _without_term(term: str) -> ConfigChange:
    def change(config: Config) -> Config:
        changes = {f"stages.train_jepa.weights.{term}": 0.0}
        if config.find(ActorCriticStage):
            changes[f"stages.actor_critic.train_jepa.weights.{term}"] = 0.0
        return override(config, changes)

    return change


def removable_parts(config: Config) -> dict[str, ConfigChange]:
    """What `--without` can remove, by name."""
    terms = [field.name for field in fields(LossWeights)]
    return {**PART_REMOVALS, **{f"train_jepa.{term}": _without_term(term) for term in terms}}


def without(config: Config, name: str) -> Config:
    """The recipe without a part. Raises ConfigError for an unknown name, or for no change."""
    removals = removable_parts(config)
    if name not in removals:
        raise ConfigError(f"--without {name!r}: there are {', '.join(removals)}")
    return _changed(config, removals[name](config), f"--without {name}")


def swap(config: Config, swap_spec: str) -> Config:
    """`component=choice` (case does not matter) -> the recipe with the choice's defaults in that
    component, which is named by its path or by the end of it: `planner=CEM`."""
    component, _, choice = swap_spec.partition("=")
    try:
        path = find_component(component)
        settings = component_of(path, choice)
    except ConfigError as error:
        raise ConfigError(f"--swap {swap_spec!r}: write component=choice; {error}") from None
    changed = override(config, {path: settings})
    if path == "actor.subgoals":
        changed = _with_required_stages(changed)
    return _changed(config, changed, f"--swap {swap_spec}")


def _with_required_stages(config: Config) -> Config:
    """With the stage that trains its subgoals, and without that of others."""
    subgoals = config.actor.subgoals
    is_graph = isinstance(subgoals, LandmarkGraphConfig)
    is_hjepa = isinstance(subgoals, HierarchicalJEPAConfig)
    landmarks = config.find(SelectLandmarks) or SelectLandmarks()
    hierarchy = config.find(TrainHierarchy) or TrainHierarchy()
    return override(
        config,
        {
            "stages.select_landmarks": landmarks if is_graph else None,
            "stages.train_hierarchy": hierarchy if is_hjepa else None,
        },
    )


def _changed(before: Config, after: Config, what: str) -> Config:
    if after == before:
        raise ConfigError(f"{what} changes nothing in {before.recipe}")
    return after


def variants(config: Config, without_: Sequence[str], swaps: Sequence[str]) -> dict[str, Config]:
    """The recipe itself and every variant, by name."""
    return {
        config.recipe: config,
        **{f"without {name}": without(config, name) for name in without_},
        **{swap_spec: swap(config, swap_spec) for swap_spec in swaps},
    }


STUDY_CONFIGS = "the Configs of a study"


def study_question(name: str) -> str:
    """The question that a study answers: for `FILE.py:FUNCTION` the docstring of the function, for
    a recipe what its parts are worth."""
    if ".py:" not in name:
        return f"What is each of these parts worth to an agent of the recipe {name}?"
    return inspect.getdoc(load_function(name, STUDY_CONFIGS)) or ""


def load_configs(path: str) -> dict[str, Config]:
    """The Configs by name that the function of `FILE.py:FUNCTION` returns; the first is the base.
    Raises ConfigError where it returns anything else."""
    returned = call_function(path, STUDY_CONFIGS)
    if not isinstance(returned, Mapping) or not all(
        isinstance(c, Config) for c in returned.values()
    ):
        raise ConfigError(f"{path} must return Configs by name, not {type(returned).__name__}")
    if len(returned) < 2:
        raise ConfigError(f"{path} returns {len(returned)} Configs; a study compares at least 2")
    configs = {str(variant): config for variant, config in returned.items()}
    (base, first), *others = configs.items()
    for variant, config in others:
        if config == first:
            raise ConfigError(f"{path}: {variant!r} is no different from {base!r}")
    return configs
