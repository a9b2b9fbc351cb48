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

from study import NO_CHANGES, Study, Table, main, mean_and_seeds

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.components import (
    CEMConfig,
    CollocationConfig,
    GlimpseConfig,
    GlimpseDynamicsConfig,
    HierarchicalJEPAConfig,
    JEPALevelConfig,
    MPPIConfig,
    NoPolicyProposalConfig,
    SharedCriticConfig,
)
from ami_agent.config import override
from ami_agent.evaluation.evaluate import evaluate_modes
from ami_agent.training import TrainHierarchy
from modules.actor.subgoals import Flat

BANDS = ("short", "medium", "long")
LEVELS = {
    "shared": HierarchicalJEPAConfig(),
    "own": HierarchicalJEPAConfig(level=JEPALevelConfig(state_dim=16)),
    "three": HierarchicalJEPAConfig(steps_per_level=(4, 3)),
    "scene": HierarchicalJEPAConfig(
        level=JEPALevelConfig(
            dynamics=GlimpseDynamicsConfig(glimpse=GlimpseConfig(radius=4)),
            distance=SharedCriticConfig(),
        )
    ),
}
SCENES = TrainHierarchy(prediction=1000, variance=0, covariance=0)
"""For a level that shares keypoint-map states, of whose 404 numbers only 4 change."""
CRITICS = (400, 800, 1500)
"""Updates of the critic; the last is the recipe's."""


class Mazes(Study):
    """Agents with names like "maze 800": a recipe, and the updates of its critic."""

    def of_seed(self, name: str, seed: int) -> ami.Config:
        recipe, critic, *kind = name.split()
        config = self.config(recipe)
        if kind:
            config = override(config, {"actor.subgoals": LEVELS[kind[0]]})
        if kind == ["scene"]:
            config = override(config, {"stages.train_hierarchy": SCENES})
        own = {"maze_seed": seed} if "maze_seed" in config.env.options else {}

        def owned(env: EnvConfig) -> EnvConfig:
            return replace(env, options={**env.options, **own})

        changes = {
            "env": owned(config.env),
            "eval_env": owned(config.eval_env),
            "stages.distill_policy": None,
            "actor.policy_proposal": NoPolicyProposalConfig(),
            "stages.train_goal_critic.optim.steps": int(critic),
        }
        return override(config, changes)

    def plan_metrics_of(
        self, name: str, task: str, *, flat: bool, changes: Mapping[str, Any] = NO_CHANGES
    ) -> list[Any]:
        """The metrics of Mode-2, for every seed; `changes` are of settings after training."""

        def evaluate(agent: ami.Agent, env: EnvConfig, first_seed: int) -> Any:
            if flat:
                agent.subgoals = Flat()
            by_mode = evaluate_modes(
                agent, env, modes=("plan",), task=task, episodes=self.episodes, seed=first_seed
            )
            return by_mode["plan"]

        return self.of_agents(name, f"{task} {'flat' if flat else 'led'}", evaluate, changes)


def success(found: Sequence[Any]) -> str:
    """Percent of the episodes that end in success."""
    return mean_and_seeds([100 * metrics["final_success"]["mean"] for metrics in found], 0)


def ms(found: Sequence[Any]) -> str:
    """Milliseconds per action in a batch."""
    return mean_and_seeds([metrics["ms_per_action_batched"] for metrics in found])


def by_distance(
    study: Mazes, recipe: str, critics: Sequence[int], bands: Sequence[str],
    kinds: Sequence[str] = (),
) -> Table:  # fmt: skip
    """Flat, with landmarks, and with learned levels of these kinds."""
    rows = []
    for critic in critics:
        name = f"{recipe} {critic}"
        variants = {"flat": (name, True), "landmarks": (name, False)}
        variants |= {f"learned, {kind}": (f"{name} {kind}", False) for kind in kinds}
        for label, (agent, flat) in variants.items():
            found = {b: study.plan_metrics_of(agent, b, flat=flat) for b in bands}
            last = found[bands[-1]]
            steps = mean_and_seeds([f["baselines"]["oracle"]["steps"]["mean"] for f in last], 0)
            rows.append([str(critic), label, *map(success, found.values()), steps, ms(last)])
    columns = ["critic", "planner", *(f"{band} %" for band in bands)]
    return [*columns, f"steps of the oracle, {bands[-1]}", "ms batched"], rows


def by_planner(study: Mazes) -> Table:
    """Gradient, collocation and sampling planners of the same agents, flat and with landmarks."""
    rows = []
    others = {
        "collocation, horizon 8": CollocationConfig(
            horizon=8, iterations=16, warm_iterations=8, polish_steps=4
        ),
        "collocation, horizon 24": CollocationConfig(
            num_proposals=2, warm_iterations=8, polish_steps=4
        ),
        "CEM 64 x 4": CEMConfig(),
        "MPPI 64 x 4": MPPIConfig(),
    }
    swaps = {
        "gradient": {},
        **{label: {"actor.planner": planner} for label, planner in others.items()},
    }
    for label, changes in swaps.items():
        for flat in (True, False):
            found = [
                study.plan_metrics_of("maze 1500", b, flat=flat, changes=changes)
                for b in ("short", "long")
            ]
            subgoals = "flat" if flat else "landmarks"
            rows.append([label, subgoals, *map(success, found), ms(found[1])])
    return ["planner", "subgoals", "short %", "long %", "ms batched"], rows


def by_level(study: Mazes) -> Table:
    """Learned levels above, beside none and beside landmarks, with the critic of fewer updates; the
    prior is left out, and subgoals are snapped to memories, after training."""
    critic, shared = CRITICS[1], LEVELS["shared"]
    learned = f"maze-levels {critic}"
    runs: dict[str, tuple[str, bool, dict[str, Any]]] = {
        "none": (f"maze {critic}", True, {}),
        "landmarks": (f"maze {critic}", False, {}),
        "learned, shared states": (f"{learned} shared", False, {}),
        "the same without prior": (
            f"{learned} shared", False, {"actor.subgoals": replace(shared, prior_weight=0.0)},
        ),
        "the same, snapped to memories": (
            f"{learned} shared", False, {"actor.subgoals": replace(shared, snap_to_memory=True)},
        ),
        "learned, states of its own": (f"{learned} own", False, {}),
        "two learned levels": (f"{learned} three", False, {}),
    }  # fmt: skip
    rows = []
    for label, (name, flat, changes) in runs.items():
        found = [
            study.plan_metrics_of(name, band, flat=flat, changes=changes)
            for band in ("short", "long")
        ]
        rows.append([label, *map(success, found), ms(found[1])])
    return ["levels above", "short %", "long %", "ms batched"], rows


TABLES: Mapping[str, Callable[[Mazes], Table]] = {
    "distance": lambda study: by_distance(study, "maze", CRITICS, BANDS),
    "levels": by_level,
    "planners": by_planner,
    "pixels": lambda study: by_distance(study, "maze-pixels", CRITICS[1:], ("short", "long")),
    "size 7": lambda study: by_distance(study, "maze-7", (3000,), ("short", "long")),
    "unseen": lambda study: by_distance(study, "maze-random", (600,), BANDS, ["scene"]),
    "slow": lambda study: by_distance(study, "two-rooms-slow", (2000,), ("reach",)),
    "size 9": lambda study: by_distance(study, "maze-9", (6000,), ("short", "long")),
}


if __name__ == "__main__":
    main(__doc__, Mazes, Path("runs/hierarchy"), TABLES)
