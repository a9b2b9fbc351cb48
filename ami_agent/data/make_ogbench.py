"""Data of OGBench (Park et al. 2025, arXiv 2410.20092), made again by the package's own rule. They
are not the files that OGBench publishes: those were drawn with unknown seeds. The rule of the point
mazes is here: its environment, its oracle subgoals, noise of 0.5 on every action."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from rich.console import Console

from ami_agent.adapters.imports import choose_gl_backend
from ami_agent.adapters.plain_rendering import PlainRendering
from ami_agent.data.ogbench_cubes import EPISODES, cube_data
from ami_agent.data.ogbench_episodes import DTYPES, Arrays, EpisodeRecorder, OGBenchData
from ami_agent.logger import ConsoleLogger
from ami_agent.storage import files
from modules.types import ConfigError

Cell: TypeAlias = tuple[int, int]  # row and column of the maze

MAZES = ("medium", "large", "giant", "teleport")
NOISE = 0.5  # standard deviation of each component of an action, whose limits are -1 and 1
STITCH_DISTANCE = 4  # cells from the start of an episode to its goal
BLOCK = 20  # episodes that are written together; what is done survives an interruption
PIXELS: Mapping[str, Any] = {"ob_type": "pixels", "width": 64, "height": 64}
"""Options of a point maze that is seen from above. OGBench has them, but no data set of its own
name; drawn plainly (`plain_rendering`), a picture takes 3 ms on a CPU instead of 60."""
NEIGHBOURS = ((-1, 0), (0, -1), (1, 0), (0, 1))


@dataclass(frozen=True, kw_only=True)
class PointMazeData(OGBenchData):
    """The maze and the rule for goals."""

    maze: str
    rule: str  # "navigate": a new goal when one is reached; "stitch": one goal nearby
    pixels: bool  # whether an observation is a picture `[64, 64, 3]` instead of a position

    @property
    def env_id(self) -> str:
        return f"pointmaze-{self.maze}-v0"

    @property
    def dtypes(self) -> Mapping[str, type]:
        return {**DTYPES, "observations": np.uint8} if self.pixels else DTYPES

    def recorder(self) -> Walker:
        return Walker(self)


def ogbench_data(dataset: str, episodes: int = 0) -> OGBenchData:
    """The data set of that name, "pointmaze-giant-navigate" with or without "-v0"; `episodes`: of
    training, 0 is the official number. ConfigError for one that can't be made."""
    found = point_maze_data(dataset, episodes) or cube_data(dataset, episodes)
    if found is None:
        raise ConfigError(
            f"data set {dataset!r} can't be made here: pointmaze-MAZE-RULE and "
            f"visual-pointmaze-MAZE-RULE can, where MAZE is {', '.join(MAZES)} and RULE is "
            "navigate or stitch, and cube-NUMBER-RULE, where NUMBER is "
            f"{', '.join(EPISODES)} and RULE is play or noisy; for others download OGBench's files"
        )
    return found


def point_maze_data(dataset: str, episodes: int = 0) -> PointMazeData | None:
    """As `ogbench_data`; None for a name that is none of a point maze."""
    found = re.fullmatch(r"(visual-)?pointmaze-(\w+)-(navigate|stitch)(-v0)?", dataset)
    if not found or found[2] not in MAZES:
        return None
    maze, rule = found[2], found[3]
    if rule == "stitch":
        size, steps = 5000, 201
    else:
        size, steps = (500, 2001) if maze == "giant" else (1000, 1001)
    return PointMazeData(
        maze=maze, rule=rule, pixels=bool(found[1]), episodes=episodes or size, steps=steps
    )


def check_ogbench() -> None:
    """ConfigError where the package is missing or can't be imported."""
    if find_spec("ogbench") is None:
        raise ConfigError("ogbench is not installed: pip install 'ami-agent[ogbench]'")
    choose_gl_backend()
    try:
        import ogbench  # noqa: F401  (it registers the environments)
    except Exception as error:  # a package of other versions may raise anything
        raise ConfigError(
            f"ogbench can't be imported ({type(error).__name__}: {error}): "
            "pip install 'ami-agent[ogbench]' installs versions that work together"
        ) from error


def make_ogbench(
    dataset: str, out: Path, *, episodes: int = 0, seed: int = 0, console: Console
) -> None:
    """Writes the training episodes to `out` and a tenth as many to OUT-val.npz, in the layout of
    OGBench. Finished blocks of episodes are kept in a folder beside `out` until then, and a command
    that was interrupted continues. `episodes`: of training; 0 is the official number."""
    data = ogbench_data(dataset, episodes)
    if out.suffix != ".npz":
        raise ConfigError(f"{out} must end in .npz, as OGBench's files do")
    check_ogbench()
    total = data.episodes + data.num_validation
    folder = out.with_name(f"{out.stem}-{dataset}-{data.episodes}-seed-{seed}.parts")
    out.parent.mkdir(parents=True, exist_ok=True)
    logger = ConsoleLogger(console)
    with files.locked(folder):
        parts = [folder / f"{first:05d}.npz" for first in range(0, total, BLOCK)]
        done = [_is_readable(part, data.dtypes) for part in parts]
        with logger.progress(f"make {dataset}", total, min(total, BLOCK * sum(done))) as bar:
            recorder = data.recorder()
            for first, part, is_done in zip(range(0, total, BLOCK), parts, done, strict=True):
                if is_done:
                    continue
                block = range(first, min(first + BLOCK, total))
                _write_block(part, [recorder.episode(seed, index) for index in block])
                bar.advance(len(block))
        split = data.episodes * data.steps
        logger.info(f"writes {out}")
        _join(out, parts, data.dtypes, slice(0, split))
        validation = out.with_name(f"{out.stem}-val.npz")
        _join(validation, parts, data.dtypes, slice(split, total * data.steps))
        for part in parts:
            part.unlink()
    with suppress(OSError):
        folder.rmdir()
    logger.info(
        f"{out}: {data.episodes} episodes of {data.steps} steps, made with seed {seed} by the rule "
        f"of OGBench, not its published file; {data.num_validation} more in {validation.name}"
    )


