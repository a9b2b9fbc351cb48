"""How long a thought takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ami_agent.agent import Agent
from ami_agent.life import Act, World, WorldConfig, ended, live
from ami_agent.players import Begin, Scene, mind
from modules.configurator import Assignment
from modules.types import Observation

Results = dict[str, Any]


def latency(
    agent: Agent, config: WorldConfig, mode: str, assignment: Assignment, seed: int,
    actions: int = 60,
) -> Results:  # fmt: skip
    """Milliseconds in one world, after a warm-up: of one whole `act`, from observation to action,
    and of the actor's part in it, from state to action; perception, and what levels above plan, is
    the same for every mode."""
    controller = agent.controller(1)  # what the agent does elsewhere goes on undisturbed
    begin = mind(agent, mode, assignment, controller=controller)
    times: list[float] = []
    decisions: list[float] = []

    @torch.no_grad()
    def decide(obs: Observation) -> Tensor:
        with controller.active():
            state, focus = agent.attend(obs)
            state.cpu()  # the clock of the actor starts when perception is done
            actor = agent.actors[mode]
            return timed(lambda obs: actor(state, focus).action, decisions)(obs)

    def whole(scene: Scene, start: int) -> Act:
        return timed(begin(scene, start), times)

    def part(scene: Scene, start: int) -> Act:
        begin(scene, start)
        return decide

    with closing(config.build(1, agent.device)) as world:
        for how in (whole, part):
            _live(how, world, seed, actions + 10)
    return {"ms_per_action": _percentiles(times[10:]), "ms_per_decision": _percentiles(decisions)}


def _live(begin: Begin, world: World, seed: int, steps: int) -> None:
    """So many steps of one world, episode by episode."""
    while steps > 0:
        obs, info = world.reset(seed)
        for lived in islice(live(begin(Scene(world, obs, info), seed), world, obs), steps):
            steps -= 1
            if ended(lived).any():
                break
        seed += 1


def _percentiles(seconds: Sequence[float]) -> Results:
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    whole = 1000 * float(np.mean(seconds))
    return {"mean": whole, "p50": float(p50), "p95": float(p95)}


def timed(act: Act, times: list[float]) -> Act:
    def timed(obs: Observation) -> Tensor:
        began = time.perf_counter()
        action = act(obs).cpu()  # the action is there only when the device is done
        times.append((time.perf_counter() - began) / len(action))
        return action

    return timed
