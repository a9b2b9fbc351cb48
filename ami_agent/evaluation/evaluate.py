"""Evaluates an agent, random actions and an oracle on the same episodes, and times its actions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import count, islice
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ami_agent.adapters import fault_tolerance as faults
from ami_agent.adapters.env import (
    ActFn,
    EnvAdapter,
    EnvConfig,
    HasReferencePolicies,
    StepResult,
    check_same_spaces,
    rollout,
)
from ami_agent.adapters.vector_env import read_numbers
from ami_agent.agent import Agent
from ami_agent.argument_checks import check_count, check_is
from ami_agent.config import Config
from ami_agent.evaluation import policies
from ami_agent.evaluation.intervals import Estimate, format_percent, mean, rate
from ami_agent.evaluation.lifetime_memory import LifetimeMemory
from ami_agent.evaluation.progress import EpisodeProgress, PolicyProgress
from ami_agent.logger import Logger, format_number
from ami_agent.training.base import StageRun
from modules.configurator import TaskSpec
from modules.types import ConfigError, Observation, Plan

Results: TypeAlias = dict[str, Any]

BASELINES: tuple[Literal["random", "oracle"], ...] = ("random", "oracle")
FIRST_EVAL_SEED = 1_000_000  # seed of the first episode of an evaluation
MAX_STEPS = 100_000
"""Steps after which an episode without end or time limit stops the evaluation with an error."""
SUCCESS_NAMES = ("success", "is_success")
FINAL_SUCCESS_NAMES = ("final_success", "is_success", "success")
"""Entries of an info that report success; the first that an environment has counts."""
TIMED_ACTIONS, WARM_UP_ACTIONS = 60, 10


class EpisodeResults(NamedTuple):
    """The results of the first episode of each of B environments."""

    success: Tensor  # [B] 1 or 0: at any step; NaN where the environment never reported it
    final_success: Tensor  # [B] 1 or 0: as reported last; NaN likewise
    steps: Tensor  # [B] steps until the first success, NaN without
    length: Tensor  # [B] steps of the episode
    score: Tensor  # [B] the environment's own, as reported last; NaN where it has none
    signal_sums: Tensor  # [B, I] interoception, summed over the episode; the first is the return

    @property
    def reports_success(self) -> bool:
        """Whether the environment reported success or failure in any episode."""
        return not (self.success.isnan() & self.final_success.isnan()).all()

    def with_failures_filled(self, reports_success: bool) -> EpisodeResults:
        """Counts episodes without a report as failures, where the environment reports success."""
        if not reports_success:
            return self
        return self._replace(
            success=self.success.nan_to_num(0.0), final_success=self.final_success.nan_to_num(0.0)
        )


class OutcomeTracker:
    """The results so far of the first episode of each of B environments."""

    def __init__(self, env: EnvAdapter) -> None:
        self.running = torch.ones(env.num_envs, dtype=torch.bool)
        success, final, steps, score = torch.full((4, env.num_envs), torch.nan)
        length = torch.zeros(env.num_envs)
        sums = torch.zeros(env.num_envs, len(env.spec.interoception), dtype=torch.float64)
        self.results = EpisodeResults(success, final, steps, length, score, sums)

    def update(self, result: StepResult) -> None:
        """Adds a step to the episodes that are not done yet."""
        success, final, steps, length, score, signal_sums = self.results
        signal_sums += result.transition.interoception.cpu() * self.running[:, None]
        length += self.running
        done = result.done
        success_now = read_numbers(result.info, SUCCESS_NAMES, done)
        is_first = (success_now == 1) & self.running & (success != 1)
        steps[is_first] = length[is_first]
        for value, now in (
            (success, torch.fmax(success, success_now)),
            (final, read_numbers(result.info, FINAL_SUCCESS_NAMES, done)),
            (score, read_numbers(result.info, ("score",), done)),
        ):
            value.copy_(torch.where(self.running & ~now.isnan(), now, value))
        self.running &= ~done.cpu()


def run_episodes(
    make_policy: policies.PolicyFactory, env: EnvAdapter, seed: int,
    progress: EpisodeProgress | None = None, per_env: int = 1, to_reset: bool = False,
) -> EpisodeResults:  # fmt: skip
    """The first `per_env` episodes in each environment, `[B * per_env]`; those of one environment
    follow one another. `to_reset`: the step that resets an environment after its last episode is
    taken too, so that the policy takes up what came of that."""
    obs, info = env.reset(seed)
    trackers = [OutcomeTracker(env) for _ in range(per_env)]
    for later in trackers[1:]:
        later.running.zero_()
    act_fn = make_policy(policies.EpisodeStart(env, obs, info), seed)
    done, episode = torch.zeros(2, env.num_envs, dtype=torch.long)
    if progress is not None:
        progress.begin(env)
    for step in count(1):
        result = env.step(obs, act_fn(obs))
        begins, done, obs = done, result.done.cpu().long(), result.next_obs
        for tracker in trackers:
            tracker.update(result)
        lacks_episodes = (episode < per_env - 1) | trackers[-1].running
        if begins.any() and (to_reset or (per_env > 1 and lacks_episodes.any())):
            episode = episode + begins
            for number, tracker in enumerate(trackers):
                tracker.running |= begins.bool() & (episode == number)
            start = policies.EpisodeStart(env, obs, result.info, begins.bool(), same_task=True)
            act_fn = make_policy(start, seed + step)
        lacks_episodes = lacks_episodes | (to_reset & (episode < per_env))
        if progress is not None:
            lengths = torch.stack([tracker.results.length for tracker in trackers])
            progress.advance(lengths.sum(0), lacks_episodes)
        if not lacks_episodes.any():
            break
        _check_ends(env, step // per_env)
    columns = zip(*(tracker.results for tracker in trackers), strict=True)
    return EpisodeResults(*(torch.stack(column, 1).flatten(0, 1) for column in columns))


def _check_ends(env: EnvAdapter, steps: int) -> None:
    """Raises ConfigError after so many steps of an episode that perhaps has no end."""
    if steps == MAX_STEPS and not env.has_time_limit:
        raise ConfigError(
            f"no episode ended within {MAX_STEPS} steps, and the environment states no time "
            "limit: set one (--env.max-episode-steps STEPS)"
        )


def run_many(
    make_policy: policies.PolicyFactory, config: EnvConfig, episodes: int, seed: int, device: Any,
    progress: EpisodeProgress | None = None,
) -> EpisodeResults:  # fmt: skip
    """The results of so many episodes, at most 100 at the same time; episode i has seed + i."""

    def run_batch(env: EnvAdapter, first: int) -> EpisodeResults:
        return run_episodes(make_policy, env, seed + first, progress)

    return _concatenate(config.run_in_batches(episodes, run_batch, device, 100))


def summarize(
    results: EpisodeResults, signals: Sequence[str], reports_success: bool,
    lifetimes: Tensor | None = None,
) -> Results:  # fmt: skip
    """Means over episodes with 95 % intervals; `signals`: the names of the interoception.
    `reports_success`: whether the environment ever reports success or failure. `lifetimes` `[B]`:
    that of each episode, whose episodes depend on one another; by default one each."""
    results = results.with_failures_filled(reports_success)
    lifetimes = torch.arange(len(results.length)) if lifetimes is None else lifetimes

    def success_rate(successes: Tensor) -> Estimate | None:
        return None if successes.isnan().any() else rate(successes == 1, lifetimes)

    succeeded, has_score = results.success == 1, not results.score.isnan().any()
    sums = zip(signals[1:], results.signal_sums.T[1:], strict=True)
    return {
        "success": success_rate(results.success),
        "final_success": success_rate(results.final_success),
        "return": mean(results.signal_sums[:, 0], lifetimes),
        "length": mean(results.length, lifetimes),
        "steps": mean(results.steps[succeeded], lifetimes[succeeded]) if succeeded.any() else None,
        "score": mean(results.score, lifetimes) if has_score else None,
        "signal_sums": {name: mean(values, lifetimes) for name, values in sums},
    }


def evaluate(
    agent: Agent, env: EnvConfig | str, *, mode: str = "plan", task: str = "",
    episodes: int = 100, seed: int = FIRST_EVAL_SEED,
) -> Results:  # fmt: skip
    """The results of `eval --json`; rates in [0, 1], milliseconds per action of one environment.
    `env`: the environment's settings, or its id; `task`: one of the agent's, by default the
    first."""
    by_mode = evaluate_modes(agent, env, modes=(mode,), task=task, episodes=episodes, seed=seed)
    return by_mode[mode]


class EpisodeChoice(NamedTuple):
    """The episodes of an evaluation: of a task, the first one if empty; episode i has seed + i. And
    which of `BASELINES` act there too, and the folders of the lasting memory with which lifetimes
    begin and end."""

    task: str = ""
    episodes: int = 100
    seed: int = FIRST_EVAL_SEED
    baselines: Sequence[str] = BASELINES
    memory: str = ""
    save_memory: str = ""


def evaluate_modes(
    agent: Agent, env: EnvConfig | str, *, modes: Sequence[str] = ("plan", "react"),
    progress: PolicyProgress | None = None, **choice: Any,
) -> dict[str, Results]:  # fmt: skip
    """The results of each mode, of random actions and of the oracle where there is one, on the same
    episodes. `choice`: the fields of `EpisodeChoice`."""
    chosen = EpisodeChoice(**choice)
    task, episodes, seed = chosen.task, chosen.episodes, chosen.seed
    check_is("agent", agent, Agent)
    check_is("env", env, EnvConfig, str)
    check_count("episodes", episodes, 1)
    check_count("seed", seed, 0)
    check_is("task", task, str)
    task_spec = agent.task_spec(task)
    name = task or next(iter(agent.tasks))
    env_config = EnvConfig(id=env) if isinstance(env, str) else env
    config = env_config.for_task(task_spec)
    parts = _parts(agent.tasks, env_config, name, episodes, seed)
    with closing(config.build(1)) as env_adapter:
        check_same_spaces(agent.spec, env_adapter.spec, config)
        signals = env_adapter.spec.interoception
    by_mode, planning = {}, {}
    progress = progress or PolicyProgress(Logger())
    for mode in modes:
        memory = None
        if chosen.memory or chosen.save_memory:
            seeds = [part.seed + i for part in parts for i in range(part.lifetimes)]
            memory = LifetimeMemory(agent, seeds, chosen.memory, chosen.save_memory)
        by_mode[mode], planning[mode] = _evaluate_mode(agent.eval(), mode, parts, progress, memory)
    by_baseline = baselines(parts, chosen.baselines, progress)
    reports_success = any(r.reports_success for r in (*by_mode.values(), *by_baseline.values()))
    summary = partial(
        _summarize_parts, parts=parts, signals=signals, reports_success=reports_success
    )
    baseline_results = {name: summary(results) for name, results in by_baseline.items()}
    return {
        mode: {
            "env": config.id,
            "variant": config.variant,
            "options": dict(config.options),
            "mode": mode,
            "device": str(agent.device),
            "seed": seed,
            "episodes": episodes,
            **summary(results),
            **planning[mode],
            "task": name,
            "baselines": {"oracle": None, "random": None, **baseline_results},
        }
        for mode, results in by_mode.items()
    }


def evaluate_policies(
    makers: Mapping[str, policies.PolicyFactory], config: Config, episodes: int,
    seed: int = FIRST_EVAL_SEED, logger: Logger | None = None,
) -> dict[str, Results]:  # fmt: skip
    """The results of policies by name, in the first task of a Config, on the episodes that an agent
    would have there."""
    progress = PolicyProgress(logger or Logger())
    parts = _parts(config.tasks, config.eval_env, next(iter(config.tasks)), episodes, seed)
    with closing(parts[0].env.build(1)) as env_adapter:
        signals = env_adapter.spec.interoception
    found = {}
    for name, make_policy in makers.items():
        results = _run_parts(name, make_policy, parts, progress)
        found[name] = _summarize_parts(results, parts, signals, results.reports_success)
    return found


class EvalPart(NamedTuple):
    """Episodes of an evaluation that have one task."""

    task: str
    task_spec: TaskSpec
    env: EnvConfig
    episodes: int
    seed: int  # of the first episode

    @property
    def per_env(self) -> int:
        """Consecutive episodes in one environment."""
        return self.task_spec.episodes_per_lifetime

    @property
    def lifetimes(self) -> int:
        """How many environments have these episodes."""
        return self.episodes // self.per_env

    def run(
        self, make_policy: policies.PolicyFactory, device: Any,
        progress: EpisodeProgress | None = None, to_reset: bool = False,
    ) -> EpisodeResults:  # fmt: skip
        """The results of these episodes under a policy; lifetime i has seed + i. `to_reset`: as in
        `run_episodes`."""

        def run_batch(env: EnvAdapter, first: int) -> EpisodeResults:
            seed = self.seed + first
            return run_episodes(make_policy, env, seed, progress, self.per_env, to_reset)

        return _concatenate(self.env.run_in_batches(self.lifetimes, run_batch, device, 100))

    def env_steps(self, results: EpisodeResults) -> Tensor:
        """The steps in each environment, `[lifetimes]`; one between two episodes."""
        return results.length.unflatten(0, (-1, self.per_env)).sum(1) + self.per_env - 1


def check_episodes(tasks: Mapping[str, TaskSpec], task: str, episodes: int) -> None:
    """Raises ConfigError where the members of a task can't have as many episodes each, or where
    lifetimes would be cut off."""
    members = tasks[task].members or (task,)
    if episodes % len(members):
        raise ConfigError(
            f"{episodes} episodes can't be divided equally among the {len(members)} tasks of "
            f"{task!r}: --episodes must be a multiple of {len(members)}"
        )
    for member in members:
        per_lifetime = tasks[member].episodes_per_lifetime
        if episodes // len(members) % per_lifetime:
            raise ConfigError(
                f"{episodes} episodes of {task!r} can't be divided into lifetimes of "
                f"{per_lifetime}: --episodes must be a multiple of {len(members) * per_lifetime}"
            )


def _parts(
    tasks: Mapping[str, TaskSpec], env: EnvConfig, task: str, episodes: int, seed: int
) -> list[EvalPart]:
    """The episodes of a task; those of its members, as many of each, where it has some."""
    check_episodes(tasks, task, episodes)
    names = tasks[task].members or (task,)
    each = episodes // len(names)
    return [
        EvalPart(name, tasks[name], env.for_task(tasks[name]), each, seed + i * each)
        for i, name in enumerate(names)
    ]


def _summarize_parts(
    results: EpisodeResults, parts: Sequence[EvalPart], signals: Sequence[str],
    reports_success: bool,
) -> Results:  # fmt: skip
    """The summary of all parts together, and that of each by the name of its task; None where
    there is but one."""
    summary = partial(summarize, signals=signals, reports_success=reports_success)
    per_lifetime = [n for part in parts for n in part.lifetimes * [part.per_env]]
    lifetimes = torch.arange(len(per_lifetime)).repeat_interleave(torch.tensor(per_lifetime))
    sizes = [part.episodes for part in parts]
    columns = (column.split(sizes) for column in results)
    by_part = [EpisodeResults(*rows) for rows in zip(*columns, strict=True)]
    by_task = {
        part.task: summary(rows, lifetimes=own)
        for part, rows, own in zip(parts, by_part, lifetimes.split(sizes), strict=True)
    }
    return {
        **summary(results, lifetimes=lifetimes),
        "by_task": by_task if len(parts) > 1 else None,
        "by_episode": _by_episode(results, parts, summary),
    }


def _by_episode(
    results: EpisodeResults, parts: Sequence[EvalPart],
    summary: Callable[[EpisodeResults], Results],
) -> list[Results] | None:  # fmt: skip
    """The summary of the first episodes of all lifetimes, of the second ones and so on; None where
    an environment has but one episode."""
    per_env = {part.per_env for part in parts}
    if len(per_env) > 1 or per_env == {1}:
        return None
    (stride,) = per_env
    return [
        summary(EpisodeResults(*(column[i::stride] for column in results))) for i in range(stride)
    ]


def _evaluate_mode(
    agent: Agent, mode: str, parts: Sequence[EvalPart], progress: PolicyProgress,
    memory: LifetimeMemory | None,
) -> tuple[EpisodeResults, Results]:  # fmt: skip
    """The results, how often the agent planned and violated a constraint, and how long it took."""
    times: list[float] = []
    plans: dict[int, list[tuple[Tensor, Tensor]]] = {}  # by the seed of a batch

    def policy_factory(part: EvalPart) -> policies.PolicyFactory:
        makers: list[policies.PolicyFactory] = []  # of each batch, the last one is acting

        def make_policy(start: policies.EpisodeStart, batch_seed: int) -> ActFn:
            if start.reset_mask is None:  # a batch begins
                step_flags = plans[batch_seed] = []

                def on_plan(plan: Plan) -> None:
                    step_flags.append((plan.planned, plan.violation > 0))

                controller = agent.controller(tensors=True)
                maker = policies.agent_policy_factory(
                    agent, mode, part.task_spec, on_plan, controller
                )
                if memory is not None:
                    maker = memory.policy(maker, controller, part.per_env)
                makers.append(maker)
            return timed(makers[-1](start, batch_seed), times)

        return make_policy

    with progress.policy(mode, sum(part.lifetimes for part in parts)) as bar:
        by_part = [
            part.run(policy_factory(part), agent.device, bar, to_reset=memory is not None)
            for part in parts
        ]
    if memory is not None:
        memory.save()
    results = _concatenate(by_part)
    progress.logger.info(f"evaluate, {mode}: the time of single actions")
    steps = [part.env_steps(found) for part, found in zip(parts, by_part, strict=True)]
    planned, violated = _step_fractions(plans.values(), torch.cat(steps))
    first = parts[0]
    time_actions = partial(latency, agent, first.env, mode, first.task_spec, first.seed)
    return results, {
        "planned": planned,
        "violated": violated,
        **faults.retry_if_restarted(time_actions),
        "ms_per_action_batched": 1000 * float(np.mean(times)),
    }


def _run_parts(
    name: str, make_policy: policies.PolicyFactory, parts: Sequence[EvalPart],
    progress: PolicyProgress,
) -> EpisodeResults:  # fmt: skip
    """The results of a policy of that name, which runs on the CPU, in all parts."""
    with progress.policy(name, sum(part.lifetimes for part in parts)) as bar:
        return _concatenate([part.run(make_policy, "cpu", bar) for part in parts])


def _concatenate(results: Iterable[EpisodeResults]) -> EpisodeResults:
    return EpisodeResults(*(torch.cat(parts) for parts in zip(*results, strict=True)))


def _step_fractions(
    plans: Iterable[Sequence[tuple[Tensor, Tensor]]], length: Tensor
) -> list[float]:
    """Flags `[B]` of every step, for batches one after the other -> the fractions of steps at which
    each flag is set, over the steps of the episodes, whose numbers are `length` `[episodes]`."""
    sums, remaining = torch.zeros(2), length
    for step_flags in plans:
        flags = torch.stack([torch.stack(pair) for pair in step_flags]).cpu()  # [T, 2, B]
        lengths, remaining = remaining.split([flags.shape[2], len(remaining) - flags.shape[2]])
        counted = torch.arange(len(flags))[:, None] < lengths  # [T, B]
        sums += (flags & counted[:, None]).sum((0, 2))
    return (sums / length.sum()).tolist()


def baselines(
    parts: Sequence[EvalPart], names: Sequence[str], progress: PolicyProgress
) -> dict[str, EpisodeResults]:
    """Those of `BASELINES` with these names, on the same episodes: random actions, and the
    environment's oracle where it has one."""
    makers = {"random": policies.make_random_policy, "oracle": policies.make_expert_policy}
    with closing(parts[0].env.build(1)) as env:
        if not isinstance(env.unwrapped, HasReferencePolicies):
            del makers["oracle"]
    return {
        name: _run_parts(name, make, parts, progress)
        for name, make in makers.items()
        if name in names
    }


