"""Ablation is substitution: every variant is the recipe with one value replaced."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ami_agent.adapters.make import call_function, load_function
from ami_agent.cli.listing import component_choices
from ami_agent.config import Config
from ami_agent.training import NoStage, SelectLandmarks, TrainHierarchy, TrainJEPA
from ami_agent.training.actor_critic import ActorCriticStage
from modules.actor.policy import NoPolicyProposalConfig
from modules.actor.subgoals import (
    FlatConfig,
    HierarchicalJEPAConfig,
    LandmarkGraphConfig,
)
from modules.cost.cost import NoGoalCriticConfig, NoValueCriticsConfig
from modules.memory.short_term import NoMemoryConfig
from modules.types import ConfigError
from modules.world_model.latents import NoLatentConfig

ConfigChange = Callable[[Config], Config]

PART_REMOVALS: Mapping[str, ConfigChange] = {
    "goal_critic": lambda c: c if isinstance(c.goal_critic, NoGoalCriticConfig) else replace(
        c, goal_critic=NoGoalCriticConfig(), train_goal_critic=NoStage(), distill_paths=NoStage(),
        subgoals=FlatConfig(), train_hierarchy=NoStage(), select_landmarks=NoStage(),
        configurator=replace(c.configurator, goal_distance=c.configurator.goal_distance or 1.0, critic=0.0),
    ),
    "path_distillation": lambda c: replace(c, distill_paths=NoStage()),
    "hierarchy": lambda c: replace(
        c, subgoals=FlatConfig(), train_hierarchy=NoStage(), select_landmarks=NoStage()
    ),
    "latent": lambda c: replace(
        c, world_model=replace(c.world_model, latent=NoLatentConfig())
    ),
    "planner_rollouts": lambda c: replace(c, planner_rollouts=NoStage(), finetune_dynamics=NoStage()),
    "policy": lambda c: replace(
        c, goal_bc=NoStage(), amortize_policy=NoStage(), distill_policy=NoStage(), policy_proposal=NoPolicyProposalConfig()
    ),
    "policy_proposal": lambda c: replace(c, policy_proposal=NoPolicyProposalConfig()),
    "memory": lambda c: replace(c, short_term_memory=NoMemoryConfig()),
    "priming": lambda c: replace(
        c, configurator=replace(c.configurator, modality_weights={}),
        tasks={name: replace(task, modality_weights={}) for name, task in c.tasks.items()},
    ),
    "value_critics": lambda c: replace(
        c, value_critics=NoValueCriticsConfig(), train_values=NoStage()
    ),
    "drives": lambda c: replace(
        c, drives=(), value_critics=NoValueCriticsConfig(), train_values=NoStage(),
        configurator=replace(c.configurator, conditioned_on=(), goal_distance=c.configurator.goal_distance or 1.0),
        tasks={
            name: replace(task, drives={}, limits={}, weights=task.weights or {"control_cost": 1.0})
            for name, task in c.tasks.items()
        },
    ),
}  # fmt: skip


def _without_term(term: str) -> ConfigChange:
    def without_weight(stage: TrainJEPA) -> TrainJEPA:
        return replace(stage, weights=replace(stage.weights, **{term: 0.0}))

    def change(config: Config) -> Config:
        changed = replace(config, train_jepa=without_weight(config.train_jepa))
        if isinstance(config.actor_critic, ActorCriticStage):
            online = replace(
                config.actor_critic, train_jepa=without_weight(config.actor_critic.train_jepa)
            )
            changed = replace(changed, actor_critic=online)
        return changed

    return change


def removable_parts(config: Config) -> dict[str, ConfigChange]:
    """What `--without` can remove, by name."""
    terms = [field.name for field in fields(config.train_jepa.weights)]
    return {**PART_REMOVALS, **{f"train_jepa.{term}": _without_term(term) for term in terms}}


def without(config: Config, name: str) -> Config:
    """The recipe without a part. Raises ConfigError for an unknown name, and where nothing changes."""
    removals = removable_parts(config)
    if name not in removals:
        raise ConfigError(f"--without {name!r}: there are {', '.join(removals)}")
    return _changed(config, removals[name](config), f"--without {name}")


def swap(config: Config, swap_spec: str) -> Config:
    """`box=choice` (case does not matter) -> the recipe with the choice's defaults in that box."""
    component, _, choice = swap_spec.partition("=")
    components = component_choices()
    if component not in components:
        raise ConfigError(
            f"--swap {swap_spec!r}: write box=choice; boxes are {', '.join(components)}"
        )
    by_name = {name.lower(): cls for name, cls in components[component].items()}
    if choice.lower() not in by_name:
        raise ConfigError(
            f"--swap {swap_spec!r}: {component} may be {', '.join(components[component])}"
        )
    changed = _replace_at(config, component.split("."), by_name[choice.lower()]())
    if component == "hierarchy":
        changed = _with_required_stages(changed)
    return _changed(config, changed, f"--swap {swap_spec}")


def _with_required_stages(config: Config) -> Config:
    """With the lessons that its hierarchy needs, and no others."""
    hierarchy = config.subgoals
    landmarks_stage = (
        config.select_landmarks
        if isinstance(config.select_landmarks, SelectLandmarks)
        else SelectLandmarks()
    )
    hierarchy_stage = (
        config.train_hierarchy
        if isinstance(config.train_hierarchy, TrainHierarchy)
        else TrainHierarchy()
    )
    return replace(
        config,
        select_landmarks=landmarks_stage
        if isinstance(hierarchy, LandmarkGraphConfig)
        else NoStage(),
        train_hierarchy=hierarchy_stage
        if isinstance(hierarchy, HierarchicalJEPAConfig)
        else NoStage(),
    )


def _replace_at(settings: Any, path: Sequence[str], value: Any) -> Any:
    first, *rest = path
    inner = _replace_at(getattr(settings, first), rest, value) if rest else value
    return replace(settings, **{first: inner})


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
    """The question that a study answers: for `FILE.py:FUNCTION` the docstring of the function, for a
    recipe what its parts are worth."""
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
