"""How well an agent does, beside random motion and an oracle, on the same episodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ami_agent import infos
from ami_agent.agent import Agent
from ami_agent.arguments import check_count, check_is
from ami_agent.guard import undisturbed
from ami_agent.latency import Results, latency, timed
from ami_agent.life import Act, Guides, Lived, World, WorldConfig, ended, live
from ami_agent.players import Begin, Scene, aimless, mind, shortest
from ami_agent.report import figure
from ami_agent.spaces import check_same_spaces
from ami_agent.statistics import Estimate, mean, rate
from modules.configurator import Assignment
from modules.types import Plan, UnusableInput

EPISODES_FROM = 1_000_000
"""Seed of the first episode of an evaluation."""
MOST_STEPS = 100_000
"""Steps of an episode after which an evaluation gives up, where nobody says how long one lasts."""


SUCCESS_NAMES = ("success", "is_success")
FINAL_SUCCESS_NAMES = ("final_success", "is_success", "success")
"""Entries of an info that say whether the task is done, the first that an environment reports."""


class Outcome(NamedTuple):
    """How the first episode of each of B worlds went."""

    success: Tensor  # [B] 1 or 0: ever; NaN where the environment never reported it
    final_success: Tensor  # [B] 1 or 0: as it was reported last; NaN likewise
    steps: Tensor  # [B] steps until first success, NaN without
    length: Tensor  # [B] steps until the episode was over
    score: Tensor  # [B] the world's own, as it was reported last; NaN where it has none
    felt: Tensor  # [B, I] sum of what was felt; the first is the return

    @property
    def reports_success(self) -> bool:
        """Whether any episode said whether its task was done."""
        return not (self.success.isnan() & self.final_success.isnan()).all()

    def settled(self, reports_success: bool) -> Outcome:
        """Of an environment that reports success, an episode that never did was none."""
        if not reports_success:
            return self
        return self._replace(
            success=self.success.nan_to_num(0.0), final_success=self.final_success.nan_to_num(0.0)
        )


def play(begin: Begin, world: World, seed: int) -> Outcome:
    """One episode in each world."""
    obs, info = world.reset(seed)
    going = torch.ones(world.count, dtype=torch.bool)
    success, final, steps, score = (torch.full((world.count,), torch.nan) for _ in range(4))
    length = torch.zeros(world.count)
    felt = torch.zeros(world.count, len(world.spec.interoception), dtype=torch.float64)
    act = begin(Scene(world, obs, info), seed)
    for step, lived in enumerate(live(act, world, obs), 1):
        now = told_of(lived, *SUCCESS_NAMES)
        steps[(now == 1) & going & (success != 1)] = step
        success = torch.where(going, torch.fmax(success, now), success)
        felt += lived.transition.interoception.cpu() * going[:, None]
        length += going
        for latest, names in ((final, FINAL_SUCCESS_NAMES), (score, ("score",))):
            reported = told_of(lived, *names)
            latest.copy_(torch.where(going & ~reported.isnan(), reported, latest))
        going &= ~ended(lived).cpu()
        if not going.any():
            break
        if step == MOST_STEPS and not world.limited:
            raise UnusableInput(
                f"no end of an episode within {step} steps, and the environment states no limit: "
                "set one (--env.limit STEPS)"
            )
    return Outcome(success, final, steps, length, score, felt)


def told_of(lived: Lived, *names: str) -> Tensor:
    """`[B]` numbers under the first of these names that an environment reported at this step; NaN
    where it reported none, or what is no number."""
    return infos.numbers(lived.info, names, ended(lived))


def play_many(begin: Begin, config: WorldConfig, episodes: int, seed: int, device: Any) -> Outcome:
    """As many episodes as asked for, up to 100 at once; episode i has seed `seed` + i, however many
    environments can be open."""
    outcomes = config.in_turns(
        episodes, lambda world, first: play(begin, world, seed + first), device, 100
    )
    return Outcome(*(torch.cat(parts) for parts in zip(*outcomes, strict=True)))


def row(outcome: Outcome, channels: Sequence[str], reports_success: bool) -> Results:
    """An outcome as figures with 95 % intervals; `felt`: by channel, the sum over an episode.
    `reports_success`: whether the environment ever says that a task is done."""
    outcome = outcome.settled(reports_success)
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
    """None where the environment never reported it."""
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
    check_is("agent", agent, Agent)
    check_is("world", world, WorldConfig, str)
    check_count("episodes", episodes, 1)
    check_count("seed", seed, 0)
    check_is("task", task, str)
    assignment = agent.assigned(task)
    config = (WorldConfig(id=world) if isinstance(world, str) else world).under(assignment)
    outcomes, figures, channels = {}, {}, _felt_in(config, agent)
    told = f"{episodes} episode{'s' if episodes > 1 else ''}"
    for mode in modes:
        say(f"mode {mode}: {told}")
        played = _played(agent.eval(), config, mode, assignment, episodes, seed)
        outcomes[mode], figures[mode] = played
    say(f"random motion, and the oracle where there is one: {told}")
    others = baselines(config, episodes, seed)
    known = any(o.reports_success for o in (*outcomes.values(), *others.values()))
    rows = {name: row(outcome, channels, known) for name, outcome in others.items()}
    return {
        mode: {
            "env": config.id,
            "variant": config.variant,
            "options": dict(config.options),
            "mode": mode,
            "device": str(agent.device),
            "seed": seed,
            "episodes": episodes,
            **row(outcomes[mode], channels, known),
            **figures[mode],
            "task": task or next(iter(agent.assignments)),
            "baselines": {"oracle": None, **rows},
        }
        for mode in outcomes
    }


def _felt_in(config: WorldConfig, agent: Agent) -> tuple[str, ...]:
    """What is felt in that world; UnusableInput where it is not one that the agent is made for."""
    world = config.build(1)
    world.close()
    check_same_spaces(agent.spec, world.spec, config)
    return world.spec.interoception


def _played(
    agent: Agent, config: WorldConfig, mode: str, assignment: Assignment, episodes: int, seed: int
) -> tuple[Outcome, Results]:
    """How the episodes went, and figures of how the agent acted in them. It acts in episodes of
    their own: whatever it does elsewhere goes on undisturbed."""
    controller = agent.controller(1)
    times: list[float] = []
    plans: dict[int, list[tuple[Tensor, Tensor]]] = {}  # by the seed of a batch

    def begin(scene: Scene, start: int) -> Act:
        heard = plans[start] = []

        def watch(plan: Plan) -> None:
            heard.append((plan.deliberated, plan.violation > 0))

        return timed(mind(agent, mode, assignment, watch, controller)(scene, start), times)

    outcome = play_many(begin, config, episodes, seed, agent.device)
    deliberated, violated = _shares(plans.values(), outcome.length)
    return outcome, {
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


def baselines(config: WorldConfig, episodes: int, seed: int) -> dict[str, Outcome]:
    """Random motion, and the oracle where the world has one, on the same episodes."""
    world = config.build(1)
    guided = isinstance(world.inner, Guides)
    world.close()
    players = {"random": aimless, **({"oracle": shortest} if guided else {})}
    return {name: play_many(p, config, episodes, seed, "cpu") for name, p in players.items()}


def rows(results: dict[str, Results]) -> tuple[list[str], list[list[str]]]:
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
