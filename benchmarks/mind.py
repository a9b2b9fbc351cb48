"""What each module of the mind is worth: one world model and four tasks, the price of pain, a
memory that is needed, senses that are shut out, critics that look beyond the horizon, and thinking
only where it pays.

    python benchmarks/mind.py --seeds 3 --episodes 100
    python benchmarks/mind.py --only tasks pain

Agents are trained into runs/mind/NAME/SEED where they are not there yet.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import ami_agent as ami
from ami_agent import ablate, runs
from ami_agent.evaluate import EPISODES_FROM, judge, play_many
from ami_agent.life import Act
from ami_agent.players import Begin, Scene, mind
from ami_agent.report import Report, table
from modules.configurator import Assignment

Row = list[str]


class Study:
    """Agents by name and seed, and what they do in the same episodes."""

    def __init__(self, seeds: int, episodes: int, console: Console) -> None:
        self.seeds, self.episodes, self.console = seeds, episodes, console

    def config(self, name: str) -> ami.Config:
        """`recipe` or `recipe without part` or `recipe with box=choice`."""
        recipe, _, part = name.partition(" without ")
        if part:
            return ablate.without(ami.recipes.recipe(recipe), part)
        recipe, _, phrase = name.partition(" with ")
        config = ami.recipes.recipe(recipe)
        return ablate.swap(config, phrase) if phrase else config

    def run(self, name: str, seed: int) -> Path:
        """The run folder, trained if it isn't yet."""
        config, folder = self.config(name), name.replace(" ", "-").replace("=", "-")
        run = Path("runs/mind") / folder / str(seed)
        begun = (run / "config.json").exists()
        if begun:
            runs.check_same(run, config, seed)
        report = Report(run, self.console)
        report.say(f"== {run}")
        ami.train(config, out=run, seed=seed, report=report, resume=begun)
        report.close()
        return run

    def agents(self, name: str, **changes: Any) -> list[ami.Agent]:
        """One of each seed, its settings changed after training."""
        found = []
        for seed in range(self.seeds):
            run = self.run(name, seed)
            found.append(ami.load(run, config=replace(runs.config_of(run), **changes)))
        return found

    def judged(self, name: str, task: str, mode: str = "plan", **changes: Any) -> list[Any]:
        """The figures of every seed."""
        world = self.config(name).evaluation
        return [
            judge(
                agent, world, modes=(mode,), task=task, episodes=self.episodes,
                seed=EPISODES_FROM + 10_000 * seed,
            )[mode]
            for seed, agent in enumerate(self.agents(name, **changes))
        ]  # fmt: skip


def score(figures: Mapping[str, Any]) -> float:
    """The world's own measure, success where it has none."""
    measure = figures["score"] or figures["final_success"]
    return float(measure["mean"])


def told(found: Sequence[float], digits: int = 2) -> str:
    """The mean, and each seed by itself."""
    each = " ".join(f"{value:.{digits}f}" for value in found)
    return f"{sum(found) / len(found):.{digits}f} ({each})"


def tasks(study: Study) -> tuple[list[str], list[Row]]:
    rows = []
    for task in study.config("forage").tasks:
        found = study.judged("forage", task)
        mine = [score(f) for f in found]
        oracle, random = (
            [score(f["baselines"][who]) for f in found] for who in ("oracle", "random")
        )
        share = [100 * m / o for m, o in zip(mine, oracle, strict=True)]
        rows.append([task, told(mine), told(oracle), told(random), told(share, 0)])
    return ["task", "score", "oracle", "random", "% of the oracle's"], rows


def pain(study: Study) -> tuple[list[str], list[Row]]:
    config = study.config("forage")
    flag = config.tasks["flag"]
    brave = {name: weight for name, weight in flag.drives.items() if name != "pain"}
    fearless = replace(flag, drives=brave, limits={})
    rows = []
    for name, assignment in {"with the pain cost": flag, "without": fearless}.items():
        found = study.judged("forage", "flag", tasks={**config.tasks, "flag": assignment})
        damage = [f["felt"]["damage"]["mean"] for f in found]
        success = [100 * f["final_success"]["mean"] for f in found]
        rows.append([name, told(damage, 3), told(success, 1)])
    return ["flag", "damage an episode", "success %"], rows


