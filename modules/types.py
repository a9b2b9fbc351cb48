"""The nouns the boxes speak. Everything that passes between two boxes is defined here.

Shape letters, the same in every file: **B** worlds lived in at once, **P** proposals considered at
once, **T** recorded steps, **H** imagined steps, **O** observation, **D** state (latent), **A**
action, **Z** latent variable, **I** interoception, **L** levels.

A state is always flat, `[..., D]`: a map of features is a state whose encoder and predictor fold D
into `[C, h, w]` for themselves, so that nobody else has to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

Observation: TypeAlias = Tensor | Mapping[str, Tensor]
"""What the senses deliver: one tensor `[B, *O]`, or several by name (multi-modal)."""


def tree_map(fn: Callable[[Tensor], Tensor], obs: Observation) -> Observation:
    """The same change made to what every sense delivers."""
    if isinstance(obs, Tensor):
        return fn(obs)
    return {name: fn(part) for name, part in obs.items()}


def as_dict(obs: Observation) -> Mapping[str, Tensor]:
    """What each sense delivers, by name; a mind with one sense calls it "obs"."""
    return {"obs": obs} if isinstance(obs, Tensor) else obs


def batch_size(obs: Observation) -> int:
    """B"""
    return len(next(iter(as_dict(obs).values())))


ModalityWeights: TypeAlias = Mapping[str, float | Tensor]
"""How much of what a sense delivers comes through, by name; 1 where none is named. One number, or
one for each observation `[B]`."""

CONTINUE = "alive"
"""What a body feels that may die: 1 on arrival, 0 where its life ends there."""

GOAL_COSTS = ("goal_distance", "critic")
"""Costs that mean nothing without a goal."""

MapShape: TypeAlias = tuple[int, int, int]
"""How a flat state of D numbers folds into `[C, h, w]`; a vector is one by one."""


class ConfigError(ValueError):
    """What was given can't be used; the message names the thing, the value and what would do."""


class BadSetting(ConfigError):
    """The value of one setting makes no sense. `name` is the setting's name in its own dataclass;
    whoever knows where this dataclass stands names the whole path."""

    def __init__(self, name: str, value: object, right: str) -> None:
        super().__init__(f"{name} is {_short(value)}; it must be {right}")
        self.name, self.value, self.expected = name, value, right


Range: TypeAlias = "tuple[int, int] | tuple[float, float]"
"""Lowest and highest value of a number; two ints: the number must be an int as well."""

SEEDS: Range = (0, 2**31 - 1)
STEPS: Range = (0, 1_000_000_000)
ENV_STEPS: Range = (1, 1_000_000_000)
"""Steps or updates of which there must be one at least."""
ITERATIONS: Range = (0, 100_000)
"""Iterations of a planner."""
EPISODES: Range = (1, 1_000_000)
BATCH: Range = (1, 1_000_000)
WIDTH: Range = (1, 65_536)
"""Units of a layer, channels of a map, dimensions of a state."""
HORIZON: Range = (1, 10_000)
WEIGHT: Range = (0.0, 1e6)
"""Weight of a loss term or of a cost."""
FRACTION: Range = (0.0, 1.0)
"""Fractions, probabilities, decays of moving averages."""
RATE: Range = (0.0, 10.0)
"""Learning rates."""
MAX_NUMBERS = 1000
"""Numbers in one setting."""


def validate_ranges(settings: object, **ranges: Range) -> None:
    """Raises BadSetting for the first number outside its range, of another type, NaN or infinite.
    Of a tuple every element must be in the range, of a dict every value."""
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
            is_number = isinstance(part, int if integer else (int, float)) and not isinstance(
                part, bool
            )
            if not is_number or not low <= part <= high:  # type: ignore[operator]  # NaN is outside
                kind = "a whole number " if integer else ""
                raise BadSetting(label, part, f"{kind}from {_plain(low)} to {_plain(high)}")


