"""What OGBench's data sets have in common: their size, the arrays of their files, and episodes that
can be made again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ami_agent.adapters.numpy_random import numpy_random_of

Arrays: TypeAlias = dict[str, np.ndarray]

DTYPES: Mapping[str, type] = {
    "observations": np.float32,
    "actions": np.float32,
    "terminals": np.bool_,
    "qpos": np.float32,
    "qvel": np.float32,
}


class EpisodeRecorder(ABC):
    """Acts in OGBench's own environment. An episode depends on the seed and its index alone."""

    data: OGBenchData

    def episode(self, seed: int, index: int) -> Arrays:
        """The rows of one episode, each `[T, *]`."""
        draws = np.random.SeedSequence([seed, index]).generate_state(1)[0]
        with numpy_random_of(np.random.RandomState(draws)):  # OGBench draws from the global one
            rows = list(self._rows())
        columns = zip(self.data.dtypes.items(), zip(*rows, strict=True), strict=True)
        return {name: np.asarray(column, dtype=dtype) for (name, dtype), column in columns}

    @abstractmethod
    def _rows(self) -> Iterator[tuple[Any, ...]]:
        """Observation, action, whether the episode ends, position and velocity, for each step."""


@dataclass(frozen=True, kw_only=True)
class OGBenchData(ABC):
    """One of OGBench's data sets."""

    episodes: int
    steps: int  # rows of an episode, the last one's action leads nowhere that is recorded

    @property
    def dtypes(self) -> Mapping[str, type]:
        """Names and types of the columns."""
        return DTYPES

    @property
    def num_validation(self) -> int:
        """Episodes of the validation file."""
        return self.episodes // 10

    @abstractmethod
    def recorder(self) -> EpisodeRecorder:
        """What makes the episodes."""
