"""What a level above is worth: mazes by distance to the goal and by size, flat and from landmark to
landmark, with critics that learnt for a short while and for a long one.

    python benchmarks/hierarchy.py --seeds 3 --episodes 100
    python benchmarks/hierarchy.py --only distance

Flat and hierarchical is the same agent, without and with its upper level. Every seed has a maze of
its own, but for "unseen", every episode one that was never seen in training, and for "slow": two
rooms, and a dot that takes a hundred steps or more. Agents are trained
into runs/hierarchy where they are not there yet, and figures found once are kept beside them: a
command that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from study import Study, Table, report, told

import ami_agent as ami
from ami_agent.adapters.env import EnvConfig
from ami_agent.components import (
    CEMConfig,
    CollocationConfig,
    Flat,
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
from ami_agent.training import TrainHierarchy, TrainQuasimetric

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
"""Of a level that shares the states of scenes: 4 of their 404 numbers move."""
CRITICS = (400, 800, 1500)
"""Updates: for a moment, for a short while, and as in the recipe."""


class Mazes(Study):
    """Agents of names like "maze 800": a recipe, and updates of its critic."""

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

        assert isinstance(config.stages["train_goal_critic"], TrainQuasimetric)
        optim = replace(config.stages["train_goal_critic"].optim, steps=int(critic))
        return override(config, {"env": owned(config.env), "eval_env": owned(config.eval_env), "stages.distill_policy": None, "actor.policy_proposal": NoPolicyProposalConfig(), "stages.train_goal_critic.optim": optim})  # fmt: skip

    def reached(self, name: str, task: str, *, flat: bool, **changes: Any) -> list[Any]:
        """The figures of Mode-2, of every seed; `changes` are of settings after training."""

        def find(agent: ami.Agent, env: EnvConfig, start: int) -> Any:
            if flat:
                agent.subgoals = Flat()
            found = evaluate_modes(
                agent, env, modes=("plan",), task=task, episodes=self.episodes, seed=start
            )
            return found["plan"]

        return self.of_agents(name, f"{task} {'flat' if flat else 'led'}", find, **changes)


def by_distance(
    study: Mazes, recipe: str, critics: Sequence[int], bands: Sequence[str],
    learnt: Sequence[str] = (),
) -> Table:  # fmt: skip
    """Flat, led by landmarks, and by learnt levels of these kinds."""
    rows = []
    for critic in critics:
        name = f"{recipe} {critic}"
        ways = {"flat": (name, True), "landmarks": (name, False)}
        ways |= {f"learnt, {kind}": (f"{name} {kind}", False) for kind in learnt}
        for label, (agent, flat) in ways.items():
            found = {b: study.reached(agent, b, flat=flat) for b in bands}
            metrics = [told([100 * f["final_success"]["mean"] for f in found[b]], 0) for b in bands]
            ms = told([f["ms_per_action_batched"] for f in found[bands[-1]]])
            oracle = [f["baselines"]["oracle"]["steps"]["mean"] for f in found[bands[-1]]]
            rows.append([str(critic), label, *metrics, told(oracle, 0), ms])
    columns = ["critic", "planner", *(f"{band} %" for band in bands)]
    return [*columns, f"steps of the oracle, {bands[-1]}", "ms batched"], rows


def by_planner(study: Mazes) -> Table:
    """Mode-2 of the same agents by gradient, by collocation and by sampling, flat and led."""
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
    swaps = {"gradient": {}, **{label: {"planner": planner} for label, planner in others.items()}}
    for label, changes in swaps.items():
        for flat in (True, False):
            found = [study.reached("maze 1500", b, flat=flat, **changes) for b in ("short", "long")]
            metrics = [told([100 * f["final_success"]["mean"] for f in band], 0) for band in found]
            ms = told([f["ms_per_action_batched"] for f in found[1]])
            rows.append([label, "flat" if flat else "landmarks", *metrics, ms])
    return ["planner", "above it", "short %", "long %", "ms batched"], rows


def by_level(study: Mazes) -> Table:
    """Levels above that are learnt, beside none and beside landmarks, with the brief critic; the
    prior is taken away, and subgoals are grounded, after training."""
    briefly, shared = CRITICS[1], LEVELS["shared"]
    learnt = f"maze-levels {briefly}"
    runs: dict[str, tuple[str, bool, dict[str, Any]]] = {
        "none": (f"maze {briefly}", True, {}),
        "landmarks": (f"maze {briefly}", False, {}),
        "learnt, shared states": (f"{learnt} shared", False, {}),
        "the same without prior": (
            f"{learnt} shared", False, {"hierarchy": replace(shared, prior_weight=0.0)},
        ),
        "the same, grounded": (
            f"{learnt} shared", False, {"hierarchy": replace(shared, snap_to_memory=True)},
        ),
        "learnt, states of its own": (f"{learnt} own", False, {}),
        "two learnt levels": (f"{learnt} three", False, {}),
    }  # fmt: skip
    rows = []
    for label, (name, flat, changes) in runs.items():
        found = [study.reached(name, band, flat=flat, **changes) for band in ("short", "long")]
        metrics = [told([100 * f["final_success"]["mean"] for f in band], 0) for band in found]
        rows.append([label, *metrics, told([f["ms_per_action_batched"] for f in found[1]])])
    return ["levels above", "short %", "long %", "ms batched"], rows


CLAIMS: Mapping[str, Callable[[Mazes], Table]] = {
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
    report(__doc__, Mazes, Path("runs/hierarchy"), CLAIMS)
