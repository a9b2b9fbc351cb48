"""Config -> Agent: the only file that says which class plays which box."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Literal

import torch

from ami_agent.adapters.env import EnvConfig, EnvironmentSpec
from ami_agent.agent import Agent
from ami_agent.resources import format_bytes
from ami_agent.training import (
    AmortizePlanning,
    CollectRandom,
    CollectWithPlanner,
    DistillPlanner,
    DistillShortestPaths,
    FinetuneDynamics,
    GoalConditionedBC,
    LoadDataset,
    NoStage,
    OfflineActorCritic,
    OnlineActorCritic,
    SelectLandmarks,
    Stage,
    TrainHierarchy,
    TrainJEPA,
    TrainQuasimetric,
    TrainTDDistance,
    TrainValue,
)
from modules.actor.action_space import BallActions, BoxActions, OneHotActions
from modules.actor.adaptive import AdaptiveActorConfig
from modules.actor.planning import (
    CEMConfig,
    CollocationConfig,
    GradientPlannerConfig,
    MPPIConfig,
    RolloutEvaluator,
)
from modules.actor.planning.risk import ScenarioCVaRConfig
from modules.actor.policy import (
    ConvPolicyConfig,
    NoPolicyProposal,
    NoPolicyProposalConfig,
    NoStuckRecoveryConfig,
    OpenLoopActor,
    PolicyConfig,
    PolicyProposal,
    PolicyProposalConfig,
    ReactiveActor,
    StuckPerturbationConfig,
)
from modules.actor.subgoals import FlatConfig, ImaginedLandmarkGraphConfig, LandmarkGraphConfig
from modules.configurator import ConfiguratorConfig, TaskSpec
from modules.cost.cost import (
    Cost,
    GoalCritic,
    GoalCriticConfig,
    InteroceptiveCost,
    NoGoalCriticConfig,
    NoValueCriticsConfig,
    ValueCriticsConfig,
)
from modules.cost.drives import Drives
from modules.memory.replay_buffer import ReplayBuffer
from modules.memory.short_term import (
    AttentionMemoryConfig,
    GRUMemoryConfig,
    NoMemoryConfig,
    ReferenceObservations,
)
from modules.perception import (
    ImageEncoderConfig,
    KeypointEncoderConfig,
    KeypointMapEncoderConfig,
    MultiModalEncoderConfig,
    SpatialEncoderConfig,
)
from modules.types import (
    HORIZON,
    ActorProtocol,
    BadSetting,
    ConfigError,
    QuasimetricFns,
    Transition,
    validate_ranges,
)
from modules.world_model.hjepa import HierarchicalJEPAConfig
from modules.world_model.jepa import WorldModelConfig

LARGE_OBS = 10_000
"""Numbers of an observation from which on an agent's parameters are counted before they exist."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that makes a run what it is, beside its seed and its device."""

    recipe: str
    env: EnvConfig
    action_space: BoxActions | BallActions | OneHotActions = field(default_factory=BoxActions)
    """What the body can do."""
    perception: (
        ImageEncoderConfig
        | SpatialEncoderConfig
        | KeypointEncoderConfig
        | KeypointMapEncoderConfig
        | MultiModalEncoderConfig
    )
    short_term_memory: NoMemoryConfig | GRUMemoryConfig | AttentionMemoryConfig = field(
        default_factory=NoMemoryConfig
    )
    """What of the episode so far the state may depend on."""
    num_reference_obs: int = 0
    """Moments of all lives that are kept to recognise imagined states by, K."""
    world_model: WorldModelConfig
    drives: tuple[str, ...] = ()
    """Intrinsic costs of what the body feels, by name."""
    goal_critic: GoalCriticConfig | NoGoalCriticConfig = field(default_factory=GoalCriticConfig)
    value_critics: ValueCriticsConfig | NoValueCriticsConfig = field(
        default_factory=NoValueCriticsConfig
    )
    """The critics of the drives."""
    configurator: ConfiguratorConfig = field(default_factory=ConfiguratorConfig)
    subgoals: (
        FlatConfig | LandmarkGraphConfig | ImaginedLandmarkGraphConfig | HierarchicalJEPAConfig
    ) = field(default_factory=FlatConfig)
    """The levels above the lowest."""
    planner: GradientPlannerConfig | CollocationConfig | CEMConfig | MPPIConfig
    risk: ScenarioCVaRConfig = field(default_factory=ScenarioCVaRConfig)
    """Of the same actions, where not all can be known."""
    stuck_recovery: NoStuckRecoveryConfig | StuckPerturbationConfig = field(
        default_factory=NoStuckRecoveryConfig
    )
    """What the agent does when its plans get it nowhere."""
    receding_horizon: int = 1
    """Actions of a plan that are carried out before it is made anew."""
    policy: PolicyConfig | ConvPolicyConfig = field(default_factory=PolicyConfig)
    policy_proposal: PolicyProposalConfig | NoPolicyProposalConfig = field(
        default_factory=PolicyProposalConfig
    )
    adaptive: AdaptiveActorConfig = field(default_factory=AdaptiveActorConfig)
    """When to think."""
    tasks: dict[str, TaskSpec] = field(
        default_factory=lambda: {"reach": TaskSpec(goal_source="env")}
    )
    """What the agent may be told to do, by name; the first one unless told."""

    memory_device: Literal["cpu", "cuda"] = "cpu"
    """Where memory is kept; images by the hundred thousand seldom fit beside the mind."""

    collect: CollectRandom | LoadDataset = field(default_factory=CollectRandom)
    """What is lived, or had from others, to learn from."""
    train_jepa: TrainJEPA = field(default_factory=TrainJEPA)
    """Perception and world model learn to foretell states that don't collapse."""
    train_goal_critic: TrainQuasimetric | TrainTDDistance | NoStage = field(
        default_factory=TrainQuasimetric
    )
    """The critic learns how many steps it is from any state to any other."""
    distill_paths: DistillShortestPaths | NoStage = field(default_factory=NoStage)
    """What the critic thinks is near is corrected by the shortest ways over what was lived."""
    train_values: TrainValue | NoStage = field(default_factory=NoStage)
    """The critics of the drives learn what is to be felt."""
    actor_critic: OnlineActorCritic | OfflineActorCritic | NoStage = field(default_factory=NoStage)
    """Life and learning interleave."""
    planner_rollouts: CollectWithPlanner | NoStage = field(default_factory=NoStage)
    """Mode-2 lives by its own plans, to see what comes of them."""
    finetune_dynamics: FinetuneDynamics | NoStage = field(default_factory=NoStage)
    """World model and critic learn from that as well."""
    train_hierarchy: TrainHierarchy | NoStage = field(default_factory=NoStage)
    """The levels above learn macro-actions, and what they lead to."""
    select_landmarks: SelectLandmarks | NoStage = field(default_factory=NoStage)
    """Landmarks are chosen, and what it costs to get from each to each."""
    goal_bc: GoalConditionedBC | NoStage = field(default_factory=NoStage)
    """The policy learns to do what life did on the way to where it came."""
    amortize_policy: AmortizePlanning | NoStage = field(default_factory=NoStage)
    """The policy learns, through the world model, what lowers the cost."""
    distill_policy: DistillPlanner | NoStage = field(default_factory=DistillPlanner)
    """Mode-2's plans become Mode-1's policy."""
    eval_env: EnvConfig
    """The world in which the agent is judged: held-out layouts."""
    max_parameters: int = 50_000_000
    """Parameters of the whole agent above which it is not built: large observations that are read
    as vectors take many."""

    def __post_init__(self) -> None:
        validate_ranges(
            self,
            num_reference_obs=(0, 1_000_000),
            receding_horizon=HORIZON,
            max_parameters=(1, 10**12),
        )
        if not 0 < len(self.recipe) <= 200:
            raise BadSetting("recipe", self.recipe, "a name of 1 to 200 characters")