def _short(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "too large to print"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _plain(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


class DivergenceError(ArithmeticError):
    """A number that must be finite is not; learning can't go on from here."""


class Stateful:
    """A component that acting changes: these attributes are all that an episode changes in it.
    `reset` gives each of them a new value and never alters the old one in place, so that a
    controller can put its own values in the place of another's."""

    episode_state: ClassVar[tuple[str, ...]] = ()


class Transition(NamedTuple):
    """One step of life in B worlds. `interoception` is what the body feels on arrival."""

    obs: Observation  # [B, *O]
    action: Tensor  # [B, A], each number in [-1, 1]
    interoception: Tensor  # [B, I]
    next_obs: Observation  # [B, *O]
    terminated: Tensor  # [B] bool: the world ended here
    truncated: Tensor  # [B] bool: time ran out here, the world would have gone on


class Trajectory(NamedTuple):
    """Windows of steps, each inside a single episode: what the replay buffer samples.

    A window that begins in an episode shorter than itself is padded: after the end it repeats the
    last observation, with actions and interoception of 0, and `valid` is False."""

    obs: Observation  # [B, T + 1, *O]
    actions: Tensor  # [B, T, A]
    interoception: Tensor  # [B, T, I]
    terminated: Tensor  # [B, T] bool: nothing is felt after this step
    episode_id: Tensor  # [B] which episode it was; equal numbers, same episode
    valid: Tensor | None = None  # [B, T] bool: which steps were taken; None where all were

    @property
    def states(self) -> Tensor:
        """`[B, T + 1, D]`, where observations are states already."""
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
        """Numbers of steps `[B]`, from 1 to T -> the same where the windows are whole, else some
        from 1 to the number of valid steps."""
        if self.valid is None:
            return steps
        return (steps - 1) % self.num_valid.to(steps.device) + 1


class TaskContext(NamedTuple):
    """The Configurator's word to every other box. It travels with the data and mutates nothing."""

    mode: str  # which actor acts: "react", "plan" or "auto"
    goal: Tensor  # [B, D]; all zero where there is none
    weights: Mapping[str, float]  # u_i and v_j of every energy, by name
    limits: Mapping[str, float]  # how much of a drive may be felt at any step, by name
    modality_weights: Mapping[
        str, float
    ]  # priming: how much of what a sense delivers comes through, by name
    task_vector: Tensor  # [B, W]: the weights of some costs; what the policy is told of the task
    horizon: int  # H: how far Mode-2 looks
    iterations: int  # how many times Mode-2 may improve its proposals from cold
    cvar_alpha: (
        float  # the share of the worst futures that counts: 1 is the mean, 0 the worst alone
    )
    episode_states: Tensor  # [B, M, D]: this episode so far, as short-term memory holds it
    reference_states: Tensor  # [K, D]: states of former lives, K = 0 where none are kept
    step_scale: Tensor  # [B]: how far a full step leads in representation space
    upper_plans: (
        Tensor  # [B, L - 1, H, D]: what the levels above plan, top first; `goal` comes from them
    )

    def select(self, env_ids: Tensor) -> TaskContext:
        """The same for some of the worlds only, `[N]` indices or a mask."""
        parts = ("goal", "task_vector", "episode_states", "step_scale", "upper_plans")
        return self._replace(**{name: getattr(self, name)[env_ids] for name in parts})


class Rollout(NamedTuple):
    """Imagined futures. Without latent variables Z is 0; a mind that feels nothing has I = 0."""

    states: Tensor  # [B, P, H + 1, D]
    actions: Tensor  # [B, P, H, A]
    latents: Tensor  # [B, P, H, Z]
    interoception: Tensor  # [B, P, H, I]: what is felt on arrival


class Plan(NamedTuple):
    """The actions somebody intends to take, and how much that future should hurt."""

    actions: Tensor  # [B, H, A]
    energy: Tensor  # [B]
    terms: Mapping[str, Tensor]  # each [B]: the energy by name, already weighted
    states: Tensor  # [B, H + 1, D]: what is hoped for; a reflex imagines nothing, H is 0
    upper_plans: Tensor  # [B, L - 1, H, D]: what the levels above plan, top first, in their strides
    candidate_states: (
        Tensor  # [B, P * K, H + 1, D]: all the futures that were compared, K of a proposal
    )
    candidate_energies: Tensor  # [B, P]: how much each proposal should hurt
    planned: Tensor  # [B] bool: by Mode-2, not Mode-1
    env_action: Any = None  # what `env.step` takes, in the plans of a Controller; else None

    @property
    def violation(self) -> Tensor:
        """[B]: the price of limits that this plan exceeds; 0 where it keeps them all."""
        penalties = [term for name, term in self.terms.items() if name.startswith("limit ")]
        return torch.stack(penalties).sum(0) if penalties else torch.zeros_like(self.energy)

    @property
    def subgoals(self) -> Tensor:
        """[B, L - 1, D]: what each level asked of the one below."""
        return self.upper_plans[:, :, 0]

    @property
    def action(self) -> Tensor:
        """[B, A]: the only one that leaves the mind."""
        return self.actions[:, 0]


class RolloutFn(Protocol):
    """State `[B, D]` and actions `[B, P, H, A]` -> the futures they would lead to: the likeliest of
    each, or K of each, one after the other, that depend on `noise` `[K, H, U]` in [0, 1)."""

    def __call__(self, state: Tensor, actions: Tensor, noise: Tensor | None = None) -> Rollout: ...


PolicyFn: TypeAlias = Callable[[Tensor], Tensor]
"""What somebody who decides as he goes would do: states `[B, D]` -> actions `[B, A]`."""


class PolicyRolloutFn(Protocol):
    """The future of somebody who decides as he goes, and beside it, in the same breath, those of
    actions `[B, P, H, A]`; P may be 0. Chance is as in `RolloutFn`."""

    def __call__(
        self, state: Tensor, policy: PolicyFn, candidates: Tensor, noise: Tensor | None = None
    ) -> Rollout: ...


class CostFn(Protocol):
    """How much every imagined future would hurt, `[B, P]`, unweighted."""

    def __call__(self, rollout: Rollout, context: TaskContext) -> Tensor: ...


class CostTermsFn(Protocol):
    """The weighted energies of every imagined future, by name, each `[B, P]`."""

    def __call__(self, rollout: Rollout, context: TaskContext) -> dict[str, Tensor]: ...


class ProposalFn(Protocol):
    """State `[B, D]` -> actions worth considering, `[B, P, H, A]`; P may be 0."""

    def __call__(self, state: Tensor, context: TaskContext) -> Tensor: ...


class ActorFn(Protocol):
    """State `[B, D]` -> what to do about it. Mode-1 and Mode-2 are both actors."""

    def __call__(self, state: Tensor, context: TaskContext) -> Plan: ...


class ActorProtocol(ActorFn, Protocol):
    """An actor that can be told that a new life begins, and where its chance starts."""

    def reset(self, seed: int = 0) -> None: ...


class PlannerProtocol(ActorProtocol, Protocol):
    """Mode-2: it goes on from its last plan, unless it is told from what."""

    def set_warm_start(self, actions: Tensor) -> None: ...


LatentRolloutFn: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""States `[N, D]` and any numbers `[N, P, H, A]`, which are bounded to actions -> where these lead,
`[N, P, H, D]`."""


class QuasimetricFns(NamedTuple):
    """Steps still to go from states to goals, as functions: whoever learns them keeps them."""

    embed: Callable[[Tensor], Tensor]  # what is made of either, `[..., D]` -> `[..., F]`
    from_embeddings: Callable[[Tensor, Tensor], Tensor]  # of these, broadcast -> `[...]`
