"""Worlds. Importing this package makes their ids known to Gymnasium."""

from __future__ import annotations

import gymnasium

TWO_ROOMS = "ami/TwoRooms-v0"

if TWO_ROOMS not in gymnasium.registry:
    gymnasium.register(
        TWO_ROOMS,
        entry_point="envs.two_rooms:TwoRoomsEnv",
        vector_entry_point="envs.two_rooms:TwoRoomsVectorEnv",
    )
