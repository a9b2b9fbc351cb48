"""One world by itself: the batch of worlds, with a batch of one."""

from __future__ import annotations

from typing import Any

from ..single import SingleEnv
from .worlds import AntMazeVectorEnv


class AntMazeEnv(SingleEnv[AntMazeVectorEnv]):
    """Takes the keywords of `AntMazeVectorEnv`; see there."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(AntMazeVectorEnv(1, **settings))
