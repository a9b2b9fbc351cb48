"""Recorded episodes as an environment would have delivered them: checked against its spaces before
anything is read, and converted for the agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from ami_agent.adapters.env import EnvAdapter
from ami_agent.adapters.spaces import bounds_of
from ami_agent.adapters.tensors import ObsField, check_numbers, read_obs
from ami_agent.data.recording import WHOLE, Column, Episode, Recording, obs_role
from modules.types import CONTINUE, ConfigError, Trajectory


class EpisodeDataset(NamedTuple):
    """Recorded episodes for one environment."""

    num_episodes: int
    steps: int  # of all episodes, and one between each two
    episodes: Callable[[int], Iterator[Trajectory]]  # from that one on; obs [1, T + 1, *O]


def dataset_of(recording: Recording, env: EnvAdapter) -> EpisodeDataset:
    """The episodes for this environment; ConfigError where they are of other spaces."""
    fields = match_fields(recording, env)
    check_column("actions", recording.label, recording.actions, env.vector_env.single_action_space)
    missing = [signal for signal in env.spec.interoception[1:] if signal != CONTINUE]
    if missing:
        raise ConfigError(
            f"the environment's interoception has {', '.join(missing)}, which {recording.label} "
            "does not hold: of other data than runs, rewards alone are read"
        )
    count = len(recording.lengths)
    episodes = partial(_trajectories, recording, fields, env)
    return EpisodeDataset(count, recording.num_steps + count - 1, episodes)


def part_name(field: ObsField) -> str:
    """A part of an observation as recordings name it."""
    return "/".join(map(str, field.path)) if field.path else WHOLE


def column_of(space: spaces.Space) -> Column:
    """What an environment delivers for a space without parts."""
    return Column(tuple(space.shape or ()), np.dtype(space.dtype or np.float32))


def match_fields(recording: Recording, env: EnvAdapter) -> dict[str, ObsField]:
    """The environment's fields, each of which reads the part of a recorded observation that it is;
    ConfigError where one is missing or of another space."""
    fields, label = env.obs_fields, recording.label
    only = next(iter(recording.obs)) if len(recording.obs) == len(fields) == 1 else None
    matched = {}
    for name, field in fields.items():
        part = part_name(field) if only is None else only
        if part not in recording.obs:
            role = obs_role(part)
            raise ConfigError(
                f"{label} holds the observations {', '.join(filter(None, recording.obs)) or 'obs'}"
                f", but the environment's are {env.vector_env.single_observation_space}: name the "
                f"column that is {role} (--data.keys {role} NAME; A+B joins two vectors)"
            )
        check_column(f"observations {part}".strip(), label, recording.obs[part], field.space)
        matched[name] = field._replace(path=(part,), env="")
    return matched


def check_column(what: str, label: str, column: Column, space: spaces.Space) -> None:
    """Raises ConfigError for numbers of another shape or kind than those of the space."""
    expected = column_of(space)
    is_like = np.can_cast(column.dtype, expected.dtype, "same_kind")
    if column.shape != expected.shape or not is_like:
        raise ConfigError(f"{what} of {label} are {column}, but the environment's are {space}")


def _trajectories(
    recording: Recording, fields: Mapping[str, ObsField], env: EnvAdapter, first: int
) -> Iterator[Trajectory]:
    """The episodes from `first` on; ConfigError, which says where it is, for an invalid one."""
    for index, episode in enumerate(recording.episodes(first), start=first):
        try:
            _check_finite(recording, episode)
            yield _trajectory(episode, fields, env)
        except ConfigError as error:
            raise ConfigError(f"{recording.describe_episode(index)}: {error}") from None


def _check_finite(recording: Recording, episode: Episode) -> None:
    """Raises ConfigError, with the column and the step, for NaN and infinities."""
    keys = recording.keys.by_role()
    for role, values in episode.by_role().items():
        if values.dtype.kind == "f" and not (is_finite := np.isfinite(values)).all():
            step, *rest = np.argwhere(~is_finite)[0].tolist()
            key = keys.get(role, role)
            column = role if key == role else f"{role} ({key})"
            place = f"step {step}" + (f", number {rest[0]}" if len(rest) == 1 else "")
            raise ConfigError(f"{column} holds NaN or infinity at {place}")


def _trajectory(episode: Episode, fields: Mapping[str, ObsField], env: EnvAdapter) -> Trajectory:
    obs = read_obs(fields, episode.obs, "observation")
    actions = _actions(episode.actions, env)
    terminated = torch.as_tensor(np.asarray(episode.terminated, dtype=bool))
    rewards = torch.as_tensor(np.asarray(episode.rewards, dtype=np.float64))
    steps = len(rewards)
    obs_lengths, lengths = {len(part) for part in obs.values()}, {len(actions), len(terminated)}
    if not steps or rewards.ndim > 1 or obs_lengths != {steps + 1} or lengths != {steps}:
        raise ConfigError(
            f"rewards {tuple(rewards.shape)}, {lengths} actions and terminations, {obs_lengths} "
            "observations"
        )
    for what, part in (("actions", actions), ("rewards", rewards)):
        check_numbers(what, part)
    signals = [rewards, (~terminated).double()] if env.config.terminal_channel else [rewards]
    batched_obs = {name: part[None] for name, part in obs.items()}
    return Trajectory(
        obs=batched_obs.get("obs", batched_obs), actions=actions[None],
        interoception=torch.stack(signals, -1)[None], terminated=terminated[None],
        episode_id=torch.zeros(()),
    )  # fmt: skip


def _actions(actions: Any, env: EnvAdapter) -> torch.Tensor:
    """`[T, A]` in [-1, 1]; numbers beyond the bounds of a Box are clipped, as environments do."""
    bounds = bounds_of(env.vector_env.single_action_space)
    if env.action_adapter.choices and bounds:
        outside = np.asarray(actions)[(actions < bounds.low) | (actions > bounds.high)]
        if outside.size:
            raise ConfigError(f"an action is {outside[0]}, outside its space")
    return env.from_env(actions).clamp(-1, 1)
