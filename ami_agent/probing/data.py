"""Data for probes: trajectories, series in which a single factor varies, perturbed observations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice, product
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ami_agent.adapters.env import (
    EnvAdapter,
    EnvConfig,
    EnvironmentSpec,
    HasFactors,
    Info,
    behaviour_policy,
    rollout,
)
from ami_agent.adapters.imports import call_function
from modules.types import ConfigError, Observation, as_dict, tree_map

NUM_ENVS, NUM_STEPS = 128, 12
NUM_LINES, POINTS_PER_LINE, MIN_POINTS = 4, 24, 8
"""For each factor: lines, points on each, and the points that a line needs at least."""
NOISE_SCALE = 0.05  # standard deviation of the noise, in units of that of each number
DIM_FACTOR = 0.7
SHIFT_FRACTION = 1 / 32  # fraction of an image's width


class LabelledObs(NamedTuple):
    """Observations with their true factors."""

    obs: Observation  # [N, *O]
    factors: Tensor  # [N, F]


def concat_obs(observations: Sequence[Observation]) -> Observation:
    """The batches of observations, one after the other."""
    parts = [as_dict(obs) for obs in observations]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return joined["obs"] if isinstance(observations[0], Tensor) else joined


class BehaviourSteps(NamedTuple):
    """T steps of the behaviour policy in B environments."""

    observations: list[Observation]  # T + 1, each [B, *O]
    factors: Tensor  # [T + 1, B, F]; F is 0 where the environment reports no factors
    actions: Tensor  # [B, T, A]
    is_whole: Tensor  # [B] bool: no episode ended


def factors_of(env: EnvAdapter, info: Info) -> Tensor:
    """`[B, F]`; F is 0 where the environment reports no factors."""
    has_factors = isinstance(env.unwrapped, HasFactors)
    return env.factors(info).cpu() if has_factors else torch.empty(env.num_envs, 0)


def collect_steps(env: EnvAdapter, steps: int, seed: int) -> BehaviourSteps:
    """So many steps, from a reset with the seed on."""
    obs, info = env.reset(seed)
    observations, factors, actions = [obs], [factors_of(env, info)], []
    is_whole = torch.ones(env.num_envs, dtype=torch.bool)
    for result in islice(rollout(behaviour_policy(env), env, obs), steps):
        observations.append(result.next_obs)
        factors.append(factors_of(env, result.info))
        actions.append(result.transition.action)
        is_whole &= ~result.done.cpu()
    return BehaviourSteps(observations, torch.stack(factors), torch.stack(actions, 1), is_whole)


class ProbeTrajectories(NamedTuple):
    """Trajectories of T steps in B environments in which no episode ended meanwhile."""

    obs: Observation  # [(T + 1) B, *O], step by step
    factors: Tensor  # [T + 1, B, F]; F is 0 where the environment reports no factors
    actions: Tensor  # [B, T, A]
    seeds: Tensor  # [B] of the episodes


class FactorLine(NamedTuple):
    """Observations along which one factor varies and all others are constant."""

    factor: int
    obs: Observation  # [N, *O]
    factor_values: Tensor  # [N], in order


def collect_trajectories(config: EnvConfig, seed: int) -> ProbeTrajectories:
    """Trajectories of the behaviour policy in episodes with the seeds `seed` and following."""
    collected = config.run_in_batches(
        NUM_ENVS, lambda env, first: collect_steps(env, NUM_STEPS, seed + first)
    )
    batches = list(collected)
    steps = zip(*(batch.observations for batch in batches), strict=True)
    obs = concat_obs([concat_obs(step) for step in steps])
    is_whole = torch.cat([batch.is_whole for batch in batches])
    if not is_whole.any():
        is_whole[:] = True  # all episodes are shorter: resets count as steps
    kept = is_whole.repeat(NUM_STEPS + 1).nonzero()[:, 0]
    return ProbeTrajectories(
        tree_map(lambda part: part[kept], obs),
        torch.cat([batch.factors for batch in batches], 1)[:, is_whole],
        torch.cat([batch.actions for batch in batches])[is_whole],
        seed + is_whole.nonzero()[:, 0],
    )


def reset_to_factors(env: EnvAdapter, factors: np.ndarray, seed: int) -> LabelledObs | None:
    """The observation of one environment that is reset to factors `[F]`, and its actual factors,
    which may be rounded. None if it refuses them (a position inside a wall)."""
    try:
        obs, info = env.reset(seed, factors=factors[None])
    except ValueError:
        return None
    return LabelledObs(obs, env.factors(info).cpu())


def factor_lines(config: EnvConfig, trajectories: ProbeTrajectories) -> list[FactorLine]:
    """For every factor some lines through the first states of trajectories, over the factor's
    range; none where the environment has no factors or can't be reset to them."""
    count = trajectories.factors.shape[-1]
    if not count:
        return []
    starts = range(min(NUM_LINES, len(trajectories.seeds)))
    with closing(config.build(1)) as env:
        lines = [_line(env, trajectories, *each) for each in product(range(count), starts)]
    return [line for line in lines if line is not None]


