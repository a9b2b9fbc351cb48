"""The value of levels above: mazes by distance to the goal and by size, with and without subgoals,
with critics trained for a short and for a long time.

    python benchmarks/hierarchy.py --seeds 3 --episodes 100
    python benchmarks/hierarchy.py --only distance

"flat" is the same agent without its levels above. Every seed has a maze of its own; in "unseen"
every episode has one that is not in the training data; "slow" is two rooms with a point mass that
takes a hundred steps or more. Missing agents are trained into runs/hierarchy, where results are
kept, too: a command that was stopped continues with what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from study import NO_CHANGES, Study, Table, main, mean_and_seeds, success

import ami_agent as ami
from ami_agent import components
from ami_agent.adapters.env import EnvConfig
from ami_agent.config import override
from ami_agent.evaluation.evaluate import evaluate_modes
from ami_agent.training import DistillLandmarkPaths, TrainHierarchy

BANDS = ("short", "medium", "long")
ENDS = ("short", "long")
SECOND = components.HierarchicalJEPAConfig(subgoal_step=2, reachability=1.0, replan_every=3)
"""The level of the recipe maze-levels, whose subgoal is the second of two planned states."""
LEVELS = {
    "second": SECOND,
    "shared": components.HierarchicalJEPAConfig(),
    "own": components.HierarchicalJEPAConfig(level=components.JEPALevelConfig(state_dim=16)),
    "three": components.HierarchicalJEPAConfig(steps_per_level=(4, 3)),
    "scene": components.HierarchicalJEPAConfig(
        level=components.JEPALevelConfig(
            dynamics=components.GlimpseDynamicsConfig(glimpse=components.GlimpseConfig(radius=4)),
            distance=components.SharedCriticConfig(),
        )
    ),
}
SCENES = TrainHierarchy(prediction=1000, variance=0, covariance=0)
"""For a level that shares keypoint-map states, of whose 404 numbers only 4 change."""
CRITICS = (400, 800, 1500)
"""Updates of the critic; the last is the recipe's."""


class Mazes(Study):
    """Agents with names like "maze 800 paths": a recipe, the updates of its critic, the kind of its
    learnt levels if it has any, and whether distances learn from shortest paths."""

    def of_seed(self, name: str, seed: int) -> ami.Config:
        recipe, critic, *kind = name.split()
        paths = DistillLandmarkPaths() if "paths" in kind else None
        kind = [part for part in kind if part != "paths"]
        config = self.config(recipe)
        changes: dict[str, Any] = {
            "stages.distill_policy": None,
            "actor.policy_proposal": None,
            "stages.train_goal_critic.optim.steps": int(critic),
        }
        if recipe == "maze-levels" or paths:
            changes["stages.distill_landmark_paths"] = paths
        if "maze_seed" in config.env.options:
            changes |= {"env.options.maze_seed": seed, "eval_env.options.maze_seed": seed}
        if kind:
            changes["actor.subgoals"] = LEVELS[kind[0]]
        if kind == ["scene"]:
            changes["stages.train_hierarchy"] = SCENES
        return override(config, changes)

    def plan_metrics_of(
        self, name: str, task: str, *, flat: bool, changes: Mapping[str, Any] = NO_CHANGES
    ) -> list[Any]:
        """The metrics of Mode-2, for every seed; `changes` are of settings after training."""

        def evaluate(agent: ami.Agent, env: EnvConfig, first_seed: int) -> Any:
            if flat:
                agent.subgoals = None
            by_mode = evaluate_modes(
                agent, env, modes=("plan",), task=task, episodes=self.episodes, seed=first_seed
            )
            return by_mode["plan"]

        return self.of_agents(name, f"{task} {'flat' if flat else 'led'}", evaluate, changes)


Runs = Mapping[tuple[str, ...], tuple[str, bool, Mapping[str, Any]]]
"""By the labels of a row: an agent, whether it is flat, and changes of settings after training."""


def compare(study: Mazes, columns: Sequence[str], bands: Sequence[str], runs: Runs) -> Table:
    """Percent of success by band of distances, and milliseconds per action in a batch."""
    rows = []
    for labels, (name, flat, changes) in runs.items():
        found = [study.plan_metrics_of(name, b, flat=flat, changes=changes) for b in bands]
        steps = [f["baselines"]["oracle"]["steps"]["mean"] for f in found[-1]]
        ms = [f["ms_per_action_batched"] for f in found[-1]]
        successes = [mean_and_seeds(map(success, by_seed), 0) for by_seed in found]
        rows.append([*labels, *successes, mean_and_seeds(steps, 0), mean_and_seeds(ms)])
    oracle = f"steps of the oracle, {bands[-1]}"
    return [*columns, *(f"{band} %" for band in bands), oracle, "ms batched"], rows


