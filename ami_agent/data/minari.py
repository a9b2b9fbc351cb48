"""Minari datasets. Their files are checked before Minari reads them: regular files, metadata within
bounds, arrays of their stated size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache, reduce
from importlib.util import find_spec
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np

from ami_agent.adapters.env import EnvAdapter
from ami_agent.adapters.goal_env import without_goal
from ami_agent.adapters.spaces import leaves
from ami_agent.data.dataset import EpisodeDataset, column_of, dataset_of
from ami_agent.data.hdf5 import checked_arrays, open_hdf5
from ami_agent.data.recording import Episode, Keys, Recording, obs_role
from ami_agent.storage import files
from modules.types import ConfigError

METADATA, HDF5 = "metadata.json", "main_data.hdf5"


class MinariRecording(Recording):
    """The dataset of an id; ConfigError if it isn't there or is empty."""

    layout = "Minari dataset"

    def __init__(self, name: str) -> None:
        self.label, self._name = f"dataset {name}", name
        self.dataset = _open(name)
        if not self.dataset.total_steps:
            raise ConfigError(f"dataset {name} is empty")
        space = self.dataset.observation_space
        self._parts = {"/".join(map(str, path)): (path, leaf) for path, leaf in leaves(space)}
        self.obs = {part: column_of(leaf) for part, (_, leaf) in self._parts.items()}
        self.actions = column_of(self.dataset.action_space)
        self.extra = {}
        obs_keys = {part: obs_role(part) for part in self.obs}
        self.keys = Keys(obs_keys, "actions", "rewards", "terminations")
        self._set_lengths(_read(name, self._lengths))

    def _lengths(self) -> list[int]:
        indices = range(self.dataset.total_episodes)
        found = self.dataset.storage.get_episode_metadata(indices)
        return [int(episode["total_steps"]) for episode in found]

    def episodes(self, first: int = 0, extra: bool = False) -> Iterator[Episode]:
        for index in range(first, len(self.lengths)):
            episode = _read(self._name, self.dataset.__getitem__, index)
            obs = {
                part: np.asarray(reduce(getitem, path, episode.observations))
                for part, (path, _) in self._parts.items()
            }
            yield Episode(
                obs, np.asarray(episode.actions), np.asarray(episode.rewards),
                np.asarray(episode.terminations), {},
            )  # fmt: skip


def from_minari(name: str, env: EnvAdapter) -> EpisodeDataset:
    """The Minari dataset of that id; ConfigError if it isn't there, is empty, or doesn't fit."""
    recording = MinariRecording(name)
    vector_env = env.vector_env
    observed = recording.dataset.observation_space
    if env.config.goal_from_obs:  # the agent learns from the goals that were achieved
        observed = without_goal(observed)
    for what, recorded, expected in (
        ("observations", observed, vector_env.single_observation_space),
        ("actions", recording.dataset.action_space, vector_env.single_action_space),
    ):
        if recorded != expected:
            raise ConfigError(
                f"{what} of dataset {name} are {recorded}, but the environment's are {expected}"
            )
    return dataset_of(recording, env)


def _open(name: str) -> Any:
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
    return _read(name, minari.load_dataset, name)


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
    with open_hdf5(path) as file, files.one_line_errors(path):
        arrays = checked_arrays(path, file)
        return sum(
            len(array)
            for name, array in arrays.items()
            if name.endswith("/rewards") and name.count("/") == 1
        )
