"""Data types and protocols that pass between modules.

Shape letters, the same in every file: **B** environments acted in at once, **P** candidate action
sequences, **K** sampled futures, **T** recorded steps, **H** imagined steps, **O** observation,
**D** state (latent), **A** action, **Z** latent variable, **I** interoceptive signals, **L**
levels of a hierarchy.

A state is always flat, `[..., D]`: an encoder and a dynamics model of feature maps fold D into
`[C, h, w]` internally, so that no other module depends on the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import (
    Annotated,
    Any,
    NamedTuple,
    Protocol,
    TypeAlias,
    get_origin,
    get_type_hints,
)

import numpy as np
import torch
from torch import Tensor

EXACT = "donot_use_mm_for_euclid_dist"
"""The mode of `torch.cdist` without matrix products, whose rounding errors exceed small
distances."""

Observation: TypeAlias = Tensor | Mapping[str, Tensor]
"""One tensor `[B, *O]`, or one for each modality by name."""


def tree_map(fn: Callable[[Tensor], Tensor], obs: Observation) -> Observation:
    """Applies `fn` to every modality of an observation."""
    if isinstance(obs, Tensor):
        return fn(obs)
    return {name: fn(part) for name, part in obs.items()}


def as_dict(obs: Observation) -> Mapping[str, Tensor]:
    """The modalities of an observation by name; a single tensor is called "obs"."""
    return {"obs": obs} if isinstance(obs, Tensor) else obs


def batch_size(obs: Observation) -> int:
    """B"""
    return len(next(iter(as_dict(obs).values())))


ModalityWeights: TypeAlias = Mapping[str, float | Tensor]
"""Factor on the features of each modality, by name; 1 where a name is missing. One number, or one
for each observation `[B]`."""

CONTINUE = "alive"
"""Interoceptive signal of environments in which an episode may end by failure: 1, or 0 where the
episode ends there."""

GOAL_COSTS = ("goal_distance", "critic")
"""Costs that are defined only for tasks with a goal."""

MapShape: TypeAlias = tuple[int, int, int]
"""`(C, h, w)` into which a flat state of D numbers folds; a vector state is `(D, 1, 1)`."""


class ConfigError(ValueError):
    """Unusable input; the message names the input, its value and what is expected."""


class BadSetting(ConfigError):
    """A setting has an invalid value. `name` is the name of the field in its own dataclass; the
    caller that holds the dataclass prepends the path to it."""

    def __init__(self, name: str, value: object, expected: str) -> None:
        super().__init__(f"{name} is {shorten(value)}; it must be {expected}")
        self.name, self.value, self.expected = name, value, expected


Range: TypeAlias = "tuple[int, int] | tuple[float, float]"
"""Lowest and highest valid value; a range of two ints admits ints only."""

SEEDS: Range = (0, 2**31 - 1)
STEPS: Range = (0, 1_000_000_000)
ENV_STEPS: Range = (1, 1_000_000_000)
"""Steps or updates, at least one."""
ITERATIONS: Range = (0, 100_000)
"""Iterations of a planner."""
EPISODES: Range = (1, 1_000_000)
BATCH: Range = (1, 1_000_000)
WIDTH: Range = (1, 65_536)
"""Units of a layer, channels of a map, dimensions of a state."""
HORIZON: Range = (1, 10_000)
COUNT: Range = (1, 100_000)
"""Of anything else of which there is at least one."""
WEIGHT: Range = (0.0, 1e6)
"""Weight of a loss term or of a cost."""
FRACTION: Range = (0.0, 1.0)
"""Fractions, probabilities, decays of moving averages."""
RATE: Range = (0.0, 10.0)
"""Learning rates."""
MAX_NUMBERS = 1000
"""Most numbers that one setting may hold."""


def validate_ranges(settings: object, **ranges: Range) -> None:
    """Raises BadSetting for the first field that is outside its range, of another type, NaN or
    infinite. For a tuple every element is checked, for a dict every value."""
    for name, (low, high) in ranges.items():
        value = vars(settings)[name]
        parts: list[tuple[str, object]] = [(name, value)]
        if isinstance(value, (tuple, list)):
            parts = [(name, part) for part in value]
            if len(value) > MAX_NUMBERS:
                raise BadSetting(name, value, f"at most {MAX_NUMBERS} numbers")
        elif isinstance(value, Mapping):
            parts = [(f"{name} {key}", part) for key, part in value.items()]
        integer = isinstance(low, int)
        for label, part in parts:
            kinds: tuple[type, ...] = (int,) if integer else (int, float)
            is_number = isinstance(part, kinds) and not isinstance(part, bool)
            if not is_number or not low <= part <= high:  # type: ignore[operator]  # NaN fails
                kind = "a whole number " if integer else ""
                raise BadSetting(label, part, f"{kind}from {_plain(low)} to {_plain(high)}")


class Settings:
    """The base of settings. A field that holds numbers is annotated with the range of each,
    `hidden: Annotated[int, WIDTH]`; BadSetting for a number outside of it, and for None unless
    that is the default."""

    def __post_init__(self) -> None:
        kind: Any = type(self)
        ranges = dict(annotated_ranges(kind))
        for name in [name for name in ranges if vars(self)[name] is None]:
            if getattr(kind, name, 0) is None:  # the default, which a class keeps
                del ranges[name]
        validate_ranges(self, **ranges)


@lru_cache(maxsize=1024)  # the classes that each parse of flags makes are not kept for ever
def annotated_ranges(kind: type) -> dict[str, Range]:
    """The ranges that the fields of a class are annotated with, by name; a field that a subclass
    declares anew keeps its range."""
    found: dict[str, Range] = {}
    for base in reversed(kind.__mro__):
        for name, hint in get_type_hints(base, include_extras=True).items():
            if get_origin(hint) is Annotated and isinstance(hint.__metadata__[0], tuple):
                found[name] = hint.__metadata__[0]
    return found


def shorten(value: object) -> str:
    """The value as text of bounded length."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "too large to print"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def describe(value: object) -> str:
    """Tensors and arrays as their shapes, also within a mapping or a tuple, and anything else as
    short text: what a repr shows, where the numbers would fill pages."""
    if isinstance(value, (Tensor, np.ndarray)):
        return str(list(value.shape))
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name} {describe(part)}' for name, part in value.items())}}}"
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        parts = (f"{name} {describe(part)}" for name, part in value._asdict().items())
        return f"{type(value).__name__}({', '.join(parts)})"
    return shorten(value)


