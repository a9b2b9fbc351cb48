"""What each module of the mind is worth: one world model and four tasks, the price of pain, a
memory that is needed, senses that are shut out, critics that look beyond the horizon, thinking only
where it pays, curiosity, and what is lost without each part.

    python benchmarks/mind.py --seeds 3 --episodes 100
    python benchmarks/mind.py --only tasks pain

Agents are trained into runs/mind/NAME/SEED where they are not there yet, and figures found once are
kept beside them: a command that was stopped goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from study import Study, first_episode, percent, report, score, told

import ami_agent as ami
from ami_agent.build import build
from ami_agent.evaluate import judge, play_many
from ami_agent.lessons import Live, NoLesson, Pupil
from ami_agent.lessons.life import Explorer
from ami_agent.life import Act, WorldConfig
from ami_agent.players import Begin, Scene, aimless, mind
from modules.actor import NoHabit
from modules.auto import Auto
from modules.configurator import Assignment

Row = list[str]
MODES = ("plan", "auto", "react")


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
    rows, changed = [], {"tasks": {**config.tasks, "flag": fearless}}
    for name, changes in {"with the pain cost": {}, "without": changed}.items():
        found = study.judged("forage", "flag", **changes)
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

    def find(agent: ami.Agent, world: WorldConfig, start: int) -> tuple[float, float]:
        begin = switching(agent, eat, flag, at=75)
        outcome = play_many(begin, world.under(flag), study.episodes, start, "cpu")
        return float(outcome.score.mean()), float(outcome.felt[:, 3].mean())

    found = study.of_agents("forage", f"{eat}, at 75 {flag}", find)
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
    for name, task in (("forage", "eat"), ("two-rooms", "reach")):
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
        by_mode = study.compared(name, task, MODES)
        for mode in MODES:
            found = [figures[mode] for figures in by_mode]
            figures = (
                [score(f) for f in found],
                [f["final_success"]["mean"] for f in found],
                [100 * f["deliberated"] for f in found],
                [f["ms_per_action"]["mean"] for f in found],
                [f["ms_per_action_batched"] for f in found],
            )
            rows.append([f"{name}, {task}", mode, *map(told, figures)])
    return ["world", "mode", "score", "success", "% deliberated", "ms alone", "ms batched"], rows


def learnt(config: ami.Config, world: WorldConfig, by: Sequence[Begin], seed: int) -> ami.Agent:
    """An agent that learns from what others lived in its stead, each for its part of the time."""
    body = world.build(1)
    agent = build(
        config, body.spec, seed=seed, worlds=config.life.worlds, capacity=config.life.steps + 1
    )
    body.close()
    worlds = world.build(config.life.worlds, "cpu", **config.life.options)
    pupils: list[Callable[[], Pupil]] = [
        lambda: Explorer(agent, worlds, config.life, by, seed),
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
    """An agent that has lived by random action explores, and another learns from what it lived:
    half of its life so, half by random action, in as many steps as the first."""
    whole = study.config("forage")
    config = replace(
        whole, life=Live(worlds=250, steps=160),
        objective=replace(whole.objective, learning=replace(whole.objective.learning, steps=2000)),
        foresee=replace(whole.foresee, learning=replace(whole.foresee.learning, steps=1000)),
        amortise=NoLesson(), distil=NoLesson(), auto=Auto.Config(),
    )  # fmt: skip
    found = [
        study.figure(
            f"curiosity for half of the life {seed} {study.episodes} {config}",
            lambda seed=seed: _curious(study, config, seed),
        )
        for seed in study.seeds
    ]
    rows = [
        [who, *(told(list(part), 1) for part in zip(*(marks[who] for marks in found), strict=True))]
        for who in found[0]
    ]
    return ["lived by", "cells of 36", *(f"{task}, % of oracle" for task in whole.tasks)], rows


def _curious(study: Study, config: ami.Config, seed: int) -> dict[str, list[float]]:
    """What each covers, and how well who learnt from its life does every task."""
    explore, start = config.tasks["explore"], first_episode(seed)
    first = learnt(config, config.world, [aimless], seed)
    curious = mind(first, "plan", explore)
    second = learnt(config, config.world, [curious, aimless], seed)
    found = {}
    for who, by, agent in (("random action", aimless, first), ("curiosity", curious, second)):
        world = config.evaluation.under(explore)
        cells = float(play_many(by, world, study.episodes, start, "cpu").score.mean())
        marks = [
            percent(
                judge(
                    agent, config.evaluation, modes=("plan",), task=task,
                    episodes=study.episodes, seed=start,
                )["plan"]
            )
            for task in config.tasks
        ]  # fmt: skip
        found[who] = [cells, *marks]
    return found


def modules(study: Study) -> tuple[list[str], list[Row]]:
    """What is lost without a part of the mind, in percent of the oracle's score. Parts that were
    learnt with the rest are left out before training, the others only when the agent acts."""
    config = study.config("forage")
    plain, first = study.config("two-rooms"), next(iter(config.tasks.values()))
    untold = {n: replace(first, options=task.options) for n, task in config.tasks.items()}
    numb = {
        n: replace(task, drives={}, weights=task.weights or {"effort": 1.0})
        for n, task in config.tasks.items()
    }
    open_eyed = {n: replace(task, attend={}) for n, task in config.tasks.items()}
    cases: list[tuple[str, str, str, str, dict[str, Any]]] = [
        ("configurator", "forage", "flag", "forage", {"tasks": untold}),
        ("priming", "forage", "explore", "forage", {"tasks": open_eyed}),
        ("priming", "two-rooms-distracted", "reach", "two-rooms-distracted without priming", {}),
        ("drives", "forage", "eat", "forage", {"tasks": numb}),
        ("critic", "two-rooms", "reach", "two-rooms", told_of(plain, "reach", critics=False)),
        ("critics", "forage", "eat", "forage", told_of(config, "eat", critics=False)),
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
    for name, task in (("two-rooms", "reach"), ("forage", "flag")):
        by_mode = study.compared(name, task, MODES)
        reacting, thinking = (
            [f[mode]["ms_per_action"]["mean"] for f in by_mode] for mode in ("auto", "plan")
        )
        times = [b / a for a, b in zip(reacting, thinking, strict=True)]
        took = [f"{told(ms, 1)} ms" for ms in (reacting, thinking)]
        rows.append(
            ["policy: always thinking", f"{name}, {task}", *took, f"{told(times, 1)} times"]
        )
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


if __name__ == "__main__":
    report(__doc__, Study, Path("runs/mind"), CLAIMS)
