"""Config -> Agent: the only file that says which class plays which box."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from ami_agent.agent import Agent
from ami_agent.lessons import (
    Amortise,
    Bootstrap,
    Distil,
    Lesson,
    Live,
    NoLesson,
    Practise,
    Predict,
    Refine,
    Separate,
    ShortestPaths,
)
from ami_agent.life import Spec, WorldConfig
from modules.actor import Calm, Commit, Habit, MapPolicy, NoHabit, Policy, Reflex, Restless
from modules.bounds import Ball, Box
from modules.configurator import Configurator
from modules.cost import Cost, Critic, NoCritic
from modules.memory import Memory
from modules.perception import MapEncoder, VectorEncoder
from modules.planners import CEM, MPPI, GradientPlanner, MindsEye
from modules.types import Transition, UnusableInput
from modules.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that makes a run what it is, beside its seed and its device."""

    recipe: str
    world: WorldConfig
    bounds: Box | Ball = field(default_factory=Box)
    """What the body can do."""
    perception: VectorEncoder.Config | MapEncoder.Config
    world_model: WorldModel.Config
    critic: Critic.Config | NoCritic.Config = field(default_factory=Critic.Config)
    configurator: Configurator.Config = field(default_factory=Configurator.Config)
    planner: GradientPlanner.Config | CEM.Config | MPPI.Config
    temper: Calm.Config | Restless.Config = field(default_factory=Calm.Config)
    """What the agent does when its plans get it nowhere."""
    execute: int = 1
    """Actions of a plan that are carried out before it is made anew."""
    policy: Policy.Config | MapPolicy.Config = field(default_factory=Policy.Config)
    habit: Habit.Config | NoHabit.Config = field(default_factory=Habit.Config)

    memory_device: Literal["cpu", "cuda"] = "cpu"
    """Where memory is kept; images by the hundred thousand seldom fit beside the mind."""

    life: Live = field(default_factory=Live)
    objective: Predict = field(default_factory=Predict)
    teacher: Separate | Bootstrap | NoLesson = field(default_factory=Separate)
    paths: ShortestPaths | NoLesson = field(default_factory=NoLesson)
    practice: Practise | NoLesson = field(default_factory=NoLesson)
    refine: Refine | NoLesson = field(default_factory=NoLesson)
    amortise: Amortise | NoLesson = field(default_factory=NoLesson)
    distil: Distil | NoLesson = field(default_factory=Distil)
    evaluation: WorldConfig
    """The world in which the agent is judged: held-out layouts."""


def lessons(config: Config) -> dict[str, Lesson]:
    """What is learnt, in order, by the name it has in the settings."""
    return {
        "life": config.life,
        "objective": config.objective,
        "teacher": config.teacher,
        "paths": config.paths,
        "practice": config.practice,
        "refine": config.refine,
        "amortise": config.amortise,
        "distil": config.distil,
    }


def check_lessons(config: Config) -> None:
    """Raises UnusableInput for lessons that could not be taken, before the first one is."""
    if isinstance(config.critic, NoCritic.Config):
        for name in ("teacher", "paths"):
            if not isinstance(getattr(config, name), NoLesson):
                raise UnusableInput(
                    f"an agent without a critic can't teach it: {name} must be NoLesson "
                    "(on the command line, --without critic)"
                )
    steps, practice = config.life.steps, config.practice.lives or config.life.steps
    for name, lesson, most in (
        ("objective", config.objective, steps),
        ("teacher", config.teacher, steps),
        ("refine", config.refine, practice),
    ):
        length = getattr(lesson, "length", 1)
        if length > most:
            raise UnusableInput(f"{name}.length is {length}, but a life has {most} steps")
    if isinstance(config.paths, ShortestPaths) and config.paths.nodes > steps + 1:
        raise UnusableInput(
            f"paths.nodes is {config.paths.nodes}, but a life of {steps} steps has {steps + 1}"
        )


def capacity(config: Config) -> int:
    """Steps that memory must keep of each life: all that is lived, and where one life ends and
    another begins."""
    return sum(lesson.lives + 1 for lesson in lessons(config).values() if lesson.lives)


def build(
    config: Config, spec: Spec, *, seed: int = 0, device: torch.device | str = "cpu",
    worlds: int = 1, capacity: int = 1,
) -> Agent:  # fmt: skip
    """The agent for bodies of this kind, with fresh weights that the seed alone decides.

    `worlds` and `capacity`: how many lives its memory keeps, and how many steps of each.
    """
    if config.execute < 1:
        raise UnusableInput(f"execute is {config.execute}; at least 1 action must be carried out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        perception = config.perception.build(spec.obs_shape)
        world_model = config.world_model.build(perception.shape, spec.action_dim)
        bounds = config.bounds
        cost = Cost(config.critic.build(perception.shape))
        policy = config.policy.build(perception.shape, spec.action_dim, bounds)
    eye = MindsEye(world_model.imagine, cost, bounds, spec.action_dim)
    planner = config.planner.build(eye, config.habit.build(policy, eye))
    deliberate = Commit(config.temper.build(planner, eye), config.execute)
    agent = Agent(
        spec=spec,
        perception=perception,
        world_model=world_model,
        cost=cost,
        policy=policy,
        memory=Memory(capacity, _example(spec, worlds), config.memory_device),
        configurator=config.configurator.build(
            config.planner.horizon, config.planner.steps, ("react", "plan")
        ),
        actors={"react": Reflex(policy), "plan": deliberate},
        planner=planner,
    )
    return agent.to(device)


def _example(spec: Spec, worlds: int) -> Transition:
    obs = torch.empty(worlds, *spec.obs_shape, dtype=spec.obs_dtype)
    ended = torch.empty(worlds, dtype=torch.bool)
    return Transition(
        obs=obs,
        action=torch.empty(worlds, spec.action_dim),
        interoception=torch.empty(worlds, len(spec.interoception)),
        next_obs=obs,
        terminated=ended,
        truncated=ended,
    )
