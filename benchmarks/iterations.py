"""How many iterations and candidates planning by gradient needs: success, steps to the goal and the
processor time of an action, on the same episodes and with the same trained agents.

    python benchmarks/iterations.py runs/two-rooms/0 runs/two-rooms/1 --episodes 100

Each run has episodes of its own, those that follow the ones of the run before. The settings take
turns where time is measured, so that other load on the machine slows all of them alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean, median

import torch
from rich.console import Console

import ami_agent as ami
from ami_agent.agent import Agent
from ami_agent.config import Config, override
from ami_agent.evaluation.evaluate import FIRST_EVAL_SEED, EpisodeResults, run_many
from ami_agent.evaluation.intervals import format_percent, rate
from ami_agent.evaluation.policies import EpisodeStart, agent_policy_factory
from ami_agent.logger import table
from ami_agent.storage import run_dir
from modules.actor.planning import GradientPlannerConfig

WARM_UP_ACTS = 3
BATCH = 100
"""Environments that one agent acts in at once, beside a single one."""


def variants(config: Config, flags: argparse.Namespace) -> dict[tuple[str, ...], Config]:
    """By the first cells of its row, the settings with each number of candidates and of iterations
    from a warm start; as trained first."""
    planner, proposal = config.actor.planner, config.actor.policy_proposal
    assert isinstance(planner, GradientPlannerConfig), "the run was not trained with this planner"
    as_trained = str(planner.num_proposals), str(planner.warm_iterations), "as trained"
    found = {as_trained: config}
    for has_proposal, count, iterations in product(
        (True, False), flags.candidates, flags.iterations
    ):
        if has_proposal and proposal is None:
            continue
        changed = replace(
            planner,
            warm_iterations=iterations,
            num_proposals=count,
            num_warm_starts=min(planner.num_warm_starts, count),
        )
        changes = {
            "actor.planner": changed,
            "actor.policy_proposal": proposal if has_proposal else None,
        }
        cells = str(count), str(iterations), "yes" if has_proposal else "no"
        found[cells] = override(config, changes)
    return found


def episodes_of(agent: Agent, config: Config, episodes: int, first_seed: int) -> EpisodeResults:
    """The results of so many episodes in Mode-2."""
    make_policy = agent_policy_factory(agent, "plan", agent.task_spec(""))
    results = run_many(make_policy, config.eval_env, episodes, first_seed, agent.device)
    return results.with_failures_filled(reports_success=True)


def cpu_ms(
    agents: Mapping[tuple[str, ...], Agent], config: Config, num_envs: int, rounds: int
) -> dict[tuple[str, ...], float]:
    """Milliseconds of processor time of an action of one environment, from observation to action:
    the median of so many acts of each agent, by turns."""
    times: dict[tuple[str, ...], list[float]] = {name: [] for name in agents}
    acts: dict[tuple[str, ...], Callable[[torch.Tensor], torch.Tensor]] = {}
    with ExitStack() as stack:
        env = stack.enter_context(closing(config.eval_env.build(num_envs)))
        obs, info = env.reset(FIRST_EVAL_SEED)
        for name, agent in agents.items():
            make_policy = agent_policy_factory(agent, "plan", agent.task_spec(""))
            acts[name] = make_policy(EpisodeStart(env, obs, info), FIRST_EVAL_SEED)
        for _ in range(WARM_UP_ACTS + rounds):
            for name, act in acts.items():
                start = time.process_time()
                act(obs)
                times[name].append(1000 * (time.process_time() - start) / num_envs)
    return {name: median(found[WARM_UP_ACTS:]) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--episodes", type=int, default=100, help="of each run")
    parser.add_argument("--iterations", type=int, nargs="+", default=[1, 2, 3, 4, 8])
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=60, help="acts that are timed of each row")
    flags, console = parser.parse_args(), Console(width=120)
    torch.set_num_threads(1)
    first, *_ = flags.runs
    config = run_dir.config_of(first)
    configs = variants(config, flags)
    agents = {name: ami.load(first, config=changed) for name, changed in configs.items()}
    alone = cpu_ms(agents, config, 1, flags.rounds)
    in_batch = cpu_ms(agents, config, BATCH, max(1, flags.rounds // 10))
    rows = []
    for name in configs:
        results = []
        for index, run in enumerate(flags.runs):
            changed = variants(run_dir.config_of(run), flags)[name]
            seed = FIRST_EVAL_SEED + index * flags.episodes
            agent = ami.load(run, config=changed)
            results.append(episodes_of(agent, changed, flags.episodes, seed))
        successes = [part.final_success for part in results]
        steps = torch.cat([part.steps[part.success == 1] for part in results])
        by_run = " ".join(f"{100 * mean(part.tolist()):.0f}" for part in successes)
        success = f"{format_percent(rate(torch.cat(successes)))} ({by_run})"
        times = f"{alone[name]:.2f}", f"{in_batch[name]:.3f}"
        rows.append([*name, success, f"{steps.mean():.1f}" if len(steps) else "-", *times])
        console.print(" ".join(rows[-1]))
    columns = ["candidates", "iterations", "policy's proposal", "success", "steps"]
    columns += ["CPU ms alone", f"CPU ms of {BATCH} at once"]
    console.print(table(f"{flags.episodes} episodes of each run", columns, rows))


if __name__ == "__main__":
    main()
