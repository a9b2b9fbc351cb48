"""One world by itself: the batch of worlds, with a batch of one."""

from __future__ import annotations

from typing import Any

from ..single import SingleEnv
from .worlds import MazeVectorEnv


class MazeEnv(SingleEnv[MazeVectorEnv]):
    """Takes the keywords of `MazeVectorEnv`; see there."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(MazeVectorEnv(1, **settings))
