"""Environments. Importing this package registers their ids with Gymnasium."""

from __future__ import annotations

import gymnasium

ENVS = {
    "ami/TwoRooms-v0": "envs.two_rooms:TwoRooms",
    "ami/CueCorridor-v0": "envs.cue_corridor:CueCorridor",
    "ami/Forage-v0": "envs.forage:Forage",
    "ami/KeyAndDoor-v0": "envs.key_and_door:KeyAndDoor",
    "ami/HiddenFood-v0": "envs.hidden_food:HiddenFood",
    "ami/Maze-v0": "envs.maze:Maze",
    "ami/WindyRooms-v0": "envs.windy_rooms:WindyRooms",
    "ami/PointMaze-v0": "envs.point_maze:PointMaze",
    "ami/Reach-v0": "envs.reach:Reach",
    "ami/Push-v0": "envs.push:Push",
    "ami/AntMaze-v0": "envs.ant_maze:AntMaze",
}
"""Ids -> module and class, whose name goes on with `Env` or `VectorEnv`."""

for env_id, entry_point in ENVS.items():
    if env_id not in gymnasium.registry:
        gymnasium.register(
            env_id, entry_point=f"{entry_point}Env", vector_entry_point=f"{entry_point}VectorEnv"
        )