class DivergenceError(ArithmeticError):
    """A number that must be finite is not, so training can't continue."""


class Transition(NamedTuple):
    """One step in B environments."""

    obs: Observation  # [B, *O]
    action: Tensor  # [B, A], each number in [-1, 1]
    interoception: Tensor  # [B, I]: the signals that come with `next_obs`
    next_obs: Observation  # [B, *O]
    terminated: Tensor  # [B] bool: the episode ended in a terminal state
    truncated: Tensor  # [B] bool: the episode was cut off, by a time limit for instance

    def __repr__(self) -> str:
        return describe(self)


class Trajectory(NamedTuple):
    """Windows of steps, each inside a single episode: what the replay buffer samples.

    A window that is longer than the rest of its episode is padded: after the end it repeats the
    last observation, actions and interoception are 0, and `valid` is False."""

    obs: Observation  # [B, T + 1, *O]
    actions: Tensor  # [B, T, A]
    interoception: Tensor  # [B, T, I]
    terminated: Tensor  # [B, T] bool
    episode_id: Tensor  # [B] int64: windows of the same episode have the same number
    valid: Tensor | None = None  # [B, T] bool: False where padded; None where nothing is

    def __repr__(self) -> str:
        return describe(self)

    @property
    def states(self) -> Tensor:
        """`[B, T + 1, D]`, of a buffer whose observations are encoded states."""
        assert isinstance(self.obs, Tensor)
        return self.obs

    @property
    def num_valid(self) -> Tensor:
        """`[B]` int64: the number of valid steps of each window, at least 1."""
        count, length = self.terminated.shape
        if self.valid is None:
            return torch.full((count,), length, device=self.terminated.device)
        return self.valid.sum(1)

    def wrap_to_valid(self, steps: Tensor) -> Tensor:
        """Step numbers `[B]` from 1 to T -> the same, wrapped around into the valid steps of each
        window."""
        if self.valid is None:
            return steps
        return (steps - 1) % self.num_valid.to(steps.device) + 1


