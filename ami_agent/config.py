"""Config, the diagram as a dataclass, and `build`: the only place that says which class plays which
module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from math import prod
from operator import attrgetter
from typing import Annotated, Any, TypeAlias, TypeVar

import torch
import tyro

from ami_agent import components, training
from ami_agent.adapters.env import EnvConfig, EnvironmentSpec
from ami_agent.adapters.tensors import ModalitySpec
from ami_agent.agent import Agent
from ami_agent.user_components import build_component, check_custom, require_attributes
from modules.actor.planning import RolloutEvaluator
from modules.actor.policy import (
    BallActions,
    BoxActions,
    OneHotActions,
    PlanningActor,
    PolicyProposal,
    ReactiveActor,
)
from modules.by_hand.protocol import own_method
from modules.configurator import TaskSpec
from modules.cost.cost import Cost
from modules.cost.drives import Drives, InteroceptiveCost
from modules.cost.goal_critic import GoalCritic
from modules.cost.remembered import remembered_cost
from modules.memory.replay_buffer import ReplayBuffer
from modules.memory.short_term import ReferenceObservations, ShortTermMemory
from modules.nets import check_goal_dims
from modules.perception.image import Encoder
from modules.types import HORIZON, ActorProtocol, BadSetting, ConfigError, QuasimetricFns, Settings

REMEMBERED = "remembered"
"""The cost that reads lasting memory."""
LARGE_OBS = 10_000
"""Numbers of an observation from which on an agent's parameters are counted before they exist."""


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(Settings):
    """What the agent remembers: of an episode, and of all episodes."""

    short_term: components.GRUMemoryConfig | components.AttentionMemoryConfig | None = None
    """Short-term memory: what of the episode so far the state depends on."""
    num_reference_obs: Annotated[int, (0, 1_000_000)] = 0
    """Observations of all episodes that are kept to recognise imagined states by, K."""
    lasting: components.LastingMemoryConfig | None = None
    """Lasting memory: states of earlier episodes and the intrinsic cost that followed them."""


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """C(s) = sum u_i IC_i(s) + sum v_j TC_j(s): intrinsic costs and trainable critics. The weights
    belong to the configurator and the tasks."""

    drives: tuple[str, ...] = ()
    """Intrinsic costs of interoceptive signals, by name."""
    intrinsic: dict[str, components.IntrinsicCostConfig] = field(default_factory=dict)
    """Further intrinsic costs of states and actions, by name: the user's own."""
    goal_critic: components.GoalCriticConfig | None = field(
        default_factory=components.GoalCriticConfig
    )
    """Predicts the number of steps from a state to a goal."""
    value_critics: components.ValueCriticsConfig | None = None
    """Predict the future cost of each drive."""


@dataclass(frozen=True, kw_only=True)
class ActorConfig(Settings):
    """Mode-1, Mode-2, and what stands between them."""

    planner: (
        components.GradientPlannerConfig
        | components.CollocationConfig
        | components.CEMConfig
        | components.MPPIConfig
        | components.TreeSearchConfig
    )
    """Mode-2: optimises an action sequence."""
    risk: components.ScenarioCVaRConfig | components.EntropicRiskConfig = field(
        default_factory=components.ScenarioCVaRConfig
    )
    """Sampled futures of the same actions, where the world model has latent variables."""
    subgoals: (
        components.LandmarkGraphConfig
        | components.ImaginedLandmarkGraphConfig
        | components.HierarchicalJEPAConfig
        | components.RememberedGoalConfig
        | None
    ) = None
    """The levels above the planner, which give it subgoals."""
    stuck_recovery: components.StuckPerturbationConfig | None = None
    """What the agent does when its plans make no progress."""
    receding_horizon: Annotated[int, HORIZON] = 1
    """Actions of a plan that the agent executes before it plans again."""
    policy: components.PolicyConfig = field(default_factory=components.PolicyConfig)
    """Mode-1: one forward pass."""
    policy_proposal: components.PolicyProposalConfig | None = field(
        default_factory=components.PolicyProposalConfig
    )
    """Mode-1's rollout as a candidate of Mode-2."""
    adaptive: components.AdaptiveActorConfig = field(default_factory=components.AdaptiveActorConfig)
    """When the mode `auto` plans, and when it reacts."""


