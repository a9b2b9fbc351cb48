"""Watching an agent live: what it thought at every moment, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ami_agent.agent import Agent
from ami_agent.evaluate import FINAL_SUCCESS_NAMES, SUCCESS_NAMES, told_of
from ami_agent.life import Examines, Lived, World, WorldConfig, ended, live
from ami_agent.players import Scene, task_of
from ami_agent.report import Progress, Reporter
from ami_agent.show.camera import Camera, Pictures
from ami_agent.show.thoughts import critic, falling, overheard, stepwise
from ami_agent.spaces import check_same_spaces
from modules.configurator import Assignment
from modules.types import Focus, Observation, Plan, UnusableInput

AT_ONCE = 4
"""Worlds lived in at once."""

MOST = 240
"""Moments of a life of which pictures and futures are kept; of a longer one every second, and so
on."""

LONG = 1000
"""Steps that an episode is expected to last where the world doesn't say."""


@runtime_checkable
class Timed(Protocol):
    """A world that says after how many steps an episode is over."""

    max_episode_steps: int


REST = 5
"""Steps that are still worth a look after an arrival for good."""

SUCCESS = {False: ("did not arrive", "arrived"), True: ("did not succeed", "succeeded")}
"""Without drives and with them."""


class Instant(NamedTuple):
    """One life before one of its actions."""

    step: int
    pictures: Pictures
    considered: Tensor  # [P * K, H + 1, D]
    energies: np.ndarray  # [P]: of each proposal
    chosen: Tensor  # [H + 1, D]; H is 0 for a reflex
    hopes: Tensor  # [L - 1, H, D]: of the levels above, top first; subgoals come first
    terms: Mapping[str, float]  # weighted energies of the chosen future; a reflex has none
    ahead: Mapping[str, np.ndarray]  # each [H]: what every imagined step by itself would cost
    thinking: np.ndarray  # the lowest energy known after each look at futures
    to_go: float  # what the critics say of the present state, in their unit


class Life(NamedTuple):
    """One life from its first moment to its last."""

    world: str
    about: str  # what a person sees there and what is asked of the agent, where the world says so
    mode: str
    seed: int
    instants: Sequence[Instant]
    states: Tensor  # [T, D]: what the agent made of what it saw, before every action
    factors: np.ndarray  # [T, F]: how it truly was; F is 0 where the world doesn't say
    arrived: int | None  # steps until the first success
    stayed: bool  # success at the last step
    judged: bool  # whether the world says what success is
    returned: float  # the sum of the rewards
    driven: bool  # whether the task has drives
    focus: Focus  # its goal is [1, D]

    @property
    def verdict(self) -> str:
        """How it went, in words."""
        earned = f"return {self.returned:.4g} in {_steps(len(self.states))}"
        if not self.judged:
            return f"seed {self.seed}: {earned}"
        return f"seed {self.seed}: {self._arrival()}" + (f"; {earned}" if self.driven else "")

    @property
    def reached(self) -> str:
        """What its first success is called."""
        return SUCCESS[self.driven][1]

    @property
    def until(self) -> int:
        """Steps after which nothing more happens: who came to rest where it was to go stays
        there."""
        rests = self.stayed and not self.driven and self.arrived is not None
        return min(len(self.states), (self.arrived or 0) + REST) if rests else len(self.states)

    def _arrival(self) -> str:
        if self.arrived is None:
            return f"{SUCCESS[self.driven][0]} in {_steps(len(self.states))}"
        end = "and stayed" if self.stayed else "and left again"
        return f"{self.reached} after {_steps(self.arrived)} {end}"


Onlooker: TypeAlias = Callable[[Callable[[], Sequence[Life]]], None]
"""Called at every moment with a way to ask for the lives so far."""


def nobody(lives: Callable[[], Sequence[Life]]) -> None:
    """Looks at lives when they are over."""


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def watch(
    agent: Agent, config: WorldConfig, camera: Camera, episodes: int, modes: Sequence[str],
    seed: int, assignment: Assignment, report: Reporter, most: int | None = None,
    onlooker: Onlooker = nobody,
) -> Iterator[tuple[Life, ...]]:  # fmt: skip
    """The lives of seeds `seed`, `seed` + 1, ..., each once in every mode; of each at most so many
    steps. The onlooker is called as they live."""
    if episodes < 1:
        raise UnusableInput(f"episodes is {episodes}; it must be at least 1")
    agent.eval()

    def seen(mode: str, world: World, first: int) -> list[Life]:
        check_same_spaces(agent.spec, world.spec, config)
        eyes = _Watch(agent, world, camera, seed + first, onlooker)
        with report.progress(f"live, {mode}", _longest(world)) as bar:
            return eyes.live(config, mode, assignment, bar, most)

    def lives(mode: str) -> Iterator[Life]:
        watched = partial(seen, mode)
        for together in config.in_turns(episodes, watched, agent.device, AT_ONCE, **camera.options):
            yield from together

    return zip(*map(lives, modes), strict=True)