def stages(config: Config) -> dict[str, Stage]:
    """What is learnt, in order, by the name it has in the settings."""
    return {
        "collect": config.collect,
        "train_jepa": config.train_jepa,
        "train_goal_critic": config.train_goal_critic,
        "distill_paths": config.distill_paths,
        "train_values": config.train_values,
        "actor_critic": config.actor_critic,
        "planner_rollouts": config.planner_rollouts,
        "finetune_dynamics": config.finetune_dynamics,
        "train_hierarchy": config.train_hierarchy,
        "select_landmarks": config.select_landmarks,
        "goal_bc": config.goal_bc,
        "amortize_policy": config.amortize_policy,
        "distill_policy": config.distill_policy,
    }


def buffer_steps(config: Config) -> int:
    """Steps that memory must keep of each life: all that is lived, and where one life ends and
    another begins."""
    return sum(stage.env_steps + 1 for stage in stages(config).values() if stage.env_steps)


def buffer_size(config: Config, spec: EnvironmentSpec) -> int:
    """Bytes that the replay buffer of a run takes."""
    example, stack = empty_transition(spec, 1), config.env.frame_stack
    return config.collect.num_envs * ReplayBuffer.num_bytes(buffer_steps(config), example, stack)


def describe_buffer(config: Config, spec: EnvironmentSpec) -> str:
    """The same as a line for people: how many steps, of what, how much memory."""
    stack = config.env.frame_stack
    parts = []
    for name, (shape, dtype) in spec.modalities.items():
        size = "x".join(map(str, (shape[0] // stack, *shape[1:])))
        parts.append(f"{'' if name == 'obs' else f'{name} '}{size} {str(dtype)[6:]}")
    frames = f" (one of {stack} frames; the stack is rebuilt when it is read)" if stack > 1 else ""
    steps = buffer_steps(config) * config.collect.num_envs
    size = format_bytes(buffer_size(config, spec))
    return f"replay buffer: {steps:,} steps of {', '.join(parts)}{frames} = {size}"


def build(
    config: Config, spec: EnvironmentSpec, *, seed: int = 0, device: torch.device | str = "cpu",
    num_envs: int = 1, buffer_size: int = 1,
) -> Agent:  # fmt: skip
    """The agent for bodies of this kind, with fresh weights that the seed alone decides.

    `worlds` and `capacity`: how many lives its memory keeps, and how many steps of each.
    """
    if sum(prod(shape) for shape in spec.shapes.values()) > LARGE_OBS:
        with torch.device("meta"):  # shapes alone, before there are any numbers
            check_parameters(_build(config, spec, 0, 1, 1), config)
    agent = _build(config, spec, seed, num_envs, buffer_size)
    check_parameters(agent, config)
    check_tasks(agent)
    return agent.to(device)


def _parameters_due_to(agent: Agent, config: Config, name: str) -> int:
    """Parameters that are due to the size of that observation; 0 where there is no agent that does
    without it."""
    try:
        with torch.device("meta"):
            smaller = _build(config, agent.spec.with_scalar(name), 0, 1, 1)
    except ConfigError:
        return 0
    return _parameters(agent) - _parameters(smaller)


def check_parameters(agent: Agent, config: Config) -> None:
    """Raises ConfigError for an agent that has more parameters than it may have."""
    count = _parameters(agent)
    if count <= config.max_parameters:
        return
    parameters_by_obs = {
        name: _parameters_due_to(agent, config, name) for name in agent.spec.modalities
    }
    name = max(parameters_by_obs, key=lambda name: parameters_by_obs[name])
    if 2 * parameters_by_obs[name] < count:
        raise ConfigError(
            f"an agent of these layers would have {count:,} parameters, more than max_parameters "
            f"{config.max_parameters:,}: make layers narrower (--*.hidden, .state, .channels, "
            f".waves, .members), or allow for them (--max-parameters {count})"
        )
    raise ConfigError(
        f"an agent for this environment would have {count:,} parameters, more than max_parameters "
        f"{config.max_parameters:,}; {parameters_by_obs[name]:,} of them are due to observation {name!r}, "
        f"{agent.spec.shapes[name]}: read it otherwise (--env.obs-layout {name} channels-last), "
        f"leave it out (--env.obs-layout {name} ignore), make it smaller (gymnasium.wrappers."
        f"ResizeObservation), or allow for them (--max-parameters {count})"
    )


def _parameters(agent: Agent) -> int:
    return sum(part.numel() for part in agent.parameters())


def _build(
    config: Config, spec: EnvironmentSpec, seed: int, num_envs: int, buffer_size: int
) -> Agent:
    if not config.tasks:
        raise ConfigError("tasks is empty; an agent needs at least one task")
    if isinstance(config.value_critics, ValueCriticsConfig) and not config.drives:
        raise ConfigError("foresight is of drives, and there are none; it must be NoValueCritics")
    if spec.choices != (
        config.action_space.sizes if isinstance(config.action_space, OneHotActions) else ()
    ):
        raise ConfigError(
            f"this world's actions are {_describe_choices(spec.choices)}, but bounds are {config.action_space}"
        )
    action_space, drives = config.action_space, Drives(config.drives, spec.interoception)
    conditioned_on = len(config.configurator.conditioned_on)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        perception = config.perception.build(spec.shapes)
        shape = perception.shape
        short_term_memory = config.short_term_memory.build(shape)
        world_model = config.world_model.build(shape, spec.action_dim, len(spec.interoception))
        interoceptive_cost = InteroceptiveCost(
            drives, config.value_critics.build(shape, len(drives.names))
        )
        cost = Cost(
            config.goal_critic.build(shape), interoceptive_cost, world_model.ensemble.disagreement
        )
        quasimetric = (
            cost.goal_critic.distance if isinstance(cost.goal_critic, GoalCritic) else None
        )
        # as functions: the critic is a part of the cost alone
        steps = (
            QuasimetricFns(quasimetric.embed, quasimetric.from_embeddings) if quasimetric else None
        )
        subgoals = config.subgoals.build(
            shape, spec.action_dim, steps,
            lambda state, free: world_model.imagine(state, action_space.squash(free)).states[:, :, 1:],
        )  # fmt: skip
        policy = config.policy.build(shape, spec.action_dim, action_space, conditioned_on)
        plan_energy_predictor = config.adaptive.build_predictor(
            shape, len(config.tasks), conditioned_on
        )
    risk_model = config.risk.build(world_model.level(0).latent.noise_dim)
    evaluator = RolloutEvaluator(
        world_model.imagine,
        world_model.imagine_policy,
        cost,
        action_space,
        spec.action_dim,
        risk_model,
    )
    policy_proposal = config.policy_proposal.build(policy, evaluator)
    planner = config.planner.build(evaluator, policy_proposal)
    plain_planner = config.planner.build(
        evaluator, NoPolicyProposal(spec.action_dim)
    )  # is told of the habit
    actors: dict[str, ActorProtocol] = {
        "react": ReactiveActor(policy),
        "plan": OpenLoopActor(
            config.stuck_recovery.build(planner, evaluator), config.receding_horizon
        ),
    }
    if not isinstance(config.distill_policy, NoStage):  # which teaches what to expect of thinking
        sure_proposal = PolicyProposal(policy, evaluator)
        actors["auto"] = config.adaptive.build(
            sure_proposal, plain_planner, plan_energy_predictor, spec.action_dim
        )
    return Agent(
        spec=spec,
        perception=perception,
        short_term_memory=short_term_memory,
        reference_obs=ReferenceObservations(spec.zeros(config.num_reference_obs)),
        world_model=world_model,
        cost=cost,
        policy=policy,
        plan_energy_predictor=plan_energy_predictor,
        subgoals=subgoals,
        replay_buffer=ReplayBuffer(
            buffer_size, empty_transition(spec, num_envs), config.memory_device, config.env.frame_stack
        ),
        configurator=config.configurator.build(
            config.planner.horizon, config.planner.iterations, tuple(actors), tuple(spec.modalities),
            drives.names, interoceptive_cost.drives_with_critic,
        ),
        actors=actors,
        planner=planner,
        evaluator=evaluator,
        tasks=config.tasks,
    )  # fmt: skip


def _describe_choices(sizes: tuple[int, ...]) -> str:
    choices_text = " and ".join(f"one of {size}" for size in sizes)
    return f"choices ({choices_text}; bounds must be Choice(sizes={sizes}))" if sizes else "numbers"


def check_tasks(agent: Agent) -> None:
    """Raises ConfigError for a task that this agent could not be told."""
    if agent.configurator.conditioned_on:
        try:
            agent.cost.validate_weights(dict.fromkeys(agent.configurator.conditioned_on, 1.0))
        except ConfigError as error:
            raise ConfigError(f"configurator.conditioned_on: {error}") from None
    for name, task_spec in agent.tasks.items():
        try:
            goal = None if task_spec.goal_source == "none" else agent.spec.zeros(1)
            task = task_spec.to_task(goal, "plan")
            context = agent.configurator.context(task, torch.zeros(1, prod(agent.shape)))
            agent.cost.validate_weights(context.weights)
        except ConfigError as error:
            raise ConfigError(f"task {name!r}: {error}") from None


def empty_transition(spec: EnvironmentSpec, num_envs: int) -> Transition:
    """A step of life with no meaning: what memory is made to hold."""
    obs = spec.zeros(num_envs)
    done_flags = torch.empty(num_envs, dtype=torch.bool)
    return Transition(
        obs=obs,
        action=torch.empty(num_envs, spec.action_dim),
        interoception=torch.empty(num_envs, len(spec.interoception), dtype=torch.float64),
        next_obs=obs,
        terminated=done_flags,
        truncated=done_flags,
    )