class RememberedStates(NamedTuple):
    """States of earlier episodes and the intrinsic cost that followed each, as lasting memory holds
    them for costs and subgoals."""

    states: Tensor  # [B, M, D]
    costs: Tensor  # [B, M]: infinite where a slot is empty
    distance_cost: Tensor  # [B]: the cost of a unit of distance in representation space
    beta: float  # inverse temperature of the attention over the states

    def energies(self, states: Tensor) -> Tensor:
        """States `[B, N, D]` -> `[B, N, M + 1]`: the cost of each remembered state and of the way
        to it; the last is 0, that of a state about which nothing is remembered."""
        # exact near 0, where the gradient of a matrix product would be that of rounding
        distance = torch.cdist(states, self.states, compute_mode=EXACT)
        way = self.distance_cost[:, None, None] * distance
        nothing = way.new_zeros(*way.shape[:2], 1)
        return torch.cat([way + self.costs[:, None], nothing], -1)

    def select(self, env_ids: Tensor) -> RememberedStates:
        """Those of some of the environments, `[N]` indices or a mask."""
        parts = ("states", "costs", "distance_cost")
        return self._replace(**{name: getattr(self, name)[env_ids] for name in parts})


class TaskContext(NamedTuple):
    """What the configurator tells every other module about the task; immutable."""

    mode: str  # the actor: "react" (Mode-1), "plan" (Mode-2) or "auto" (either, by need)
    goal: Tensor  # [B, D] goal states; all zero where the task has none
    weights: Mapping[str, float]  # u_i and v_j of every energy, by name
    limits: Mapping[str, float]  # upper limit of a drive at any step, by name
    modality_weights: Mapping[str, float]  # factor on the features of each modality, by name
    task_vector: Tensor  # [B, W]: the cost weights that the policy is conditioned on
    horizon: int  # H: the planning horizon of Mode-2
    iterations: int  # iterations of the planner from a cold start
    cvar_alpha: float  # fraction of worst futures that counts: 1 is the mean, 0 the worst alone
    episode_states: Tensor  # [B, M, D]: states of the present episode, from short-term memory
    reference_states: Tensor  # [K, D]: states of earlier episodes; K = 0 where none are kept
    step_scale: Tensor  # [B]: distance in representation space that a full action covers
    upper_plans: Tensor  # [B, L - 1, H, D]: plans of the levels above, top first; `goal` is theirs
    noise: Tensor | None = None  # [K, H, U] in [0, 1): what the sampled futures of a plan share
    goal_dims: int = 0  # numbers of a state, from the first, that the goal is about; 0: all
    task_index: int | None = None  # of the agent's task with the same costs; None: there is none
    remembered: RememberedStates | None = None  # None: the agent has no lasting memory
    has_goal: Tensor | None = None  # [B] bool: environments in which there is a goal; None: all
    drive_weights: Tensor | None = None  # [W] weights of the drives, in the order of the agent's

    def __repr__(self) -> str:
        return describe(self)

    @property
    def pursues_goal(self) -> bool:
        """Whether a cost that needs a goal has a weight."""
        return any(self.weights.get(name) for name in GOAL_COSTS)

    def select(self, env_ids: Tensor) -> TaskContext:
        """The context of some of the environments, `[N]` indices or a mask."""
        parts = ("goal", "task_vector", "episode_states", "step_scale", "upper_plans")
        return self._replace(
            **{name: getattr(self, name)[env_ids] for name in parts},
            remembered=None if self.remembered is None else self.remembered.select(env_ids),
            has_goal=None if self.has_goal is None else self.has_goal[env_ids],
        )


class Rollout(NamedTuple):
    """Imagined futures. Z is 0 without latent variables, I is 0 without an interoception head."""

    states: Tensor  # [B, P, H + 1, D]
    actions: Tensor  # [B, P, H, A]
    latents: Tensor  # [B, P, H, Z]
    interoception: Tensor  # [B, P, H, I]: predicted signals after each action

    def __repr__(self) -> str:
        return describe(self)


class EvaluatedRollouts(NamedTuple):
    """Imagined futures and their energies."""

    rollout: Rollout
    terms: dict[str, Tensor]  # each [B, P]
    energy: Tensor  # [B, P]
    scenario_states: Tensor  # [B, P * K, H + 1, D]: all sampled futures

    def __repr__(self) -> str:
        return describe(self)

    def detach(self) -> EvaluatedRollouts:
        """These rollouts without gradients."""
        rollout = Rollout(*(part.detach() for part in self.rollout))
        one_future = self.scenario_states is self.rollout.states
        return EvaluatedRollouts(
            rollout=rollout,
            terms={name: term.detach() for name, term in self.terms.items()},
            energy=self.energy.detach(),
            scenario_states=rollout.states if one_future else self.scenario_states.detach(),
        )


