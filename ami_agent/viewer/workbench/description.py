"""What a page draws of the workbench, as JSON: positions, energies, settings, branches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ami_agent.viewer.drawing import term_colors
from ami_agent.viewer.page import Json, number, numbers
from ami_agent.viewer.projectors import PLANE_SIZE, PCAProjector, ProbeProjector
from ami_agent.viewer.workbench.core import Node, Side, SidePlan, Workbench
from modules.cost.cost import Cost

MAX_CACHED = 64  # plans that are kept as JSON
MAX_CANDIDATES = 64  # futures that are drawn
MAX_STEPS = 400  # moments of a branch that are exported: every n-th of a longer one
NO_RISK = "this agent's world model has no latent variables, so it predicts one future"


def describe_workbench(bench: Workbench, title: str, description: Sequence[str]) -> Json:
    """What stays the same: names, choices, and what can be dragged."""
    projector, env, axes = bench.sides[0].projector, bench.simulator.env, ""
    if isinstance(projector, PCAProjector):
        axes = "; ".join(map(": ".join, zip(("across", "up"), projector.axis_labels, strict=False)))
    base = bench.sides[0].variants.base
    return {
        "title": title,
        "description": [*filter(None, (*description, projector.description, axes))],
        "actionNames": [f"{i + 1}" for i in range(base.spec.action_dim)],
        "choices": list(env.spec.choices),
    }


def describe(bench: Workbench) -> Json:
    """What changes with every version."""
    node = bench.node
    pinned = None if bench.pinned is None else bench.nodes[bench.pinned]
    return {
        "version": bench.version,
        "node": describe_node(bench, node),
        "pinned": None if pinned is None else describe_node(bench, pinned),
        "obstacles": bench.simulator.obstacles,
        "sides": [_side(side, node.side_plans.get(n)) for n, side in enumerate(bench.sides)],
        "branches": [_branch(branch) for branch in bench.branches()],
        "tip": bench.tip,
    }


def describe_branch(bench: Workbench, node: Node) -> list[Json]:
    """All moments from the beginning of the episode to this one, for an export."""
    path = bench.path(node)
    interval = -(-len(path) // MAX_STEPS)
    kept = [*path[:-1][::interval], path[-1]]
    return [describe_node(bench, each) for each in kept]


def _branch(branch: Sequence[Node]) -> Json:
    first, last = branch[0], branch[-1].moment
    outcome = f"return {last.total_reward:.4g}"
    successes = [node.moment.step for node in branch if node.moment.success]
    if last.success is not None:
        reached = f"success at step {successes[0]}" if successes else "no success"
        outcome = f"{reached}, {outcome}"
    return {
        "ids": [node.id for node in branch], "start": first.moment.step, "parent": first.parent,
        "label": first.label, "outcome": outcome, "ended": last.done,
    }  # fmt: skip


def describe_node(bench: Workbench, node: Node) -> Json:
    """A moment: its pictures, the path to it, and the plans of every side."""
    moment, first = node.moment, bench.sides[0]
    in_frames = isinstance(first.projector, ProbeProjector)
    goal, pictures = moment.goal_factors, [picture.address for picture in moment.pictures]
    return {
        "id": node.id, "step": moment.step, "seed": moment.seed, "label": node.label,
        "done": moment.done, "success": moment.success, "reward": number(moment.total_reward),
        "size": moment.pictures[0].size if in_frames else (PLANE_SIZE, PLANE_SIZE),
        "picture": pictures[0] if in_frames else None,
        "others": [] if in_frames else pictures,
        "path": _points(_path(bench, node)),
        "goal": _points(bench.simulator.xy(goal)) if in_frames and goal is not None else None,
        "side_plans": [
            _side_plan(side, node.side_plans[n], _drawn_by(first, side))
            for n, side in enumerate(bench.sides) if n in node.side_plans
        ],
        "before": [
            _side_plan(side, node.before[n], _drawn_by(first, side)) if n in node.before else None
            for n, side in enumerate(bench.sides)
        ],
    }  # fmt: skip


def _path(bench: Workbench, node: Node) -> np.ndarray:
    """The positions `[T, 2]` from where the agent was last put by hand."""
    path, first = bench.path(node), bench.sides[0].projector
    start = max(n for n, each in enumerate(path) if n == 0 or each.moment.moved)
    moments = [each.moment for each in path[start:]]
    if isinstance(first, ProbeProjector):
        return first.xy(np.stack([moment.factors for moment in moments]))
    states = [each.side_plans[0].state for each in path[start:]]
    return np.concatenate([first(state) for state in states])


def _drawn_by(first: Side, side: Side) -> bool:
    """Whether the states of the side are drawn in the same picture."""
    same = isinstance(first.projector, ProbeProjector) and isinstance(
        side.projector, ProbeProjector
    )
    return same or side.projector is first.projector


def _side_plan(side: Side, side_plan: SidePlan, is_drawn: bool) -> Json:
    """A plan as the page draws it."""
    made: Json = SIDE_PLANS.get_or_make(side_plan, lambda: _describe(side, side_plan, is_drawn))
    return made


def _describe(side: Side, side_plan: SidePlan, is_drawn: bool) -> Json:
    plan, context = side_plan.plan, side_plan.context

    def drawn(states: Tensor) -> list[list[float | None]]:
        if not (is_drawn and states.numel()):
            return []
        return [_points(line) for line in side.projector(states)]

    futures = plan.candidate_states[0]
    return {
        "planned": drawn(plan.states)[0] if is_drawn else [],
        "candidates": drawn(futures[:: -(-len(futures) // MAX_CANDIDATES) or 1]),
        "subgoals": drawn(plan.upper_plans[0]),
        "terms": {name: number(float(term[0])) for name, term in plan.terms.items()},
        "colors": term_colors(plan.terms),
        "energy": number(float(plan.energy[0])),
        "best": numbers(side_plan.best_energies),
        "value": number(side_plan.critic_value),
        "actions": [numbers(action) for action in plan.actions[0].tolist()],
        "planning": bool(plan.planned[0]),
        "edited": side_plan.edited,
        "ms": number(1000 * side_plan.seconds),
        "settings": {
            "mode": context.mode, "horizon": context.horizon, "iterations": context.iterations,
            "cvar_alpha": context.cvar_alpha, "planner": type(side_plan.agent.planner).__name__,
            "weights": {name: weight for name, weight in context.weights.items()},
            "without": list(side_plan.settings.without),
        },
    }  # fmt: skip


def _side(side: Side, side_plan: SidePlan | None) -> Json:
    """What can be changed of a side."""
    variants, base = side.variants, side.variants.base
    cost: Cost = base.cost
    drives = cost.interoceptive_cost.drives.names
    of_drives = {*drives, *(f"critic_{name}" for name in drives)}
    weights = [name for name in cost.names() if name not in of_drives]
    return {
        "name": side.name,
        "modes": list((base if side_plan is None else side_plan.agent).actors),
        "planners": variants.planners,
        "removable": variants.removable,
        "weights": [name for name in weights if name != "critic" or cost.goal_critic is not None],
        "drives": list(drives),
        "risk": "" if base.evaluator.risk_model is not None else NO_RISK,
    }


def _points(positions: np.ndarray) -> list[float | None]:
    """`[N, 2]` -> x, y, x, y, ..., to a tenth of a pixel; None where there is no number."""
    return [
        round(value, 1) if np.isfinite(value) else None
        for value in np.asarray(positions, dtype=float).reshape(-1).tolist()
    ]


class _Cache(OrderedDict[int, tuple[object, Any]]):
    """What was made of objects lately."""

    def get_or_make(self, source: object, make: Callable[[], Any]) -> Any:
        """What was made of the same object, or what `make` returns."""
        if id(source) not in self or self[id(source)][0] is not source:
            self[id(source)] = source, make()
            if len(self) > MAX_CACHED:
                self.popitem(last=False)
        return self[id(source)][1]


SIDE_PLANS = _Cache()
