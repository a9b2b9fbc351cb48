"""What each module of the mind is worth: one world model and four tasks, the price of pain, a
memory that is needed, senses that are shut out, critics that look beyond the horizon, thinking only
where it pays, curiosity, and what is lost without each part.

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
from ami_agent.build import build
from ami_agent.evaluate import EPISODES_FROM, judge, play_many
from ami_agent.lessons import Live, Pupil
from ami_agent.lessons.life import Explorer
from ami_agent.life import Act, WorldConfig
from ami_agent.players import Begin, Scene, aimless, mind
from ami_agent.report import Report, table
from modules.actor import NoHabit
from modules.configurator import Assignment

Row = list[str]


class Study:
    """Agents by name and seed, and what they do in the same episodes."""

    def __init__(self, seeds: int, episodes: int, console: Console) -> None:
        self.seeds, self.episodes, self.console = seeds, episodes, console
        self.known: dict[str, list[Any]] = {}  # figures, by what was asked

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
        """The figures of every seed, found once."""
        world, asked = self.config(name).evaluation, repr((name, task, mode, changes))
        if asked not in self.known:
            self.known[asked] = [
                judge(
                    agent, world, modes=(mode,), task=task, episodes=self.episodes,
                    seed=EPISODES_FROM + 10_000 * seed,
                )[mode]
                for seed, agent in enumerate(self.agents(name, **changes))
            ]  # fmt: skip
        return self.known[asked]


def score(figures: Mapping[str, Any]) -> float:
    """The world's own measure, success where it has none."""
    measure = figures["score"] or figures["final_success"]
    return float(measure["mean"])


def percent(figures: Mapping[str, Any]) -> float:
    """The same, in percent of the oracle's."""
    return 100 * score(figures) / score(figures["baselines"]["oracle"])


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
        share = [percent(f) for f in found]
        rows.append([task, told(mine), told(oracle), told(random), told(share, 1)])
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


def told_of(config: ami.Config, task: str, *, critics: bool, horizon: int = 0) -> dict[str, Any]:
    """What to change after training: nothing, or a task's horizon and whether critics count."""
    known = config.tasks[task]
    blind = {f"critic_{drive}": 0.0 for drive in known.drives} or {"critic": 0.0, "reach": 1.0}
    weights = known.weights if critics else {**known.weights, **blind}
    changed = replace(known, weights=weights, horizon=horizon)
    return {} if changed == known else {"tasks": {**config.tasks, task: changed}}


