"""Life and learning interleave."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ami_agent.learning import Learning
from ami_agent.lessons.base import GradientPupil, Pupil
from ami_agent.lessons.foresight import foresight_of, promise
from ami_agent.lessons.hindsight import Remembered, hindsight
from ami_agent.lessons.life import Explorer
from ami_agent.lessons.world_model import Predict
from ami_agent.life import Act, WorldConfig
from ami_agent.losses import actor_critic_loss
from ami_agent.players import Begin, Scene, mind
from modules.actor import Habit
from modules.bounds import Bounds
from modules.configurator import Assignment
from modules.cost import Body, Cost
from modules.targets import MovingAverage
from modules.types import Observation, UnusableInput, each, require

if TYPE_CHECKING:
    from ami_agent.agent import Agent


@dataclass(frozen=True, kw_only=True)
class Interact:
    """The agent does what it has learnt so far, shaken a little; what comes of it is remembered;
    the world model learns from memory, and in imagined futures policy and critic learn from each
    other. The world model is differentiable, so the policy descends the energy of its own future
    (value gradients, Heess et al. 2015; actor and critic in imagination, Hafner et al. 2020)."""

    steps: int = 10_000
    """Steps lived in each world."""
    ratio: float = 1.0
    """Updates for each step of life."""
    mode: Literal["react", "plan"] = "react"
    """Who acts."""
    noise: float = 0.2
    """How far actions are shaken."""
    task: str = ""
    """What it is to do; the agent's first task if not given."""
    objective: Predict = field(
        default_factory=lambda: Predict(learning=Learning(steps=0, batch=128, last=0.2))
    )
    """What the world model learns; for as many updates as there are here."""
    learning: Learning = field(
        default_factory=lambda: Learning(steps=0, batch=128, lr=7e-4, last=0.2)
    )
    """The same of policy and critic."""
    horizon: int = 4
    """Steps that they imagine, H."""
    trace: float = 0.95
    """lambda"""
    lag: float = 0.95
    """Decay of the slow copy of the critic."""
    hindsight: float = 0.0
    """Share of what is remembered that is looked at as if its goal had been what was achieved later
    in its episode; for worlds with goals of their own (`desired_goal`)."""
    judge: int = 1000
    """Steps in each world after which the agent may be judged (`--curve`)."""

    def __post_init__(self) -> None:
        require(self, steps=1, ratio=0, noise=0, horizon=1, trace=0, lag=0, judge=1, hindsight=0)
        for name in ("trace", "lag", "hindsight"):
            if getattr(self, name) > 1:
                raise UnusableInput(f"{name} is {getattr(self, name)}; it must be 1 or less")

    @property
    def lives(self) -> int:
        return self.steps

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        return Interaction(self, agent, world, seed)


def daring(begin: Begin, noise: float, bounds: Bounds) -> Begin:
    """The same player with shaken hands. What shakes them depends on the seed and on how often they
    were used, so that it can be taken up again anywhere."""

    def begin_so(scene: Scene, seed: int) -> Act:
        act, moment = begin(scene, seed), [seed]

        def dare(obs: Observation) -> Tensor:
            action = act(obs)
            random = torch.Generator().manual_seed(moment[0])
            moment[0] += 1
            shake = torch.randn(action.shape, generator=random).to(action)
            return bounds.project(action + noise * shake)

        return dare

    return begin_so


