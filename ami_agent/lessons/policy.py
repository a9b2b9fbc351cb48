"""The policy learns from Mode-2's plans."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ami_agent.guard import undisturbed
from ami_agent.learning import Learning
from ami_agent.lessons.base import GradientPupil, Pupil, Study, as_states
from ami_agent.life import WorldConfig, ended, seen
from ami_agent.losses import policy_loss
from ami_agent.options import Options, check_options
from ami_agent.players import Errand, Scene
from modules.actor import Habit
from modules.configurator import Assignment
from modules.memory import SEEN
from modules.planners.common import spread_of
from modules.types import (
    BATCH,
    ENV_STEPS,
    HORIZON,
    Focus,
    Observation,
    UnusableInput,
    each,
    require,
)

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
    tasks: tuple[str, ...] = ()
    """Those that are practised, by name; all where none is named. What a task costs must be plain
    from a single moment: nothing has been lived here that boredom could be measured by."""

    def __post_init__(self) -> None:
        require(self, horizon=HORIZON, together=BATCH)
        self.learning.groups(self.together)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        policy = agent.eval().policy
        # copies: no gradient is computed for what doesn't learn
        model = deepcopy(agent.world_model).requires_grad_(False)
        cost = deepcopy(agent.cost).requires_grad_(False)
        habit = Habit(policy, replace(agent.eye, pursue=model.pursue, evaluate=cost))
        group = self.together if self.together > 1 else self.learning.batch
        tasks = [agent.assigned(name) for name in self.tasks] or list(agent.assignments.values())

        def loss(random: torch.Generator) -> dict[str, Tensor]:
            batch = agent.memory.sample(self.learning.batch, 1, random, self.together, parts=SEEN)
            now = each(lambda part: part[:, 0].to(agent.device), batch.obs)
            chosen = tasks[int(torch.randint(len(tasks), (), generator=random))]
            state, focus = _situation(agent, now, group, chosen)
            alone = state.new_empty(len(state), 0, self.horizon, agent.spec.action_dim)
            habit.eye.outlook.reset(int(torch.randint(2**31, (), generator=random)))
            energy = habit.beside(state, alone, focus).energy
            # in units of its own spread, or tasks with large costs would drown the others
            return {"energy": (energy / spread_of(energy)).mean()}

        return GradientPupil(policy, loss, self.learning, weights={}, seed=seed)


@torch.no_grad()
def _situation(
    agent: Agent, obs: Observation, group: int, chosen: Assignment
) -> tuple[Tensor, Focus]:
    """Observations `[B, *O]` as states under a task, and that task, with goals: where the world
    would name one, the neighbour in a group of so many; where the agent is to stay, the state
    itself."""
    state = agent.perceive(obs, agent.configurator.primed(chosen.task(None, "plan")))
    neighbour = state.unflatten(0, (-1, group)).roll(1, 1).flatten(0, 1)
    goal = {"world": neighbour, "here": state, "none": torch.zeros_like(state)}[chosen.aim]
    task = chosen.task(None if chosen.aim == "none" else obs, "plan")
    return state, agent.configurator.focus(task, goal)


@dataclass(frozen=True, kw_only=True)
class Retrace(Study):
    """The policy learns to do again what was done on the way to somewhere: every state that
    followed in memory is taken for the goal that it was (goal-conditioned behavioural cloning;
    Ghosh et al. 2021). It knows no better way than what was lived, and no longer one."""

    learning: Learning = field(default_factory=lambda: Learning(steps=3000, batch=256))
    ahead: int = 20
    """Steps by which such a goal followed, at most."""

    def __post_init__(self) -> None:
        require(self, ahead=HORIZON)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        memory, policy = as_states(agent), agent.policy
        told = agent.configurator.told
        tasks = [a for a in agent.assignments.values() if a.aim == "world"]
        if not tasks:
            raise UnusableInput("retrace teaches ways to goals, and no task has one")
        weights = agent.configurator.weigh(tasks[0].task(agent.spec.blank(1), "react"))
        condition = torch.tensor([[float(weights.get(name, 0)) for name in told]])

        def loss(random: torch.Generator) -> dict[str, Tensor]:
            batch = memory.sample(self.learning.batch, self.ahead, random)
            states = batch.states
            size = (len(states),)
            later = torch.randint(1, self.ahead + 1, size, generator=random)
            later = batch.later(later).to(states.device)
            goal = states[torch.arange(len(states), device=states.device), later]
            asked = condition.to(states).expand(len(states), -1)
            return policy_loss(policy, states[:, 0], goal, asked, batch.actions[:, 0].to(states))

        pupil = GradientPupil(policy, loss, self.learning, weights={}, seed=seed)
        pupil.draws(memory, "the policy", self.ahead)
        return pupil


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
    options: Options = field(default_factory=dict)
    imitate: tuple[str, ...] = ()
    """Tasks in which the policy learns from the plans, by name; all where none is named. In the
    others it goes on doing what it does (what `Amortise` taught it), and only what energy plans
    have is learnt."""

    def __post_init__(self) -> None:
        require(self, rounds=(1, 100_000), worlds=(1, 1_000_000), steps=ENV_STEPS)
        require(self, noise=(0.0, 1e3))
        check_options(self.options)

    def begin(self, agent: Agent, world: WorldConfig, seed: int) -> Pupil:
        return Apprentice(self, agent, world, seed)


class Label(NamedTuple):
    """What is to be done in N states, and what Mode-2 would expect to come of thinking there."""

    state: Tensor  # [N, D]
    goal: Tensor  # [N, D]
    condition: Tensor  # [N, W]
    action: Tensor  # [N, A]
    energy: Tensor  # [N]


class Apprentice(GradientPupil):
    """Acts by itself, asks Mode-2 what it would have done, and learns that where it is to imitate;
    and what energy the plans of Mode-2 have, to know where it is worth asking. The tasks take
    turns."""

    def __init__(self, config: Distil, agent: Agent, world: WorldConfig, seed: int) -> None:
        self.lesson, self.agent, self.seed = config, agent, seed
        self.world_config = world
        self.labels: list[Label] = []  # of each round
        both = nn.ModuleList([agent.policy, agent.expectation])
        super().__init__(both, self._loss, config.learning, weights={}, seed=seed)

    def update(self) -> dict[str, Tensor]:
        if self.step * self.lesson.rounds >= len(self.labels) * self.total:
            asked = undisturbed(partial(self._ask, len(self.labels)))
            self._learn(*self.labels, asked)
        return super().update()

    def _learn(self, *labels: Label) -> None:
        """All labels there are by now."""
        self.labels = list(labels)
        self.known = Label(*(torch.cat(parts) for parts in zip(*labels, strict=True)))
        tasks = len(self.agent.assignments)
        for task in range(min(tasks, len(labels))):
            energy = torch.cat([label.energy for label in labels[task::tasks]])
            self.agent.expectation.adapt(task, labels[task].condition[0], energy)

    @torch.no_grad()
    def _ask(self, turn: int) -> Label:
        """One round of life under the policy; in a task's first, under Mode-2 itself."""
        seed, assignments = self.seed + 1_000_003 * turn, list(self.agent.assignments.items())
        name, assignment = assignments[turn % len(assignments)]
        imitated = name in (self.lesson.imitate or self.agent.assignments)
        world = self.world_config.build(
            self.lesson.worlds, self.agent.device, **self.lesson.options
        )
        random = torch.Generator().manual_seed(seed)
        labels: list[Label] = []
        errand = Errand(assignment)
        fresh = torch.ones(world.count, dtype=torch.bool)
        over = ~fresh
        obs, info = world.reset(seed)
        for step in range(self.lesson.steps):
            if fresh.any():
                scene = Scene(world, obs, info, fresh)
                self.agent.begin(fresh)
                self.agent.configure(errand.task(scene, "plan"), seed + step)
            state, focus = self.agent.attend(obs)
            plan = self.agent.planner(state, focus)
            own = self.agent.policy(state, focus.goal, focus.condition)
            wanted = plan.action if imitated else own
            labels.append(Label(state, focus.goal, focus.condition, wanted, plan.energy))
            action = self._dare(plan.action if turn < len(assignments) else own, random)
            lived = world.step(obs, action)
            obs, info = seen(lived), lived.info
            fresh, over = over, ended(lived).cpu()  # the step after an end only resets
        world.close()
        return Label(*(torch.cat(parts) for parts in zip(*labels, strict=True)))

    def _dare(self, action: Tensor, random: torch.Generator) -> Tensor:
        shake = torch.randn(action.shape, generator=random).to(action) * self.lesson.noise
        return self.agent.policy.bounds.project(action + shake)

    def _loss(self, random: torch.Generator) -> dict[str, Tensor]:
        size = (self.lesson.learning.batch,)
        drawn = torch.randint(len(self.known.state), size, generator=random)
        label = Label(*(part[drawn.to(part.device)] for part in self.known))
        expectation = self.agent.expectation
        expected = expectation(label.state, label.goal, label.condition)
        surprise = (expected - label.energy) / expectation.spread(label.condition)
        return {
            **policy_loss(
                self.agent.policy, label.state, label.goal, label.condition, label.action
            ),
            "expectation": surprise.square().mean(),
        }

    def state_dict(self) -> dict[str, Tensor]:
        asked = {
            f"labels.{turn}.{name}": part
            for turn, label in enumerate(self.labels)
            for name, part in label._asdict().items()
        }
        return {**super().state_dict(), **asked}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        labels: list[Label] = []
        while f"labels.{len(labels)}.state" in state:
            turn = f"labels.{len(labels)}."
            labels.append(Label(*(state[turn + name] for name in Label._fields)))
        if labels:  # else the first round could not be lived to its end
            self._learn(*labels)
        super().load_state_dict({k: v for k, v in state.items() if not k.startswith("labels")})
