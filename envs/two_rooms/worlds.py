"""Two Rooms for Gymnasium: many worlds stepped as one, and one world by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from .chance import keys_of
from .exams import Array, Exam, exams
from .policies import next_waypoint
from .rendering import draw_picture, observe, to_picture
from .states import State, begin, choose, conceive, from_factors, move, put, to_factors
from .variants import VARIANTS, Variant, table, wander

Lived: TypeAlias = tuple[Array, Array, Array, Array, dict[str, Any]]
Choice = TypeVar("Choice")

FACTOR_NAMES = ("dot x", "dot y", "wall x", "door y")
SPLITS = {name: name for name in ("all", "train", "test")}


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


OUTPUTS: dict[str, Callable[[Any], Array]] = {"numpy": _to_numpy, "torch": _as_is}


def _pick(kind: str, name: str, choices: Mapping[str, Choice]) -> Choice:
    if name not in choices:
        raise ValueError(f"{kind} {name!r} is unknown; choose one of {', '.join(choices)}")
    return choices[name]


def _require(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be at least {low} and at most {high}")


def _obs_space(variant: Variant) -> spaces.Box:
    canvas = variant.canvas
    return spaces.Box(0, 255, (canvas.channels, canvas.size, canvas.size), np.uint8)


def _action_space(variant: Variant) -> spaces.Box:
    bound = variant.motion.bound
    return spaces.Box(-bound, bound, (2,), np.float32)


class TwoRoomsVectorEnv(VectorEnv):
    """B worlds in one batch of tensors. World i of `reset(seed=n)` lives the life of seed n + i.

    Lengths are pixels. Actions that reach beyond the space are cut back to what the variant allows.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  Gymnasium's own declaration
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }
    factor_names: ClassVar[tuple[str, ...]] = FACTOR_NAMES

    def __init__(
        self,
        num_envs: int = 1,
        *,
        variant: str = "fixed",
        layouts: str = "all",
        budget: int | None = None,
        errands: float | None = None,
        stride: float | None = None,
        device: str | torch.device = "cpu",
        output: str = "numpy",
        render_mode: str | None = None,
    ) -> None:
        """`budget` and `errands` stand in for the variant's own; `stride` for the walk's longest
        step in pixels, with more long steps than in the published walks.

        Raises ValueError for a variant, layouts or output that don't exist, and for a number of
        worlds, a budget, errands or a stride that make no sense.
        """
        self.variant = _pick("variant", variant, VARIANTS)
        self.judged = self.variant.judged
        self.budget = self.variant.budget if budget is None else budget
        self.errands = self.variant.errands if errands is None else errands
        self.walker = self.variant.walker if stride is None else wander(stride)
        _require("num_envs", num_envs, 1, math.inf)
        _require("budget", self.budget, 1, math.inf)
        _require("errands", self.errands, 0, 1)
        _require("stride", 1.0 if stride is None else stride, 1e-3, self.variant.arena.side)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.device = torch.device(device)
        self._rows = table(self.variant, _pick("layouts", layouts, SPLITS)).to(self.device)
        self._out = _pick("output", output, OUTPUTS)
        self.single_observation_space = _obs_space(self.variant)
        self.single_action_space = _action_space(self.variant)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._broken = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self._state: State | None = None

    @property
    def state(self) -> State:
        """The worlds as they are. Raises RuntimeError before the first reset."""
        if self._state is None:
            raise RuntimeError("the worlds have no state yet: call reset first")
        return self._state

    def reset(
        self,
        *,
        seed: int | Sequence[int] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Array, dict[str, Any]]:
        """Options: "factors" [B, 4] puts dots and layouts, "goal_factors" [B, 4] puts goals."""
        life = self._seeded(seed)
        birth = choose(self.variant, conceive(self.variant, self._rows, life), options or {}, life)
        self._state = begin(self.variant, birth, life)
        self._elapsed = np.zeros_like(self._elapsed)
        self._broken = torch.zeros_like(self._broken)
        return self._observed(), self._infos()

    def step(self, actions: Array) -> Lived:
        """Where an episode ended one step ago, the action is ignored and a new one begins."""
        over = self._elapsed >= self.budget
        read = self._read(actions, over)
        self._state = self._reborn(move(self.variant, self.state, read), over)
        self._elapsed = np.where(over, 0, self._elapsed + 1)
        reward = (self._within() & ~self._host(over)).float()
        truncated = self._host(self._elapsed >= self.budget)
        terminated = torch.zeros_like(truncated)
        out = self._out
        return self._observed(), out(reward), out(terminated), out(truncated), self._infos()

    def oracle(self) -> Array:
        """The longest allowed step along the shortest way to the goal, [B, 2]."""
        state = self.state
        waypoint = next_waypoint(self.variant.arena, state.position, state.goal, state.layout)
        return self._out(self.variant.motion.towards(waypoint - state.position))

    def walk(self) -> Array:
        """One more step of each world's own aimless walk, [B, 2]."""
        state = self.state
        walk = self.walker(self.variant.arena, state.scene, state.walk, self.errands)
        self._state = state._replace(walk=walk)
        return self._out(self.variant.motion.towards(walk.last))

    def exams(self, seed: int = 0) -> dict[str, Exam]:
        """What this world asks of a world model: pushes against the "wall", through the "door"."""
        asked = exams(self.variant, self._rows, seed)
        return {name: Exam(*map(self._out, exam)) for name, exam in asked.items()}

    def render(self) -> tuple[np.ndarray, ...]:
        """A picture [320, 320, 3] of every world: dot blue, goal a green ring of success."""
        state, variant = self.state, self.variant
        pictures = draw_picture(
            variant.canvas, state.walls, state.position, state.goal, variant.radius
        )
        return tuple(_to_numpy(pictures))

    def picture_xy(self, factors: Array) -> Array:
        """Factors [..., 4] -> the dot's `(x, y)` in the picture's pixels, [..., 2]."""
        read = torch.as_tensor(factors, dtype=torch.float32)
        position, _ = from_factors(self.variant.arena, read)
        return self._out(to_picture(self.variant.canvas, position))

    def _seeded(self, seed: int | Sequence[int] | None) -> Tensor:
        """The keys [B] of the coming episodes."""
        if seed is None and self._state is not None:
            return self._state.life
        if isinstance(seed, Sequence):
            return keys_of(seed, self.device)
        super().reset(seed=seed)
        first = int(self.np_random.integers(2**62)) if seed is None else int(seed)
        return keys_of(range(first, first + self.num_envs), self.device)

    def _read(self, actions: Array, ignored: np.ndarray) -> Tensor:
        read = torch.as_tensor(actions, dtype=torch.float32, device=self.device)
        if read.shape != (self.num_envs, 2):
            raise ValueError(f"actions are {list(read.shape)}; needed is {[self.num_envs, 2]}")
        self._broken = self._broken | ~(read.isfinite().all(-1) | self._host(ignored))
        # Looking at an accelerator's numbers means waiting for it; there, once an episode will do.
        if self.device.type == "cpu" or ignored.any():
            self._refuse_broken()
        return read.nan_to_num(0.0, 0.0, 0.0)

    def _refuse_broken(self) -> None:
        broken = self._broken.nonzero().flatten().tolist()
        if broken:
            raise ValueError(f"the action of world {broken[0]} is not finite")

    def _reborn(self, state: State, over: np.ndarray) -> State:
        """The state with a new episode in the worlds [B] whose last one is over."""
        if not over.any():
            return state
        where = self._host(np.flatnonzero(over))
        life = state.life[where]
        born = begin(self.variant, conceive(self.variant, self._rows, life), life)
        return put(state, born, where)

    def _host(self, array: np.ndarray) -> Tensor:
        """From the host to the worlds' device."""
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _within(self) -> Tensor:
        return self.state.distance < self.variant.radius

    def _observed(self) -> Array:
        return self._out(observe(self.variant.canvas, self.state.walls, self.state.position))

    def _infos(self) -> dict[str, Any]:
        state, arena = self.state, self.variant.arena
        told = {
            "goal": state.goal_obs,
            "factors": to_factors(arena, state.position, state.layout),
            "goal_factors": to_factors(arena, state.goal, state.layout),
            "distance": state.distance,
            "success": state.ever,
            "final_success": self._within(),
        }
        told |= {f"_{name}": torch.ones_like(state.ever) for name in told}
        # Copies, because users keep what they are told.
        return {name: self._out(value.clone()) for name, value in told.items()}
