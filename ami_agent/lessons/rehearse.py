"""What is learnt of a task from memory alone."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ami_agent.learning import Learning
from ami_agent.lessons.base import GradientPupil, Pupil, Study
from ami_agent.lessons.foresight import foresight_of, promise
from ami_agent.lessons.hindsight import Remembered, hindsight
from ami_agent.lessons.world_model import Predict
from ami_agent.life import WorldConfig
from ami_agent.losses import actor_critic_loss, choice_loss
from modules.actor import Habit
from modules.bounds import Choice
from modules.cost import Body, Cost
from modules.memory import SEEN
from modules.perception import Senses
from modules.recall import recalled
from modules.targets import MovingAverage
from modules.types import ENV_STEPS, FRACTION, HORIZON, Focus, UnusableInput, each, require

if TYPE_CHECKING:
    from ami_agent.agent import Agent


@dataclass(frozen=True, kw_only=True)
class Improve:
    """What is learnt of a task without living: the world model learns from memory, and in imagined
    futures policy and critic learn from each other. The world model is differentiable, so the
    policy descends the energy of its own future (value gradients, Heess et al. 2015; actor and
    critic in imagination, Hafner et al. 2020)."""

    task: str = ""
    """What is to be done; the agent's first task if not given."""
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
    """Steps in each world, or updates where nothing is lived, after which the agent may be judged
    (`--curve`)."""

    def __post_init__(self) -> None:
        require(self, horizon=HORIZON, trace=FRACTION, lag=FRACTION, hindsight=FRACTION)
        require(self, judge=ENV_STEPS)


@dataclass(frozen=True, kw_only=True)
class Rehearse(Improve, Study):
    """The agent improves on what is remembered, whoever lived it, and lives no step itself."""

    updates: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, updates=ENV_STEPS)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        return Rehearsal(self, agent, world, self.updates, seed)


class Rehearsal:
    """World model, policy and critic learn together, an update each at a time."""

    def __init__(
        self, lesson: Improve, agent: Agent, world: WorldConfig, updates: int, seed: int
    ) -> None:
        self.lesson, self.total = lesson, updates
        of_model = replace(lesson.objective.learning, steps=updates)
        remembered = hindsight(agent.memory, lesson.hindsight, agent.spec, world)
        self.model = replace(lesson.objective, learning=of_model).of(agent, remembered, seed)
        self.actor = ActorCritic(lesson, agent, remembered, updates, seed)

    @property
    def step(self) -> int:
        return self.actor.step

    @property
    def milestone(self) -> str:
        return "" if self.step % self.lesson.judge else "react"

    def update(self) -> dict[str, Tensor]:
        learnt = {"model": self.model.update(), "actor": self.actor.update()}
        return {f"{who} {n}": v for who, part in learnt.items() for n, v in part.items()}

    def finish(self) -> None:
        """What was learnt is already in place."""

    def state_dict(self) -> dict[str, Tensor]:
        return joined({"model": self.model.state_dict(), "actor": self.actor.state_dict()})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.model.load_state_dict(part_of(state, "model"))
        self.actor.load_state_dict(part_of(state, "actor"))


