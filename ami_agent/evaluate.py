"""How well an agent does, beside random motion and an oracle, on the same episodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ami_agent.agent import Agent
from ami_agent.life import Act, Guides, Info, World, WorldConfig, live, seen
from ami_agent.players import Begin, aimless, mind, shortest
from ami_agent.statistics import mean, rate
from modules.types import UnusableInput

EPISODES_FROM = 1_000_000
"""Seed of the first episode of an evaluation."""

Results = dict[str, Any]


class Outcome(NamedTuple):
    """How the first episode of each of B worlds went."""

    success: Tensor  # [B] bool: ever
    final_success: Tensor  # [B] bool: at the last step
    returned: Tensor  # [B] sum of rewards
    steps: Tensor  # [B] steps until first success, NaN without


def play(begin: Begin, world: World, seed: int) -> Outcome:
    """One episode in each world."""
    obs, info = world.reset(seed)
    going = torch.ones(world.count, dtype=torch.bool)
    success, final = torch.zeros_like(going), torch.zeros_like(going)
    returned, steps = torch.zeros(world.count), torch.full((world.count,), torch.nan)
    for step, lived in enumerate(live(begin(world, info, seed), world, obs), 1):
        transition = lived.transition
        now = torch.as_tensor(lived.info["success"]).cpu() & going
        steps[now & ~success] = step
        success |= now
        returned += transition.interoception[:, 0].cpu() * going
        ended = (transition.terminated | transition.truncated).cpu() & going
        final |= ended & torch.as_tensor(lived.info["final_success"]).cpu()
        going &= ~ended
        if not going.any():
            break
    return Outcome(success, final, returned, steps)


def play_many(begin: Begin, config: WorldConfig, episodes: int, seed: int, device: Any) -> Outcome:
    """As many episodes as asked for, up to 100 at once; episode i has seed `seed` + i."""
    outcomes = []
    for first in range(0, episodes, 100):
        world = config.build(min(100, episodes - first), device)
        outcomes.append(play(begin, world, seed + first))
        world.close()
    return Outcome(*(torch.cat(parts) for parts in zip(*outcomes, strict=True)))


def row(outcome: Outcome) -> Results:
    """An outcome as figures with 95 % intervals."""
    arrived = outcome.steps[outcome.success]
    return {
        "success": rate(outcome.success),
        "final_success": rate(outcome.final_success),
        "return": mean(outcome.returned),
        "steps": mean(arrived) if len(arrived) else None,
    }


def latency(agent: Agent, config: WorldConfig, mode: str, seed: int, actions: int = 60) -> Results:
    """Milliseconds in one world, after a warm-up: of one whole `act`, from observation to action,
    and of the actor's part in it, from state to action; perception is the same for every mode."""
    world = config.build(1, agent.device)
    obs, info = world.reset(seed)
    act = mind(agent, mode)(world, info, seed)
    times: list[float] = []
    decisions: list[float] = []

    @torch.no_grad()
    def decide(obs: Tensor) -> Tensor:
        state = agent.perceive(obs)
        state.cpu()  # the clock of the actor starts when perception is done
        assert agent.focus is not None
        focus, actor = agent.focus, agent.actors[mode]
        return _timed(lambda state: actor(state, focus).action, decisions)(state)

    for how in (_timed(act, times), decide):
        for _, lived in zip(range(actions + 10), live(how, world, obs), strict=False):
            obs = seen(lived)
    world.close()
    return {"ms_per_action": _percentiles(times[10:]), "ms_per_decision": _percentiles(decisions)}


def _percentiles(seconds: Sequence[float]) -> Results:
    p50, p95 = np.percentile(seconds, [50, 95]) * 1000
    return {"p50": float(p50), "p95": float(p95)}


def _timed(act: Act, times: list[float]) -> Act:
    def timed(obs: Tensor) -> Tensor:
        began = time.perf_counter()
        action = act(obs).cpu()  # the action is there only when the device is done
        times.append((time.perf_counter() - began) / len(obs))
        return action

    return timed


def evaluate(
    agent: Agent, world: WorldConfig | str, *, mode: str = "plan", episodes: int = 100,
    seed: int = EPISODES_FROM,
) -> Results:  # fmt: skip
    """The figures of `eval --json`; rates in [0, 1], milliseconds per action of one world.

    `world`: settings, or the id of a world without any.
    """
    (found,) = judge(agent, world, modes=(mode,), episodes=episodes, seed=seed).values()
    return found


def judge(
    agent: Agent, world: WorldConfig | str, *, modes: Sequence[str] = ("plan", "react"),
    episodes: int = 100, seed: int = EPISODES_FROM, say: Callable[[str], None] = lambda text: None,
) -> dict[str, Results]:  # fmt: skip
    """The figures of each mode on the same episodes; `say` is told what is being done."""
    config = WorldConfig(id=world) if isinstance(world, str) else world
    if episodes < 1:
        raise UnusableInput(f"episodes is {episodes}; there must be at least 1")
    found = {}
    for mode in modes:
        say(f"mode {mode}: {episodes} episodes")
        found[mode] = _marks(agent.eval(), config, mode, episodes, seed)
    say(f"random motion and the oracle: {episodes} episodes")
    known = {"baselines": baselines(config, episodes, seed)}
    return {mode: {**marks, **known} for mode, marks in found.items()}


def _marks(agent: Agent, config: WorldConfig, mode: str, episodes: int, seed: int) -> Results:
    times: list[float] = []

    def begin(world: World, info: Info, start: int) -> Act:
        return _timed(mind(agent, mode)(world, info, start), times)

    outcome = play_many(begin, config, episodes, seed, agent.device)
    return {
        "env": config.id,
        "variant": config.variant,
        "options": dict(config.options),
        "mode": mode,
        "device": str(agent.device),
        "seed": seed,
        "episodes": episodes,
        **row(outcome),
        **latency(agent, config, mode, seed),
        "ms_per_action_batched": 1000 * float(np.mean(times)),
    }


def baselines(config: WorldConfig, episodes: int, seed: int) -> Mapping[str, Any]:
    """Random motion, and the oracle where the world has one, on the same episodes."""
    world = config.build(1)
    guided = isinstance(world.inner, Guides)
    world.close()
    players = {"random": aimless, **({"oracle": shortest} if guided else {})}
    rows = {name: row(play_many(p, config, episodes, seed, "cpu")) for name, p in players.items()}
    return {"oracle": None, **rows}


def rows(results: Mapping[str, Results]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table people read: each mode, then its baselines."""
    columns = ["who", "success at the last step", "ever", "steps", "ms per action", "batched"]
    told = [[f"agent, {m}", *_told(r), *_speed(r)] for m, r in results.items()]
    (first, *_) = results.values()
    named = {name: r for name, r in first["baselines"].items() if r is not None}
    return columns, told + [[name, *_told(r), "", ""] for name, r in named.items()]


def _told(result: Results) -> list[str]:
    return [
        _share(result["final_success"]),
        _share(result["success"]),
        "-" if result["steps"] is None else f"{result['steps']['mean']:.1f}",
    ]


def _speed(result: Results) -> list[str]:
    return [f"{result['ms_per_action']['p50']:.2f}", f"{result['ms_per_action_batched']:.3f}"]


def _share(estimate: Results) -> str:
    low, high = estimate["ci95"]
    return f"{100 * estimate['mean']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
