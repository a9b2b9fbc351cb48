"""The agent: six boxes and how a thought goes through them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ami_agent.life import Spec
from modules.actor import Policy
from modules.configurator import Configurator, Task
from modules.cost import Cost
from modules.memory import Memory
from modules.types import Focus, Mode, Observation, Plan, Transition, UnusableInput
from modules.world_model import WorldModel


class Agent(nn.Module):
    """A mind for B worlds at once."""

    def __init__(
        self,
        *,
        spec: Spec,
        perception: nn.Module,
        world_model: WorldModel,
        cost: Cost,
        policy: Policy,
        memory: Memory,
        configurator: Configurator,
        actors: Mapping[str, Mode],
        planner: Mode,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.perception, self.world_model = perception, world_model
        self.cost, self.policy = cost, policy
        self.memory, self.configurator, self.actors = memory, configurator, actors
        self.planner = planner  # what Mode-2 would do, whatever is then made of it
        self.shape: tuple[int, int, int] = perception.shape  # type: ignore[assignment]
        self.focus: Focus | None = None

    @torch.no_grad()
    def configure(self, task: Task, seed: int = 0) -> None:
        """Takes a task, as often as one likes, in the middle of an episode too."""
        self.check("goal", task.goal)
        focus = self.configurator.focus(task, self.perceive(task.goal))
        self.cost.check(focus.weights)
        self.focus = focus
        for actor in self.actors.values():
            actor.reset(seed)

    @torch.no_grad()
    def act(self, obs: Observation) -> Plan:
        """`[B, *O]` -> the plan whose first action the body should carry out."""
        if self.focus is None:
            raise UnusableInput("the agent has no task yet: call configure(Task(goal=...)) first")
        self.check("observation", obs)
        if len(obs) != len(self.focus.goal):
            raise UnusableInput(f"{len(obs)} observations, but {len(self.focus.goal)} goals")
        state = self.perceive(obs)  # [B, D]
        return self.actors[self.focus.mode](state, self.focus)

    @property
    def device(self) -> torch.device:
        """Where the agent thinks."""
        return next(self.parameters()).device

    def check(self, what: str, obs: Observation) -> None:
        """Raises UnusableInput for what this agent's senses can't have delivered."""
        shape, kind = self.spec.obs_shape, self.spec.obs_dtype
        if not isinstance(obs, Tensor) or obs.shape[1:] != shape or obs.dtype != kind:
            found = f"{tuple(obs.shape)} {obs.dtype}" if isinstance(obs, Tensor) else type(obs)
            raise UnusableInput(f"the {what} is {found}; it must be a batch of {shape} {kind}")

    def perceive(self, obs: Observation) -> Tensor:
        """`[B, *O]` -> `[B, D]`"""
        return self.perception(obs)

    def observe(self, transition: Transition) -> None:
        """Remembers a step of life."""
        self.memory.remember(transition)
