"""Watching an agent live: what can be drawn of every moment, in pixels of the world's picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ami_agent.agent import Agent
from ami_agent.life import Examines, Lived, World, WorldConfig, live
from ami_agent.players import Scene, task_of
from ami_agent.probe import Examiner, states_of
from modules.configurator import Assignment
from modules.types import Focus, Observation, Plan, Rollout, UnusableInput

AT_ONCE = 4
"""Worlds lived in at once; every step of each keeps a picture."""


@runtime_checkable
class Drawn(Protocol):
    """A world that a person can look at: `render` gives a picture `[h, w, 3]` uint8 of each of B
    worlds, `picture_xy` says where in it, `(x, y)` in pixels `[..., 2]`, a body of these factors
    `[..., F]` would be."""

    def render(self) -> Sequence[np.ndarray]: ...
    def picture_xy(self, factors: Any) -> Any: ...


class Moment(NamedTuple):
    """One life before one of its actions; places are in pixels of the picture."""

    picture: np.ndarray  # [h, w, 3] uint8
    place: np.ndarray  # [2]: where the body truly is
    considered: np.ndarray  # [P, H + 1, 2]
    chosen: np.ndarray  # [H + 1, 2]; H is 0 for a reflex
    hopes: np.ndarray  # [L - 1, H, 2]: of the levels above, top first; subgoals come first
    terms: Mapping[str, float]  # weighted energies of the chosen future; a reflex has none
    to_go: float  # what the critics say of the present state, in their unit


class Episode(NamedTuple):
    """One life from its first moment to its last."""

    world: str
    mode: str
    seed: int
    moments: Sequence[Moment]
    arrived: int | None  # steps until the first success
    stayed: bool  # success at the last step
    factors: np.ndarray  # [F]: how it began
    focus: Focus  # its goal is [1, D]

    @property
    def unit(self) -> str:
        """Of what the critics say."""
        return unit(self.focus)

    @property
    def verdict(self) -> str:
        """How it went, in words."""
        if self.arrived is None:
            return f"seed {self.seed}: did not arrive in {len(self.moments)} steps"
        end = "and stayed" if self.stayed else "and left again"
        return f"seed {self.seed}: arrived after {self.arrived} steps {end}"

    @property
    def imagines(self) -> bool:
        """Whether there are futures to draw; a reflex has none."""
        return len(self.moments[0].chosen) > 1

    @property
    def hopes(self) -> bool:
        """Whether there are levels above, with subgoals to draw."""
        return len(self.moments[0].hopes) > 0

    @property
    def path(self) -> np.ndarray:
        """[T, 2]: where the body truly was."""
        return np.stack([moment.place for moment in self.moments])


class ReadOut:
    """Where the states of an agent, primed as its task says, are in a world's picture, by a linear
    probe on frozen states.

    Raises UnusableInput for a world that can't be drawn."""

    def __init__(
        self, agent: Agent, config: WorldConfig, seed: int, assignment: Assignment
    ) -> None:
        gains = agent.configurator.primed(assignment.task(None, "plan"))
        with closing(config.build(1)) as world:
            require_drawn(config, world)
            self.inner: Drawn = world.inner
        # far from the seeds that are shown: what is drawn was not fitted
        examiner = Examiner(config, seed + 1_000_000)
        self.probe = examiner.probe(agent, gains)
        known, unknown = examiner.known.factors, examiner.unknown
        self.low, self.high = known.amin(0).numpy(), known.amax(0).numpy()  # [F]
        missed = self.xy(unknown.factors) - self(states_of(agent, unknown.obs, gains))
        self.error = float(np.sqrt(np.square(missed).sum(-1).mean()))
        """Root mean square distance of read and true places, on lives not fitted; pixels."""

    def xy(self, factors: Any) -> np.ndarray:
        """True factors `[..., F]` -> places `[..., 2]`"""
        return np.asarray(self.inner.picture_xy(np.asarray(factors)))

    def __call__(self, states: Tensor) -> np.ndarray:
        """`[..., D]` -> places `[..., 2]`"""
        return self.xy(self.probe.read(states.detach().cpu()))


OFFERS: Mapping[type, str] = {
    Drawn: "no picture (render() and picture_xy(factors))",
    Examines: "no true state (factor_names, info['factors'] and exams())",
}


def require_drawn(config: WorldConfig, world: World) -> None:
    """Raises UnusableInput, naming all that the world lacks."""
    lacking = [what for kind, what in OFFERS.items() if not isinstance(world.inner, kind)]
    if lacking:
        raise UnusableInput(f"{config.id} can't be shown: it offers {' and '.join(lacking)}")


