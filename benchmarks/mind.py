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
from ami_agent.adapters.env import ActFn, EnvConfig
from ami_agent.config import build, override
from ami_agent.evaluation.evaluate import evaluate_modes, run_many
from ami_agent.evaluation.policies import (
    EpisodeStart,
    PolicyFactory,
    agent_policy_factory,
    make_random_policy,
)
from ami_agent.training import CollectRandom, StageRun
from ami_agent.training.collect import Collector
from modules.actor.adaptive import AdaptiveActorConfig
from modules.actor.policy import NoPolicyProposalConfig
from modules.configurator import TaskSpec

Row = list[str]
MODES = ("plan", "auto", "react")


def tasks(study: Study) -> tuple[list[str], list[Row]]:
    rows = []
    for task in study.config("forage").tasks:
        found = study.judged("forage", task)
        mine = [score(f) for f in found]
        oracle, random = (
            [score(f["baselines"][label]) for f in found] for label in ("oracle", "random")
        )
        fraction = [percent(f) for f in found]
        rows.append([task, told(mine), told(oracle), told(random), told(fraction, 1)])
    return ["task", "score", "oracle", "random", "% of the oracle's"], rows


def pain(study: Study) -> tuple[list[str], list[Row]]:
    config = study.config("forage")
    flag = config.tasks["flag"]
    no_pain_weights = {name: weight for name, weight in flag.drives.items() if name != "pain"}
    no_pain_task = replace(flag, drives=no_pain_weights, limits={})
    rows, changed = [], {"tasks": {**config.tasks, "flag": no_pain_task}}
    for name, changes in {"with the pain cost": {}, "without": changed}.items():
        found = study.judged("forage", "flag", **changes)
        damage = [f["signal_sums"]["damage"]["mean"] for f in found]
        success = [100 * f["final_success"]["mean"] for f in found]
        rows.append([name, told(damage, 3), told(success, 1)])
    return ["flag", "damage an episode", "success %"], rows


def switching(agent: ami.Agent, first: TaskSpec, then: TaskSpec, at: int) -> PolicyFactory:
    """One task, and another from step `at`."""

    def begin(scene: EpisodeStart, seed: int) -> ActFn:
        act, steps = agent_policy_factory(agent, "plan", first)(scene, seed), 0

        def switch(obs: Any) -> torch.Tensor:
            nonlocal steps
            if steps == at:
                agent.set_task(then.to_task(None, "plan"), seed)
            steps += 1
            return act(obs)

        return switch

    return begin


def switch(study: Study) -> tuple[list[str], list[Row]]:
    config = study.config("forage")
    eat, flag = config.tasks["eat"], config.tasks["flag"]

    def find(agent: ami.Agent, env: EnvConfig, start: int) -> tuple[float, float]:
        begin = switching(agent, eat, flag, at=75)
        results = run_many(begin, env.for_task(flag), study.episodes, start, "cpu")
        return float(results.score.mean()), float(results.signal_sums[:, 3].mean())

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


def with_critics(
    config: ami.Config, task: str, *, critics: bool, horizon: int = 0
) -> dict[str, Any]:
    """What to change after training: nothing, or a task's horizon and whether critics count."""
    known = config.tasks[task]
    zero_weights = {f"critic_{drive}": 0.0 for drive in known.drives} or {
        "critic": 0.0,
        "goal_distance": 1.0,
    }
    weights = known.weights if critics else {**known.weights, **zero_weights}
    changed = replace(known, weights=weights, horizon=horizon)
    return {} if changed == known else {"tasks": {**config.tasks, task: changed}}


def critic(study: Study) -> tuple[list[str], list[Row]]:
    rows = []
    for name, task in (("forage", "eat"), ("two-rooms", "reach")):
        config = study.config(name)
        for critics in (True, False):
            metrics = []
            for horizon in (0, config.actor.planner.horizon // 2):
                changes = with_critics(config, task, critics=critics, horizon=horizon)
                found = study.judged(name, task, **changes)
                metrics.append(told([percent(f) for f in found], 1))
            rows.append([f"{name}, {task}", "with critics" if critics else "without", *metrics])
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
                [100 * f["planned"] for f in found],
                [f["ms_per_action"]["mean"] for f in found],
                [f["ms_per_action_batched"] for f in found],
            )
            rows.append([f"{name}, {task}", mode, *map(told, figures)])
    return ["world", "mode", "score", "success", "% deliberated", "ms alone", "ms batched"], rows


