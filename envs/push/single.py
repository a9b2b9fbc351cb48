"""One world by itself: the batch of worlds, with a batch of one."""

from __future__ import annotations

from typing import Any

from ..single import SingleEnv
from .worlds import PushVectorEnv


class PushEnv(SingleEnv[PushVectorEnv]):
    """Takes the keywords of `PushVectorEnv`; see there."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(PushVectorEnv(1, **settings))