def by_distance(
    study: Mazes, recipe: str, critics: Sequence[int], bands: Sequence[str],
    kinds: Sequence[str] = (),
) -> Table:  # fmt: skip
    """Without levels above, with landmarks, and with learned levels of these kinds."""
    runs: dict[tuple[str, ...], tuple[str, bool, Mapping[str, Any]]] = {}
    for critic in map(str, critics):
        runs[critic, "flat"] = (f"{recipe} {critic}", True, {})
        runs[critic, "landmarks"] = (f"{recipe} {critic}", False, {})
        for kind in kinds:
            runs[critic, f"learned, {kind}"] = (f"{recipe} {critic} {kind}", False, {})
    return compare(study, ["critic", "planner"], bands, runs)


def by_planner(study: Mazes) -> Table:
    """Gradient, collocation and sampling planners of the same agents, flat and with landmarks."""
    fast = components.CollocationConfig(warm_iterations=8, polish_steps=4)
    planners = {
        "collocation, horizon 8": replace(fast, horizon=8, iterations=16),
        "collocation, horizon 24": replace(fast, num_proposals=2),
        "CEM 64 x 4": components.CEMConfig(),
        "MPPI 64 x 4": components.MPPIConfig(),
    }
    changes = {label: {"actor.planner": planner} for label, planner in planners.items()}
    runs = {
        (label, "flat" if flat else "landmarks"): ("maze 1500", flat, change)
        for label, change in {"gradient": {}, **changes}.items()
        for flat in (True, False)
    }
    return compare(study, ["planner", "subgoals"], ENDS, runs)


def by_level(study: Mazes) -> Table:
    """Learned levels above, beside none and beside landmarks, with the critic of fewer updates; the
    prior is left out, and subgoals are snapped to memories, after training."""
    critic, shared = CRITICS[1], LEVELS["shared"]
    learned = f"maze-levels {critic}"
    no_prior = {"actor.subgoals": replace(shared, prior_weight=0.0)}
    snapped = {"actor.subgoals": replace(shared, snap_to_memory=True)}
    runs: Runs = {
        ("none",): (f"maze {critic}", True, {}),
        ("landmarks",): (f"maze {critic}", False, {}),
        ("learned, shared states",): (f"{learned} shared", False, {}),
        ("the same without prior",): (f"{learned} shared", False, no_prior),
        ("the same, snapped to memories",): (f"{learned} shared", False, snapped),
        ("learned, states of its own",): (f"{learned} own", False, {}),
        ("two learned levels",): (f"{learned} three", False, {}),
    }
    return compare(study, ["levels above"], ENDS, runs)


def by_distance_data(study: Mazes) -> Table:
    """What dynamic programming over recorded states is worth to a critic of fewer updates: flat,
    with landmarks that it measures, and with a learnt level whose own distance is second too."""
    critic = CRITICS[1]
    plain, paths, levels = f"maze {critic}", f"maze {critic} paths", f"maze-levels {critic}"
    first = {"actor.subgoals": replace(SECOND, subgoal_step=1)}
    anywhere = {"actor.subgoals": replace(SECOND, reachability=0.0)}
    often = {"actor.subgoals": replace(SECOND, replan_every=1)}
    runs: Runs = {
        ("recorded steps", "none"): (plain, True, {}),
        ("recorded steps", "landmarks"): (plain, False, {}),
        ("recorded steps", "learned"): (f"{levels} second", False, {}),
        ("shortest paths", "none"): (paths, True, {}),
        ("shortest paths", "landmarks"): (paths, False, {}),
        ("shortest paths", "learned"): (f"{levels} second paths", False, {}),
        ("shortest paths", "the first state as subgoal"): (f"{levels} second paths", False, first),
        ("shortest paths", "without reachability"): (f"{levels} second paths", False, anywhere),
        ("shortest paths", "planned at every step"): (f"{levels} second paths", False, often),
    }
    return compare(study, ["distances learnt from", "levels above"], ENDS, runs)


TABLES: Mapping[str, Callable[[Mazes], Table]] = {
    "distance": lambda study: by_distance(study, "maze", CRITICS, BANDS),
    "levels": by_level,
    "paths": by_distance_data,
    "planners": by_planner,
    "pixels": lambda study: by_distance(study, "maze-pixels", CRITICS[1:], ENDS),
    "size 7": lambda study: by_distance(study, "maze-7", (3000,), ENDS),
    "unseen": lambda study: by_distance(study, "maze-random", (600,), BANDS, ["scene"]),
    "slow": lambda study: by_distance(study, "two-rooms-slow", (2000,), ("reach",)),
    "size 9": lambda study: by_distance(study, "maze-9", (6000,), ENDS),
}


if __name__ == "__main__":
    main(__doc__, Mazes, Path("runs/hierarchy"), TABLES)
