"""Environments. Importing this package registers their ids with Gymnasium."""

from __future__ import annotations

import gymnasium

TWO_ROOMS = "ami/TwoRooms-v0"
CUE_CORRIDOR = "ami/CueCorridor-v0"
FORAGE = "ami/Forage-v0"
MAZE = "ami/Maze-v0"
WINDY_ROOMS = "ami/WindyRooms-v0"
POINT_MAZE = "ami/PointMaze-v0"
REACH = "ami/Reach-v0"
PUSH = "ami/Push-v0"
ANT_MAZE = "ami/AntMaze-v0"

ENVS = {
    TWO_ROOMS: "envs.two_rooms:TwoRooms",
    CUE_CORRIDOR: "envs.cue_corridor:CueCorridor",
    FORAGE: "envs.forage:Forage",
    MAZE: "envs.maze:Maze",
    WINDY_ROOMS: "envs.windy_rooms:WindyRooms",
    POINT_MAZE: "envs.point_maze:PointMaze",
    REACH: "envs.reach:Reach",
    PUSH: "envs.push:Push",
    ANT_MAZE: "envs.ant_maze:AntMaze",
}
"""Ids -> module and class, whose name goes on with `Env` or `VectorEnv`."""

for env_id, entry_point in ENVS.items():
    if env_id not in gymnasium.registry:
        gymnasium.register(
            env_id,
            entry_point=f"{entry_point}Env",
            vector_entry_point=f"{entry_point}VectorEnv",
        )