def critic(study: Study) -> tuple[list[str], list[Row]]:
    rows = []
    for name, task in (("forage", "eat"), ("forage", "flag"), ("two-rooms", "reach")):
        config = study.config(name)
        for critics in (True, False):
            marks = []
            for horizon in (0, config.planner.horizon // 2):
                changes = told_of(config, task, critics=critics, horizon=horizon)
                found = study.judged(name, task, **changes)
                marks.append(told([percent(f) for f in found], 1))
            rows.append([f"{name}, {task}", "with critics" if critics else "without", *marks])
    return ["world", "agent", "% of the oracle's, whole horizon", "half"], rows


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


def learnt(config: ami.Config, world: WorldConfig, by: Begin, seed: int) -> ami.Agent:
    """An agent that learns from what `by` lived in its stead."""
    body = world.build(1)
    agent = build(
        config, body.spec, seed=seed, worlds=config.life.worlds, capacity=config.life.steps + 1
    )
    body.close()
    worlds = world.build(config.life.worlds, "cpu", **config.life.options)
    pupils: list[Callable[[], Pupil]] = [
        lambda: Explorer(agent, worlds, config.life, [by], seed),
        lambda: config.objective.begin(agent, world, seed),
        lambda: config.foresee.begin(agent, world, seed),
    ]
    for begin in pupils:
        pupil = begin()
        while pupil.step < pupil.total:
            pupil.update()
        pupil.finish()
    return agent.eval()


def curiosity(study: Study) -> tuple[list[str], list[Row]]:
    """An agent that has lived by random action explores, and another learns from what it lived."""
    whole = study.config("forage")
    config = replace(
        whole, life=Live(worlds=250, steps=160), distil=ami.lessons.NoLesson(),
        objective=replace(whole.objective, learning=replace(whole.objective.learning, steps=2000)),
        foresee=replace(whole.foresee, learning=replace(whole.foresee.learning, steps=1000)),
    )  # fmt: skip
    explore, found = whole.tasks["explore"], {"random action": [], "curiosity": []}
    for seed in range(study.seeds):
        first = learnt(config, config.world, aimless, seed)
        curious = mind(first, "plan", explore)
        agents = {"random action": first}
        agents["curiosity"] = learnt(config, config.world, curious, seed)
        world, start = config.evaluation.under(explore), EPISODES_FROM + 10_000 * seed
        for (who, agent), by in zip(agents.items(), (aimless, curious), strict=True):
            cells = float(play_many(by, world, study.episodes, start, "cpu").score.mean())
            marks = [
                percent(
                    judge(
                        agent, config.evaluation, modes=("plan",), task=task,
                        episodes=study.episodes, seed=start,
                    )["plan"]
                )
                for task in whole.tasks
            ]  # fmt: skip
            found[who].append([cells, *marks])
    rows = [
        [who, *(told(list(part), 1) for part in zip(*marks, strict=True))]
        for who, marks in found.items()
    ]
    return ["lived by", "cells of 36", *(f"{task}, % of oracle" for task in whole.tasks)], rows


def modules(study: Study) -> tuple[list[str], list[Row]]:
    """What is lost without a part of the mind, in percent of the oracle's score. Parts that were
    learnt with the rest are left out before training, the others only when the agent acts."""
    config = study.config("forage")
    first = next(iter(config.tasks.values()))
    untold = {n: replace(first, options=task.options) for n, task in config.tasks.items()}
    numb = {
        n: replace(task, drives={}, weights=task.weights or {"effort": 1.0})
        for n, task in config.tasks.items()
    }
    open_eyed = {n: replace(task, attend={}) for n, task in config.tasks.items()}
    cases: list[tuple[str, str, str, str, dict[str, Any]]] = [
        ("configurator", "forage", "flag", "forage", {"tasks": untold}),
        ("configurator", "forage", "explore", "forage", {"tasks": untold}),
        ("priming", "forage", "explore", "forage", {"tasks": open_eyed}),
        ("priming", "forage", "stay", "forage", {"tasks": open_eyed}),
        ("priming", "two-rooms-distracted", "reach", "two-rooms-distracted without priming", {}),
        ("drives", "forage", "eat", "forage", {"tasks": numb}),
        ("drives", "forage", "flag", "forage", {"tasks": numb}),
        ("critics", "forage", "eat", "forage", told_of(config, "eat", critics=False)),
        ("critics", "forage", "flag", "forage", told_of(config, "flag", critics=False)),
        ("memory", "cue-corridor", "reward", "cue-corridor without memory", {}),
        ("policy's warm start", "two-rooms", "reach", "two-rooms", {"habit": NoHabit.Config()}),
        ("policy's warm start", "forage", "eat", "forage", {"habit": NoHabit.Config()}),
    ]
    rows = []
    for part, name, task, other, changes in cases:
        whole, less = study.judged(name, task), study.judged(other, task, **changes)
        marks = [[percent(f) for f in found] for found in (whole, less)]
        lost = [a - b for a, b in zip(*marks, strict=True)]
        rows.append([part, f"{name}, {task}", *(told(m, 1) for m in (*marks, lost))])
    return ["without", "world", "% of oracle, whole mind", "without it", "points lost"], rows


CLAIMS: Mapping[str, Callable[[Study], tuple[list[str], list[Row]]]] = {
    "tasks": tasks,
    "pain": pain,
    "switch": switch,
    "memory": memory,
    "priming": priming,
    "critic": critic,
    "auto": auto,
    "curiosity": curiosity,
    "modules": modules,
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
