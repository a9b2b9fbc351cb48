"""One world by itself: the batch of worlds, with a batch of one."""

from __future__ import annotations

from typing import Any

from ..single import SingleEnv
from .worlds import ReachVectorEnv


class ReachEnv(SingleEnv[ReachVectorEnv]):
    """Takes the keywords of `ReachVectorEnv`; see there."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(ReachVectorEnv(1, **settings))