StageConfig: TypeAlias = (
    training.CollectBehaviour
    | training.LoadDataset
    | training.PretrainMasked
    | training.TrainJEPA
    | training.TrainQuasimetric
    | training.DistillShortestPaths
    | training.DistillLandmarkPaths
    | training.TrainValue
    | training.OnlineActorCritic
    | training.OfflineActorCritic
    | training.CollectWithPlanner
    | training.FinetuneDynamics
    | training.TrainHierarchy
    | training.SelectLandmarks
    | training.GoalConditionedBC
    | training.AmortizePlanning
    | training.DistillPlanner
)
Kind = TypeVar("Kind")
STAGES = {
    "collect": "life",
    "pretrain": "pretrain",
    "train_jepa": "objective",
    "train_goal_critic": "teacher",
    "distill_paths": "paths",
    "train_values": "foresee",
    "actor_critic": "interact",
    "planner_rollouts": "practice",
    "finetune_dynamics": "refine",
    "train_hierarchy": "ascend",
    "distill_landmark_paths": "paths",  # of one kind with distill_paths: a recipe has one of them
    "select_landmarks": "survey",
    "goal_bc": "retrace",
    "amortize_policy": "amortise",
    "distill_policy": "distil",
}
"""The names of the training stages, in the order in which recipes take them, and the id of each
one's random stream. The published results depend on these ids, so they never change, whatever a
stage is called; in version 0.1 they were its name."""