class Interaction:
    """One who lives and learns. Put away in the middle of an episode, it brings the world back to
    where it was by doing again what it did. Who reacts, and recalls nothing of the episode, goes on
    as if nothing had been; a planner thinks afresh."""

    def __init__(self, lesson: Interact, agent: Agent, world: WorldConfig, seed: int) -> None:
        self.lesson, self.agent, self.total, self.debt = lesson, agent, lesson.steps, 0.0
        assignment, worlds = agent.assigned(lesson.task), agent.memory.worlds
        updates = int(lesson.steps * worlds * lesson.ratio) + 1
        of_model = replace(lesson.objective.learning, steps=updates)
        remembered = hindsight(agent.memory, lesson.hindsight, agent.spec, world)
        self.model = replace(lesson.objective, learning=of_model).of(agent, remembered, seed)
        self.actor = ActorCritic(lesson, agent, assignment, remembered, updates, seed)
        player = daring(mind(agent, lesson.mode, assignment), lesson.noise, agent.policy.bounds)
        self.life = Explorer(agent, world.build(worlds, agent.device), lesson, [player], seed)

    @property
    def step(self) -> int:
        return self.life.step

    @property
    def milestone(self) -> str:
        return "" if self.step % self.lesson.judge else self.lesson.mode

    def update(self) -> dict[str, Tensor]:
        """One step of life in every world, and what is learnt after it."""
        if self.milestone:
            self.life.attend()  # somebody may have asked the agent other things meanwhile
        self.life.update()
        self.debt += self.lesson.ratio * self.agent.memory.worlds
        news: dict[str, Tensor] = {}
        while self.debt >= 1:
            learnt = {"model": self.model.update(), "actor": self.actor.update()}
            news = {f"{who} {n}": v for who, part in learnt.items() for n, v in part.items()}
            self.debt -= 1
        return news

    def finish(self) -> None:
        self.life.finish()

    def state_dict(self) -> dict[str, Tensor]:
        parts = {
            "model": self.model.state_dict(),
            "actor": self.actor.state_dict(),
            "memory": self.agent.memory.state_dict(),
            "here": {"step": torch.tensor(self.step), "debt": torch.tensor(self.debt).double()},
        }
        return {f"{whose}.{n}": value for whose, part in parts.items() for n, value in part.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        def part(whose: str) -> dict[str, Tensor]:
            mine = {n: value for n, value in state.items() if n.startswith(f"{whose}.")}
            return {n.removeprefix(f"{whose}."): value for n, value in mine.items()}

        self.model.load_state_dict(part("model"))
        self.actor.load_state_dict(part("actor"))
        self.agent.memory.load_state_dict(part("memory"))
        here = part("here")
        self.debt = float(here["debt"])
        self.life.relive(int(here["step"]))


class ActorCritic(GradientPupil):
    """From remembered states the policy steers imagined futures, under the world model as it is by
    now. Their energy, judged by a slow copy of the critic, is what the policy descends; what is
    felt in them is what the critic learns to foresee (TD(lambda))."""

    def __init__(
        self, lesson: Interact, agent: Agent, assignment: Assignment, remembered: Remembered,
        updates: int, seed: int,
    ) -> None:  # fmt: skip
        if assignment.aim != "none":
            raise UnusableInput("interact learns a task of drives; its aim must be none")
        self.lesson, self.agent, self.remembered = lesson, agent, remembered
        self.task = assignment.task(None, "plan")
        self.foresight, self.drives = foresight_of(agent), agent.cost.body.drives
        promise(self.foresight, self.drives, agent.memory, min(8, agent.memory.longest()))
        self.slow = MovingAverage(self.foresight, lesson.lag).requires_grad_(False)
        # a copy: no gradient is computed for what doesn't learn here
        self.model = deepcopy(agent.world_model).requires_grad_(False)
        slow: Any = self.slow.average.module
        body = Body(self.drives, slow)
        cost = Cost(agent.cost.critic, body, self.model.doubt.disagreement)
        eye = replace(
            agent.eye, imagine=self.model.imagine, pursue=self.model.pursue, evaluate=cost
        )
        self.habit = Habit(agent.policy, eye)
        super().__init__(
            nn.ModuleList([agent.policy, self.foresight, self.slow]), self._loss,
            replace(lesson.learning, steps=updates), weights={}, seed=seed,
            after=lambda: self.slow.follow(self.foresight),
        )  # fmt: skip

    def _loss(self, random: torch.Generator) -> dict[str, Tensor]:
        agent = self.agent
        now = list(agent.world_model.state_dict().values())
        torch._foreach_copy_(list(self.model.state_dict().values()), now)
        with torch.no_grad():
            batch = self.remembered.sample(self.lesson.learning.batch, 1, random)
            obs = each(lambda part: part[:, 0].to(agent.device), batch.obs)
            state = agent.perceive(obs, agent.configurator.primed(self.task))
        focus = agent.configurator.focus(self.task, torch.zeros_like(state))
        alone = state.new_empty(len(state), 0, self.lesson.horizon, agent.spec.action_dim)
        thought = self.habit.beside(state, alone, focus._replace(horizon=self.lesson.horizon))
        free = agent.policy.free(state, focus.goal, focus.condition)
        return actor_critic_loss(
            thought, free, self.drives, self.foresight, self.slow.average, self.lesson.trace
        )