def table_rows(results: dict[str, Results]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the printed table: a column for each mode and baseline, and a row for each
    metric, so that a narrow terminal cuts none."""
    (first, *_) = results.values()
    cells = {f"agent, {mode}": _cells(result) for mode, result in results.items()}
    cells |= {name: _cells(result) for name, result in first["baselines"].items() if result}
    metrics = next(iter(cells.values()))
    return ["", *cells], [[name, *(c.get(name, "") for c in cells.values())] for name in metrics]


def _cells(result: Results) -> dict[str, str]:
    """A column of the printed table, by the names of its rows."""
    cells = {}
    if result["score"] is not None:
        cells["score"] = format_number(result["score"]["mean"])
    if result["success"] is not None:
        cells["success at the last step"] = format_percent(result["final_success"])
        cells["success at any step"] = format_percent(result["success"])
        for name, part in (result["by_task"] or {}).items():
            cells[f"{name}: success at any step"] = format_percent(part["success"])
        for number, part in enumerate(result["by_episode"] or (), 1):
            name = f"episode {number} of a lifetime"
            cells[f"{name}: success at any step"] = format_percent(part["success"])
            cells[f"{name}: steps"] = f"{part['length']['mean']:.1f}"
        cells["steps to success"] = f"{result['steps']['mean']:.1f}" if result["steps"] else "-"
    mean_return, interval = result["return"]["mean"], result["return"]["ci95"]
    cells["return"] = format_number(mean_return, interval)
    if interval:
        cells["return"] += f" [{', '.join(format_number(end, interval) for end in interval)}]"
    for name, signal in result["signal_sums"].items():
        cells[f"{name}, sum of an episode"] = format_number(signal["mean"])
    if "planned" in result:
        cells["actions that were planned"] = f"{100 * result['planned']:.0f} %"
        cells["ms per action"] = f"{result['ms_per_action']['p50']:.2f}"
        cells["ms per action, batched"] = f"{result['ms_per_action_batched']:.3f}"
    return cells


def latency(agent: Agent, config: EnvConfig, mode: str, task_spec: TaskSpec, seed: int) -> Results:
    """Milliseconds in one environment after a warm-up: of one `act`, from observation to action,
    and of the actor's part, from state to action."""
    controller = agent.controller(1, tensors=True)
    make_policy = policies.agent_policy_factory(agent, mode, task_spec, controller=controller)
    times: list[float] = []
    decision_times: list[float] = []

    @torch.no_grad()
    def decide(obs: Observation) -> Tensor:
        state, context = controller.perceive(obs)
        state.cpu()  # waits for the device, so that perception is not timed
        return timed(lambda obs: controller.plan(state, context).action, decision_times)(obs)

    with closing(config.build(1, agent.device)) as env:
        for wrap in (lambda act_fn: timed(act_fn, times), lambda act_fn: decide):
            steps, episode_seed = TIMED_ACTIONS + WARM_UP_ACTIONS, seed
            while steps > 0:  # over one or several episodes
                obs, info = env.reset(episode_seed)
                act_fn = wrap(make_policy(policies.EpisodeStart(env, obs, info), episode_seed))
                for result in islice(rollout(act_fn, env, obs), steps):
                    steps -= 1
                    if result.done.any():
                        break
                episode_seed += 1
    return {
        "ms_per_action": _percentiles(times[WARM_UP_ACTIONS:]),
        "ms_per_decision": _percentiles(decision_times),
    }


def _percentiles(seconds: Sequence[float]) -> Results:
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    mean = 1000 * float(np.mean(seconds))
    return {"mean": mean, "p50": float(p50), "p95": float(p95)}


def timed(act_fn: ActFn, times: list[float]) -> ActFn:
    """The policy; appends the seconds of each call, per environment, to `times`."""

    def timed_act(obs: Observation) -> Tensor:
        start = time.perf_counter()
        action = act_fn(obs).cpu()  # waits for the device
        times.append((time.perf_counter() - start) / len(action))
        return action

    return timed_act


def evaluation_metrics(
    agent: Agent, config: Config, task: str, mode: str, episodes: int, stage_run: StageRun | None
) -> dict[str, float]:
    """Metrics of a task, by name, each the mean over episodes. `stage_run`: the stage in progress,
    whose environments may be the only ones that can be open."""
    task_spec = config.tasks[task]
    make_policy = policies.agent_policy_factory(agent.eval(), mode, task_spec)
    env = config.eval_env.for_task(task_spec)
    part = EvalPart(task, task_spec, env, episodes, FIRST_EVAL_SEED)
    run = partial(part.run, make_policy, agent.device)
    try:
        results = run()
    except (faults.EnvCreationError, faults.EnvResetError):
        if stage_run is None:  # else its environments may be the only ones that can be open
            raise
        stage_run.close_envs()
        try:
            results = run()
        finally:
            stage_run.reopen_envs()
    results = results.with_failures_filled(results.reports_success)
    metrics = {
        "final_success": results.final_success, "score": results.score,
        "return": results.signal_sums[:, 0],
    }  # fmt: skip
    return {name: float(v.mean()) for name, v in metrics.items() if not v.isnan().any()}
