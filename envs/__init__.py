"""Worlds. Importing this package makes their ids known to Gymnasium."""

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

WORLDS = {
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

for name, place in WORLDS.items():
    if name not in gymnasium.registry:
        gymnasium.register(name, entry_point=f"{place}Env", vector_entry_point=f"{place}VectorEnv")
