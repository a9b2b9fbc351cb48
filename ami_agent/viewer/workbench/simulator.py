"""One environment that can be put back: it is reset as before, and its actions are replayed."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ami_agent.adapters.env import EnvAdapter, EnvConfig, HasFactors, Info
from ami_agent.adapters.vector_env import read_numbers
from ami_agent.evaluation.evaluate import SUCCESS_NAMES
from ami_agent.evaluation.policies import EpisodeStart, TaskTracker
from ami_agent.probing.data import factors_of
from ami_agent.viewer.camera import Camera
from ami_agent.viewer.projectors import PLANE_SIZE, Renderable
from modules.configurator import TaskSpec
from modules.types import ConfigError, Observation, as_dict

STEP_SIZE = 0.01  # of a factor, for the slope of a position
PLACE_ITERATIONS, PLACE_TOLERANCE = 8, 0.1  # of Newton's method, and pixels at which it ends
SAME_FACTOR = 1e-3


class Picture(NamedTuple):
    """A frame as a page shows it: a PNG takes much less memory than its pixels."""

    address: str  # data:image/png;...
    size: tuple[int, int]  # width and height of the frame, which may be larger than the picture

    @classmethod
    def of(cls, frame: np.ndarray) -> Picture:
        """Of a frame `[h, w, 3]` uint8."""
        image, file = Image.fromarray(frame), io.BytesIO()
        size = image.size
        image.thumbnail((PLANE_SIZE, PLANE_SIZE), Image.Resampling.BOX)
        image.save(file, "PNG", compress_level=1)
        return cls(f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}", size)


class Moment(NamedTuple):
    """An environment before an action, and how it is reached: a reset, then actions."""

    seed: int
    options: Mapping[str, np.ndarray]  # of the reset; factors `[1, F]`
    actions: tuple[Tensor, ...]  # each [1, A], since the reset
    step: int  # actions since the episode began, those before it was changed by hand included
    obs: Observation  # [1, *O]
    interoception: Tensor | None  # [1, I]
    goal: Observation | None  # [1, *O]
    factors: np.ndarray  # [F]; F is 0 where the environment reports none
    goal_factors: np.ndarray | None  # [F]
    pictures: tuple[Picture, ...]  # the frame, if there is one
    total_reward: float
    success: bool | None  # at this step; None where the environment does not report it
    done: bool
    moved: bool = False  # the agent was put here by hand


class Simulator:
    """An environment of these settings. A second one takes its place when it is put back, so that
    nothing is lost where that fails."""

    def __init__(self, config: EnvConfig, camera: Camera | None, task_spec: TaskSpec) -> None:
        self.config, self.camera, self.task_spec = config, camera, task_spec
        self.env = self._build()
        self.spare: EnvAdapter | None = None
        self.current: Moment | None = None
        """Where `env` is."""
        unwrapped = self.env.unwrapped
        self.has_positions = isinstance(unwrapped, Renderable) and isinstance(unwrapped, HasFactors)
        self.moving = np.arange(0)
        """The indices of the factors that move the agent in the picture."""
        self.obstacles: dict[str, str] = {}
        """Why the agent or the goal can't be dragged; empty text where it can."""

    def _build(self) -> EnvAdapter:
        return self.config.build(1, **({} if self.camera is None else self.camera.options))

    def close(self) -> None:
        """Closes the environments."""
        for env in filter(None, (self.env, self.spare)):
            env.close()

    def begin(self, seed: int) -> Moment:
        """The first moment of the episode of this seed."""
        self.current = None
        moment = self._reset(self.env, seed, {})
        self.obstacles = self._find_obstacles(moment)
        return moment

    def _reset(
        self, env: EnvAdapter, seed: int, options: Mapping[str, np.ndarray],
        pictures: tuple[Picture, ...] | None = None,
    ) -> Moment:  # fmt: skip
        obs, info = env.reset(seed, **options)
        task = TaskTracker(self.task_spec).task(EpisodeStart(env, obs, info), "plan")
        self.current = Moment(
            seed, options, (), 0, obs, None, task.goal, self._factors(env, info),
            self._goal_factors(info), self._pictures(env) if pictures is None else pictures, 0.0,
            None, False,
        )  # fmt: skip
        return self.current

    def step(self, moment: Moment, action: Tensor) -> Moment:
        """The moment after an action `[1, A]`. ConfigError where the episode has ended, and where
        the environment can't be put back to `moment`."""
        if moment.done:
            raise ConfigError("the episode has ended here: go back, or take another branch")
        self._put_back(moment)
        result = self.env.step(moment.obs, action)
        success = read_numbers(result.info, SUCCESS_NAMES, result.done)[0]
        signals = result.transition.interoception
        self.current = moment._replace(
            actions=(*moment.actions, action),
            step=moment.step + 1,
            obs=result.next_obs,
            interoception=signals,
            factors=self._factors(self.env, result.info),
            pictures=self._pictures(self.env),
            total_reward=moment.total_reward + float(signals[0, 0]),
            success=None if success.isnan() else bool(success == 1),
            done=bool(result.done[0]),
            moved=False,
        )
        return self.current

    def _put_back(self, moment: Moment) -> None:
        if self.current is moment:
            return
        if self.spare is None:
            self.spare = self._build()
        env = self.spare
        obs, _ = env.reset(moment.seed, **moment.options)
        for action in moment.actions:
            obs = env.step(obs, action).next_obs
        expected, found = as_dict(moment.obs), as_dict(obs)
        if not all(torch.equal(expected[name], found[name]) for name in expected):
            raise ConfigError(
                f"{self.config.id} can't be put back: {len(moment.actions)} replayed actions led "
                "to another observation. Plans can still be changed here, but the episode goes on "
                "only from its last step"
            )
        self.env, self.spare, self.current = env, self.env, moment

    def place(self, moment: Moment, what: str, xy: np.ndarray, is_final: bool = True) -> Moment:
        """The moment with the agent or the goal at the position `[2]`, in pixels of its picture;
        the rest is as it is, and the time limit begins anew. Unless this `is_final`, the picture
        stays too, as drawing it takes time. ConfigError where that can't be."""
        if reason := self.obstacles[what]:
            raise ConfigError(reason)
        factors, goal_factors = moment.factors, moment.goal_factors
        if what == "agent":
            factors = self._factors_at(factors, xy)
        else:
            assert goal_factors is not None
            goal_factors = self._factors_at(goal_factors, xy)
        options = {"factors": factors[None]}
        if goal_factors is not None:
            options["goal_factors"] = goal_factors[None]
        self.current = None
        pictures = None if is_final else moment.pictures
        try:
            placed = self._reset(self.env, moment.seed, options, pictures)
        except ValueError as error:
            raise ConfigError(f"the {what} can't be there: {error.__cause__ or error}") from None
        goal = placed.goal if self.task_spec.goal_source == "env" else moment.goal
        self.current = placed._replace(
            step=moment.step, total_reward=moment.total_reward, goal=goal,
            moved=moment.moved or what == "agent",
        )  # fmt: skip
        return self.current

    def _find_obstacles(self, moment: Moment) -> dict[str, str]:
        """Why the agent or the goal can't be dragged, at the first moment of an episode; empty
        where it can."""
        name = self.config.id
        if not self.has_positions:
            no_position = f"{name} tells no positions, so nothing can be dragged in it"
            return {"agent": no_position, "goal": no_position}
        self.moving = np.flatnonzero(np.abs(self._slope(moment.factors)).max(0) > 1e-6)
        reasons, goal = {"agent": "", "goal": ""}, moment.goal_factors
        if len(self.moving) != 2:
            reasons["agent"] = f"the agent of {name} has no position in a plane"
        if goal is None:
            reasons["goal"] = f"{name} has no goal that can be dragged"
        elif self._differs_in_more(moment.factors, goal):
            reasons["goal"] = f"a goal of {name} is about more than a position"
        return reasons

    def _differs_in_more(self, factors: np.ndarray, goal: np.ndarray) -> bool:
        if goal.shape != factors.shape or len(self.moving) != 2:
            return True
        num_positions = len(factors) - getattr(self.env.unwrapped, "num_velocities", 0)
        others = np.setdiff1d(np.arange(num_positions), self.moving)
        return not np.allclose(factors[others], goal[others], atol=SAME_FACTOR)

    def xy(self, factors: np.ndarray) -> np.ndarray:
        """Factors `[..., F]` -> positions `[..., 2]` in pixels."""
        return np.asarray(self.env.unwrapped.factors_to_pixels(factors), dtype=np.float64)

    def _slope(self, factors: np.ndarray) -> np.ndarray:
        """The derivative `[2, F]` of the position by the factors."""
        steps = np.where(factors > 0.5, -STEP_SIZE, STEP_SIZE)
        moved = self.xy(factors + np.diag(steps).astype(factors.dtype))
        return ((moved - self.xy(factors)) / steps[:, None]).T

    def _factors_at(self, factors: np.ndarray, xy: np.ndarray) -> np.ndarray:
        """The factors `[F]` with the position nearest to `[2]` in pixels (Newton's method)."""
        found, moving = factors.astype(np.float64), self.moving
        for _ in range(PLACE_ITERATIONS):
            step = np.linalg.lstsq(self._slope(found)[:, moving], xy - self.xy(found), rcond=None)
            found[moving] = (found[moving] + step[0]).clip(0, 1)
            if np.abs(self.xy(found) - xy).max() < PLACE_TOLERANCE:
                break
        return found.astype(factors.dtype)

    def _factors(self, env: EnvAdapter, info: Info) -> np.ndarray:
        return factors_of(env, info)[0].numpy()

    def _goal_factors(self, info: Info) -> np.ndarray | None:
        if not self.has_positions or "goal_factors" not in info:
            return None
        return np.array(torch.as_tensor(info["goal_factors"])[0].cpu().numpy())

    def _pictures(self, env: EnvAdapter) -> tuple[Picture, ...]:
        return () if self.camera is None else tuple(map(Picture.of, self.camera(env)[0]))
