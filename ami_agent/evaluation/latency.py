"""The time that an agent takes for one action."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ami_agent.adapters.env import ActFn, EnvAdapter, EnvConfig, done_of, rollout
from ami_agent.agent import Agent
from ami_agent.evaluation.policies import EpisodeStart, PolicyFactory, agent_policy_factory
from modules.configurator import TaskSpec
from modules.types import Observation

Results = dict[str, Any]


TIMED_ACTIONS, WARM_UP_ACTIONS = 60, 10


def latency(agent: Agent, config: EnvConfig, mode: str, task_spec: TaskSpec, seed: int) -> Results:
    """Milliseconds in one environment after a warm-up: of one `act`, from observation to action,
    and of the actor's part, from state to action; perception and subgoals are the same in all
    modes."""
    controller = agent.controller(1, tensors=True)
    make_policy = agent_policy_factory(agent, mode, task_spec, controller=controller)
    times: list[float] = []
    decision_times: list[float] = []

    @torch.no_grad()
    def decide(obs: Observation) -> Tensor:
        state, context = controller.perceive(obs)
        state.cpu()  # waits for the device, so that perception is not timed
        return timed(lambda obs: controller.plan(state, context).action, decision_times)(obs)

    def time_whole_act(episode_start: EpisodeStart, batch_seed: int) -> ActFn:
        return timed(make_policy(episode_start, batch_seed), times)

    def time_actor(episode_start: EpisodeStart, batch_seed: int) -> ActFn:
        make_policy(episode_start, batch_seed)
        return decide

    with closing(config.build(1, agent.device)) as env:
        for make in (time_whole_act, time_actor):
            _run_steps(make, env, seed, TIMED_ACTIONS + WARM_UP_ACTIONS)
    return {
        "ms_per_action": _percentiles(times[WARM_UP_ACTIONS:]),
        "ms_per_decision": _percentiles(decision_times),
    }


def _run_steps(make_policy: PolicyFactory, env: EnvAdapter, seed: int, steps: int) -> None:
    """So many steps of one environment, over one or several episodes."""
    while steps > 0:
        obs, info = env.reset(seed)
        act_fn = make_policy(EpisodeStart(env, obs, info), seed)
        for result in islice(rollout(act_fn, env, obs), steps):
            steps -= 1
            if done_of(result).any():
                break
        seed += 1


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
