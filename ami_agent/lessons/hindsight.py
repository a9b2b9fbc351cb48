"""What was lived for one goal, looked at as if it had been lived for another."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ami_agent.guard import Failed
from ami_agent.life import Spec, WorldConfig
from modules.memory import Memory
from modules.types import Trajectory, UnusableInput, by_sense

WANTED, ACHIEVED = "desired_goal", "achieved_goal"
"""How Gymnasium's goal-conditioned worlds name them."""

Earn = Callable[[np.ndarray, np.ndarray, dict[str, Any]], Any]
"""A world's `compute_reward`: achieved and desired goals `[N, G]` -> rewards `[N]`."""


class Remembered(Protocol):
    """Whatever stretches of life can be drawn from."""

    def sample(
        self, count: int, length: int, generator: torch.Generator, together: int = 1
    ) -> Trajectory: ...


class Hindsight:
    """A share of what is drawn from memory wants what was achieved later in its episode, and is
    rewarded for it (hindsight experience replay, Andrychowicz et al. 2017, strategy "future").

    The world's `compute_reward` is asked on the host."""

    def __init__(self, memory: Memory, share: float, earn: Earn) -> None:
        self.memory, self.share, self.earn = memory, share, earn

    def sample(
        self, count: int, length: int, generator: torch.Generator, together: int = 1
    ) -> Trajectory:
        lived, later = self.memory.sample_ahead(count, length, generator, together)
        obs = dict(by_sense(lived.obs))
        taken = torch.rand(count, generator=generator) < self.share
        taken = taken.to(lived.actions.device)
        goal = by_sense(later)[ACHIEVED]
        wanted = torch.where(taken[:, None, None], goal[:, None], obs[WANTED])
        earned = self.rewards(obs[ACHIEVED][:, 1:], wanted[:, :-1])
        felt = lived.interoception.clone()
        felt[..., 0] = torch.where(taken[:, None], earned, felt[..., 0])
        return lived._replace(obs={**obs, WANTED: wanted}, interoception=felt)

    def rewards(self, achieved: Tensor, wanted: Tensor) -> Tensor:
        """`[N, T, G]` twice -> what the world would have given, `[N, T]`"""
        one, other = (part.flatten(0, 1).cpu().numpy() for part in (achieved, wanted))
        try:
            earned = np.asarray(self.earn(one, other, {}), dtype=np.float32)
        except Exception as error:  # a stranger's code may raise anything
            raise Failed(
                f"the world's compute_reward failed with {len(one)} goals at once: "
                f"{type(error).__name__}: {error}; --interact.hindsight 0 does without"
            ) from error
        if earned.shape != one.shape[:1]:
            raise UnusableInput(
                f"the world's compute_reward answers {one.shape} goals with {earned.shape} "
                f"rewards; it must take many at once and answer ({len(one)},)"
            )
        if not np.isfinite(earned).all():
            raise Failed("the world's compute_reward answers with NaN or infinity")
        return torch.from_numpy(earned).unflatten(0, achieved.shape[:2]).to(achieved.device)

    def check(self) -> None:
        """Raises UnusableInput where rewards that were lived are not what `compute_reward` says."""
        lived = self.memory.sample(1024, 1, torch.Generator().manual_seed(0))
        obs = by_sense(lived.obs)
        told = self.rewards(obs[ACHIEVED][:, 1:], obs[WANTED][:, :-1])[:, 0]
        felt = lived.interoception[:, 0, 0]
        wrong = float(((told - felt).abs() > 1e-3 * (1 + felt.abs())).float().mean())
        if wrong > 0.02:
            raise UnusableInput(
                f"in {100 * wrong:.0f} % of the steps the world's reward is not what its "
                "compute_reward says of the goals: without hindsight (--interact.hindsight 0) it "
                "can be learnt in"
            )


def hindsight(memory: Memory, share: float, spec: Spec, config: WorldConfig) -> Remembered:
    """Memory, looked at so if `share` is not 0; UnusableInput for a world without such goals."""
    if not share:
        return memory
    seen = Hindsight(memory, share, earnings(spec, config))
    seen.check()
    return seen


def conditioned(spec: Spec) -> bool:
    """Whether there are goals that are achieved and goals that are desired, vectors alike."""
    shapes = [spec.shapes.get(name) for name in (WANTED, ACHIEVED)]
    return shapes[0] == shapes[1] and shapes[0] is not None and len(shapes[0]) == 1


def rewarded(spec: Spec, config: WorldConfig) -> bool:
    """Whether a world has goals, and says how it rewards them."""
    try:
        earnings(spec, config)
    except UnusableInput:
        return False
    return True


def earnings(spec: Spec, config: WorldConfig) -> Earn:
    """How a world rewards goals; UnusableInput where it has none, or doesn't say."""
    if not conditioned(spec):
        raise UnusableInput(
            f"hindsight needs a world whose observations are a Dict with {WANTED!r} and "
            f"{ACHIEVED!r}, two vectors alike; {config.id} shows {spec.told()}"
        )
    if config.repeat > 1 or config.stack > 1:
        raise UnusableInput("hindsight knows the reward of one step, seen once: no repeat or stack")
    with closing(replace(config, vector="sync").build(1)) as world:
        one = world.inner.envs[0].unwrapped
    if not callable(getattr(one, "compute_reward", None)):
        raise UnusableInput(
            f"{config.id} has no compute_reward(achieved, desired, info): hindsight can't know "
            "what another goal would have been worth; --interact.hindsight 0 does without"
        )
    return one.compute_reward
