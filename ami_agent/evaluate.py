"""How well an agent does, beside random motion and an oracle, on the same episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ami_agent.agent import Agent
from ami_agent.guard import undisturbed
from ami_agent.latency import Results, latency, timed
from ami_agent.life import Act, Guides, Lived, World, WorldConfig, ended, live
from ami_agent.players import Begin, Scene, aimless, mind, shortest
from ami_agent.report import figure
from ami_agent.statistics import Estimate, mean, rate
from modules.configurator import Assignment
from modules.types import Plan, UnusableInput

EPISODES_FROM = 1_000_000
"""Seed of the first episode of an evaluation."""
MOST_STEPS = 100_000
"""Steps of an episode after which an evaluation gives up, where nobody says how long one lasts."""


class Outcome(NamedTuple):
    """How the first episode of each of B worlds went."""

    success: Tensor  # [B] 1 or 0: ever; NaN where the world doesn't say
    final_success: Tensor  # [B] 1 or 0: at the last step; NaN where the world doesn't say
    steps: Tensor  # [B] steps until first success, NaN without
    length: Tensor  # [B] steps until the episode was over
    score: Tensor  # [B] the world's own at the last step, NaN where it has none
    felt: Tensor  # [B, I] sum of what was felt; the first is the return


def play(begin: Begin, world: World, seed: int) -> Outcome:
    """One episode in each world."""
    obs, info = world.reset(seed)
    going = torch.ones(world.count, dtype=torch.bool)
    success, final, steps, score = (torch.full((world.count,), torch.nan) for _ in range(4))
    length = torch.zeros(world.count)
    felt = torch.zeros(world.count, len(world.spec.interoception), dtype=torch.float64)
    act = begin(Scene(world, obs, info), seed)
    for step, lived in enumerate(live(act, world, obs), 1):
        now = told_of(lived, "success", "is_success")
        steps[(now == 1) & going & (success != 1)] = step
        success = torch.where(going, torch.fmax(success, now), success)
        felt += lived.transition.interoception.cpu() * going[:, None]
        length += going
        over = ended(lived).cpu() & going
        final[over] = told_of(lived, "final_success", "is_success", "success")[over]
        if "score" in lived.info:
            score[over] = told_of(lived, "score")[over]
        going &= ~over
        if not going.any():
            break
        if step == MOST_STEPS and not world.limited:
            raise UnusableInput(
                f"no end of an episode within {step} steps, and the environment states no limit: "
                "set one (--env.limit STEPS)"
            )
    return Outcome(success, final, steps, length, score, felt)


def told_of(lived: Lived, *names: str) -> Tensor:
    """`[B]` numbers as the world tells them, under the first of these names that it knows; NaN
    where it knows none, or tells what is no number."""
    said = next((lived.info[name] for name in names if name in lived.info), None)
    unknown = torch.full((len(ended(lived)),), torch.nan)
    try:
        plain = said if isinstance(said, Tensor) else np.asarray(said, dtype=np.float32)
    except (TypeError, ValueError):
        return unknown
    told = torch.as_tensor(plain).cpu().float()
    return told if told.shape == unknown.shape else unknown


def play_many(begin: Begin, config: WorldConfig, episodes: int, seed: int, device: Any) -> Outcome:
    """As many episodes as asked for, up to 100 at once; episode i has seed `seed` + i, however many
    environments can be open."""
    outcomes = config.in_turns(
        episodes, lambda world, first: play(begin, world, seed + first), device, 100
    )
    return Outcome(*(torch.cat(parts) for parts in zip(*outcomes, strict=True)))


def row(outcome: Outcome, channels: Sequence[str]) -> Results:
    """An outcome as figures with 95 % intervals; `felt`: by channel, the sum over an episode."""
    arrived, scored = outcome.steps[outcome.success == 1], not outcome.score.isnan().any()
    return {
        "success": _rate(outcome.success),
        "final_success": _rate(outcome.final_success),
        "return": mean(outcome.felt[:, 0]),
        "length": mean(outcome.length),
        "steps": mean(arrived) if len(arrived) else None,
        "score": mean(outcome.score) if scored else None,
        "felt": {n: mean(f) for n, f in zip(channels[1:], outcome.felt.T[1:], strict=True)},
    }


def _rate(told: Tensor) -> Estimate | None:
    """None where a world doesn't say."""
    return None if told.isnan().any() else rate(told == 1)


def evaluate(
    agent: Agent, world: WorldConfig | str, *, mode: str = "plan", task: str = "",
    episodes: int = 100, seed: int = EPISODES_FROM,
) -> Results:  # fmt: skip
    """The figures of `eval --json`; rates in [0, 1], milliseconds per action of one world.

    `world`: settings, or the id of a world without any; `task`: one of the agent's, by name.
    """
    (found,) = judge(agent, world, modes=(mode,), task=task, episodes=episodes, seed=seed).values()
    return found


