"""The value of each module of the agent: one world model for four tasks, the pain cost, a task that
needs memory, modality weights, critics beyond the horizon, planning only where it pays, curiosity,
and the loss without each module.

    python benchmarks/agent_modules.py --seeds 3 --episodes 100
    python benchmarks/agent_modules.py --only tasks pain

Missing agents are trained into runs/agent-modules/NAME/SEED, where results are kept, too: a command
that was stopped continues with what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from study import Study, Table, first_eval_seed, main, mean_and_seeds, percent, score, success

import ami_agent as ami
from ami_agent.adapters.env import ActFn, EnvConfig
from ami_agent.components import AdaptiveActorConfig, TaskSpec
from ami_agent.config import build, override
from ami_agent.evaluation.evaluate import evaluate_modes, run_many
from ami_agent.evaluation.policies import (
    EpisodeStart,
    PolicyFactory,
    agent_policy_factory,
    make_random_policy,
)
from ami_agent.training import CollectBehaviour, StageRun
from ami_agent.training.collect import Collector

MODES = ("plan", "auto", "react")


def tasks(study: Study) -> Table:
    rows = []
    for task in study.config("forage").tasks:
        found = study.plan_metrics("forage", task)
        oracle, random = (
            mean_and_seeds([score(metrics["baselines"][label]) for metrics in found])
            for label in ("oracle", "random")
        )
        own, fraction = mean_and_seeds(map(score, found)), mean_and_seeds(map(percent, found), 1)
        rows.append([task, own, oracle, random, fraction])
    return ["task", "score", "oracle", "random", "% of the oracle's"], rows


def pain(study: Study) -> Table:
    config = study.config("forage")
    flag = config.tasks["flag"]
    drives = {name: weight for name, weight in flag.drives.items() if name != "pain"}
    painless = {"tasks": {**config.tasks, "flag": replace(flag, drives=drives, limits={})}}
    rows = []
    for name, changes in {"with the pain cost": {}, "without": painless}.items():
        found = study.plan_metrics("forage", "flag", changes)
        damage = mean_and_seeds((f["signal_sums"]["damage"]["mean"] for f in found), 3)
        rows.append([name, damage, mean_and_seeds(map(success, found), 1)])
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


def switch(study: Study) -> Table:
    config = study.config("forage")
    eat, flag = config.tasks["eat"], config.tasks["flag"]

    def evaluate(agent: ami.Agent, env: EnvConfig, first_seed: int) -> tuple[float, float]:
        policy = switching(agent, eat, flag, at=75)
        results = run_many(policy, env.for_task(flag), study.episodes, first_seed, "cpu")
        return float(results.score.mean()), float(results.signal_sums[:, 3].mean())

    found = study.of_agents("forage", f"{eat}, at 75 {flag}", evaluate)
    succeeded, eaten = map(mean_and_seeds, zip(*found, strict=True))
    columns = ["first", "from step 75", "eaten", "success at the flag"]
    return columns, [["eat", "flag", eaten, succeeded]]


def successes(study: Study, task: str, names: Sequence[str]) -> Table:
    found = {name: map(success, study.plan_metrics(name, task)) for name in names}
    return ["agent", "success %"], [[name, mean_and_seeds(f, 1)] for name, f in found.items()]


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


def critic(study: Study) -> Table:
    rows = []
    for name, task in (("forage", "eat"), ("two-rooms", "reach")):
        config = study.config(name)
        for label, critics in {"with critics": True, "without": False}.items():
            row = [f"{name}, {task}", label]
            for horizon in (0, config.actor.planner.horizon // 2):
                changes = with_critics(config, task, critics=critics, horizon=horizon)
                found = study.plan_metrics(name, task, changes)
                row.append(mean_and_seeds(map(percent, found), 1))
            rows.append(row)
    return ["environment", "agent", "% of the oracle's, whole horizon", "half"], rows


def auto(study: Study) -> Table:
    rows = []
    for name, task in (("two-rooms", "reach"), ("forage", "eat"), ("forage", "flag")):
        by_mode = study.metrics_by_mode(name, task, MODES)
        for mode in MODES:
            found = [metrics[mode] for metrics in by_mode]
            columns = (
                map(score, found),
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
    collect, single = config.stages["collect"], env.build(1)
    agent = build(
        config, single.spec, seed=seed, num_envs=collect.num_envs, buffer_size=collect.steps + 1
    )
    single.close()
    envs = env.build(collect.num_envs, "cpu", **collect.options)
    stage_runs: list[Callable[[], StageRun]] = [
        lambda: Collector(agent, envs, collect.steps, by, seed),
        lambda: config.stages["train_jepa"].start(agent, env, seed),
        lambda: config.stages["train_values"].start(agent, env, seed),
    ]
    for start in stage_runs:
        stage_run = start()
        while stage_run.step < stage_run.total:
            stage_run.update()
        stage_run.finish()
    return agent.eval()


def curiosity(study: Study) -> Table:
    """An agent trained on random actions explores, and a second agent is trained on its data: half
    of the steps exploration, half random actions, in as many steps as the first."""
    whole = study.config("forage")
    changes = {
        "stages.collect": CollectBehaviour(num_envs=250, steps=160),
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
            partial(_curious, study, config, seed),
        )
        for seed in study.seeds
    ]
    rows = []
    for label in found[0]:
        by_column = zip(*(metrics[label] for metrics in found), strict=True)
        rows.append([label, *(mean_and_seeds(values, 1) for values in by_column)])
    return ["data", "cells of 36", *(f"{task}, % of oracle" for task in whole.tasks)], rows


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
        found[label] = [
            float(run_many(policy, env, study.episodes, first_seed, "cpu").score.mean())
        ]
        for task in config.tasks:
            by_mode = evaluate_modes(
                agent, config.eval_env, modes=("plan",), task=task, episodes=study.episodes,
                seed=first_seed,
            )  # fmt: skip
            found[label].append(percent(by_mode["plan"]))
    return found


def modules(study: Study) -> Table:
    """The loss without a module, in percent of the oracle's score. Modules that are trained with
    the others are left out before training, the others only when the agent acts."""
    config, plain = study.config("forage"), study.config("two-rooms")
    first, *_ = config.tasks.values()

    def each_task(change: Callable[[TaskSpec], TaskSpec]) -> dict[str, Any]:
        return {"tasks": {name: change(task) for name, task in config.tasks.items()}}

    same_task = each_task(lambda task: replace(first, options=task.options))
    unweighted = each_task(lambda task: replace(task, modality_weights={}))
    no_drives = each_task(
        lambda task: replace(task, drives={}, weights=task.weights or {"control_cost": 1.0})
    )
    no_proposal = {"actor.policy_proposal": None}
    distracted = "two-rooms-distracted"
    cases: list[tuple[str, str, str, str, dict[str, Any]]] = [
        ("configurator", "forage", "flag", "forage", same_task),
        ("modality weights", "forage", "explore", "forage", unweighted),
        ("modality weights", distracted, "reach", f"{distracted} without priming", {}),
        ("drives", "forage", "eat", "forage", no_drives),
        ("critic", "two-rooms", "reach", "two-rooms", with_critics(plain, "reach", critics=False)),
        ("critics", "forage", "eat", "forage", with_critics(config, "eat", critics=False)),
        ("memory", "cue-corridor", "reward", "cue-corridor without memory", {}),
        ("policy proposal", "two-rooms", "reach", "two-rooms", no_proposal),
        ("policy proposal", "forage", "eat", "forage", no_proposal),
    ]
    rows = []
    for part, name, task, other, changes in cases:
        whole = list(map(percent, study.plan_metrics(name, task)))
        less = list(map(percent, study.plan_metrics(other, task, changes)))
        lost = [a - b for a, b in zip(whole, less, strict=True)]
        cells = [mean_and_seeds(values, 1) for values in (whole, less, lost)]
        rows.append([part, f"{name}, {task}", *cells])
    for name, task in (("two-rooms", "reach"), ("forage", "flag")):
        by_mode = study.metrics_by_mode(name, task, MODES)
        adaptive, always = (
            [f[mode]["ms_per_action"]["mean"] for f in by_mode] for mode in ("auto", "plan")
        )
        ratios = mean_and_seeds((b / a for a, b in zip(adaptive, always, strict=True)), 1)
        ms = [f"{mean_and_seeds(values, 1)} ms" for values in (adaptive, always)]
        rows.append(["policy: always planning", f"{name}, {task}", *ms, f"{ratios} times"])
    return ["without", "environment", "% of oracle, whole agent", "without it", "points lost"], rows


CORRIDORS = (
    "cue-corridor", "cue-corridor with short_term=GRUMemory", "cue-corridor without memory",
)  # fmt: skip
DISTRACTED = ("two-rooms-distracted", "two-rooms-distracted without priming")

TABLES: Mapping[str, Callable[[Study], Table]] = {
    "tasks": tasks,
    "pain": pain,
    "switch": switch,
    "memory": lambda study: successes(study, "reward", CORRIDORS),
    "priming": lambda study: successes(study, "reach", DISTRACTED),
    "critic": critic,
    "auto": auto,
    "curiosity": curiosity,
    "modules": modules,
}


if __name__ == "__main__":
    main(__doc__, Study, Path("runs/agent-modules"), TABLES)