def _longest(world: World) -> int:
    if isinstance(world.inner, Timed):
        return world.inner.max_episode_steps
    known = world.envs.spec
    return (known.max_episode_steps if known else None) or LONG


class _Watch:
    """Lives in B worlds until the first episode of each is over, and takes notes."""

    def __init__(
        self, agent: Agent, world: World, camera: Camera, seed: int, onlooker: Onlooker
    ) -> None:
        self.agent, self.world, self.camera, self.seed = agent, world, camera, seed
        self.onlooker = onlooker
        self.obs, self.info = world.reset(seed)
        self.step, self.every = 0, 1
        self.instants: list[list[Instant]] = [[] for _ in range(world.count)]
        self.states: list[Tensor] = []  # of T steps, each [B, D]
        self.factors: list[np.ndarray] = []  # of T steps, each [B, F]
        self.going = np.ones(world.count, dtype=bool)
        self.length = np.zeros(world.count, dtype=int)
        self.arrived: list[int | None] = [None] * world.count
        self.stayed, self.judged = np.zeros((2, world.count), dtype=bool)
        self.returned = np.zeros(world.count)

    def live(
        self, config: WorldConfig, mode: str, assignment: Assignment, bar: Progress,
        most: int | None,
    ) -> list[Life]:  # fmt: skip
        self.agent.begin()
        scene = Scene(self.world, self.obs, self.info)
        self.agent.configure(task_of(assignment, scene, mode), self.seed)
        self.lives = partial(self._lives, config, mode, bool(assignment.drives))
        for lived in islice(live(self._act, self.world, self.obs), most):
            self._judge(lived)
            bar.advance()
            if not self.going.any():
                break
        return self.lives()

    def _lives(self, config: WorldConfig, mode: str, driven: bool) -> list[Life]:
        """So far, the present moment too."""
        focus, name = _focus(self.agent), f"{config.id} {config.variant}".strip()
        goals = focus.goal.expand(self.world.count, -1)
        states, factors = torch.stack(self.states, 1), np.stack(self.factors, 1)
        length = np.minimum(self.length + self.going, len(self.states))
        return [
            Life(
                name, self.world.about, mode, self.seed + i, self.instants[i],
                states[i, : length[i]], factors[i, : length[i]], self.arrived[i],
                bool(self.stayed[i]), bool(self.judged.any()), float(self.returned[i]), driven,
                focus._replace(goal=goals[i : i + 1]),
            )
            for i in range(self.world.count)
        ]  # fmt: skip

    @torch.no_grad()
    def _act(self, obs: Observation) -> Tensor:
        state, focus = self.agent.attend(obs)
        with overheard(self.agent) as looks:
            plan = self.agent.actors[focus.mode](state, focus)
        self.states.append(state.cpu())
        known = isinstance(self.world.inner, Examines)
        factors = self.world.factors(self.info).cpu() if known else torch.empty(len(state), 0)
        self.factors.append(factors.numpy())
        if self.step % self.every == 0:
            self._thin()
        if self.step % self.every == 0:
            self._note(state, plan, focus, falling(looks, plan))
        self.step += 1
        return plan.action

    def _thin(self) -> None:
        """A life that turns out long is told in less detail; of one that is watched only the
        present is kept."""
        if self.onlooker is not nobody:
            self.instants = [[] for _ in self.instants]
            return
        if self.step < self.every * MOST:
            return
        self.every *= 2
        for i in np.flatnonzero(self.going):
            self.instants[i] = self.instants[i][::2]

    def _note(self, state: Tensor, plan: Plan, focus: Focus, thinking: list[np.ndarray]) -> None:
        pictures, ahead = self.camera(self.world), stepwise(self.agent, plan, focus)
        to_go = critic(self.agent, state, _focus(self.agent))
        considered, chosen, hopes = (p.cpu() for p in (plan.considered, plan.states, plan.hopes))
        energies = plan.energies.cpu().numpy()
        for i in np.flatnonzero(self.going):
            self.instants[i].append(
                Instant(
                    self.step, pictures[i], considered[i], energies[i], chosen[i], hopes[i],
                    {name: float(term[i]) for name, term in plan.terms.items()},
                    {name: term[i] for name, term in ahead.items()}, thinking[i], float(to_go[i]),
                )
            )  # fmt: skip
        self.onlooker(self.lives)

    def _judge(self, lived: Lived) -> None:
        self.info = lived.info
        self.length += self.going
        self.returned += lived.transition.interoception[:, 0].cpu().numpy() * self.going
        ever = told_of(lived, *SUCCESS_NAMES).numpy()
        final = told_of(lived, *FINAL_SUCCESS_NAMES).numpy()
        for i in np.flatnonzero(self.going):
            self.judged[i] |= bool(np.isfinite(ever[i]))
            if self.arrived[i] is None and ever[i] == 1:
                self.arrived[i] = int(self.length[i])
            if np.isfinite(final[i]):
                self.stayed[i] = final[i] == 1
        self.going &= ~ended(lived).cpu().numpy()


def _focus(agent: Agent) -> Focus:
    assert agent.focus is not None
    return agent.focus