def judge(
    agent: Agent, world: WorldConfig | str, *, modes: Sequence[str] = ("plan", "react"),
    task: str = "", episodes: int = 100, seed: int = EPISODES_FROM,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Results]:  # fmt: skip
    """The figures of each mode on the same episodes; `say` is told what is being done."""
    assignment = agent.assigned(task)
    config = (WorldConfig(id=world) if isinstance(world, str) else world).under(assignment)
    if episodes < 1:
        raise UnusableInput(f"episodes is {episodes}; there must be at least 1")
    found, channels = {}, _felt_in(config, agent)
    told = f"{episodes} episode{'s' if episodes > 1 else ''}"
    for mode in modes:
        say(f"mode {mode}: {told}")
        found[mode] = _marks(agent.eval(), config, mode, assignment, episodes, seed, channels)
    say(f"random motion, and the oracle where there is one: {told}")
    known = {
        "task": task or next(iter(agent.assignments)),
        "baselines": baselines(config, episodes, seed),
    }
    return {mode: {**marks, **known} for mode, marks in found.items()}


def _felt_in(config: WorldConfig, agent: Agent) -> tuple[str, ...]:
    """What is felt in that world; UnusableInput where the agent's senses or body don't fit it."""
    world = config.build(1)
    world.close()
    mine, there = (f"{spec.told()} and {spec.done()}" for spec in (agent.spec, world.spec))
    if mine != there:
        raise UnusableInput(f"{config.id} has {there}, but the agent is made for {mine}")
    return world.spec.interoception


def _marks(
    agent: Agent, config: WorldConfig, mode: str, assignment: Assignment, episodes: int, seed: int,
    channels: Sequence[str],
) -> Results:  # fmt: skip
    times: list[float] = []
    plans: dict[int, list[tuple[Tensor, Tensor]]] = {}  # by the seed of a batch

    def begin(scene: Scene, start: int) -> Act:
        heard = plans[start] = []

        def watch(plan: Plan) -> None:
            heard.append((plan.deliberated, plan.violation > 0))

        return timed(mind(agent, mode, assignment, watch)(scene, start), times)

    outcome = play_many(begin, config, episodes, seed, agent.device)
    deliberated, violated = _shares(plans.values(), outcome.length)
    return {
        "env": config.id,
        "variant": config.variant,
        "options": dict(config.options),
        "mode": mode,
        "device": str(agent.device),
        "seed": seed,
        "episodes": episodes,
        **row(outcome, channels),
        "deliberated": deliberated,
        "violated": violated,
        **undisturbed(partial(latency, agent, config, mode, assignment, seed)),
        "ms_per_action_batched": 1000 * float(np.mean(times)),
    }


def _shares(plans: Iterable[Sequence[tuple[Tensor, Tensor]]], length: Tensor) -> list[float]:
    """Of batches of worlds, one after the other, what was so at each step, `[B]`: its share of all
    steps that were judged, as many as each world's episode has, `[episodes]`."""
    sums, rest = torch.zeros(2), length
    for heard in plans:
        told = torch.stack([torch.stack(pair) for pair in heard]).cpu()  # [T, 2, B]
        lasts, rest = rest.split([told.shape[2], len(rest) - told.shape[2]])
        judged = torch.arange(len(told))[:, None] < lasts  # [T, B]
        sums += (told & judged[:, None]).sum((0, 2))
    return (sums / length.sum()).tolist()


def baselines(config: WorldConfig, episodes: int, seed: int) -> Mapping[str, Any]:
    """Random motion, and the oracle where the world has one, on the same episodes."""
    world = config.build(1)
    guided, channels = isinstance(world.inner, Guides), world.spec.interoception
    world.close()
    players = {"random": aimless, **({"oracle": shortest} if guided else {})}
    outcomes = {n: play_many(p, config, episodes, seed, "cpu") for n, p in players.items()}
    return {"oracle": None, **{name: row(o, channels) for name, o in outcomes.items()}}


def rows(results: Mapping[str, Results]) -> tuple[list[str], list[list[str]]]:
    """The table people read: each mode, then its baselines, beside each other, and a row for every
    figure, so that none is cut where a terminal is narrow."""
    (first, *_) = results.values()
    channels = [f"{channel} an episode" for channel in first["felt"]]
    score = ["score"] if first["score"] is not None else []
    judged = ["success at the last step", "ever", "steps"] if first["success"] else []
    known = [*judged, "return", *channels]
    figures = [*score, *known, "deliberated", "ms per action", "batched"]
    told = {f"agent, {m}": [*_told(r), *_speed(r)] for m, r in results.items()}
    named = {name: r for name, r in first["baselines"].items() if r is not None}
    told |= {name: [*_told(r), "", "", ""] for name, r in named.items()}
    return ["", *told], [list(row) for row in zip(figures, *told.values(), strict=True)]


def _told(result: Results) -> list[str]:
    return [
        *([figure(result["score"]["mean"])] if result["score"] is not None else []),
        *_success(result),
        _interval(result["return"]),
        *(figure(felt["mean"]) for felt in result["felt"].values()),
    ]


def _speed(result: Results) -> list[str]:
    return [
        f"{100 * result['deliberated']:.0f} %",
        f"{result['ms_per_action']['p50']:.2f}",
        f"{result['ms_per_action_batched']:.3f}",
    ]


def _success(result: Results) -> list[str]:
    if result["success"] is None:
        return []
    steps = "-" if result["steps"] is None else f"{result['steps']['mean']:.1f}"
    return [_share(result["final_success"]), _share(result["success"]), steps]


def _interval(estimate: Results) -> str:
    known = estimate["ci95"]
    mean = figure(estimate["mean"], known)
    return f"{mean} [{', '.join(figure(end, known) for end in known)}]" if known else mean


def _share(estimate: Results) -> str:
    low, high = estimate["ci95"]
    return f"{100 * estimate['mean']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
