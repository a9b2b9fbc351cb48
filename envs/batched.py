"""Many worlds stepped as one: what every world here shares, whatever happens in it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from .chance import keys_of

Array: TypeAlias = np.ndarray | Tensor
Obs: TypeAlias = Array | dict[str, Array]
Seen: TypeAlias = Tensor | dict[str, Tensor]
Lived: TypeAlias = tuple[Obs, Array, Array, Array, dict[str, Any]]
Choice = TypeVar("Choice")


class Living(Protocol):
    """The state of B worlds: a NamedTuple of tensors `[B, ...]`, or of more such tuples."""

    @property
    def life(self) -> Tensor:
        """[B] int64: the luck that the next episode is made of."""


S = TypeVar("S", bound=Living)


class DynamicsTest(NamedTuple):
    """N bodies, what is done to them, and where that leads, by the true physics."""

    obs: Any  # Obs [N, *O], before
    actions: Array  # [N, H, A] in the action space's units
    start_factors: Array  # [N, F] factors
    end_factors: Array  # [N, F] factors, after H actions


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


OUTPUTS: dict[str, Callable[[Any], Array]] = {"numpy": _to_numpy, "torch": _as_is}


def pick(kind: str, name: str, choices: Mapping[str, Choice]) -> Choice:
    """The choice of that name, or a ValueError that names them all."""
    if name not in choices:
        raise ValueError(f"{kind} {name!r} is unknown; choose one of {', '.join(choices)}")
    return choices[name]


def require(name: str, value: float, low: float, high: float) -> None:
    """ValueError unless the value is within its bounds."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be at least {low} and at most {high}")


def copied(seen: Seen) -> Seen:
    """Of its own, because users keep what they are told."""
    if isinstance(seen, dict):
        return {name: part.clone() for name, part in seen.items()}
    return seen.clone()


def put(old: Any, new: Any, where: Tensor) -> Any:
    """The old state with its rows `where` [N] replaced by those of the new one, [N, ...]."""
    if isinstance(old, Tensor):
        return old.index_copy(0, where, new)
    return type(old)(*(put(a, b, where) for a, b in zip(old, new, strict=True)))


