"""A recipe over several seeds: trains, evaluates both modes on the same held-out episodes, and
prints the table of the README.

    python benchmarks/recipe.py two-rooms --seeds 3 --episodes 200

Runs land in runs/RECIPE/SEED; a finished run is evaluated again, not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

import ami_agent as ami
from ami_agent import runs
from ami_agent.evaluate import EPISODES_FROM, judge
from ami_agent.report import Report, table
from ami_agent.statistics import mean, pooled


def one(name: str, seed: int, episodes: int, console: Console) -> dict[str, Any]:
    """Both modes of one seed, and the seconds its training took."""
    run, config = Path("runs") / name / str(seed), ami.recipes.recipe(name)
    if (run / "eval.json").exists():
        runs.check_same(run, config, seed)
    else:
        report = Report(run, console)
        report.say(f"== {run}")
        ami.train(config, out=run, seed=seed, report=report, resume=(run / "config.json").exists())
        report.close()
    found = judge(
        ami.load(run), config.evaluation, episodes=episodes,
        seed=EPISODES_FROM + 10_000 * seed, say=console.print,
    )  # fmt: skip
    marks = {mode: {"recipe": name, **figures} for mode, figures in found.items()}
    runs.write_json(run / "eval.json", marks)
    return {**marks, "seconds": sum(runs.manifest_of(run)["seconds"].values())}


def rows(marks: list[dict[str, Any]]) -> list[list[str]]:
    """Agent, random and oracle, all seeds pooled."""
    players = {f"agent, {mode}": [m[mode] for m in marks] for mode in ("plan", "react")}
    for name in ("random", "oracle"):
        players[name] = [m["plan"]["baselines"][name] for m in marks]
    episodes = marks[0]["plan"]["episodes"]
    return [[who, *_told(found, episodes)] for who, found in players.items()]


def _told(found: list[dict[str, Any]], episodes: int) -> list[str]:
    final = [f["final_success"]["mean"] for f in found]
    steps = [f["steps"]["mean"] for f in found if f["steps"] is not None]
    ms = [f["ms_per_action"]["p50"] for f in found if "ms_per_action" in f]
    actor = [f["ms_per_decision"]["p50"] for f in found if "ms_per_decision" in f]
    batched = [f["ms_per_action_batched"] for f in found if "ms_per_action" in f]
    return [
        pooled(final, episodes),
        " ".join(f"{100 * share:.1f}" for share in final),
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
    marks = [one(flags.recipe, seed, flags.episodes, console) for seed in range(flags.seeds)]
    speed = ["ms alone", "actor alone", "ms batched"]
    columns = ["who", "success at the last step", "by seed", "steps", *speed]
    title = f"{flags.recipe}: {flags.seeds} seeds, {flags.episodes} episodes each"
    console.print(table(title, columns, rows(marks)))
    console.print("training, seconds: " + " ".join(f"{m['seconds']:.0f}" for m in marks))


if __name__ == "__main__":
    main()
