"""The base of every environment: a Gymnasium `VectorEnv` whose state is a tuple of tensors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from .batch import scatter, tree_map
from .geometry import direction
from .rng import keys_from_seeds, splitmix64, uniform

Array: TypeAlias = np.ndarray | Tensor
Obs: TypeAlias = Array | dict[str, Array]
TensorObs: TypeAlias = Tensor | dict[str, Tensor]
StepResult: TypeAlias = tuple[Obs, Array, Array, Array, dict[str, Any]]
T = TypeVar("T")

NUM_TESTS = 64  # start states of a dynamics test


class GoalState(Protocol):
    """The state of B environments in which a goal is to be reached."""

    @property
    def goal_obs(self) -> Any:
        """[B, *O] an observation of the goal."""

    @property
    def distance(self) -> Tensor:
        """[B] from the goal."""


S = TypeVar("S")
"""A NamedTuple of tensors `[B, ...]` or of such tuples; `behaviour`: the behaviour policy's."""
G = TypeVar("G", bound=GoalState)


class DynamicsTest(NamedTuple):
    """N start states, action sequences, and where these lead by the true dynamics."""

    obs: Any  # Obs [N, *O] of the start states
    actions: Array  # [N, H, A] in the units of the action space
    start_factors: Array  # [N, F]
    end_factors: Array  # [N, F] after H actions


class SegmentState(NamedTuple):
    """What a behaviour policy that acts in segments does in B environments."""

    heading: Tensor  # [B, 2] unit vectors
    target: Tensor  # [B, 2] where a directed policy goes
    directed: Tensor  # [B] bool
    idle: Tensor  # [B] bool: without action
    steps_left: Tensor  # [B] until the policy is resampled
    keys: Tensor  # [B] int64

    @classmethod
    def begin(cls, position: Tensor, keys: Tensor) -> SegmentState:
        """As an episode begins at positions [B, 2], with a heading."""
        u, keys = uniform(keys, 1)
        zero = torch.zeros_like(u[:, 0])
        heading = direction(2 * math.pi * u[:, 0])
        return cls(heading, position, zero > 0, zero > 0, zero, keys)


def choose(kind: str, name: str, choices: Mapping[str, T]) -> T:
    """The choice of that name. Raises ValueError, which names all choices, where there is none."""
    if name not in choices:
        raise ValueError(f"{kind} {name!r} is unknown; choose one of {', '.join(choices)}")
    return choices[name]


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError unless the value is within its bounds."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be at least {low} and at most {high}")


def check_rows(valid: Tensor, message: str, rows: Tensor | None = None) -> None:
    """Raises ValueError about the first environment that isn't valid, [B] bool. In the message,
    `{i}` stands for its number and `{row}` for its row of `rows`, [B, F]."""
    wrong = (~valid).nonzero().flatten().tolist()
    if wrong:
        row = [] if rows is None else [round(number, 3) for number in rows[wrong[0]].tolist()]
        raise ValueError(message.format(i=wrong[0], row=row))