def _line(
    env: EnvAdapter, trajectories: ProbeTrajectories, factor: int, start: int
) -> FactorLine | None:
    observed_values = trajectories.factors[..., factor]
    requested = trajectories.factors[0, start].repeat(POINTS_PER_LINE, 1)
    low, high = float(observed_values.min()), float(observed_values.max())
    requested[:, factor] = torch.linspace(low, high, POINTS_PER_LINE)
    others = torch.arange(requested.shape[1]) != factor
    kept: list[LabelledObs] = []
    for target in requested:
        labelled = reset_to_factors(env, target.numpy(), int(trajectories.seeds[start]))
        if labelled is None or not labelled.factors[0, others].allclose(target[others], atol=1e-3):
            continue
        if not kept or labelled.factors[0, factor] > kept[-1].factors[0, factor] + 1e-6:
            kept.append(labelled)
    if len(kept) < MIN_POINTS:
        return None
    factor_values = torch.cat([labelled.factors[:, factor] for labelled in kept])
    return FactorLine(factor, concat_obs([labelled.obs for labelled in kept]), factor_values)


Perturbation: TypeAlias = Callable[[Observation], Observation]
"""Observation `[B, *O]` -> the perturbed observation, of the same shapes and dtypes."""


def load_perturbations(path_spec: str, spec: EnvironmentSpec) -> Mapping[str, Perturbation]:
    """The perturbations that `FILE.py:FUNCTION` returns, by name. By default: noise in every
    modality, and for images a shift to the right, dimming and mirroring too."""
    if path_spec:
        found = call_function(path_spec, "perturbations by name")
        if not (found and isinstance(found, Mapping) and all(map(callable, found.values()))):
            raise ConfigError(f"{path_spec} must return functions of observations, by name")
        return {str(name): perturbation for name, perturbation in found.items()}
    has_images = any(len(shape) == 3 for shape in spec.shapes.values())
    on_image = {name: partial(on_images, fn) for name, fn in IMAGE_PERTURBATIONS.items()}
    return {"noise": add_noise, **(on_image if has_images else {})}


def apply_perturbation(name: str, perturbation: Perturbation, obs: Observation) -> Observation:
    """The perturbed observation; ConfigError where that fails, or has other shapes or dtypes."""
    try:
        perturbed = perturbation(obs)
    except (Exception, SystemExit) as error:  # third-party code may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"the perturbation {name!r} fails: {reason}") from error
    returned, expected = _describe(perturbed), _describe(obs)
    if returned != expected:
        raise ConfigError(
            f"the perturbation {name!r} returns {returned}; it must return {expected}"
        )
    floats = [part for part in as_dict(perturbed).values() if part.is_floating_point()]
    if not all(part.isfinite().all() for part in floats):
        raise ConfigError(f"the perturbation {name!r} returns NaN or infinity")
    return perturbed


def _describe(obs: object) -> str:
    """Shape and dtype of every part of an observation."""
    if isinstance(obs, Mapping):
        parts = sorted(f"{name!r}: {_describe(part)}" for name, part in obs.items())
        return f"{{{', '.join(parts)}}}"
    return f"{tuple(obs.shape)} {obs.dtype}" if isinstance(obs, Tensor) else type(obs).__name__


def add_noise(obs: Observation) -> Observation:
    """Gaussian noise on every number, the same at every call."""
    generator = torch.Generator().manual_seed(0)

    def noisy_part(part: Tensor) -> Tensor:
        noise = torch.randn(part.shape, generator=generator).to(part.device)
        # the spread of an image as a whole: most of its pixels are constant
        spread = part.float().std() if _is_image(part) else part.float().std(0)
        return _cast_like(part, part.float() + NOISE_SCALE * spread * noise)

    return tree_map(noisy_part, obs)


def on_images(perturbation: Callable[[Tensor], Tensor], obs: Observation) -> Observation:
    """The observation with its images perturbed."""
    return tree_map(lambda part: perturbation(part) if _is_image(part) else part, obs)


def _shift(image: Tensor) -> Tensor:
    """A shift to the right that repeats the left edge."""
    pixels = max(1, round(SHIFT_FRACTION * image.shape[-1]))
    return torch.cat([image[..., :1].repeat_interleave(pixels, -1), image[..., :-pixels]], -1)


IMAGE_PERTURBATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "shift": _shift,
    "dim": lambda image: _cast_like(image, DIM_FACTOR * image.float()),
    "mirror": lambda image: image.flip(-1),
}


def _is_image(part: Tensor) -> bool:
    """Whether a modality `[B, *O]` is an image."""
    return part.ndim == 4


def _cast_like(part: Tensor, perturbed: Tensor) -> Tensor:
    """Rounded and clipped to the dtype of `part`."""
    if part.is_floating_point():
        return perturbed.to(part.dtype)
    return perturbed.round().clamp(0, torch.iinfo(part.dtype).max).to(part.dtype)
