"""Recorded episodes, as an environment would have delivered them: Minari datasets, and replay
buffers that runs have kept. Both are read as data, without running code of theirs; the files of
Minari are checked before: regular files, metadata within bounds, arrays of their stated size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ami_agent.adapters.env import EnvAdapter
from ami_agent.adapters.env_spec import differences, from_json
from ami_agent.adapters.observations import bounds_of
from ami_agent.adapters.spaces import check_numbers, read_obs
from ami_agent.storage import checkpoint, files
from modules.memory.replay_buffer import BY_ENV, ReplayBuffer
from modules.types import CONTINUE, ConfigError, Trajectory

METADATA, HDF5 = "metadata.json", "main_data.hdf5"
MAX_COMPRESSION, MIN_CHECKED_SIZE = 2000, 64 * 1024
"""Bytes of an array for each byte on disk, more than deflate can save; and the size of an array, in
bytes, from which on this is checked."""


class EpisodeDataset(NamedTuple):
    """Recorded episodes."""

    num_episodes: int
    steps: int  # of all episodes, and one between each two
    episodes: Callable[[int], Iterator[Trajectory]]  # from that one on; obs [1, T + 1, *O]


def from_minari(name: str, env: EnvAdapter) -> EpisodeDataset:
    """The Minari dataset of that id; ConfigError if it isn't there, is empty, or doesn't fit."""
    if find_spec("minari") is None:
        raise ConfigError("minari is not installed: pip install 'ami-agent[minari]'")
    import minari  # an extra

    home = Path(_read(name, minari.storage.get_dataset_path, name)) / "data"
    if home.is_dir():
        _read(name, check_minari_files, home)
    known = _read(name, minari.list_local_datasets)
    if name not in known:
        none = "there are none (MINARI_DATASETS_PATH says where)"
        others = f"there are {', '.join(known)}" if known else none
        raise ConfigError(f"no Minari dataset {name!r} on this machine; {others}")
    if not {"observation_space", "action_space"} <= set(known[name]):
        raise ConfigError(f"dataset {name} doesn't state its spaces")
    dataset = _read(name, minari.load_dataset, name)
    _check_spaces(name, dataset, env)
    if not dataset.total_steps:
        raise ConfigError(f"dataset {name} is empty")
    count = int(dataset.total_episodes)
    episodes = partial(_iter_episodes, name, dataset, env)
    return EpisodeDataset(count, int(dataset.total_steps) + count - 1, episodes)


def _read(name: str, read: Callable[..., Any], *args: Any) -> Any:
    try:
        return read(*args)
    except Exception as error:  # files of others may raise anything
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        raise ConfigError(f"dataset {name} can't be read: {kind}{error}") from error


def check_minari_files(home: Path) -> None:
    """Raises ConfigError for a dataset, in the folder `home`, that can't be read safely."""
    metadata = files.read_json(home / METADATA)
    info = metadata if isinstance(metadata, dict) else {}
    for key in ("total_steps", "total_episodes"):
        if not isinstance(info.get(key), int) or info[key] < 0:
            raise ConfigError(f"{home / METADATA} has no {key}: it must be a whole number")
    if info.get("data_format") != "hdf5":
        for path in home.rglob("*"):
            if not path.is_dir():
                files.open_regular(path).close()
        return
    with files.open_regular(home / HDF5) as file:
        stat = os.fstat(file.fileno())
    steps = _count_steps(home / HDF5, stat.st_mtime_ns, stat.st_size)
    if steps != info["total_steps"]:
        raise ConfigError(
            f"{home / METADATA} states {info['total_steps']} steps, and {HDF5} holds {steps}"
        )


@cache
def _count_steps(path: Path, modified: int, size: int) -> int:
    """The steps of all episodes of an HDF5 file, last written at the time `modified`; ConfigError
    where it is no such file, refers to other files, or has arrays that are not on the disk."""
    import h5py  # comes with the extra of Minari

    with files.one_line_errors(path), h5py.File(path, "r") as file:
        arrays = list(_arrays(h5py, file))
        for name, array in arrays:
            disk_size = array.id.get_storage_size()
            if array.is_virtual or array.external:
                raise ConfigError(f"{path}: {name} lies in another file")
            if array.nbytes > max(MIN_CHECKED_SIZE, MAX_COMPRESSION * disk_size):
                raise ConfigError(
                    f"{path}: {name} claims {array.nbytes} bytes, and {disk_size} are on the disk"
                )
        rewards = [a for name, a in arrays if name.endswith("/rewards") and name.count("/") == 2]
        return sum(len(array) for array in rewards)


def _arrays(h5py: Any, group: Any, depth: int = files.MAX_DEPTH) -> Iterator[tuple[str, Any]]:
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink) or not depth:
            raise ConfigError(f"{group.file.filename}: {group.name}/{name} is a link elsewhere")
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _arrays(h5py, item, depth - 1)
        elif isinstance(item, h5py.Dataset):
            yield item.name, item


