"""The planners side by side, with the same trained agent, costs, episodes and machine.

python benchmarks/planners.py runs/two-rooms/0 --episodes 200
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console

import ami_agent as ami
from ami_agent import components
from ami_agent.config import Config, override
from ami_agent.logger import table
from ami_agent.storage import run_dir
from modules.types import Settings


def planner_configs(config: Config) -> dict[str, Config]:
    """The agent's own planner as trained, and each planner without the policy proposal; where
    actions are choices, tree search beside straight-through gradients."""
    if isinstance(config.action_space, components.OneHotActions):
        return {
            name: override(config, {"actor.policy_proposal": None, "actor.planner": planner})
            for name, planner in discrete_planners(config.actor.planner.horizon).items()
        }
    gradient = config.actor.planner
    if not isinstance(gradient, components.GradientPlannerConfig):
        gradient = components.GradientPlannerConfig()
    planners = {
        "gradient": gradient,
        "gradient, cold start only": replace(gradient, num_warm_starts=0),
        "CEM 64 x 4": components.CEMConfig(),
        "MPPI 64 x 4": components.MPPIConfig(),
        "CEM 200 x 6": components.CEMConfig(num_samples=200, iterations=6, warm_iterations=6),
        "MPPI 200 x 6": components.MPPIConfig(num_samples=200, iterations=6, warm_iterations=6),
    }
    recovery = components.StuckPerturbationConfig()
    changes = {
        "as trained": {},
        "as trained, stuck recovery": {"actor.stuck_recovery": recovery},
        "as trained, no stuck recovery": {"actor.stuck_recovery": None},
    }
    no_proposal = {"actor.policy_proposal": None}
    for name, planner in planners.items():
        changes[name] = {**no_proposal, "actor.planner": planner}
    return {name: override(config, change) for name, change in changes.items()}


def discrete_planners(horizon: int) -> dict[str, Settings]:
    """Each planner with less and with more time."""
    gradient, tree = components.GradientPlannerConfig, components.TreeSearchConfig

    def descent(iterations: int) -> Settings:
        return gradient(horizon=horizon, iterations=iterations, warm_iterations=iterations)

    return {
        "gradient 4": descent(4),
        "gradient 8": descent(8),
        "gradient 32": descent(32),
        "PUCT 16": tree(horizon=horizon, iterations=16),
        "PUCT 64": tree(horizon=horizon, iterations=64),
        "Gumbel 16": tree(horizon=horizon, iterations=16, num_considered=4),
        "Gumbel 64": tree(horizon=horizon, iterations=64, num_considered=4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--only", nargs="*", default=[], help="names of rows; by default all")
    flags, console = parser.parse_args(), Console(width=120)
    rows = []
    configs = planner_configs(run_dir.config_of(flags.run))
    for name in flags.only or configs:
        config = configs[name]
        agent = ami.load(flags.run, config=config)
        metrics = ami.evaluate(agent, config.eval_env, episodes=flags.episodes)
        mean, (low, high) = metrics["final_success"]["mean"], metrics["final_success"]["ci95"]
        success = f"{100 * mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
        batched, single = metrics["ms_per_action_batched"], metrics["ms_per_action"]["p50"]
        steps = "-" if metrics["steps"] is None else f"{metrics['steps']['mean']:.1f}"
        rows.append([name, success, steps, f"{batched:.3f}", f"{single:.1f}"])
        console.print(rows[-1])
    columns = ["planner", "success at the last step", "steps", "ms batched", "ms alone"]
    console.print(table(f"{flags.run}: {flags.episodes} episodes", columns, rows))


if __name__ == "__main__":
    main()
