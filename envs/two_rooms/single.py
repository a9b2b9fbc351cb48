"""One world by itself: the batch of worlds, with a batch of one."""

from __future__ import annotations

from typing import Any

from ..single import SingleEnv
from .worlds import TwoRoomsVectorEnv


class TwoRoomsEnv(SingleEnv[TwoRoomsVectorEnv]):
    """Takes the keywords of `TwoRoomsVectorEnv`; see there. Drawn with the dot in blue and the
    goal as a green ring of success."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(TwoRoomsVectorEnv(1, **settings))
        self.judged = self._worlds.judged