def _check_spaces(name: str, dataset: Any, env: EnvAdapter) -> None:
    vector_env = env.vector_env
    for what, recorded, expected in (
        ("observations", dataset.observation_space, vector_env.single_observation_space),
        ("actions", dataset.action_space, vector_env.single_action_space),
    ):
        if recorded != expected:
            raise ConfigError(
                f"{what} of dataset {name} are {recorded}, but the environment's are {expected}"
            )
    missing = [signal for signal in env.spec.interoception[1:] if signal != CONTINUE]
    if missing:
        raise ConfigError(
            f"the environment's interoception has {', '.join(missing)}, which no Minari dataset "
            "records"
        )


def _iter_episodes(name: str, dataset: Any, env: EnvAdapter, first: int) -> Iterator[Trajectory]:
    """The episodes from `first` on; ConfigError, with the episode's index, for an invalid one."""
    for index in range(first, dataset.total_episodes):
        episode = _read(name, dataset.__getitem__, index)
        try:
            yield _trajectory(episode, env)
        except ConfigError as error:
            raise ConfigError(f"episode {index} of dataset {name}: {error}") from None


def _trajectory(episode: Any, env: EnvAdapter) -> Trajectory:
    steps = len(episode)
    obs = read_obs(env.obs_fields, episode.observations, "observation")
    actions = _actions(episode.actions, env)
    terminated = torch.as_tensor(np.asarray(episode.terminations, dtype=bool))
    rewards = torch.as_tensor(np.asarray(episode.rewards, dtype=np.float64))
    signals = [rewards, (~terminated).double()] if env.config.terminal_channel else [rewards]
    interoception = torch.stack(signals, -1)
    obs_lengths, lengths = {len(part) for part in obs.values()}, {len(actions), len(terminated)}
    if not steps or obs_lengths != {steps + 1} or lengths != {steps}:
        raise ConfigError(
            f"{steps} rewards, {lengths} actions and terminations, {obs_lengths} observations"
        )
    for what, part in (("actions", actions), ("rewards", rewards)):
        check_numbers(what, part)
    batched_obs = {name: part[None] for name, part in obs.items()}
    return Trajectory(
        obs=batched_obs.get("obs", batched_obs), actions=actions[None],
        interoception=interoception[None], terminated=terminated[None],
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


def _reading_of(run: Path) -> tuple[int, dict[str, Any]]:
    """The frames of an observation in that run, and how its parts were read; nothing that its
    settings name is imported."""
    path = run / "config.json"
    if not path.exists():
        raise ConfigError(f"{run} is not a run folder: it has no {path.name}")
    config = files.read_json(path)
    env = config.get("env") if isinstance(config, dict) else None
    stack = env.get("frame_stack") if isinstance(env, dict) else None
    obs_layout = env.get("obs_layout") if isinstance(env, dict) else None
    if not isinstance(stack, int) or not 1 <= stack <= 1000 or not isinstance(obs_layout, dict):
        raise ConfigError(f"{path} holds no settings of this version")
    return stack, obs_layout


def from_run(folder: str, env: EnvAdapter) -> EpisodeDataset:
    """The replay buffer of a run; ConfigError if it kept none, or one of other spaces."""
    run = Path(folder)
    stack, obs_layout = _reading_of(run)
    interface = replace(env.config, frame_stack=stack, obs_layout=obs_layout).interface
    written = run / "spaces.json"
    run_spec = from_json(files.read_json(written), interface, str(written))
    if difference := next(differences(run_spec, env.spec), None):
        raise ConfigError(
            f"run {folder} was trained with {difference.one}, but the environment here has "
            f"{difference.two}"
        )
    if not (run / "memory").is_dir():
        raise ConfigError(
            f"run {folder} has kept no replay buffer: train it with --keep-replay-buffer"
        )
    state, _ = checkpoint.load(run / "memory")
    _check_buffer(run / "memory", state)
    steps, capacity, run_start = state["steps"].tolist()
    # no memory for rows that were never filled
    capacity = max(stack, min(capacity, state["age"].shape[1]))
    state["steps"] = torch.tensor([steps, capacity, run_start])
    with files.one_line_errors(run / "memory"):
        example = run_spec.empty_transition(len(state["ended"]))
        buffer = ReplayBuffer(capacity + 1 - stack, example, "cpu", stack)
        buffer.load_state_dict(state)
        numbers = buffer.episode_ids()
    if not len(numbers):
        raise ConfigError(f"the replay buffer of run {folder} holds no step")
    # of an episode whose beginning is overwritten, older frames are kept in rows of their own
    steps = len(buffer) + len(numbers) - 1 + (stack - 1) * buffer.num_envs
    return EpisodeDataset(
        len(numbers), steps, lambda first: map(buffer.get_episode, numbers[first:])
    )


def _check_buffer(source: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Raises ConfigError unless these are the parts of one replay buffer, of finite numbers."""
    age, episode_ends, steps = (
        state.get(name, torch.empty(0)) for name in ("age", "ended", "steps")
    )
    sizes = (len(episode_ends), age.shape[-1])
    rows = {name: part for name, part in state.items() if name not in ("ended", "steps")}
    is_valid = age.ndim == 2 and steps.shape == (3,) and not steps.is_floating_point()
    for name, part in rows.items():
        first_two = tuple(part.shape[:2])
        is_valid &= (first_two if name in BY_ENV else first_two[::-1]) == sizes
        files.check_finite(source, name, part)
    if not is_valid or int(steps.min()) < 0:
        raise ConfigError(f"{source} holds no replay buffer: its parts are of different sizes")