class ActorCritic(GradientPupil):
    """From remembered states the policy steers imagined futures, under the world model as it is by
    now. Their energy, judged by a slow copy of the critic, is what the policy descends; what is
    felt in them is what the critic learns to foresee (TD(lambda))."""

    def __init__(
        self, lesson: Improve, agent: Agent, remembered: Remembered, updates: int, seed: int
    ) -> None:
        assignment = agent.assigned(lesson.task)
        if assignment.aim != "none":
            raise UnusableInput("interact learns a task of drives; its aim must be none")
        self.lesson, self.agent, self.remembered = lesson, agent, remembered
        self.task = assignment.task(None, "plan")
        self.foresight, self.drives = foresight_of(agent), agent.cost.body.drives
        promise(agent, remembered, min(8, agent.memory.longest()))
        self.slow = MovingAverage(self.foresight, lesson.lag).requires_grad_(False)
        # a copy: no gradient is computed for what doesn't learn here
        self.model = deepcopy(agent.world_model).requires_grad_(False)
        slow: Any = self.slow.average.module
        body = Body(self.drives, slow)
        cost = Cost(agent.cost.critic, body, self.model.doubt.disagreement)
        eye = replace(
            agent.eye, imagine=self.model.imagine, pursue=self.model.pursue, evaluate=cost,
            outlook=deepcopy(agent.eye.outlook),  # whoever acts draws from the agent's own
        )  # fmt: skip
        self.seed = seed
        self.habit = Habit(agent.policy, eye)
        super().__init__(
            nn.ModuleList([agent.policy, self.foresight, self.slow]), self._loss,
            replace(lesson.learning, steps=updates), weights={}, seed=seed,
            after=lambda: self.slow.follow(self.foresight),
        )  # fmt: skip

    @torch.no_grad()
    def renew_units(self, latest: int, whole: bool) -> None:
        """Takes new units where what was collected by now has left the old ones: numbers, rewards
        or an end of episodes that were not met before. Looks at all that is kept if `whole`, or
        where the `latest` steps stray."""
        agent, device = self.agent, self.agent.device
        feeling: Any = agent.world_model.feeling
        slow: Any = self.slow.average.module
        known = agent.perception.standardised() if isinstance(agent.perception, Senses) else {}
        branches = {"obs" if n == "obs" else f"obs.{n}": branch for n, branch in known.items()}

        def kept(name: str, latest: int = 0) -> Tensor:
            return agent.memory.values(name, latest).to(device)

        strays = [branch.strays(kept(name, latest)) for name, branch in branches.items()]
        if not whole and not any([*strays, feeling.strays(kept("interoception", latest))]):
            return
        for name, branch in branches.items():
            branch.renew(kept(name))
        felt = kept("interoception")
        grown = feeling.renew(felt, agent.cost.body.centred(felt.shape[-1]).to(device))
        shift = self.drives.shift(feeling.relative, torch.zeros_like(felt[0]))
        mortal = bool(kept("terminated").any())
        for critic in (self.foresight, slow):
            critic.follow(grown[self.drives.columns], shift, mortal)

    def _loss(self, random: torch.Generator) -> dict[str, Tensor]:
        agent = self.agent
        now = list(agent.world_model.state_dict().values())
        torch._foreach_copy_(list(self.model.state_dict().values()), now)
        with torch.no_grad():
            state = self._remembered(random)
        focus = agent.configurator.focus(self.task, torch.zeros_like(state))
        alone = state.new_empty(len(state), 0, self.lesson.horizon, agent.spec.action_dim)
        self.habit.eye.outlook.reset(self.seed + self.step)
        thought = self.habit.beside(state, alone, focus._replace(horizon=self.lesson.horizon))
        free = agent.policy.free(state, focus.goal, focus.condition)
        losses = actor_critic_loss(
            thought, free, self.drives, self.foresight, self.slow.average, self.lesson.trace
        )
        return {**losses, **self._choice_loss(state, free, focus)}

    def _choice_loss(self, state: Tensor, free: Tensor, focus: Focus) -> dict[str, Tensor]:
        """What the policy learns from one imagined step of every option; nothing where actions are
        numbers."""
        bounds = self.agent.policy.bounds
        if not isinstance(bounds, Choice):
            return {}
        with torch.no_grad():
            options = bounds.alternatives(bounds.project(free))
            if not options.shape[1]:
                return {}
            imagined = self.habit.eye.look(state, options[:, :, None], focus._replace(horizon=1))
        return choice_loss(free, imagined.energy, bounds.sizes)

    def _remembered(self, random: torch.Generator) -> Tensor:
        """States `[B, D]`, each with what recall makes of the moments before it."""
        agent, context = self.agent, self.lesson.objective.context
        batch = self.remembered.sample(
            self.lesson.learning.batch, max(1, context), random,
            parts=SEEN,
        )  # fmt: skip
        obs = each(lambda part: part[:, : context + 1].flatten(0, 1).to(agent.device), batch.obs)
        features = agent.perception(obs, agent.configurator.primed(self.task))
        states = recalled(agent.recall, features.unflatten(0, (-1, context + 1)))
        if batch.valid is None:
            return states[:, -1]
        # of a window that its episode's end cuts short, any state from which a step was taken
        lasts = batch.lasts
        some = (torch.rand(len(lasts), generator=random).to(lasts.device) * lasts).long()
        step = torch.where(batch.valid[:, -1], context, some).to(states.device)
        return states[torch.arange(len(states), device=states.device), step]


def joined(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{whose}.{n}": value for whose, part in parts.items() for n, value in part.items()}


def part_of(state: Mapping[str, Tensor], whose: str) -> dict[str, Tensor]:
    mine = {n: value for n, value in state.items() if n.startswith(f"{whose}.")}
    return {n.removeprefix(f"{whose}."): value for n, value in mine.items()}
