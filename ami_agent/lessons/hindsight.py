"""What was lived for one goal, looked at as if it had been lived for another."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ami_agent.guard import Failed
from ami_agent.life import Spec, WorldConfig, ended, live, seen, walk
from modules.memory import ALL, Memory, Parts
from modules.types import Trajectory, UnusableInput, by_sense

WANTED, ACHIEVED = "desired_goal", "achieved_goal"
"""How Gymnasium's goal-conditioned worlds name them."""
WITHOUT = "--interact.hindsight 0 does without"
TRIED = 64
"""Steps after which it is plain how a world rewards."""

Earn = Callable[[np.ndarray, np.ndarray, dict[str, Any]], Any]
"""A world's `compute_reward`: achieved and desired goals `[N, G]` -> rewards `[N]`."""


class Remembered(Protocol):
    """Whatever stretches of life can be drawn from."""

    def sample(
        self, count: int, length: int, generator: torch.Generator, together: int = 1, *,
        parts: Parts = ALL,
    ) -> Trajectory: ...  # fmt: skip


class Hindsight:
    """A share of what is drawn from memory wants what was achieved later in its episode, and is
    rewarded for it (hindsight experience replay, Andrychowicz et al. 2017, strategy "future").

    The world's `compute_reward` is asked on the host."""

    def __init__(self, memory: Memory, share: float, earn: Earn) -> None:
        self.memory, self.share, self.earn = memory, share, earn

    def sample(
        self, count: int, length: int, generator: torch.Generator, together: int = 1, *,
        parts: Parts = ALL,
    ) -> Trajectory:  # fmt: skip
        needed = parts.obs if parts.obs is None else {*parts.obs, WANTED, ACHIEVED}
        lived, later = self.memory.sample_ahead(
            count, length, generator, together, parts._replace(obs=needed)
        )
        obs = dict(by_sense(lived.obs))
        taken = torch.rand(count, generator=generator) < self.share
        taken = taken.to(lived.actions.device)
        goal = by_sense(later)[ACHIEVED]
        wanted = torch.where(taken[:, None, None], goal[:, None], obs[WANTED])
        felt = lived.interoception
        if parts.interoception:
            earned = self.rewards(obs[ACHIEVED][:, 1:], wanted[:, :-1])
            given = taken[:, None] if lived.valid is None else taken[:, None] & lived.valid
            felt = felt.clone()
            felt[..., 0] = torch.where(given, earned, felt[..., 0])
        return lived._replace(obs={**obs, WANTED: wanted}, interoception=felt)

    def rewards(self, achieved: Tensor, wanted: Tensor) -> Tensor:
        """`[N, T, G]` twice -> what the world would have given, `[N, T]`"""
        earned = _told(self.earn, *(part.flatten(0, 1) for part in (achieved, wanted)))
        return earned.unflatten(0, achieved.shape[:2]).to(achieved.device)

    def check(self) -> None:
        """Raises UnusableInput where rewards that were lived are not what `compute_reward` says."""
        lived = self.memory.sample(1024, 1, torch.Generator().manual_seed(0))
        obs = by_sense(lived.obs)
        told = self.rewards(obs[ACHIEVED][:, 1:], obs[WANTED][:, :-1])[:, 0]
        _compare(told, lived.interoception[:, 0, 0])


def _told(earn: Earn, achieved: Tensor, wanted: Tensor) -> Tensor:
    """`[N, G]` twice -> `[N]`; UnusableInput where the world can't tell."""
    one, other = achieved.cpu().numpy(), wanted.cpu().numpy()
    try:
        earned = np.asarray(earn(one, other, {}), dtype=np.float64)
    except Exception as error:  # a stranger's code may raise anything
        raise Failed(
            f"the world's compute_reward failed with {len(one)} goals at once: "
            f"{type(error).__name__}: {error}; {WITHOUT}"
        ) from error
    if earned.shape != one.shape[:1]:
        raise UnusableInput(
            f"the world's compute_reward answers {one.shape} goals with {earned.shape} rewards; "
            f"it must take many at once and answer ({len(one)},) (a norm along axis -1, for "
            f"instance); {WITHOUT}"
        )
    if not np.isfinite(earned).all():
        raise Failed(f"the world's compute_reward answers with NaN or infinity; {WITHOUT}")
    return torch.from_numpy(earned)


def _compare(told: Tensor, felt: Tensor) -> None:
    """Rewards `[N]` as `compute_reward` has them and as they were lived."""
    size = min(1.0, float(felt.abs().amax())) or 1.0
    wrong = float(((told - felt).abs() > 1e-3 * (size + felt.abs())).float().mean())
    if wrong > 0.02:
        raise UnusableInput(
            f"in {100 * wrong:.0f} % of the steps the world's reward is not what its "
            f"compute_reward says of the goals; {WITHOUT}"
        )


def check_earnings(spec: Spec, config: WorldConfig) -> None:
    """Lives a little, before anything is learnt: UnusableInput where rewards that are lived are not
    what `compute_reward` says, or it says nothing."""
    earn, achieved, wanted, felt = earnings(spec, config), [], [], []
    with closing(config.build(1)) as world:
        obs, _ = world.reset(0)
        over = torch.zeros(1, dtype=torch.bool)
        for lived in islice(live(walk(world), world, obs), TRIED):
            if not over.any():  # the step after an end only resets
                achieved.append(by_sense(seen(lived))[ACHIEVED])
                wanted.append(by_sense(lived.transition.obs)[WANTED])
                felt.append(lived.transition.interoception[:, 0])
            over = ended(lived)
    _compare(_told(earn, torch.cat(achieved), torch.cat(wanted)), torch.cat(felt))


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
            f"what another goal would have been worth; {WITHOUT}"
        )
    return one.compute_reward
