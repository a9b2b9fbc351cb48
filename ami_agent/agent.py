"""The agent: its components, and how an observation becomes a plan.

What an episode changes is held by a `Controller`, any number of them for one agent. The methods
`configure`, `begin`, `attend` and `act` of the agent itself are those of its own controller, which
takes observations as the agent's encoders do, not as an environment delivers them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ami_agent import carry
from ami_agent.controller import Controller
from ami_agent.life import Spec
from modules.actor import Policy
from modules.auto import Expectation
from modules.configurator import Assignment, Configurator, Task
from modules.cost import Cost
from modules.hierarchy import Hierarchy
from modules.memory import Memory
from modules.planners import MindsEye
from modules.recall import LONGEST, Landmarks, Recall, ShortTerm
from modules.rows import holds
from modules.types import (
    Focus,
    Gains,
    Mode,
    Observation,
    Plan,
    Planner,
    Stateful,
    Transition,
    UnusableInput,
    by_sense,
    count_of,
)
from modules.world_model import WorldModel


class Agent(nn.Module, Stateful):
    """A mind for B worlds at once."""

    episode_state = ("focus", "seed", "begun")

    def __init__(
        self,
        *,
        spec: Spec,
        perception: nn.Module,
        recall: Recall,
        landmarks: Landmarks,
        world_model: WorldModel,
        cost: Cost,
        policy: Policy,
        expectation: Expectation,
        hierarchy: Hierarchy,
        memory: Memory,
        configurator: Configurator,
        actors: Mapping[str, Mode],
        planner: Planner,
        eye: MindsEye,
        assignments: Mapping[str, Assignment],
    ) -> None:
        super().__init__()
        self.spec = spec
        self.perception, self.recall, self.world_model = perception, recall, world_model
        self.landmarks = landmarks
        self.cost, self.policy, self.expectation = cost, policy, expectation
        self.hierarchy = hierarchy
        self.memory, self.configurator, self.actors = memory, configurator, actors
        self.planner, self.eye = planner, eye  # what Mode-2 would do, whatever is then made of it
        self.assignments = assignments
        self.shape: tuple[int, int, int] = perception.shape  # type: ignore[assignment]
        self.episode = ShortTerm(recall)
        self.focus: Focus | None = None
        self.seed = self.begun = 0  # of chance in thought; episodes since that was told
        self._roots: tuple[object, ...] = ()
        self._parts: list[Stateful] = []

    def controller(
        self, num_envs: int | None = None, task: Task | None = None, seed: int = 0
    ) -> Controller:
        """Acts on what an environment delivers, and holds all that its episodes change.

        `num_envs`: how many environments step together, so that observations are batches as
        `gymnasium.make_vec` delivers them; None for a single environment, whose observations and
        actions have no batch axis. `seed`: of the random streams of planning."""
        return Controller(self, num_envs, task, seed)

    def stateful_parts(self) -> list[Stateful]:
        """The components that an episode changes."""
        roots = (
            self.episode, self.hierarchy, self.eye.outlook, self.planner, *self.actors.values()
        )  # fmt: skip
        if self._roots != roots:  # they are looked for once: every action needs them
            self._roots, self._parts = roots, [self, *carry.stateful_parts(roots)]
        return self._parts

    @contextmanager
    def undone_by_errors(self) -> Iterator[None]:
        """What fails in here leaves all that an episode changes as it was."""
        parts = self.stateful_parts()
        before = carry.copied(carry.taken(parts))
        try:
            yield
        except BaseException:
            carry.put(parts, before)
            raise

    @torch.no_grad()
    def configure(self, task: Task, seed: int = 0) -> None:
        """Takes a task, as often as one likes, in the middle of an episode too."""
        gains = self.configurator.primed(task)
        if task.goal is None:
            goal = torch.zeros(1, prod(self.shape))
        else:
            wanted = self._sensed("goal", task.goal)
            goal = self.perceive(wanted, gains)
            if not goal.isfinite().all():
                env = int((~goal.isfinite().all(-1)).nonzero()[0])
                raise UnusableInput(
                    f"the goal of environment {env} leads to a state that is not finite: its "
                    "numbers are too large for this agent"
                )
        focus = self.configurator.focus(task, goal.to(self.device))
        self.cost.check(focus.weights)
        if focus.weights.get("boredom"):
            focus = focus._replace(known=self.perceive(self.landmarks.seen(), gains))
        if self.focus is not None and focus.gains != self.focus.gains:
            self.episode.begin()  # what was lived was seen with other eyes
        self.focus = focus
        self.seed, self.begun = seed, 0
        self._think_afresh(seed)

    def assigned(self, task: str) -> Assignment:
        """The task of that name, the first one where none is named."""
        known = self.assignments
        if task and task not in known:
            raise UnusableInput(f"no task {task!r}; this agent knows {', '.join(known)}")
        return known[task or next(iter(known))]

    def begin(self, fresh: Tensor | None = None) -> None:
        """An episode begins, in all worlds or in those of `fresh` `[B]`: nothing is recalled of
        what was before, and nobody goes on with a plan."""
        self.episode.begin(fresh)
        self.begun += 1
        self._think_afresh(self.seed + self.begun)

    def start_afresh(self) -> None:
        """As it is when it is built: without a task, in no episode."""
        self.focus, self.seed, self.begun = None, 0, 0
        self.episode.begin()
        self._think_afresh(0)

    def _think_afresh(self, seed: int) -> None:
        self.hierarchy.reset(seed)
        self.eye.outlook.reset(seed)
        for actor in self.actors.values():
            actor.reset(seed)

    @torch.no_grad()
    def act(self, obs: Observation) -> Plan:
        """`[B, *O]` -> the plan whose first action the body should carry out; UnusableInput for an
        observation from which no finite plan comes, which leaves the episode as it was."""
        with self.undone_by_errors():
            state, focus = self.attend(obs)
            plan = self.actors[focus.mode](state, focus)
            self._check_finite(state, plan)
        return plan

    def _check_finite(self, state: Tensor, plan: Plan) -> None:
        sound = state.isfinite().all(-1) & plan.actions.isfinite().flatten(1).all(1)
        sound &= plan.energy.isfinite() | ~plan.deliberated  # Mode-1 claims no energy
        if sound.all():
            return
        if not all(weights.isfinite().all() for weights in self.parameters()):
            raise UnusableInput("the agent's weights are not finite: its training diverged")
        env = int((~sound).nonzero()[0])
        raise UnusableInput(
            f"the observation of environment {env} leads to a state or a plan that is not finite: "
            "its numbers are too large for this agent"
        )

    @torch.no_grad()
    def attend(self, obs: Observation) -> tuple[Tensor, Focus]:
        """`[B, *O]`, the next moment of the episode -> state `[B, D]`, and what is wanted in it."""
        if self.focus is None:
            raise UnusableInput("the agent has no task yet: call configure(Task(...)) first")
        self.eye.outlook.renew()
        obs = self._sensed("observation", obs)
        focus, worlds = self.focus, count_of(obs)
        if len(focus.goal) not in (1, worlds):
            raise UnusableInput(f"{worlds} observations, but {len(focus.goal)} goals")
        bored = bool(focus.weights.get("boredom"))
        state = self.episode.see(self.perception(obs, focus.gains), LONGEST if bored else 1)
        focus = focus.of(torch.arange(worlds, device=state.device) % len(focus.goal))
        if bored:
            focus = focus._replace(lived=self.episode.lived(), pace=self.world_model.pace(state))
        return state, self.hierarchy(state, focus)

    @property
    def device(self) -> torch.device:
        """Where the agent thinks."""
        return next(self.parameters()).device

    def check(self, what: str, obs: Observation) -> None:
        """Raises UnusableInput for what this agent's senses can't have delivered."""
        wanted, given = self.spec.senses, by_sense(obs)
        fits = given.keys() == wanted.keys() and all(
            isinstance(part, Tensor)
            and part.shape[1:] == wanted[name].shape
            and holds(wanted[name].dtype, part.dtype)
            for name, part in given.items()
        )
        if not fits:
            raise UnusableInput(
                f"the {what} is {_told(given)}; it must be a batch of {self.spec.told()}"
            )

    def _sensed(self, what: str, obs: Observation) -> Observation:
        """The same as tensors, as Gymnasium's worlds deliver arrays; raises UnusableInput for what
        this agent's senses can't have delivered."""
        if not isinstance(obs, (Tensor, np.ndarray, Mapping)):
            raise UnusableInput(
                f"the {what} is a {type(obs).__name__}; it must be a batch of {self.spec.told()}"
            )

        def tensor(part: Any) -> Any:
            if not isinstance(part, (np.ndarray, Tensor)):
                return part
            try:
                return torch.as_tensor(part).detach().to(self.device)
            except (TypeError, ValueError):  # strings, objects, another byte order
                return part

        parts = {n: tensor(part) for n, part in obs.items()} if isinstance(obs, Mapping) else None
        sensed: Observation = tensor(obs) if parts is None else parts
        self.check(what, sensed)
        return sensed

    def perceive(self, obs: Observation, gains: Gains | None = None) -> Tensor:
        """`[B, *O]` -> `[B, D]`: what it would be if an episode began with it."""
        features = self.perception(obs, self.configurator.gains if gains is None else gains)
        state, _ = self.recall(features, self.recall.begin(features))
        return state

    def observe(self, transition: Transition) -> None:
        """Remembers a step of life."""
        self.memory.remember(transition)


def _told(parts: Mapping[str, object]) -> str:
    def kind(part: object) -> str:
        return f"{tuple(part.shape)} {part.dtype}" if isinstance(part, Tensor) else str(type(part))

    return ", ".join(kind(p) if name == "obs" else f"{name} {kind(p)}" for name, p in parts.items())
