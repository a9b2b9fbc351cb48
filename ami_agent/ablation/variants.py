"""Ablation is substitution: every variant is the recipe with one value replaced."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ami_agent.adapters.imports import call_function, load_function
from ami_agent.config import Config, override
from ami_agent.config_io import component_of, find_component
from ami_agent.training import SelectLandmarks, TrainHierarchy
from ami_agent.training.actor_critic import ActorCriticStage
from ami_agent.training.representation_losses import LossWeights
from modules.actor.subgoals import LandmarkGraphConfig, RememberedGoalConfig
from modules.cost.goal_critic import GoalCriticConfig
from modules.types import ConfigError
from modules.world_model.hjepa import HierarchicalJEPAConfig

FLAT = {"actor.subgoals": None, "stages.train_hierarchy": None, "stages.select_landmarks": None}
NO_VALUES = {"cost.value_critics": None, "stages.train_values": None}
LATENT_TERMS = ("kl", "prior_nll")
"""Terms of the loss of a latent variable."""
NO_PROPOSAL = {"actor.policy_proposal": None}


def removals(config: Config) -> dict[str, Mapping[str, Any]]:
    """What `--without` can remove, by name, and the settings that it changes."""
    # the distance in representation space stands in for the critic and for drives
    goal_distance = {"configurator.goal_distance": config.configurator.goal_distance or 1.0}
    has_goal_critic = config.cost.goal_critic is not None
    owners = ["stages.train_jepa"]
    if config.find(ActorCriticStage):
        owners.append("stages.actor_critic.train_jepa")
    no_goal_critic = {
        **FLAT,
        **goal_distance,
        "cost.goal_critic": None,
        "stages.train_goal_critic": None,
        "stages.distill_paths": None,
        "stages.distill_landmark_paths": None,
        "configurator.critic": 0.0,
    }
    no_drives = {
        **NO_VALUES,
        **goal_distance,
        "cost.drives": (),
        "configurator.conditioned_on": (),
        "tasks": {
            n: replace(t, drives={}, limits={}, weights=t.weights or {"control_cost": 1.0})
            for n, t in config.tasks.items()
        },
    }
    lasting = config.memory.lasting
    has_remembered_goal = isinstance(config.actor.subgoals, RememberedGoalConfig)
    no_remembered_goal = {"actor.subgoals": None} if has_remembered_goal else {}
    terms = [term.name for term in fields(LossWeights)]
    has_latent = config.world_model.latent is not None
    return {
        "pretrain": {"stages.pretrain": None},
        "goal_critic": no_goal_critic if has_goal_critic else {},
        "reachability": _anything_reachable(config),
        "path_distillation": {
            "stages.distill_paths": None,
            "stages.distill_landmark_paths": None,
        },
        "hierarchy": FLAT,
        "chance": _ignoring_chance(config),
        "latent": {"world_model.latent": None},
        "planner_rollouts": {"stages.planner_rollouts": None, "stages.finetune_dynamics": None},
        "policy": {
            **NO_PROPOSAL,
            "stages.goal_bc": None,
            "stages.amortize_policy": None,
            "stages.distill_policy": None,
        },
        "policy_proposal": NO_PROPOSAL,
        "memory": {"memory.short_term": None},
        "lasting_memory": {"memory.lasting": None, **no_remembered_goal},
        "prototypes": {} if lasting is None else {"memory.lasting.num_prototypes": 0},
        "priming": {
            "configurator.modality_weights": {},
            "tasks": {n: replace(task, modality_weights={}) for n, task in config.tasks.items()},
        },
        "value_critics": NO_VALUES,
        "drives": no_drives if config.cost.drives else {},
        **{
            f"train_jepa.{term}": {f"{owner}.weights.{term}": 0.0 for owner in owners}
            if has_latent or term not in LATENT_TERMS
            else {}
            for term in terms
        },
    }


def _ignoring_chance(config: Config) -> Mapping[str, Any]:
    """Settings with which recorded steps of chance are steps as all others."""
    stages = [name for name, stage in config.stages.items() if vars(stage).get("exclude_chance")]
    changes = {f"stages.{name}.exclude_chance": False for name in stages}
    if isinstance(config.actor.subgoals, LandmarkGraphConfig):
        changes["actor.subgoals.stochastic_edges"] = False
    return changes


def _anything_reachable(config: Config) -> Mapping[str, Any]:
    """Settings with which an imagined path, of any level, may come further than the distance says
    that it can."""
    critic, levels, changes = config.cost.goal_critic, config.actor.subgoals, {}
    if isinstance(critic, GoalCriticConfig) and critic.reachability:
        changes["cost.goal_critic.reachability"] = 0.0
    if isinstance(levels, HierarchicalJEPAConfig) and levels.reachability:
        changes["actor.subgoals.reachability"] = 0.0
    return changes


def without(config: Config, name: str) -> Config:
    """The recipe without a part. Raises ConfigError for an unknown name, or for no change."""
    changes, parts = removals(config), f"it has {', '.join(removable(config))}"
    if name not in changes:
        raise ConfigError(f"--without {name!r}: {config.recipe} has no such part; {parts}")
    return _changed(config, changes[name], f"--without {name}", parts)


def removable(config: Config) -> list[str]:
    """The parts that this recipe has and `--without` can remove."""
    return [name for name, changes in removals(config).items()
            if override(config, changes) != config]  # fmt: skip


def swap(config: Config, swap_spec: str) -> Config:
    """`component=choice` (case does not matter) -> the recipe with the choice's defaults in that
    component, which is named by its path or by the end of it: `planner=CEM`."""
    component, _, choice = swap_spec.partition("=")
    try:
        path = find_component(component)
        settings = component_of(path, choice)
    except ConfigError as error:
        raise ConfigError(f"--swap {swap_spec!r}: write component=choice; {error}") from None
    changes = {path: settings}
    if path == "actor.subgoals":  # with the stage that trains them, and without that of others
        is_graph = isinstance(settings, LandmarkGraphConfig)
        is_hjepa = isinstance(settings, HierarchicalJEPAConfig)
        landmarks = config.find(SelectLandmarks) or SelectLandmarks()
        hierarchy = config.find(TrainHierarchy) or TrainHierarchy()
        changes["stages.select_landmarks"] = landmarks if is_graph else None
        changes["stages.train_hierarchy"] = hierarchy if is_hjepa else None
    return _changed(config, changes, f"--swap {swap_spec}")


def _changed(config: Config, changes: Mapping[str, Any], what: str, advice: str = "") -> Config:
    changed = override(config, changes)
    if changed == config:
        end = f"; {advice}" if advice else ""
        raise ConfigError(f"{what} changes nothing in {config.recipe}{end}")
    return changed


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