class Plan(NamedTuple):
    """An action sequence and the energy of the future it is predicted to lead to."""

    actions: Tensor  # [B, H, A]
    energy: Tensor  # [B]
    terms: Mapping[str, Tensor]  # each [B]: the weighted energy terms by name
    states: Tensor  # [B, H + 1, D]: predicted states; Mode-1 predicts none, H is 0
    upper_plans: Tensor  # [B, L - 1, H, D]: plans of the levels above, top first, in their steps
    candidate_states: Tensor  # [B, P * K, H + 1, D]: all futures compared, K of each candidate
    candidate_energies: Tensor  # [B, P]
    planned: Tensor  # [B] bool: True from Mode-2, False from Mode-1
    env_action: Any = None  # what `env.step` takes, in the plans of a Controller; else None

    def __repr__(self) -> str:
        return describe(self)

    @property
    def violation(self) -> Tensor:
        """[B]: the penalty for limits that this plan exceeds; 0 where it keeps them all."""
        penalties = [term for name, term in self.terms.items() if name.startswith("limit ")]
        return torch.stack(penalties).sum(0) if penalties else torch.zeros_like(self.energy)

    @property
    def subgoals(self) -> Tensor:
        """[B, L - 1, D]: the subgoal that each level sets for the one below."""
        return self.upper_plans[:, :, 0]

    @property
    def action(self) -> Tensor:
        """[B, A]: the first action, the one to execute."""
        return self.actions[:, 0]


class RolloutFn(Protocol):
    """State `[B, D]` and actions `[B, P, H, A]` -> the futures that the world model predicts: the
    most likely one of each candidate, or K of each, one after the other, as functions of `noise`
    `[K, H, U]`, uniform in [0, 1)."""

    def __call__(self, state: Tensor, actions: Tensor, noise: Tensor | None = None) -> Rollout: ...


PolicyFn: TypeAlias = Callable[[Tensor], Tensor]
"""A policy under a fixed task: states `[B, D]` -> actions `[B, A]`."""


class PolicyRolloutFn(Protocol):
    """State `[B, D]` -> the future under a closed-loop policy, followed by the futures of the
    candidate actions `[B, P, H, A]`, in one batch; P may be 0. `noise` is as in `RolloutFn`."""

    def __call__(
        self, state: Tensor, policy: PolicyFn, candidates: Tensor, noise: Tensor | None = None
    ) -> Rollout: ...


CostFn: TypeAlias = Callable[[Rollout, TaskContext], Tensor]
"""The unweighted energy of every imagined future, `[B, P]`."""

CostTermsFn: TypeAlias = Callable[[Rollout, TaskContext], dict[str, Tensor]]
"""The weighted energies of every imagined future, by name, each `[B, P]`."""

ProposalFn: TypeAlias = Callable[[Tensor, TaskContext, torch.Generator], Tensor]
"""State `[B, D]` -> initial candidates for a planner, `[B, P, H, A]`; P may be 0. Random ones are
drawn from the generator."""


class PlannerCarry(NamedTuple):
    """What a planner carries from one step of an episode to the next."""

    rng: torch.Generator  # never drawn from: a planner draws from a clone, and carries that on
    warm_start: Tensor | None = None  # [B, K, H, A]: candidates that begin with the next step

    @classmethod
    def initial(cls, seed: int) -> PlannerCarry:
        """At the beginning of an episode."""
        return cls(torch.Generator().manual_seed(seed))


class PlannerProtocol(Protocol):
    """Mode-2: state `[B, D]` -> plan. A function: what one step leaves to the next is in the carry,
    and neither the planner nor its arguments change."""

    def __call__(
        self, state: Tensor, context: TaskContext, carry: PlannerCarry
    ) -> tuple[Plan, PlannerCarry]: ...


class ActorProtocol(Protocol):
    """State `[B, D]` -> plan, in every mode. A function as planners are; what its carry holds is
    its own affair. `initial_carry`: at the beginning of an episode; `seed` is that of its random
    draws."""

    def initial_carry(self, seed: int) -> Any: ...
    def __call__(self, state: Tensor, context: TaskContext, carry: Any) -> tuple[Plan, Any]: ...


LatentRolloutFn: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""States `[N, D]` and unbounded numbers `[N, P, H, A]`, which are squashed to actions -> the states
they lead to, `[N, P, H, D]`."""


class QuasimetricFns(NamedTuple):
    """The learnt number of steps from a state to a goal, as functions that share the parameters of
    the critic without owning them."""

    embed: Callable[[Tensor], Tensor]  # state or goal `[..., D]` -> embedding `[..., F]`
    from_embeddings: Callable[[Tensor, Tensor], Tensor]  # two embeddings, broadcast -> `[...]`
