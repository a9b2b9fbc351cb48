"""Opens recorded episodes by what lies at a path."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from ami_agent.adapters.env import EnvAdapter
from ami_agent.data.concatenated_episodes import FlatRecording
from ami_agent.data.dataset import EpisodeDataset, dataset_of
from ami_agent.data.hdf5 import SIGNATURE, from_hdf5
from ami_agent.data.minari import MinariRecording, from_minari
from ami_agent.data.npz import NpzFolder, NpzTable
from ami_agent.data.recording import Recording
from ami_agent.data.runs import RunRecording, from_run
from ami_agent.storage import files
from modules.types import ConfigError

ZIP = b"PK"
MINARI_ID = re.compile(r"([\w.-]+/)*[\w.-]+-v\d+")
READABLE = (
    "a .npz file as OGBench's, an HDF5 file (as robomimic, stable-worldmodel and D4RL write it), a "
    "folder of .npz files, one an episode, a run that kept its replay buffer, or the id of a "
    "Minari dataset"
)


def open_recording(place: str, keys: Mapping[str, str]) -> Recording:
    """The recorded episodes at a path, or of a Minari id; ConfigError where there is nothing that
    can be read. `keys`: see `KeyChooser`."""
    path = Path(place)
    if not os.path.lexists(path):
        if MINARI_ID.fullmatch(place):
            return _without_keys(MinariRecording(place), keys)
        raise ConfigError(f"{place} is missing; data are {READABLE}")
    if path.is_dir():
        if (path / "config.json").exists():
            return _without_keys(RunRecording(path), keys)
        if next(path.glob("*.npz"), None) is not None:
            return NpzFolder(path, keys)
        raise ConfigError(f"{place} holds neither .npz files nor a run; data are {READABLE}")
    with files.open_regular(path) as file:
        start = file.read(len(SIGNATURE))
    if start == SIGNATURE:
        return from_hdf5(path, keys)
    if start.startswith(ZIP):
        return FlatRecording(NpzTable(path), keys, ".npz")
    raise ConfigError(f"{place} is neither a .npz nor an HDF5 file; data are {READABLE}")


def open_dataset(place: str, keys: Mapping[str, str], env: EnvAdapter) -> EpisodeDataset:
    """The recorded episodes at that place, for an environment; ConfigError where they are of other
    spaces."""
    if (Path(place) / "config.json").exists():
        return from_run(place, env)
    if not os.path.lexists(place) and MINARI_ID.fullmatch(place):
        return from_minari(place, env)
    return dataset_of(open_recording(place, keys), env)


def _without_keys(recording: Recording, keys: Mapping[str, str]) -> Recording:
    if keys:
        raise ConfigError(f"{recording.label} is a {recording.layout}, which needs no --data.keys")
    return recording
