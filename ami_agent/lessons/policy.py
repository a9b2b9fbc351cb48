"""The policy learns from Mode-2's plans."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ami_agent.learning import Learning, policy_loss
from ami_agent.lessons.base import GradientPupil, Pupil, Study
from ami_agent.life import WorldConfig, seen
from modules.configurator import Task
from modules.types import Focus, Rollout, require

if TYPE_CHECKING:
    from ami_agent.agent import Agent


@dataclass(frozen=True, kw_only=True)
class Amortise(Study):
    """The policy steers imagined futures from remembered states to remembered goals, and descends
    the energy that Mode-2 descends: planning amortised over all situations, with gradients through
    the world model (value gradients, Heess et al. 2015)."""

    learning: Learning = field(default_factory=lambda: Learning(steps=1000, batch=128))
    horizon: int = 3
    """Imagined steps, H."""
    together: int = 1
    """So many states of one episode are each other's goals; 1: the whole batch, for worlds whose
    layout never changes."""

    def __post_init__(self) -> None:
        require(self, horizon=1)
        self.learning.groups(self.together)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        policy = agent.eval().policy
        dynamics, cost = (  # copies, so that no gradient is computed for what doesn't learn
            deepcopy(part).requires_grad_(False)
            for part in (agent.world_model.level(0).dynamics, agent.cost)
        )
        group = self.together if self.together > 1 else self.learning.batch

        def loss(random: torch.Generator) -> dict[str, Tensor]:
            batch = agent.memory.sample(self.learning.batch, 1, random, self.together)
            assert isinstance(batch.obs, Tensor)
            with torch.no_grad():
                state = agent.perceive(batch.obs[:, 0].to(agent.device))
            goal = state.unflatten(0, (-1, group)).roll(1, 1).flatten(0, 1)
            states, actions = [state], []
            for _ in range(self.horizon):
                actions.append(policy(states[-1], goal))
                states.append(dynamics(states[-1], actions[-1]))
            acted = torch.stack(actions, 1)[:, None]
            future = Rollout(torch.stack(states, 1)[:, None], acted, acted[..., :0])
            energies = cost(future, agent.configurator.focus(Task(goal=goal), goal))
            return {name: energy.mean() for name, energy in energies.items()}

        return GradientPupil(policy, loss, self.learning, weights={}, seed=seed)


@dataclass(frozen=True, kw_only=True)
class Distil(Study):
    """Mode-2's plans become Mode-1's policy, over states that the policy itself would visit
    (relabelled as in DAgger, Ross et al. 2011)."""

    learning: Learning = field(default_factory=lambda: Learning(steps=3000, batch=256))
    rounds: int = 6
    worlds: int = 128
    steps: int = 16
    """Steps lived in each world and round; each is labelled by Mode-2."""
    noise: float = 0.3
    """How far the policy's actions are shaken, so that it also meets states beside its way."""
    options: dict[str, int | float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self, rounds=1, worlds=1, steps=1, noise=0)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        return Apprentice(self, agent, world, seed)


class Apprentice(GradientPupil):
    """Acts by itself, asks Mode-2 what it would have done, and learns that."""

    def __init__(self, config: Distil, agent: Agent, world: WorldConfig, seed: int) -> None:
        self.lesson, self.agent, self.seed = config, agent, seed
        self.world_config = world
        self.labels: list[Tensor] = []  # of each round [N, D + D + A]
        self.known = torch.empty(0)  # of all rounds
        super().__init__(agent.policy, self._loss, config.learning, weights={}, seed=seed)

    def update(self) -> dict[str, Tensor]:
        if self.step * self.lesson.rounds >= len(self.labels) * self.total:
            self.labels.append(self._ask(len(self.labels)))
            self.known = torch.cat(self.labels)
        return super().update()

    @torch.no_grad()
    def _ask(self, turn: int) -> Tensor:
        """One round of life under the policy; in the first, under Mode-2 itself."""
        seed = self.seed + 1_000_003 * turn
        world = self.world_config.build(
            self.lesson.worlds, self.agent.device, **self.lesson.options
        )
        random = torch.Generator().manual_seed(seed)
        labels, fresh, ended = [], True, False
        obs, info = world.reset(seed)
        for step in range(self.lesson.steps):
            if fresh:
                self.agent.configure(Task(goal=world.tensor(info["goal"])), seed + step)
            focus = self.agent.focus
            assert focus is not None
            state = self.agent.perceive(obs)
            wise = self.agent.planner(state, focus).action
            labels.append(torch.cat([state, focus.goal, wise], 1))
            lived = world.step(obs, self._dare(state, focus, wise, turn, random))
            obs, info = seen(lived), lived.info
            over = lived.transition.terminated | lived.transition.truncated
            fresh, ended = ended, bool(over.any())  # the step after an end is the one that resets
        world.close()
        return torch.cat(labels)

    def _dare(
        self, state: Tensor, focus: Focus, wise: Tensor, turn: int, random: torch.Generator
    ) -> Tensor:
        own = self.agent.policy(state, focus.goal) if turn else wise
        shake = torch.randn(own.shape, generator=random).to(own) * self.lesson.noise
        return self.agent.policy.bounds.project(own + shake)

    def _loss(self, random: torch.Generator) -> dict[str, Tensor]:
        drawn = torch.randint(len(self.known), (self.lesson.learning.batch,), generator=random)
        size = (self.known.shape[1] - self.agent.spec.action_dim) // 2
        chosen = self.known[drawn.to(self.known.device)]
        state, goal, action = chosen.split([size, size, self.agent.spec.action_dim], 1)
        return policy_loss(self.module, state, goal, action)

    def state_dict(self) -> dict[str, Tensor]:
        asked = {f"labels.{turn}": labels for turn, labels in enumerate(self.labels)}
        return {**super().state_dict(), **asked}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.labels = []
        while (label := state.get(f"labels.{len(self.labels)}")) is not None:
            self.labels.append(label)
        self.known = torch.cat(self.labels)
        super().load_state_dict({k: v for k, v in state.items() if not k.startswith("labels")})