def _is_readable(part: Path, names: Mapping[str, type]) -> bool:
    with suppress(Exception), np.load(part) as arrays:  # whatever a killed process left there
        return set(arrays) == set(names)
    return False


def _write_block(path: Path, episodes: list[Arrays]) -> None:
    """Uncompressed: it is read once and removed."""
    columns = {name: np.concatenate([part[name] for part in episodes]) for name in episodes[0]}
    save: Callable[..., None] = np.savez
    with files.replacing(path) as draft, draft.open("wb") as file:
        save(file, **columns)


def _join(path: Path, parts: list[Path], names: Iterable[str], rows: slice) -> None:
    """Writes these of all rows of `parts` to one compressed file, a part at a time: pictures of a
    data set may not fit in memory."""
    with (
        files.replacing(path) as draft,
        zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name in names:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                first = 0
                for part in parts:
                    with np.load(part) as arrays:
                        array = arrays[name]
                    if not first:
                        header = np.lib.format.header_data_from_array_1_0(array)
                        header["shape"] = (rows.stop - rows.start, *array.shape[1:])
                        np.lib.format.write_array_header_1_0(member, header)
                    start, stop = (max(0, row - first) for row in (rows.start, rows.stop))
                    member.write(array[start:stop].tobytes())
                    first += len(array)


class Walker(EpisodeRecorder):
    """A noisy walker: each action is the direction to the oracle's next subgoal, plus noise."""

    def __init__(self, data: PointMazeData) -> None:
        self.data: PointMazeData = data
        make: Any = gymnasium.make
        options = PIXELS if data.pixels else {}
        env = make(data.env_id, terminate_at_goal=False, disable_env_checker=True, **options)
        if data.pixels:
            env = PlainRendering(env)
        self.env: Any = env.unwrapped
        rows, columns = np.nonzero(self.env.maze_map == 0)
        self.free: list[Cell] = list(zip(rows.tolist(), columns.tolist(), strict=True))
        self.junctions = [cell for cell in self.free if not self._is_hallway(cell)]
        self.subgoal = cache(self._subgoal)

    def _is_hallway(self, cell: Cell) -> bool:
        """Whether the cell is in the middle of a straight lane."""
        up, left, down, right = (self._is_wall(_add(cell, step)) for step in NEIGHBOURS)
        return (up, down, left, right) in [(False, False, True, True), (True, True, False, False)]

    def _is_wall(self, cell: Cell) -> bool:
        return bool(self.env.maze_map[cell] == 1)

    def _subgoal(self, here: Cell, goal: Cell) -> np.ndarray:
        """The middle of the next cell on the shortest path; the present one's if there is none."""
        ij_to_xy = self.env.ij_to_xy
        subgoal, _ = self.env.get_oracle_subgoal(ij_to_xy(here), ij_to_xy(goal))
        return np.asarray(subgoal)

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        env, draw = self.env, np.random.mtrand._rand
        start = _choice(draw, self.free)
        goal = _choice(draw, self._near(start) if self.data.rule == "stitch" else self.junctions)
        obs, _ = env.reset(
            seed=int(draw.randint(2**31)),
            options={"task_info": {"init_ij": start, "goal_ij": goal}},
        )
        for step in range(self.data.steps):
            position = env.get_xy()
            direction = self.subgoal(env.xy_to_ij(position), env.xy_to_ij(env.cur_goal_xy))
            direction = direction - position
            direction = direction / (np.linalg.norm(direction) + 1e-6)
            action = np.clip(direction + draw.normal(0, NOISE, 2), -1, 1)
            next_obs, _, _, _, info = env.step(action)
            if info["success"] and self.data.rule == "navigate":
                env.set_goal(_choice(draw, self.junctions))
            is_last = step == self.data.steps - 1
            yield obs, action, is_last, info["prev_qpos"], info["prev_qvel"]
            obs = next_obs

    def _near(self, start: Cell) -> list[Cell]:
        """The cells whose shortest path from `start` has STITCH_DISTANCE steps; `start` itself if
        there are none."""
        reached, frontier = {start}, [start]
        for _ in range(STITCH_DISTANCE):
            steps = [_add(cell, step) for cell in frontier for step in NEIGHBOURS]
            frontier = [
                cell for cell in dict.fromkeys(steps)
                if cell not in reached and not self._is_wall(cell)
            ]  # fmt: skip
            reached |= set(frontier)
        return frontier or [start]


def _add(cell: Cell, step: Cell) -> Cell:
    return cell[0] + step[0], cell[1] + step[1]


def _choice(draw: np.random.RandomState, cells: list[Cell]) -> Cell:
    return cells[draw.randint(len(cells))]
