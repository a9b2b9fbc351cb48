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
from study import Study, first_eval_seed

import ami_agent as ami
from ami_agent.evaluation.evaluate import evaluate_modes
from ami_agent.evaluation.intervals import format_percent, mean, rate
from ami_agent.logger import table
from ami_agent.storage import run_dir


def evaluate_seed(study: Study, name: str, seed: int) -> dict[str, Any]:
    """The metrics of one seed by mode, and the seconds of its training."""
    run, env = study.run(name, seed), study.config(name).eval_env
    by_mode = evaluate_modes(
        ami.load(run), env, episodes=study.episodes, seed=first_eval_seed(seed),
        log=study.console.print,
    )  # fmt: skip
    metrics = {mode: {"recipe": name, **row} for mode, row in by_mode.items()}
    run_dir.write_json(run / "eval.json", metrics)
    return {**metrics, "seconds": run_dir.seconds_of(run)}


def cells(found: list[dict[str, Any]], episodes: int) -> list[str]:
    """Success and steps of a policy, all seeds pooled, and the milliseconds of an agent."""
    final = [f["final_success"]["mean"] for f in found]
    steps = [f["steps"]["mean"] for f in found if f["steps"] is not None]
    by_seed = " ".join(f"{100 * fraction:.1f}" for fraction in final)
    successes = sum(round(fraction * episodes) for fraction in final)
    pooled = rate([1] * successes + [0] * (len(final) * episodes - successes))
    mean_steps = f"{mean(steps)['mean']:.1f}" if steps else "-"
    row = [format_percent(pooled), by_seed, mean_steps]
    if "ms_per_action" in found[0]:
        row += [f"{mean([f[key]['p50'] for f in found])['mean']:.2f}" for key in SPEEDS]
        row.append(f"{mean([f['ms_per_action_batched'] for f in found])['mean']:.3f}")
    return row


SPEEDS = ("ms_per_action", "ms_per_decision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("recipe", choices=list(ami.recipes.RECIPES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=200)
    flags, console = parser.parse_args(), Console(width=120)
    study = Study(Path("runs"), range(flags.seeds), flags.episodes, console)
    metrics = [evaluate_seed(study, flags.recipe, seed) for seed in study.seeds]
    policies = {f"agent, {mode}": [m[mode] for m in metrics] for mode in ("plan", "react")}
    for name in ("random", "oracle"):
        policies[name] = [m["plan"]["baselines"][name] for m in metrics]
    episodes = metrics[0]["plan"]["episodes"]
    rows = [[label, *cells(found, episodes)] for label, found in policies.items()]
    speed = ["ms alone", "actor alone", "ms batched"]
    columns = ["policy", "success at the last step", "by seed", "steps", *speed]
    title = f"{flags.recipe}: {flags.seeds} seeds, {flags.episodes} episodes each"
    console.print(table(title, columns, rows))
    console.print("training, seconds: " + " ".join(f"{m['seconds']:.0f}" for m in metrics))


if __name__ == "__main__":
    main()
