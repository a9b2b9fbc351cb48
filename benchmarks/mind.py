"""The value of each module of the agent: one world model for four tasks, the pain cost, a task that
needs memory, modality weights, critics beyond the horizon, planning only where it pays, curiosity,
and the loss without each module.

    python benchmarks/mind.py --seeds 3 --episodes 100
    python benchmarks/mind.py --only tasks pain

Missing agents are trained into runs/mind/NAME/SEED, where results are kept, too: a command that was
stopped continues with what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from study import Study, first_eval_seed, main, mean_and_seeds, percent, score

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
        found = study.plan_metrics("forage", task)
        scores = [
            [score(f) for f in found],
            *([score(f["baselines"][label]) for f in found] for label in ("oracle", "random")),
        ]
        fraction = mean_and_seeds([percent(f) for f in found], 1)
        rows.append([task, *map(mean_and_seeds, scores), fraction])
    return ["task", "score", "oracle", "random", "% of the oracle's"], rows


def pain(study: Study) -> tuple[list[str], list[Row]]:
    config = study.config("forage")
    flag = config.tasks["flag"]
    no_pain_weights = {name: weight for name, weight in flag.drives.items() if name != "pain"}
    no_pain_task = replace(flag, drives=no_pain_weights, limits={})
    rows, changed = [], {"tasks": {**config.tasks, "flag": no_pain_task}}
    for name, changes in {"with the pain cost": {}, "without": changed}.items():
        found = study.plan_metrics("forage", "flag", changes)
        damage = [f["signal_sums"]["damage"]["mean"] for f in found]
        success = [100 * f["final_success"]["mean"] for f in found]
        rows.append([name, mean_and_seeds(damage, 3), mean_and_seeds(success, 1)])
    return ["flag", "damage an episode", "success %"], rows


def switching(agent: ami.Agent, first: TaskSpec, then: TaskSpec, at: int) -> PolicyFactory:
    """Mode-2 with one task, and with another from step `at` on."""

    def start_episode(start: EpisodeStart, seed: int) -> ActFn:
        controller = agent.controller(tensors=True)
        factory = agent_policy_factory(agent, "plan", first, controller=controller)
        act, steps = factory(start, seed), 0

        def act_and_switch(obs: Any) -> torch.Tensor:
            nonlocal steps
            if steps == at:
                controller.set_task(then.to_task(None, "plan"), seed)
            steps += 1
            return act(obs)

        return act_and_switch

    return start_episode


def switch(study: Study) -> tuple[list[str], list[Row]]:
    config = study.config("forage")
    eat, flag = config.tasks["eat"], config.tasks["flag"]

    def evaluate(agent: ami.Agent, env: EnvConfig, first_seed: int) -> tuple[float, float]:
        policy = switching(agent, eat, flag, at=75)
        results = run_many(policy, env.for_task(flag), study.episodes, first_seed, "cpu")
        return float(results.score.mean()), float(results.signal_sums[:, 3].mean())

    found = study.of_agents("forage", f"{eat}, at 75 {flag}", evaluate)
    success, eaten = (mean_and_seeds([pair[i] for pair in found]) for i in (0, 1))
    columns = ["first", "from step 75", "eaten", "success at the flag"]
    return columns, [["eat", "flag", eaten, success]]


def memory(study: Study) -> tuple[list[str], list[Row]]:
    recurrent = "cue-corridor with short_term=GRUMemory"
    return _successes(study, ["cue-corridor", recurrent, "cue-corridor without memory"], "reward")


def priming(study: Study) -> tuple[list[str], list[Row]]:
    names = ["two-rooms-distracted", "two-rooms-distracted without priming"]
    return _successes(study, names, "reach")


def _successes(study: Study, names: Sequence[str], task: str) -> tuple[list[str], list[Row]]:
    rows = []
    for name in names:
        found = [100 * f["final_success"]["mean"] for f in study.plan_metrics(name, task)]
        rows.append([name, mean_and_seeds(found, 1)])
    return ["agent", "success %"], rows


def with_critics(
    config: ami.Config, task: str, *, critics: bool, horizon: int = 0
) -> dict[str, Any]:
    """The settings to change after training for another horizon, or without critics."""
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
                found = study.plan_metrics(name, task, changes)
                metrics.append(mean_and_seeds([percent(f) for f in found], 1))
            rows.append([f"{name}, {task}", "with critics" if critics else "without", *metrics])
    return ["environment", "agent", "% of the oracle's, whole horizon", "half"], rows


def auto(study: Study) -> tuple[list[str], list[Row]]:
    rows = []
    for name, task in (("two-rooms", "reach"), ("forage", "eat"), ("forage", "flag")):
        by_mode = study.metrics_by_mode(name, task, MODES)
        for mode in MODES:
            found = [metrics[mode] for metrics in by_mode]
            columns = (
                [score(f) for f in found],
                [f["final_success"]["mean"] for f in found],
                [100 * f["planned"] for f in found],
                [f["ms_per_action"]["mean"] for f in found],
                [f["ms_per_action_batched"] for f in found],
            )
            rows.append([f"{name}, {task}", mode, *map(mean_and_seeds, columns)])
    return ["environment", "mode", "score", "success", "% planned", "ms alone", "ms batched"], rows


def trained_agent(
    config: ami.Config, env: EnvConfig, by: Sequence[PolicyFactory], seed: int
) -> ami.Agent:
    """An agent trained on data that these policies collect, each for an equal number of steps."""
    single = env.build(1)
    agent = build(
        config,
        single.spec,
        seed=seed,
        num_envs=config.stages["collect"].num_envs,
        buffer_size=config.stages["collect"].steps + 1,
    )
    single.close()
    envs = env.build(config.stages["collect"].num_envs, "cpu", **config.stages["collect"].options)
    stage_runs: list[Callable[[], StageRun]] = [
        lambda: Collector(agent, envs, config.stages["collect"].steps, by, seed),
        lambda: config.stages["train_jepa"].start(agent, env, seed),
        lambda: config.stages["train_values"].start(agent, env, seed),
    ]
    for start in stage_runs:
        stage_run = start()
        while stage_run.step < stage_run.total:
            stage_run.update()
        stage_run.finish()
    return agent.eval()


def curiosity(study: Study) -> tuple[list[str], list[Row]]:
    """An agent trained on random actions explores, and a second agent is trained on its data: half
    of the steps exploration, half random actions, in as many steps as the first."""
    whole = study.config("forage")
    changes = {
        "stages.collect": CollectRandom(num_envs=250, steps=160),
        "stages.train_jepa.optim.steps": 2000,
        "stages.train_values.optim.steps": 1000,
        "stages.amortize_policy": None,
        "stages.distill_policy": None,
        "actor.adaptive": AdaptiveActorConfig(),
    }
    config = override(whole, changes)
    found = [
        study.cached(
            f"curiosity for half of the steps {seed} {study.episodes} {config}",
            lambda seed=seed: _curious(study, config, seed),
        )
        for seed in study.seeds
    ]
    rows = []
    for label in found[0]:
        by_column = zip(*(metrics[label] for metrics in found), strict=True)
        rows.append([label, *(mean_and_seeds(values, 1) for values in by_column)])
    columns = ["data", "cells of 36", *(f"{task}, % of oracle" for task in whole.tasks)]
    return columns, rows


def _curious(study: Study, config: ami.Config, seed: int) -> dict[str, list[float]]:
    """By policy: the cells that it covers, and the scores of the agent trained on its data."""
    explore, first_seed = config.tasks["explore"], first_eval_seed(seed)
    first = trained_agent(config, config.env, [make_random_policy], seed)
    explorer = agent_policy_factory(first, "plan", explore)
    second = trained_agent(config, config.env, [explorer, make_random_policy], seed)
    found = {}
    for label, policy, agent in (
        ("random actions", make_random_policy, first),
        ("curiosity", explorer, second),
    ):
        env = config.eval_env.for_task(explore)
        cells = float(run_many(policy, env, study.episodes, first_seed, "cpu").score.mean())
        metrics = [
            percent(
                evaluate_modes(
                    agent, config.eval_env, modes=("plan",), task=task,
                    episodes=study.episodes, seed=first_seed,
                )["plan"]
            )
            for task in config.tasks
        ]  # fmt: skip
        found[label] = [cells, *metrics]
    return found


def modules(study: Study) -> tuple[list[str], list[Row]]:
    """The loss without a module, in percent of the oracle's score. Modules that are trained with
    the others are left out before training, the others only when the agent acts."""
    config = study.config("forage")
    plain, first = study.config("two-rooms"), next(iter(config.tasks.values()))
    same_task = {n: replace(first, options=task.options) for n, task in config.tasks.items()}
    no_drive_tasks = {
        n: replace(task, drives={}, weights=task.weights or {"control_cost": 1.0})
        for n, task in config.tasks.items()
    }
    unweighted = {n: replace(task, modality_weights={}) for n, task in config.tasks.items()}
    no_proposal = {"actor.policy_proposal": NoPolicyProposalConfig()}
    cases: list[tuple[str, str, str, str, dict[str, Any]]] = [
        ("configurator", "forage", "flag", "forage", {"tasks": same_task}),
        ("modality weights", "forage", "explore", "forage", {"tasks": unweighted}),
        (
            "modality weights", "two-rooms-distracted", "reach",
            "two-rooms-distracted without priming", {},
        ),
        ("drives", "forage", "eat", "forage", {"tasks": no_drive_tasks}),
        ("critic", "two-rooms", "reach", "two-rooms", with_critics(plain, "reach", critics=False)),
        ("critics", "forage", "eat", "forage", with_critics(config, "eat", critics=False)),
        ("memory", "cue-corridor", "reward", "cue-corridor without memory", {}),
        ("policy proposal", "two-rooms", "reach", "two-rooms", no_proposal),
        ("policy proposal", "forage", "eat", "forage", no_proposal),
    ]  # fmt: skip
    rows = []
    for part, name, task, other, changes in cases:
        whole, less = study.plan_metrics(name, task), study.plan_metrics(other, task, changes)
        metrics = [[percent(f) for f in found] for found in (whole, less)]
        lost = [a - b for a, b in zip(*metrics, strict=True)]
        rows.append([part, f"{name}, {task}", *(mean_and_seeds(m, 1) for m in (*metrics, lost))])
    for name, task in (("two-rooms", "reach"), ("forage", "flag")):
        by_mode = study.metrics_by_mode(name, task, MODES)
        adaptive, always = (
            [f[mode]["ms_per_action"]["mean"] for f in by_mode] for mode in ("auto", "plan")
        )
        ratios = mean_and_seeds([b / a for a, b in zip(adaptive, always, strict=True)], 1)
        ms = [f"{mean_and_seeds(values, 1)} ms" for values in (adaptive, always)]
        rows.append(["policy: always planning", f"{name}, {task}", *ms, f"{ratios} times"])
    return ["without", "environment", "% of oracle, whole agent", "without it", "points lost"], rows


TABLES: Mapping[str, Callable[[Study], tuple[list[str], list[Row]]]] = {
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
    main(__doc__, Study, Path("runs/mind"), TABLES)
