"""Replay buffers that runs have kept (`--keep-replay-buffer`), read as data: nothing that a run
folder names is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ami_agent.adapters.env import EnvAdapter
from ami_agent.adapters.env_spec import EnvironmentSpec, differences, from_json
from ami_agent.adapters.spaces import image_origin, interface_to
from ami_agent.adapters.tensors import ObsField, action_adapter
from ami_agent.data.dataset import EpisodeDataset, column_of, part_name
from ami_agent.data.recording import Episode, Keys, Recording
from ami_agent.storage import checkpoint, files
from modules.memory.replay_buffer import BY_ENV, ReplayBuffer
from modules.types import ConfigError, as_dict


def spec_of_run(run: Path) -> tuple[EnvironmentSpec, int]:
    """The spec of the environment of a run, and the frames of an observation; ConfigError where the
    folder is none of a run. Nothing that its settings name is imported."""
    path, written = run / "config.json", run / "spaces.json"
    if not path.exists():
        raise files.not_a_run(run, path.name)
    config = files.read_json(path)
    env = config.get("env") if isinstance(config, dict) else None
    env = env if isinstance(env, dict) else {}
    stack, obs_layout = env.get("frame_stack"), env.get("obs_layout")
    downsample = env.get("image_downsample", 1)
    if not _is_factor(stack) or not _is_factor(downsample) or not isinstance(obs_layout, dict):
        raise ConfigError(f"{path} holds no settings of this version")

    def interface(observation: spaces.Space, action: spaces.Space) -> Any:
        return interface_to(
            observation, action, stack=stack, layouts=obs_layout, downsample=downsample
        )

    return from_json(files.read_json(written), interface, str(written)), stack


def _is_factor(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and 1 <= value <= 1000


def load_buffer(run: Path, spec: EnvironmentSpec, stack: int) -> ReplayBuffer:
    """The replay buffer of a run; ConfigError if it kept none, or none with a step."""
    if not (run / "memory").is_dir():
        raise ConfigError(
            f"run {run} has kept no replay buffer: train it with --keep-replay-buffer"
        )
    state, _ = checkpoint.load(run / "memory")
    _check_buffer(run / "memory", state)
    steps, capacity, run_start = state["steps"].tolist()
    # no memory for rows that were never filled
    capacity = max(stack, min(capacity, state["age"].shape[1]))
    state["steps"] = torch.tensor([steps, capacity, run_start])
    with files.one_line_errors(run / "memory"):
        example = spec.empty_transition(len(state["ended"]))
        buffer = ReplayBuffer(capacity + 1 - stack, example, "cpu", stack)
        buffer.load_state_dict(state)
        if not len(buffer.episode_ids()):
            raise ConfigError(f"the replay buffer of run {run} holds no step")
    return buffer


def from_run(folder: str, env: EnvAdapter) -> EpisodeDataset:
    """The replay buffer of a run; ConfigError if it kept none, or one of other spaces."""
    run = Path(folder)
    run_spec, stack = spec_of_run(run)
    if difference := next(differences(run_spec, env.spec), None):
        raise ConfigError(
            f"run {folder} was trained with {difference.one}, but the environment here has "
            f"{difference.two}"
        )
    buffer = load_buffer(run, run_spec, stack)
    numbers = buffer.episode_ids()
    # of an episode whose beginning is overwritten, older frames are kept in rows of their own
    steps = len(buffer) + len(numbers) - 1 + (stack - 1) * buffer.num_envs
    return EpisodeDataset(
        len(numbers), steps, lambda first: map(buffer.get_episode, numbers[first:])
    )


class RunRecording(Recording):
    """The replay buffer of a run in the units of its environment."""

    layout = "run folder of AMI"

    def __init__(self, run: Path) -> None:
        self.label = str(run)
        self._spec, stack = spec_of_run(run)
        self._buffer = load_buffer(run, self._spec, stack)
        assert self._spec.interface is not None  # read from spaces
        self._interface = self._spec.interface
        self._fields = {part_name(f): (n, f) for n, f in self._interface.obs_fields.items()}
        for name, field in self._interface.obs_fields.items():
            if prod(field.modality.shape) < prod(column_of(field.space).shape):
                raise ConfigError(
                    f"run {run} has downsampled its images ({name!r} to {field.modality.shape}): "
                    "the environment's are lost, and only an agent with the same "
                    "--env.image-downsample can read them (--data)"
                )
        self._numbers = self._buffer.episode_ids()
        self.obs = {p: column_of(field.space) for p, (_, field) in self._fields.items()}
        self.actions = column_of(self._interface.action_space)
        self.extra = {}
        self.keys = Keys({part: name for part, (name, _) in self._fields.items()}, "action",
                         "interoception", "terminated")  # fmt: skip
        self._set_lengths(self._buffer.episode_lengths().numpy())

    def episodes(self, first: int = 0, extra: bool = False) -> Iterator[Episode]:
        for number in self._numbers[first:]:
            kept = self._buffer.get_episode(number)
            obs = as_dict(kept.obs)
            yield Episode(
                {part: to_space(field, obs[n][0]) for part, (n, field) in self._fields.items()},
                self._interface.action_adapter.to_env(kept.actions[0].numpy()),
                kept.interoception[0, :, 0].numpy(), kept.terminated[0].numpy(), {},
            )  # fmt: skip


def to_space(field: ObsField, part: Tensor) -> np.ndarray:
    """The agent's observations `[N, *O]` of one field as the environment delivered them,
    `[N, *space.shape]`: the reverse of the field's conversion, up to the rounding of float32."""
    space, numbers = field.space, part.numpy()
    column = column_of(space)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return action_adapter(space).to_env(numbers)
    if len(field.modality.shape) == 3 and isinstance(space, spaces.Box):
        return _image_to_space(space, numbers, field.summary.endswith("channels last"))
    return numbers.reshape(len(numbers), *column.shape).astype(column.dtype)


def _image_to_space(space: spaces.Box, image: np.ndarray, last: bool) -> np.ndarray:
    """`[N, C, H, W]` -> `[N, *space.shape]`."""
    shape = space.shape
    if last and len(shape) > 2:
        image = image.reshape(len(image), *shape[:-3], shape[-1], *shape[-3:-1])
        image = np.moveaxis(image, -3, -1)
    image = image.reshape(len(image), *shape)
    if space.dtype == np.bool_:
        return image > 0
    origin = image_origin(space)
    return (image if origin is None else image + origin).astype(space.dtype)


def _check_buffer(source: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Raises ConfigError unless these are the parts of one replay buffer, of finite numbers."""
    age, episode_ends, steps = (
        state.get(name, torch.empty(0)) for name in ("age", "ended", "steps")
    )
    sizes = (*episode_ends.shape[:1], *age.shape[1:2])
    rows = {name: part for name, part in state.items() if name not in ("ended", "steps")}
    is_valid = len(sizes) == 2 and steps.shape == (3,) and not steps.is_floating_point()
    for name, part in rows.items():
        first_two = tuple(part.shape[:2])
        is_valid &= (first_two if name in BY_ENV else first_two[::-1]) == sizes
        files.check_finite(source, name, part)
    if not is_valid or age.ndim > 2 or int(steps.min()) < 0:
        raise ConfigError(f"{source} holds no replay buffer: its parts are of different sizes")