class TorchVectorEnv(VectorEnv, ABC, Generic[S]):
    """B environments in one batch of tensors; environment i of `reset(seed=n)` is the one of seed
    n + i, whatever B is. Where an episode is done, the next step begins a new one (Gymnasium's
    next-step autoreset). Infos report "factors", "success" (at any step of the episode so far) and
    "final_success" (now). The reset options "factors" and, with goals, "goal_factors" [B, F] set
    what infos report under these names.

    A subclass says how episodes begin and go on, and what is observed, rewarded and reported, in
    tensors. All constructors take the keyword arguments of this one too, and raise ValueError for
    names that don't exist and for numbers out of range. Episodes end after `max_episode_steps`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012  Gymnasium's own declaration
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }
    description: str = ""
    """What a person sees here and what the agent is to do, in a sentence or two."""
    factor_names: ClassVar[tuple[str, ...]]
    interoception_names: ClassVar[tuple[str, ...]] = ()
    num_velocities: ClassVar[int] = 0
    """The last so many factors are velocities, in [-1, 1]; reset options take others in [0, 1]."""
    test_steps: ClassVar[int] = 5
    """The steps of a dynamics test."""
    max_episode_steps: int

    def __init__(
        self,
        num_envs: int,
        obs_space: spaces.Space,
        action_space: spaces.Box | spaces.Discrete,
        *,
        max_episode_steps: int | None = None,
        device: str | torch.device = "cpu",
        output: str = "numpy",
        render_mode: str | None = None,
    ) -> None:
        """`output` is "numpy" or "torch": what observations, rewards and infos are.
        `max_episode_steps` replaces the environment's own."""
        if max_episode_steps is not None:
            self.max_episode_steps = max_episode_steps
        check_range("num_envs", num_envs, 1, math.inf)
        check_range("max_episode_steps", self.max_episode_steps, 1, math.inf)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.metadata = {**self.metadata, "description": self.description}
        self.device = torch.device(device)
        self._gives_arrays = choose("output", output, {"numpy": True, "torch": False})
        self.single_observation_space = obs_space
        self.single_action_space = action_space
        self.observation_space = batch_space(obs_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._state: S | None = None
        self._next_keys: Tensor  # [B] int64: the random keys of the next episodes
        self._succeeded: Tensor  # [B] bool
        self._clear_counters()

    def _clear_counters(self) -> None:
        self._steps = np.zeros(self.num_envs, dtype=np.int64)
        self._was_terminated = np.zeros(self.num_envs, dtype=bool)
        self._nonfinite = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)

    @abstractmethod
    def _reset_state(self, keys: Tensor, options: dict[str, Any]) -> S:
        """The first state of the episodes of random keys [N], with the user's reset options."""

    @abstractmethod
    def _step_state(self, state: S, actions: Tensor) -> S:
        """Finite actions [B, A] -> the next state."""

    @abstractmethod
    def _observe(self, state: S) -> TensorObs:
        """Observations [B, *O], in tensors of their own."""

    @abstractmethod
    def _factors(self, state: S) -> Tensor:
        """[B, F]"""

    @abstractmethod
    def _info(self, state: S) -> Mapping[str, TensorObs]:
        """What infos report, each [B, ...]."""

    @abstractmethod
    def _reward(self, state: S) -> Tensor:
        """The rewards [B] of having come to this state."""

    @abstractmethod
    def _success(self, state: S) -> Tensor:
        """[B] bool: which episodes are successful now."""

    def _terminated(self, state: S) -> np.ndarray:
        """[B] bool, on the host: which episodes have ended before their last step."""
        return np.zeros(self.num_envs, dtype=bool)

    def _time_limit(self, state: S) -> int | np.ndarray:
        """The steps after which episodes are truncated, of all or [B], on the host."""
        return self.max_episode_steps

    @abstractmethod
    def _expert(self, state: S) -> Tensor:
        """Actions [B, A] of a policy that knows the true state and the dynamics."""

    @abstractmethod
    def _behave(self, state: S) -> tuple[Any, Tensor]:
        """The next state of the behaviour policy, which gathers experience, and its actions."""

    @abstractmethod
    def _dynamics_tests(
        self, keys: Tensor
    ) -> Mapping[str, tuple[S, Tensor | Callable[[S], Tensor]]]:
        """Start states of random keys [N] by the name of a test, each with the action [N, A] of all
        its steps or with a policy."""

    def _step_calmly(self, state: S, actions: Tensor) -> S:
        """The next state where nothing random happens."""
        return self._step_state(state, actions)

    @abstractmethod
    def _to_pixels(self, factors: Tensor) -> Tensor:
        """Factors [..., F] -> `(x, y)` [..., 2] in the pixels of a frame."""

    @abstractmethod
    def _draw(self, state: S) -> Tensor:
        """Frames [B, 320, 320, 3] uint8."""

    @property
    def state(self) -> S:
        """The current state. Raises RuntimeError before the first reset."""
        if self._state is None:
            raise RuntimeError("the environments have no state yet: call reset first")
        return self._state

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, dict[str, Any]]:
        """Begins new episodes; without a seed, random keys go on from the last episodes'."""
        keys = self._episode_keys(seed)
        self._state = self._reset_state(keys, options or {})
        self._next_keys = splitmix64(keys ^ 2)
        self._succeeded = self._success(self._state)
        self._clear_counters()
        return self._to_output(self._observe(self._state)), self._infos()

    def step(self, actions: Array) -> StepResult:
        """Actions [B, A]. Where an episode was done, the action is ignored and a new one begins."""
        done = self._was_terminated | (self._steps >= self._time_limit(self.state))
        checked = self._check_actions(actions, done)
        state, begins = self._step_state(self.state, checked), self._to_device(done)
        if done.any():
            state = self._begin_anew(state, self._to_device(np.flatnonzero(done)))
        self._state, self._succeeded = state, self._succeeded & ~begins | self._success(state)
        self._steps = np.where(done, 0, self._steps + 1)
        self._was_terminated = self._terminated(state) & ~done
        reward = torch.where(begins, 0.0, self._reward(state))
        ends = self._was_terminated, self._steps >= self._time_limit(state)
        returned = self._observe(state), reward, *map(self._to_device, ends)
        obs, reward, terminated, truncated = map(self._to_output, returned)
        return obs, reward, terminated, truncated, self._infos()

    def expert_action(self) -> Array:
        """Actions [B, A] of a policy that knows the true state and the dynamics."""
        return self._to_output(self._expert(self.state))

    def behaviour_action(self) -> Array:
        """Actions [B, A] of the policy that gathers experience; its own state moves on."""
        behaviour, actions = self._behave(self.state)
        state: Any = self.state
        self._state = state._replace(behaviour=behaviour)
        return self._to_output(actions)

    def dynamics_tests(self, seed: int = 0) -> dict[str, DynamicsTest]:
        """Action sequences with known outcomes, by name, that test a world model."""
        keys = keys_from_seeds(range(seed, seed + NUM_TESTS), self.device)
        tests = {}
        for name, (start, action) in self._dynamics_tests(keys).items():
            end, actions = start, []
            for _ in range(self.test_steps):
                actions.append(action if isinstance(action, Tensor) else action(end))
                end = self._step_calmly(end, actions[-1])
            results = torch.stack(actions, 1), self._factors(start), self._factors(end)
            tests[name] = DynamicsTest(*map(self._to_output, (self._observe(start), *results)))
        return tests

    def factors_to_pixels(self, factors: Array) -> Array:
        """Factors [..., F] -> the agent's `(x, y)` in the pixels of a frame, [..., 2]."""
        return self._to_output(self._to_pixels(torch.as_tensor(factors, dtype=torch.float32)))

    def render(self) -> tuple[np.ndarray, ...]:
        """A frame [320, 320, 3] uint8 of every environment, for people."""
        return tuple(self._draw(self.state).cpu().numpy())

    def _episode_keys(self, seed: int | Sequence[int] | None) -> Tensor:
        """The keys [B] of the coming episodes."""
        if seed is None and self._state is not None:
            return self._next_keys
        if isinstance(seed, Sequence):
            if len(seed) != self.num_envs:
                raise ValueError(f"{len(seed)} seeds for {self.num_envs} environments")
            return keys_from_seeds(seed, self.device)
        super().reset(seed=seed)
        first = int(self.np_random.integers(2**62)) if seed is None else int(seed)
        return keys_from_seeds(range(first, first + self.num_envs), self.device)

    def _check_actions(self, actions: Array, ignored: np.ndarray) -> Tensor:
        """Actions [B, A] as finite tensors, or choices [B] as int64. Raises ValueError where they
        have the wrong shape, where there is no such choice or, at the latest when an episode ends,
        where they were not finite."""
        if isinstance(self.single_action_space, spaces.Discrete):
            return self._check_choices(actions, ignored)
        tensor = torch.as_tensor(actions, dtype=torch.float32, device=self.device)
        needed = [self.num_envs, *(self.single_action_space.shape or ())]
        if list(tensor.shape) != needed:
            raise ValueError(f"actions have shape {list(tensor.shape)}; it must be {needed}")
        finite = tensor.isfinite().all(-1) | self._to_device(ignored)
        self._nonfinite = self._nonfinite | ~finite
        # Reading from an accelerator waits for it, so there it is done once an episode.
        if self.device.type == "cpu" or ignored.any():
            check_rows(~self._nonfinite, "the action of environment {i} is not finite")
        return tensor.nan_to_num(0.0, 0.0, 0.0)

    def _check_choices(self, actions: Array, ignored: np.ndarray) -> Tensor:
        choices = torch.as_tensor(actions, device=self.device)
        if list(choices.shape) != [self.num_envs]:
            raise ValueError(
                f"actions have shape {list(choices.shape)}; it must be [{self.num_envs}]"
            )
        last = int(self.single_action_space.n) - 1  # type: ignore[attr-defined]
        if choices.is_floating_point():
            raise ValueError(f"actions are {choices.dtype}; they must be integers from 0 to {last}")
        valid = (choices >= 0) & (choices <= last)
        wrong = (~valid & ~self._to_device(ignored)).nonzero().flatten().tolist()
        if wrong:
            given = f"the action of environment {wrong[0]} is {int(choices[wrong[0]])}"
            raise ValueError(f"{given}; it must be from 0 to {last}")
        return torch.where(valid, choices, 0).long()

    def _begin_anew(self, state: S, rows: Tensor) -> S:
        """The state with new episodes in some rows [N]."""
        keys = self._next_keys[rows]
        self._next_keys = scatter(self._next_keys, splitmix64(keys ^ 2), rows)
        return scatter(state, self._reset_state(keys, {}), rows)

    def _read_factors(self, name: str, factors: object, count: int) -> Tensor:
        """The reset option `name` as a tensor of its own, [N, F]. Raises ValueError for another
        shape, and about the first environment with a factor out of bounds."""
        tensor = torch.as_tensor(factors, dtype=torch.float32, device=self.device)
        shape = [count, len(self.factor_names)]
        if list(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {shape}")
        low = torch.zeros_like(tensor[0])
        low[len(low) - self.num_velocities :] = -1
        wrong = (~((tensor >= low) & (tensor <= 1))).nonzero().tolist()
        if wrong:
            row, column = wrong[0]
            raise ValueError(
                f"{name}: in environment {row} {self.factor_names[column]} is "
                f"{tensor[row, column]:.3g}; it must be in [{low[column]:.0f}, 1]"
            )
        return tensor.clone()

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _to_output(self, obs: Any) -> Any:
        """A tensor, or a dict of tensors, as users get them."""
        return tree_map(lambda part: part.cpu().numpy(), obs) if self._gives_arrays else obs

    def _infos(self) -> dict[str, Any]:
        state = self.state
        reported = {
            **self._info(state),
            "factors": self._factors(state),
            "success": self._succeeded,
            "final_success": self._success(state),
        }
        mask = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        reported |= {f"_{name}": mask for name in reported}
        # copies, because users may keep or overwrite what they get
        return {k: self._to_output(tree_map(torch.clone, v)) for k, v in reported.items()}


class GoalVectorEnv(TorchVectorEnv[G]):
    """Environments in which a goal is to be reached.

    The reward is 1 for every step that ends at the goal, else 0; success is to be there. Infos also
    report "goal", an observation of it, "goal_factors" and "distance".
    """

    goal_radius: float
    """Nearer to the goal than this, it counts as reached."""

    @abstractmethod
    def _goal_factors(self, state: G) -> Tensor:
        """[B, F]"""

    def _success(self, state: G) -> Tensor:
        return state.distance < self.goal_radius

    def _reward(self, state: G) -> Tensor:
        return self._success(state).float()

    def _info(self, state: G) -> dict[str, TensorObs]:
        return {
            "goal": state.goal_obs,
            "goal_factors": self._goal_factors(state),
            "distance": state.distance,
        }


class SingleEnv(gymnasium.Env):
    """Takes the keyword arguments of its vector environment, without `num_envs`; reset options have
    one row. `gymnasium.make` keeps a `max_episode_steps` for its own `TimeLimit`, which can only
    shorten episodes; `gymnasium.make_vec` passes it on."""

    vector_env: ClassVar[type[TorchVectorEnv[Any]]]
    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, **options: Any) -> None:
        """Raises what the vector environment raises."""
        make: Any = self.vector_env
        self._envs: TorchVectorEnv[Any] = make(1, **options)
        self.render_mode = self._envs.render_mode
        self.metadata = {**self.metadata, "description": self._envs.description}
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space
        self.factor_names = self._envs.factor_names
        self.interoception_names = self._envs.interoception_names
        self.dynamics_tests = self._envs.dynamics_tests
        self.factors_to_pixels = self._envs.factors_to_pixels

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Obs, dict[str, Any]]:
        super().reset(seed=seed)
        obs, infos = self._envs.reset(seed=seed, options=options)
        return self._first(obs, infos)

    def _first(self, obs: Obs, infos: dict[str, Any]) -> tuple[Obs, dict[str, Any]]:
        """Those of a batch of one -> of one environment; single numbers become Python's own."""
        info = {}
        for name, value in infos.items():
            if not name.startswith("_"):
                first = tree_map(lambda part: part[0], value)
                info[name] = first if isinstance(first, dict) or first.ndim else first.item()
        return tree_map(lambda part: part[0], obs), info

    def step(self, action: Array) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, infos = self._envs.step(np.asarray(action)[None])
        first_obs, info = self._first(obs, infos)
        return first_obs, float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def expert_action(self) -> Array:
        """The action [A] of a policy that knows the true state and the dynamics."""
        return self._envs.expert_action()[0]

    def behaviour_action(self) -> Array:
        """The action [A] of the policy that gathers experience."""
        return self._envs.behaviour_action()[0]

    def render(self) -> np.ndarray:
        return self._envs.render()[0]