class BatchedEnv(VectorEnv, ABC, Generic[S]):
    """B worlds in one batch of tensors. World i of `reset(seed=n)` lives the life of seed n + i.

    A world of its own says how its episodes begin and go on, what is seen, told and rewarded.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  Gymnasium's own declaration
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }
    description: str = ""
    """What a person sees here and what is asked of the agent, for who never saw this world."""
    factor_names: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        num_envs: int,
        obs_space: spaces.Space,
        action_space: spaces.Box,
        *,
        max_episode_steps: int,
        device: str | torch.device,
        output: str,
        render_mode: str | None,
    ) -> None:
        """Raises ValueError for an output that doesn't exist, and for a number of worlds or a
        max_episode_steps below one."""
        require("num_envs", num_envs, 1, math.inf)
        require("max_episode_steps", max_episode_steps, 1, math.inf)
        self.num_envs, self.max_episode_steps, self.render_mode = (
            num_envs,
            max_episode_steps,
            render_mode,
        )
        self.metadata = {**self.metadata, "description": self.description}
        self.device = torch.device(device)
        self._out = pick("output", output, OUTPUTS)
        self.single_observation_space = obs_space
        self.single_action_space = action_space
        self.observation_space = batch_space(obs_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=bool)  # before the max_episode_steps was spent
        self._broken = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self._state: S | None = None

    @abstractmethod
    def _begin(self, life: Tensor, options: dict[str, Any]) -> S:
        """The first moment of the episodes that keys [N] hold; the options are a user's."""

    @abstractmethod
    def _advance(self, state: S, actions: Tensor) -> S:
        """Finite actions [B, A] -> the state one step later."""

    @abstractmethod
    def _observe(self, state: S) -> Seen:
        """What is seen, [B, *O], in tensors of its own."""

    @abstractmethod
    def _tell(self, state: S) -> Mapping[str, Seen]:
        """What the infos tell, each [B, ...]."""

    @abstractmethod
    def _reward(self, state: S) -> Tensor:
        """The reward [B] of having come to this state."""

    def _terminated(self, state: S) -> np.ndarray:
        """[B] bool, on the host: which worlds are over before their max_episode_steps is spent."""
        return np.zeros(self.num_envs, dtype=bool)

    @abstractmethod
    def expert_action(self) -> Array:
        """What one who knows the world would do, [B, A]."""

    @abstractmethod
    def behaviour_action(self) -> Array:
        """One more step of each world's own walk, [B, A]."""

    @abstractmethod
    def dynamics_tests(self, seed: int = 0) -> dict[str, DynamicsTest]:
        """What this world asks of a world model, by name."""

    @abstractmethod
    def factors_to_pixels(self, factors: Array) -> Array:
        """Factors [..., F] -> the body's `(x, y)` in the picture's pixels, [..., 2]."""

    @abstractmethod
    def render(self) -> tuple[np.ndarray, ...]:
        """A picture [320, 320, 3] uint8 of every world, for people."""

    @property
    def state(self) -> S:
        """The worlds as they are. Raises RuntimeError before the first reset."""
        if self._state is None:
            raise RuntimeError("the worlds have no state yet: call reset first")
        return self._state

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, dict[str, Any]]:
        """Without a seed the worlds live on with the luck they have."""
        self._state = self._begin(self._seeded(seed), options or {})
        self._elapsed = np.zeros_like(self._elapsed)
        self._ended = np.zeros_like(self._ended)
        self._broken = torch.zeros_like(self._broken)
        return self._observed(), self._infos()

    def step(self, actions: Array) -> Lived:
        """Where an episode ended one step ago, the action is ignored and a new one begins."""
        over = self._ended | (self._elapsed >= self.max_episode_steps)
        read = self._read(actions, over)
        state = self._state = self._reborn(self._advance(self.state, read), over)
        self._elapsed = np.where(over, 0, self._elapsed + 1)
        self._ended = self._terminated(state) & ~over
        reward = torch.where(self._host(over), 0.0, self._reward(state))
        terminated = self._out(self._host(self._ended))
        truncated = self._out(self._host(self._elapsed >= self.max_episode_steps))
        return self._observed(), self._out(reward), terminated, truncated, self._infos()

    def _seeded(self, seed: int | Sequence[int] | None) -> Tensor:
        """The keys [B] of the coming episodes."""
        if seed is None and self._state is not None:
            return self._state.life
        if isinstance(seed, Sequence):
            if len(seed) != self.num_envs:
                raise ValueError(f"{len(seed)} seeds for {self.num_envs} worlds")
            return keys_of(seed, self.device)
        super().reset(seed=seed)
        first = int(self.np_random.integers(2**62)) if seed is None else int(seed)
        return keys_of(range(first, first + self.num_envs), self.device)

    def _read(self, actions: Array, ignored: np.ndarray) -> Tensor:
        """Actions [B, A] as finite tensors; ValueError where they have the wrong shape or, at the
        latest when an episode ends, where they were not finite."""
        read = torch.as_tensor(actions, dtype=torch.float32, device=self.device)
        needed = [self.num_envs, *(self.single_action_space.shape or ())]
        if list(read.shape) != needed:
            raise ValueError(f"actions are {list(read.shape)}; needed is {needed}")
        self._broken = self._broken | ~(read.isfinite().all(-1) | self._host(ignored))
        # Looking at an accelerator's numbers means waiting for it; there, once an episode will do.
        if self.device.type == "cpu" or ignored.any():
            self._refuse_broken()
        return read.nan_to_num(0.0, 0.0, 0.0)

    def _refuse_broken(self) -> None:
        broken = self._broken.nonzero().flatten().tolist()
        if broken:
            raise ValueError(f"the action of world {broken[0]} is not finite")

    def _reborn(self, state: S, over: np.ndarray) -> S:
        """The state with a new episode in the worlds [B] whose last one is over."""
        if not over.any():
            return state
        where = self._host(np.flatnonzero(over))
        return put(state, self._begin(state.life[where], {}), where)

    def _host(self, array: np.ndarray) -> Tensor:
        """From the host to the worlds' device."""
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _show(self, seen: Seen) -> Obs:
        """What is seen, as the user wants it."""
        if isinstance(seen, dict):
            return {name: self._out(part) for name, part in seen.items()}
        return self._out(seen)

    def _observed(self) -> Obs:
        return self._show(self._observe(self.state))

    def _asked(self, exam: DynamicsTest) -> DynamicsTest:
        """An exam as the user wants it."""
        return DynamicsTest(self._show(exam.obs), *map(self._out, exam[1:]))

    def _infos(self) -> dict[str, Any]:
        told = {name: self._show(copied(value)) for name, value in self._tell(self.state).items()}
        all_tell = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        return told | {f"_{name}": self._out(all_tell.clone()) for name in told}