def trained_agent(
    config: ami.Config, env: EnvConfig, by: Sequence[PolicyFactory], seed: int
) -> ami.Agent:
    """An agent that learns from what others lived in its stead, each for its part of the time."""
    body = env.build(1)
    agent = build(
        config,
        body.spec,
        seed=seed,
        num_envs=config.stages["collect"].num_envs,
        buffer_size=config.stages["collect"].steps + 1,
    )
    body.close()
    envs = env.build(config.stages["collect"].num_envs, "cpu", **config.stages["collect"].options)
    stage_runs: list[Callable[[], StageRun]] = [
        lambda: Collector(agent, envs, config.stages["collect"], by, seed),
        lambda: config.stages["train_jepa"].start(agent, env, seed),
        lambda: config.stages["train_values"].start(agent, env, seed),
    ]
    for begin in stage_runs:
        stage_run = begin()
        while stage_run.step < stage_run.total:
            stage_run.update()
        stage_run.finish()
    return agent.eval()


def curiosity(study: Study) -> tuple[list[str], list[Row]]:
    """An agent that has lived by random action explores, and another learns from what it lived:
    half of its life so, half by random action, in as many steps as the first."""
    whole = study.config("forage")
    config = override(whole, {"stages.collect": CollectRandom(num_envs=250, steps=160), "stages.train_jepa.optim.steps": 2000, "stages.train_values.optim.steps": 1000, "stages.amortize_policy": None, "stages.distill_policy": None, "actor.adaptive": AdaptiveActorConfig()})  # fmt: skip
    found = [
        study.figure(
            f"curiosity for half of the life {seed} {study.episodes} {config}",
            lambda seed=seed: _curious(study, config, seed),
        )
        for seed in study.seeds
    ]
    rows = [
        [
            label,
            *(
                told(list(part), 1)
                for part in zip(*(metrics[label] for metrics in found), strict=True)
            ),
        ]
        for label in found[0]
    ]
    return ["lived by", "cells of 36", *(f"{task}, % of oracle" for task in whole.tasks)], rows


def _curious(study: Study, config: ami.Config, seed: int) -> dict[str, list[float]]:
    """What each covers, and how well who learnt from its life does every task."""
    explore, start = config.tasks["explore"], first_episode(seed)
    first = trained_agent(config, config.env, [make_random_policy], seed)
    explorer = agent_policy_factory(first, "plan", explore)
    second = trained_agent(config, config.env, [explorer, make_random_policy], seed)
    found = {}
    for label, by, agent in (
        ("random action", make_random_policy, first),
        ("curiosity", explorer, second),
    ):
        env = config.eval_env.for_task(explore)
        cells = float(run_many(by, env, study.episodes, start, "cpu").score.mean())
        metrics = [
            percent(
                evaluate_modes(
                    agent, config.eval_env, modes=("plan",), task=task,
                    episodes=study.episodes, seed=start,
                )["plan"]
            )
            for task in config.tasks
        ]  # fmt: skip
        found[label] = [cells, *metrics]
    return found


def modules(study: Study) -> tuple[list[str], list[Row]]:
    """What is lost without a part of the mind, in percent of the oracle's score. Parts that were
    learnt with the rest are left out before training, the others only when the agent acts."""
    config = study.config("forage")
    plain, first = study.config("two-rooms"), next(iter(config.tasks.values()))
    same_task = {n: replace(first, options=task.options) for n, task in config.tasks.items()}
    no_drive_tasks = {
        n: replace(task, drives={}, weights=task.weights or {"control_cost": 1.0})
        for n, task in config.tasks.items()
    }
    unattended = {n: replace(task, modality_weights={}) for n, task in config.tasks.items()}
    cases: list[tuple[str, str, str, str, dict[str, Any]]] = [
        ("configurator", "forage", "flag", "forage", {"tasks": same_task}),
        ("priming", "forage", "explore", "forage", {"tasks": unattended}),
        ("priming", "two-rooms-distracted", "reach", "two-rooms-distracted without priming", {}),
        ("drives", "forage", "eat", "forage", {"tasks": no_drive_tasks}),
        ("critic", "two-rooms", "reach", "two-rooms", with_critics(plain, "reach", critics=False)),
        ("critics", "forage", "eat", "forage", with_critics(config, "eat", critics=False)),
        ("memory", "cue-corridor", "reward", "cue-corridor without memory", {}),
        (
            "policy's warm start",
            "two-rooms",
            "reach",
            "two-rooms",
            {"policy_proposal": NoPolicyProposalConfig()},
        ),
        (
            "policy's warm start",
            "forage",
            "eat",
            "forage",
            {"policy_proposal": NoPolicyProposalConfig()},
        ),
    ]
    rows = []
    for part, name, task, other, changes in cases:
        whole, less = study.judged(name, task), study.judged(other, task, **changes)
        metrics = [[percent(f) for f in found] for found in (whole, less)]
        lost = [a - b for a, b in zip(*metrics, strict=True)]
        rows.append([part, f"{name}, {task}", *(told(m, 1) for m in (*metrics, lost))])
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