OPTIONAL_STAGES = {"pretrain": training.PretrainMasked}
"""Stages that any recipe takes, with their defaults, where a flag of theirs is given."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Everything that makes a run what it is, beside its seed and its device: the six modules,
    the environments, the tasks and the training stages."""

    recipe: Annotated[str, tyro.conf.Suppress]  # the command line names it without a flag
    env: EnvConfig
    """The environment in which the agent is trained."""
    eval_env: EnvConfig
    """The environment in which the agent is evaluated: held-out layouts."""
    action_space: BoxActions | BallActions | OneHotActions = field(default_factory=BoxActions)
    """The actions that the agent can take."""
    perception: (
        components.ImageEncoderConfig
        | components.SpatialEncoderConfig
        | components.KeypointEncoderConfig
        | components.KeypointMapEncoderConfig
        | components.MultiModalEncoderConfig
        | components.PatchTransformerEncoderConfig
    )
    memory: Annotated[MemoryConfig, tyro.conf.arg(name="")] = field(default_factory=MemoryConfig)
    world_model: components.WorldModelConfig
    cost: Annotated[CostConfig, tyro.conf.arg(name="")] = field(default_factory=CostConfig)
    actor: Annotated[ActorConfig, tyro.conf.arg(name="")]
    configurator: components.ConfiguratorConfig = field(
        default_factory=components.ConfiguratorConfig
    )
    tasks: dict[str, TaskSpec] = field(
        default_factory=lambda: {"reach": TaskSpec(goal_source="env")}
    )
    """The tasks that the agent can be given, by name; the first one is the default."""
    stages: dict[str, StageConfig]
    """The training stages by name, in the order in which they are taken."""
    max_parameters: Annotated[int, (1, 10**12)] = 50_000_000
    """Parameters of the whole agent above which it is not built: large observations that are read
    as vectors take many."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < len(self.recipe) <= 200:
            raise BadSetting("recipe", self.recipe, "a name of 1 to 200 characters")
        if "collect" not in self.stages:
            raise BadSetting("stages", ", ".join(self.stages), "with a stage `collect`")
        for name in self.stages:
            if name not in STAGES:
                raise BadSetting("stages", name, f"one of {', '.join(STAGES)}")

    def find(self, kind: type[Kind]) -> Kind | None:
        """The stage of this class; None where the recipe takes none."""
        return next((stage for stage in self.stages.values() if isinstance(stage, kind)), None)

    @property
    def collect(self) -> training.CollectBehaviour | training.LoadDataset:
        """The stage that fills the replay buffer."""
        stage = self.stages["collect"]
        if not isinstance(stage, (training.CollectBehaviour, training.LoadDataset)):
            raise BadSetting("stages.collect", stage, "CollectBehaviour or LoadDataset")
        return stage


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """A copy of `config` with other values at dotted paths, for variants of a recipe:
    `override(config, {"actor.planner": CEMConfig(), "stages.train_jepa.optim.steps": 500,
    "stages.distill_policy": None})`.

    A stage that is None is left out, and one that is new is taken where STAGES has it. Raises
    ConfigError for a path that names no setting."""
    changed: Config = _apply(config, changes, "")
    return changed


def _apply(settings: Any, changes: Mapping[str, Any], path: str) -> Any:
    """A copy of settings, or of a mapping, that stand at `path`, with changes at paths within."""
    if not (is_dataclass(settings) or isinstance(settings, Mapping)):
        raise ConfigError(f"{path.rstrip('.')} is {settings!r}, which has no parts to change")
    changes_by_name: dict[str, dict[str, Any]] = {}  # that of the whole is at ""
    for inner_path, value in changes.items():
        name, dot, rest = inner_path.partition(".")
        changes_by_name.setdefault(name, {})[dot + rest] = value
    held = settings if isinstance(settings, Mapping) else vars(settings)
    values = {}
    for name, inner in changes_by_name.items():
        if "" in inner and len(inner) > 1:
            raise ConfigError(f"{path}{name} can't be changed beside a part of it")
        if name not in held and not ("" in inner and isinstance(settings, Mapping)):
            raise ConfigError(f"{path}{name} is no setting; there are {', '.join(held)}")
        parts = {inner_path[1:]: value for inner_path, value in inner.items()}
        values[name] = inner[""] if "" in inner else _apply(held[name], parts, f"{path}{name}.")
    if not isinstance(settings, Mapping):
        return replace(settings, **values)  # type: ignore[type-var]
    merged = {**settings, **values}
    if path != "stages.":
        return merged
    in_order = dict.fromkeys([*STAGES, *merged])
    return {name: merged[name] for name in in_order if merged.get(name) is not None}


def buffer_steps(config: Config) -> int:
    """Steps that the replay buffer keeps of each environment: all that the stages collect, and one
    between two stages."""
    return sum(stage.env_steps + 1 for stage in config.stages.values() if stage.env_steps)


def build(
    config: Config, spec: EnvironmentSpec, *, seed: int = 0, device: torch.device | str = "cpu",
    num_envs: int = 1, buffer_size: int = 1,
) -> Agent:  # fmt: skip
    """An agent for environments of this spec, with new weights that depend on the seed alone.
    ConfigError for settings that don't fit the spec or one another.

    `num_envs` and `buffer_size`: the environments of its replay buffer, and the steps of each."""
    if sum(prod(shape) for shape in spec.shapes.values()) > LARGE_OBS:
        with torch.device("meta"):  # shapes alone, before there are any numbers
            check_parameters(_build(config, spec, 0, 1, 1), config)
    agent = _build(config, spec, seed, num_envs, buffer_size)
    check_parameters(agent, config)
    check_tasks(agent)
    check_custom(agent, config)
    return agent.to(device)


def _parameters_due_to(agent: Agent, config: Config, name: str) -> int:
    """Parameters that are due to the size of that part of an observation; 0 where no agent can be
    built with a single number in its place."""
    spec = agent.spec
    scalar_spec = spec._replace(modalities={**spec.modalities, name: ModalitySpec((1,))})
    try:
        with torch.device("meta"):
            smaller = _build(config, scalar_spec, 0, 1, 1)
    except ConfigError:
        return 0
    return _parameters(agent) - _parameters(smaller)


def check_parameters(agent: Agent, config: Config) -> None:
    """Raises ConfigError for an agent with more than `max_parameters`."""
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
            f"{config.max_parameters:,}: make layers narrower (--*.hidden, .state-dim, "
            f".channels, .num-frequencies, .members), or allow for them (--max-parameters {count})"
        )
    raise ConfigError(
        f"an agent for this environment would have {count:,} parameters, more than max_parameters "
        f"{config.max_parameters:,}; {parameters_by_obs[name]:,} of them are due to observation "
        f"{name!r}, {agent.spec.shapes[name]}: read it otherwise (--env.obs-layout {name} "
        f"channels-last), leave it out (--env.obs-layout {name} ignore), make it smaller "
        "(gymnasium.wrappers.ResizeObservation), or allow for them "
        f"(--max-parameters {count})"
    )


def _parameters(agent: Agent) -> int:
    return sum(part.numel() for part in agent.parameters())


def _build(
    config: Config, spec: EnvironmentSpec, seed: int, num_envs: int, buffer_size: int
) -> Agent:
    require_attributes("actor.planner", config.actor.planner, "horizon", "iterations")
    for name, settings in config.cost.intrinsic.items():
        require_attributes(f"cost.intrinsic.{name}", settings, "weight")
    if not config.tasks:
        raise ConfigError("tasks is empty; an agent needs at least one task")
    if config.cost.value_critics is not None and not config.cost.drives:
        raise ConfigError(
            "value_critics predict the costs of drives, and there are none: it must be None"
        )
    action_space = config.action_space
    if spec.choices != (action_space.sizes if isinstance(action_space, OneHotActions) else ()):
        sizes = " and ".join(f"one of {size}" for size in spec.choices)
        needed = f"choices ({sizes}; action_space must be OneHotActions(sizes={spec.choices}))"
        raise ConfigError(
            f"the environment's actions are {needed if sizes else 'numbers'}, but action_space is "
            f"{action_space}"
        )
    _check_lasting_memory(config)
    lasting = config.memory.lasting
    drives = Drives(config.cost.drives, spec.interoception)
    conditioned_on = len(config.configurator.conditioned_on)

    def component(path: str, *args: Any, **kwargs: Any) -> Any:
        """What the settings at this path build; None where there are none."""
        return build_component(path, attrgetter(path)(config), *args, **kwargs)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        perception: Encoder = component("perception", spec.shapes, kind=Encoder)
        require_attributes("perception", perception, "shape")
        shape, action_dim = perception.shape, spec.action_dim
        check_goal_dims(config.configurator.goal_dims, shape)
        _check_goal_numbers(config)
        short_term_memory = component("memory.short_term", shape)
        if short_term_memory is None:
            short_term_memory = ShortTermMemory()
        world_model = component("world_model", shape, action_dim, len(spec.interoception))
        interoceptive_cost = InteroceptiveCost(
            drives, component("cost.value_critics", shape, len(drives.names))
        )
        cost = Cost(
            component("cost.goal_critic", shape),
            interoceptive_cost,
            world_model.ensemble.disagreement,
            {
                **({} if lasting is None else {REMEMBERED: remembered_cost}),
                **{
                    name: build_component(f"cost.intrinsic.{name}", settings)
                    for name, settings in config.cost.intrinsic.items()
                },
            },
        )
        steps = None
        if isinstance(cost.goal_critic, GoalCritic):
            distance = cost.goal_critic.distance  # as functions: it is a part of the cost alone
            steps = QuasimetricFns(distance.embed, distance.from_embeddings)
        subgoals = component(
            "actor.subgoals", shape, action_dim, steps,
            lambda state, free: (
                world_model.imagine(state, action_space.squash(free)).states[:, :, 1:]
            ),
        )  # fmt: skip
        policy = component("actor.policy", shape, action_dim, action_space, conditioned_on)
        plan_energy_predictor = component(
            "actor.adaptive", shape, len(config.tasks), conditioned_on, method="build_predictor"
        )
        offered = own_method(world_model, "imagine_by_hand"), own_method(cost, "by_hand")
        evaluator = RolloutEvaluator(
            world_model.imagine,
            world_model.imagine_policy,
            cost,
            action_space,
            action_dim,
            component("actor.risk", world_model.latent.noise_dim),
            by_hand=offered if all(offered) else None,  # type: ignore[arg-type]
        )
        proposal = component("actor.policy_proposal", policy, evaluator)
        # one planner for the modes plan and auto: its weights are the agent's
        planner = component(
            "actor.planner", evaluator, evaluator.no_candidates if proposal is None else proposal
        )
        recovery = component("actor.stuck_recovery", evaluator)
        actors: dict[str, ActorProtocol] = {
            "react": ReactiveActor(policy),
            "plan": PlanningActor(planner, config.actor.receding_horizon, recovery),
        }
        if "distill_policy" in config.stages:  # it trains the predictor of plan energies
            mode_1 = PolicyProposal(policy, evaluator)
            actors["auto"] = component(
                "actor.adaptive", mode_1, planner, plan_energy_predictor, action_dim
            )
    return Agent(
        spec=spec,
        perception=perception,
        short_term_memory=short_term_memory,
        reference_obs=ReferenceObservations(spec.zeros(config.memory.num_reference_obs)),
        world_model=world_model,
        cost=cost,
        policy=policy,
        plan_energy_predictor=plan_energy_predictor,
        subgoals=subgoals,
        replay_buffer=ReplayBuffer(
            buffer_size, spec.empty_transition(num_envs), stack=config.env.frame_stack
        ),
        configurator=config.configurator.build(
            config.actor.planner, tuple(actors), tuple(spec.modalities), drives.names,
            interoceptive_cost.drives_with_critic,
            {
                **({} if lasting is None else {REMEMBERED: lasting.weight}),
                **{name: settings.weight for name, settings in config.cost.intrinsic.items()},
            },
        ),
        actors=actors,
        planner=planner,
        evaluator=evaluator,
        tasks=config.tasks,
        lasting_memory=lasting,
    )  # fmt: skip


def _check_lasting_memory(config: Config) -> None:
    """Raises ConfigError where lasting memory has nothing to hold, or a level above has none."""
    if config.memory.lasting is None:
        if isinstance(config.actor.subgoals, components.RememberedGoalConfig):
            raise ConfigError(
                "actor.subgoals is RememberedGoal, which reads lasting memory: memory.lasting must "
                "not be None"
            )
        return
    with_goals = [name for name, task in config.tasks.items() if task.goal_source != "none"]
    if with_goals and isinstance(config.actor.subgoals, components.RememberedGoalConfig):
        raise ConfigError(
            "actor.subgoals is RememberedGoal, which takes goals from lasting memory, but the task "
            f"{with_goals[0]!r} has a goal of its own"
        )
    if not config.cost.drives:
        raise ConfigError(
            "lasting memory holds the costs of drives, and there are none: memory.lasting must be "
            "None"
        )
    if REMEMBERED in config.cost.intrinsic:
        raise ConfigError(
            f"a cost is called {REMEMBERED!r}, as that of lasting memory: give yours another name"
        )


def _check_goal_numbers(config: Config) -> None:
    """Raises ConfigError where a goal is about the first numbers of a state, and these are not the
    observed ones or something compares whole states."""
    if not config.configurator.goal_dims:
        return
    subgoals = config.actor.subgoals
    found = {
        "perception.vector_dim must be 0": getattr(config.perception, "vector_dim", 0) != 0,
        "memory.short_term must be None": config.memory.short_term is not None,
        "actor.subgoals.stochastic_edges must be False": getattr(
            subgoals, "stochastic_edges", False
        ),
    }
    for needed, is_wrong in found.items():
        if is_wrong:
            raise ConfigError(
                "configurator.goal_dims is not 0, so goals are compared in the first numbers of a "
                f"state, which must be observed ones: {needed}"
            )


def check_tasks(agent: Agent) -> None:
    """Raises ConfigError for a task that this agent could not be given."""
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
            for member in task_spec.members:
                agent.task_spec(member)
        except ConfigError as error:
            raise ConfigError(f"task {name!r}: {error}") from None