def watch(
    agent: Agent, config: WorldConfig, readout: ReadOut, episodes: int, mode: str, seed: int,
    assignment: Assignment,
) -> Iterator[Episode]:  # fmt: skip
    """The episodes of seeds `seed`, `seed` + 1, ..."""
    if episodes < 1:
        raise UnusableInput(f"episodes is {episodes}; it must be at least 1")
    agent.eval()
    for first in range(0, episodes, AT_ONCE):
        count = min(AT_ONCE, episodes - first)
        with closing(config.build(count, agent.device, render_mode="rgb_array")) as world:
            yield from _Watch(agent, world, readout, seed + first).live(config, mode, assignment)


class _Watch:
    """Lives in B worlds until the first episode of each is over, and takes notes."""

    def __init__(self, agent: Agent, world: World, readout: ReadOut, seed: int) -> None:
        self.agent, self.world, self.readout, self.seed = agent, world, readout, seed
        self.obs, self.info = world.reset(seed)
        self.moments: list[list[Moment]] = [[] for _ in range(world.count)]
        self.going = np.ones(world.count, dtype=bool)
        self.arrived: list[int | None] = [None] * world.count
        self.stayed = np.zeros(world.count, dtype=bool)

    def live(self, config: WorldConfig, mode: str, assignment: Assignment) -> list[Episode]:
        begun = np.asarray(self.info["factors"])
        self.agent.begin()
        scene = Scene(self.world, self.obs, self.info)
        self.agent.configure(task_of(assignment, scene, mode), self.seed)
        for lived in live(self._act, self.world, self.obs):
            self._judge(lived)
            if not self.going.any():
                break
        focus, name = _focus(self.agent), f"{config.id} {config.variant}".strip()
        goals = focus.goal.expand(self.world.count, -1)
        return [
            Episode(
                name, mode, self.seed + i, self.moments[i], self.arrived[i], bool(self.stayed[i]),
                begun[i], focus._replace(goal=goals[i : i + 1]),
            )
            for i in range(self.world.count)
        ]  # fmt: skip

    def _act(self, obs: Observation) -> Tensor:
        plan = self.agent.act(obs)
        self._note(plan, critic(self.agent, plan.states[:, 0], _focus(self.agent)))
        return plan.action

    def _note(self, plan: Plan, to_go: np.ndarray) -> None:
        pictures, places = self.world.inner.render(), self.readout.xy(self.info["factors"])
        imagined = (plan.considered, plan.states, plan.hopes)
        considered, chosen, hopes = map(self.readout, imagined)
        for i in np.flatnonzero(self.going):
            terms = {name: float(term[i]) for name, term in plan.terms.items()}
            self.moments[i].append(
                Moment(
                    np.asarray(pictures[i]), places[i], considered[i], chosen[i], hopes[i],
                    terms, float(to_go[i]),
                )
            )  # fmt: skip

    def _judge(self, lived: Lived) -> None:
        self.info = lived.info
        for i in np.flatnonzero(self.going):
            if self.arrived[i] is None and bool(lived.info["success"][i]):
                self.arrived[i] = len(self.moments[i])
            self.stayed[i] = bool(lived.info["final_success"][i])
        ended = lived.transition.terminated | lived.transition.truncated
        self.going &= ~ended.cpu().numpy()


def _focus(agent: Agent) -> Focus:
    assert agent.focus is not None
    return agent.focus


@torch.no_grad()
def critic(agent: Agent, states: Tensor, focus: Focus) -> np.ndarray:
    """What the critics that this focus weighs say of resting in states `[N, D]`: `[N]`; in its
    `unit`."""
    still = states[:, None, None].expand(-1, 1, 2, -1)
    rest = states.new_zeros(len(states), 1, 1, agent.spec.action_dim)
    rollout = Rollout(
        states=still,
        actions=rest,
        latents=rest[..., :0],
        interoception=agent.world_model.feeling.of(still[:, :, :-1], rest, still[:, :, 1:]),
    )
    weights = {name: weight for name, weight in focus.weights.items() if "critic" in name}
    terms = agent.cost(rollout, focus._replace(weights=weights, limits={}))
    return sum(terms.values(), rollout.actions.sum((-2, -1)))[:, 0].cpu().numpy()


def unit(focus: Focus) -> str:
    """Of what `critic` says; empty where no critic has a weight."""
    critics = [name for name, weight in focus.weights.items() if "critic" in name and weight]
    if not critics:
        return ""
    return "steps to go" if critics == ["critic"] else "cost to come"
