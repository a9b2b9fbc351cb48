"""A recipe over several seeds: trains, evaluates both modes on the same held-out episodes, and
prints a table.

    python benchmarks/recipe.py two-rooms --seeds 3 --episodes 200

Runs are kept in runs/RECIPE/SEED; a finished run is evaluated again, not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

import ami_agent as ami
from ami_agent.evaluation.evaluate import FIRST_EVAL_SEED, evaluate_modes
from ami_agent.evaluation.intervals import mean, pooled_rate
from ami_agent.logger import RunLogger, table
from ami_agent.storage import run_dir


def evaluate_seed(name: str, seed: int, episodes: int, console: Console) -> dict[str, Any]:
    """The metrics of one seed by mode, and the seconds of its training."""
    run, config = Path("runs") / name / str(seed), ami.recipes.recipe(name)
    if (run / "eval.json").exists():
        run_dir.check_same(run, config, seed)
    else:
        logger = RunLogger(run, console)
        logger.info(f"== {run}")
        ami.train(config, out=run, seed=seed, logger=logger, resume=(run / "config.json").exists())
        logger.close()
    by_mode = evaluate_modes(
        ami.load(run), config.eval_env, episodes=episodes,
        seed=FIRST_EVAL_SEED + 10_000 * seed, log=console.print,
    )  # fmt: skip
    metrics = {mode: {"recipe": name, **row} for mode, row in by_mode.items()}
    run_dir.write_json(run / "eval.json", metrics)
    return {**metrics, "seconds": sum(run_dir.manifest_of(run)["seconds"].values())}


def rows(metrics: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of the agent, random actions and the oracle, all seeds pooled."""
    policies = {f"agent, {mode}": [m[mode] for m in metrics] for mode in ("plan", "react")}
    for name in ("random", "oracle"):
        policies[name] = [m["plan"]["baselines"][name] for m in metrics]
    episodes = metrics[0]["plan"]["episodes"]
    return [[label, *_cells(found, episodes)] for label, found in policies.items()]


def _cells(found: list[dict[str, Any]], episodes: int) -> list[str]:
    final = [f["final_success"]["mean"] for f in found]
    steps = [f["steps"]["mean"] for f in found if f["steps"] is not None]
    ms = [f["ms_per_action"]["p50"] for f in found if "ms_per_action" in f]
    actor = [f["ms_per_decision"]["p50"] for f in found if "ms_per_decision" in f]
    batched = [f["ms_per_action_batched"] for f in found if "ms_per_action" in f]
    return [
        pooled_rate(final, episodes),
        " ".join(f"{100 * fraction:.1f}" for fraction in final),
        f"{mean(steps)['mean']:.1f}" if steps else "-",
        f"{mean(ms)['mean']:.2f}" if ms else "",
        f"{mean(actor)['mean']:.2f}" if actor else "",
        f"{mean(batched)['mean']:.3f}" if batched else "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("recipe", choices=list(ami.recipes.RECIPES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=200)
    flags, console = parser.parse_args(), Console(width=120)
    seeds = range(flags.seeds)
    metrics = [evaluate_seed(flags.recipe, seed, flags.episodes, console) for seed in seeds]
    speed = ["ms alone", "actor alone", "ms batched"]
    columns = ["policy", "success at the last step", "by seed", "steps", *speed]
    title = f"{flags.recipe}: {flags.seeds} seeds, {flags.episodes} episodes each"
    console.print(table(title, columns, rows(metrics)))
    console.print("training, seconds: " + " ".join(f"{m['seconds']:.0f}" for m in metrics))


if __name__ == "__main__":
    main()
