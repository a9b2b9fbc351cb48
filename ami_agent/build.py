"""Config -> Agent: the only file that says which class plays which box."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Literal

import torch

from ami_agent.agent import Agent
from ami_agent.lessons import (
    Amortise,
    Ascend,
    Bootstrap,
    Distil,
    Foresee,
    Interact,
    Lesson,
    Live,
    NoLesson,
    Practise,
    Predict,
    Recorded,
    Refine,
    Rehearse,
    Retrace,
    Separate,
    ShortestPaths,
    Survey,
)
from ami_agent.life import Spec, WorldConfig
from ami_agent.resources import in_words
from modules.actor import Calm, Commit, Habit, MapPolicy, NoHabit, Policy, Reflex, Restless
from modules.auto import Auto
from modules.bounds import Ball, Box, Choice
from modules.configurator import Assignment, Configurator
from modules.cost import Body, Cost, Critic, Foresight, NoCritic, NoForesight
from modules.drives import Drives
from modules.hierarchy import Flat, ImaginedGraph, LandmarkGraph, MacroLevels
from modules.memory import Memory
from modules.perception import KeypointEncoder, MapEncoder, SceneEncoder, Senses, VectorEncoder
from modules.planners import CEM, MPPI, Collocation, GradientPlanner, MindsEye
from modules.planners.outlook import ManyFutures
from modules.recall import Associative, Belief, Landmarks, NoRecall
from modules.types import HORIZON, BadSetting, Distance, Mode, Transition, UnusableInput, require
from modules.world_model import WorldModel

LARGE = 10_000
"""Numbers of an observation from which on an agent's parameters are counted before they exist."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that makes a run what it is, beside its seed and its device."""

    recipe: str
    world: WorldConfig
    bounds: Box | Ball | Choice = field(default_factory=Box)
    """What the body can do."""
    perception: (
        VectorEncoder.Config
        | MapEncoder.Config
        | KeypointEncoder.Config
        | SceneEncoder.Config
        | Senses.Config
    )
    recall: NoRecall.Config | Belief.Config | Associative.Config = field(
        default_factory=NoRecall.Config
    )
    """What of the episode so far the state may depend on."""
    landmarks: int = 0
    """Moments of all lives that are kept to recognise imagined states by, K."""
    world_model: WorldModel.Config
    drives: tuple[str, ...] = ()
    """Intrinsic costs of what the body feels, by name."""
    critic: Critic.Config | NoCritic.Config = field(default_factory=Critic.Config)
    foresight: Foresight.Config | NoForesight.Config = field(default_factory=NoForesight.Config)
    """The critics of the drives."""
    configurator: Configurator.Config = field(default_factory=Configurator.Config)
    hierarchy: Flat.Config | LandmarkGraph.Config | ImaginedGraph.Config | MacroLevels.Config = (
        field(default_factory=Flat.Config)
    )
    """The levels above the lowest."""
    planner: GradientPlanner.Config | Collocation.Config | CEM.Config | MPPI.Config
    futures: ManyFutures.Config = field(default_factory=ManyFutures.Config)
    """Of the same actions, where not all can be known."""
    temper: Calm.Config | Restless.Config = field(default_factory=Calm.Config)
    """What the agent does when its plans get it nowhere."""
    execute: int = 1
    """Actions of a plan that are carried out before it is made anew."""
    policy: Policy.Config | MapPolicy.Config = field(default_factory=Policy.Config)
    habit: Habit.Config | NoHabit.Config = field(default_factory=Habit.Config)
    auto: Auto.Config = field(default_factory=Auto.Config)
    """When to think."""
    tasks: dict[str, Assignment] = field(default_factory=lambda: {"reach": Assignment(aim="world")})
    """What the agent may be told to do, by name; the first one unless told."""

    memory_device: Literal["cpu", "cuda"] = "cpu"
    """Where memory is kept; images by the hundred thousand seldom fit beside the mind."""

    life: Live | Recorded = field(default_factory=Live)
    """What is lived, or had from others, to learn from."""
    objective: Predict = field(default_factory=Predict)
    """Perception and world model learn to foretell states that don't collapse."""
    teacher: Separate | Bootstrap | NoLesson = field(default_factory=Separate)
    """The critic learns how many steps it is from any state to any other."""
    paths: ShortestPaths | NoLesson = field(default_factory=NoLesson)
    """What the critic thinks is near is corrected by the shortest ways over what was lived."""
    foresee: Foresee | NoLesson = field(default_factory=NoLesson)
    """The critics of the drives learn what is to be felt."""
    interact: Interact | Rehearse | NoLesson = field(default_factory=NoLesson)
    """Life and learning interleave."""
    practice: Practise | NoLesson = field(default_factory=NoLesson)
    """Mode-2 lives by its own plans, to see what comes of them."""
    refine: Refine | NoLesson = field(default_factory=NoLesson)
    """World model and critic learn from that as well."""
    ascend: Ascend | NoLesson = field(default_factory=NoLesson)
    """The levels above learn macro-actions, and what they lead to."""
    survey: Survey | NoLesson = field(default_factory=NoLesson)
    """Landmarks are chosen, and what it costs to get from each to each."""
    retrace: Retrace | NoLesson = field(default_factory=NoLesson)
    """The policy learns to do what life did on the way to where it came."""
    amortise: Amortise | NoLesson = field(default_factory=NoLesson)
    """The policy learns, through the world model, what lowers the cost."""
    distil: Distil | NoLesson = field(default_factory=Distil)
    """Mode-2's plans become Mode-1's policy."""
    evaluation: WorldConfig
    """The world in which the agent is judged: held-out layouts."""
    max_parameters: int = 50_000_000
    """Parameters of the whole agent above which it is not built: large observations that are read
    as vectors take many."""

    def __post_init__(self) -> None:
        require(self, landmarks=(0, 1_000_000), execute=HORIZON, max_parameters=(1, 10**12))
        if not 0 < len(self.recipe) <= 200:
            raise BadSetting("recipe", self.recipe, "a name of 1 to 200 characters")