def switching(agent: ami.Agent, first: Assignment, then: Assignment, at: int) -> Begin:
    """One task, and another from step `at`."""

    def begin(scene: Scene, seed: int) -> Act:
        act, steps = mind(agent, "plan", first)(scene, seed), 0

        def switch(obs: Any) -> torch.Tensor:
            nonlocal steps
            if steps == at:
                agent.configure(then.task(None, "plan"), seed)
            steps += 1
            return act(obs)

        return switch

    return begin


def switch(study: Study) -> tuple[list[str], list[Row]]:
    config = study.config("forage")
    eat, flag = config.tasks["eat"], config.tasks["flag"]
    world, found = config.evaluation.under(flag), []
    for seed, agent in enumerate(study.agents("forage")):
        begin = switching(agent, eat, flag, at=75)
        outcome = play_many(begin, world, study.episodes, EPISODES_FROM + 10_000 * seed, "cpu")
        found.append((float(outcome.score.mean()), float(outcome.felt[:, 3].mean())))
    return ["first", "from step 75", "eaten", "success at the flag"], [
        ["eat", "flag", told([f[1] for f in found]), told([f[0] for f in found])]
    ]


def memory(study: Study) -> tuple[list[str], list[Row]]:
    names = ["cue-corridor", "cue-corridor with recall=belief", "cue-corridor without memory"]
    return _successes(study, names, "reward")


def priming(study: Study) -> tuple[list[str], list[Row]]:
    names = ["two-rooms-distracted", "two-rooms-distracted without priming"]
    return _successes(study, names, "reach")


def _successes(study: Study, names: Sequence[str], task: str) -> tuple[list[str], list[Row]]:
    rows = []
    for name in names:
        found = [100 * f["final_success"]["mean"] for f in study.judged(name, task)]
        rows.append([name, told(found, 1)])
    return ["agent", "success %"], rows


def critic(study: Study) -> tuple[list[str], list[Row]]:
    config, rows = study.config("forage"), []
    for task in ("eat", "flag"):
        known = config.tasks[task]
        blind = replace(known, weights={f"critic_{name}": 0.0 for name in known.drives})
        for name, assignment in {"with critics": known, "without": blind}.items():
            marks = []
            for horizon in (config.planner.horizon, config.planner.horizon // 2):
                short = replace(assignment, horizon=horizon)
                found = study.judged("forage", task, tasks={**config.tasks, task: short})
                marks.append(told([score(f) for f in found]))
            rows.append([task, name, *marks])
    return ["task", "agent", "score, whole horizon", "half"], rows


def auto(study: Study) -> tuple[list[str], list[Row]]:
    rows = []
    for name, task in (("two-rooms", "reach"), ("forage", "eat"), ("forage", "flag")):
        for mode in ("plan", "auto", "react"):
            found = study.judged(name, task, mode)
            figures = (
                [score(f) for f in found],
                [f["final_success"]["mean"] for f in found],
                [100 * f["deliberated"] for f in found],
                [f["ms_per_action"]["mean"] for f in found],
                [f["ms_per_action_batched"] for f in found],
            )
            rows.append([f"{name}, {task}", mode, *map(told, figures)])
    return ["world", "mode", "score", "success", "% deliberated", "ms alone", "ms batched"], rows


CLAIMS: Mapping[str, Callable[[Study], tuple[list[str], list[Row]]]] = {
    "tasks": tasks,
    "pain": pain,
    "switch": switch,
    "memory": memory,
    "priming": priming,
    "critic": critic,
    "auto": auto,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--only", nargs="*", choices=list(CLAIMS), default=list(CLAIMS))
    flags, console = parser.parse_args(), Console(width=140)
    study = Study(flags.seeds, flags.episodes, console)
    for name in flags.only:
        title = f"{name}: mean ({flags.seeds} seeds), {flags.episodes} episodes each"
        console.print(table(title, *CLAIMS[name](study)))


if __name__ == "__main__":
    main()
