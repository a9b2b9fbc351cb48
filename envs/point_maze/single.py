"""One world by itself: the batch of worlds, with a batch of one."""

from __future__ import annotations

from typing import Any

from ..single import SingleEnv
from .worlds import PointMazeVectorEnv


class PointMazeEnv(SingleEnv[PointMazeVectorEnv]):
    """Takes the keywords of `PointMazeVectorEnv`; see there."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(PointMazeVectorEnv(1, **settings))