def lessons(config: Config) -> dict[str, Lesson]:
    """What is learnt, in order, by the name it has in the settings."""
    return {
        "life": config.life,
        "objective": config.objective,
        "teacher": config.teacher,
        "paths": config.paths,
        "foresee": config.foresee,
        "interact": config.interact,
        "practice": config.practice,
        "refine": config.refine,
        "ascend": config.ascend,
        "survey": config.survey,
        "retrace": config.retrace,
        "amortise": config.amortise,
        "distil": config.distil,
    }


def capacity(config: Config) -> int:
    """Steps that memory must keep of each life: all that is lived, and where one life ends and
    another begins."""
    return sum(lesson.lives + 1 for lesson in lessons(config).values() if lesson.lives)


def buffer_size(config: Config, spec: Spec) -> int:
    """Bytes that the replay buffer of a run takes."""
    example, stack = blank_step(spec, 1), config.world.stack
    return config.life.worlds * Memory.size(capacity(config), example, stack)


def buffer_in_words(config: Config, spec: Spec) -> str:
    """The same as a line for people: how many steps, of what, how much memory."""
    stack = config.world.stack
    kept = []
    for name, (shape, dtype) in spec.senses.items():
        size = "x".join(map(str, (shape[0] // stack, *shape[1:])))
        kept.append(f"{'' if name == 'obs' else f'{name} '}{size} {str(dtype)[6:]}")
    frames = f" (one of {stack} frames; the stack is rebuilt when it is read)" if stack > 1 else ""
    steps = capacity(config) * config.life.worlds
    size = in_words(buffer_size(config, spec))
    return f"replay buffer: {steps:,} steps of {', '.join(kept)}{frames} = {size}"


def build(
    config: Config, spec: Spec, *, seed: int = 0, device: torch.device | str = "cpu",
    worlds: int = 1, capacity: int = 1,
) -> Agent:  # fmt: skip
    """The agent for bodies of this kind, with fresh weights that the seed alone decides.

    `worlds` and `capacity`: how many lives its memory keeps, and how many steps of each.
    """
    if sum(prod(shape) for shape in spec.shapes.values()) > LARGE:
        with torch.device("meta"):  # shapes alone, before there are any numbers
            check_parameters(_build(config, spec, 0, 1, 1), config)
    agent = _build(config, spec, seed, worlds, capacity)
    check_parameters(agent, config)
    check_tasks(agent)
    return agent.to(device)


def _spared(agent: Agent, config: Config, name: str) -> int:
    """Parameters that are due to the size of that observation; 0 where there is no agent that does
    without it."""
    try:
        with torch.device("meta"):
            smaller = _build(config, agent.spec.without_size_of(name), 0, 1, 1)
    except UnusableInput:
        return 0
    return _parameters(agent) - _parameters(smaller)


def check_parameters(agent: Agent, config: Config) -> None:
    """Raises UnusableInput for an agent that has more parameters than it may have."""
    count = _parameters(agent)
    if count <= config.max_parameters:
        return
    spared = {name: _spared(agent, config, name) for name in agent.spec.senses}
    name = max(spared, key=lambda name: spared[name])
    if 2 * spared[name] < count:
        raise UnusableInput(
            f"an agent of these layers would have {count:,} parameters, more than max_parameters "
            f"{config.max_parameters:,}: make layers narrower (--*.hidden, .state, .channels, "
            f".waves, .members), or allow for them (--max-parameters {count})"
        )
    raise UnusableInput(
        f"an agent for this environment would have {count:,} parameters, more than max_parameters "
        f"{config.max_parameters:,}; {spared[name]:,} of them are due to observation {name!r}, "
        f"{agent.spec.shapes[name]}: read it otherwise (--env.obs-layout {name} channels-last), "
        f"leave it out (--env.obs-layout {name} ignore), make it smaller (gymnasium.wrappers."
        f"ResizeObservation), or allow for them (--max-parameters {count})"
    )


def _parameters(agent: Agent) -> int:
    return sum(part.numel() for part in agent.parameters())


def _build(config: Config, spec: Spec, seed: int, worlds: int, capacity: int) -> Agent:
    if not config.tasks:
        raise UnusableInput("tasks is empty; an agent needs at least one task")
    if isinstance(config.foresight, Foresight.Config) and not config.drives:
        raise UnusableInput("foresight is of drives, and there are none; it must be NoForesight")
    if spec.choices != (config.bounds.sizes if isinstance(config.bounds, Choice) else ()):
        raise UnusableInput(
            f"this world's actions are {_chosen(spec.choices)}, but bounds are {config.bounds}"
        )
    bounds, drives = config.bounds, Drives(config.drives, spec.interoception)
    told = len(config.configurator.told)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        perception = config.perception.build(spec.shapes)
        shape = perception.shape
        recall = config.recall.build(shape)
        world_model = config.world_model.build(shape, spec.action_dim, len(spec.interoception))
        body = Body(drives, config.foresight.build(shape, len(drives.names)))
        cost = Cost(config.critic.build(shape), body, world_model.doubt.disagreement)
        far = cost.critic.distance if isinstance(cost.critic, Critic) else None
        # as functions: the critic is a part of the cost alone
        steps = Distance(far.embed, far.between) if far else None
        hierarchy = config.hierarchy.build(
            shape, spec.action_dim, steps,
            lambda state, free: world_model.imagine(state, bounds.bound(free)).states[:, :, 1:],
        )  # fmt: skip
        policy = config.policy.build(shape, spec.action_dim, bounds, told)
        expectation = config.auto.expectation(shape, len(config.tasks), told)
    outlook = config.futures.build(world_model.level(0).latent.chances)
    eye = MindsEye(world_model.imagine, world_model.pursue, cost, bounds, spec.action_dim, outlook)
    habit = config.habit.build(policy, eye)
    planner = config.planner.build(eye, habit)
    spontaneous = config.planner.build(eye, NoHabit(spec.action_dim))  # is told of the habit
    actors: dict[str, Mode] = {
        "react": Reflex(policy),
        "plan": Commit(config.temper.build(planner, eye), config.execute),
    }
    if not isinstance(config.distil, NoLesson):  # which teaches what to expect of thinking
        sure = Habit(policy, eye)
        actors["auto"] = config.auto.build(sure, spontaneous, expectation, spec.action_dim)
    return Agent(
        spec=spec,
        perception=perception,
        recall=recall,
        landmarks=Landmarks(spec.blank(config.landmarks)),
        world_model=world_model,
        cost=cost,
        policy=policy,
        expectation=expectation,
        hierarchy=hierarchy,
        memory=Memory(
            capacity, blank_step(spec, worlds), config.memory_device, config.world.stack
        ),
        configurator=config.configurator.build(
            config.planner.horizon, config.planner.steps, tuple(actors), tuple(spec.senses),
            drives.names, body.foreseen,
        ),
        actors=actors,
        planner=planner,
        eye=eye,
        assignments=config.tasks,
    )  # fmt: skip


def _chosen(sizes: tuple[int, ...]) -> str:
    told = " and ".join(f"one of {size}" for size in sizes)
    return f"choices ({told}; bounds must be Choice(sizes={sizes}))" if sizes else "numbers"


def check_tasks(agent: Agent) -> None:
    """Raises UnusableInput for a task that this agent could not be told."""
    if agent.configurator.told:
        try:
            agent.cost.check(dict.fromkeys(agent.configurator.told, 1.0))
        except UnusableInput as error:
            raise UnusableInput(f"configurator.told: {error}") from None
    for name, assignment in agent.assignments.items():
        try:
            goal = None if assignment.aim == "none" else agent.spec.blank(1)
            task = assignment.task(goal, "plan")
            focus = agent.configurator.focus(task, torch.zeros(1, prod(agent.shape)))
            agent.cost.check(focus.weights)
        except UnusableInput as error:
            raise UnusableInput(f"task {name!r}: {error}") from None


def blank_step(spec: Spec, worlds: int) -> Transition:
    """A step of life with no meaning: what memory is made to hold."""
    obs = spec.blank(worlds)
    ended = torch.empty(worlds, dtype=torch.bool)
    return Transition(
        obs=obs,
        action=torch.empty(worlds, spec.action_dim),
        interoception=torch.empty(worlds, len(spec.interoception), dtype=torch.float64),
        next_obs=obs,
        terminated=ended,
        truncated=ended,
    )
