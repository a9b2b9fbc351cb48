"""The settings of all components, for Configs written in Python: a variant of a recipe is
`override(config, {"actor.planner": components.CEMConfig()})`. The classes that the settings build
are imported from `modules`."""

from ami_agent.training.representation_losses import LossWeights
from modules.actor.auto_mode import AdaptiveActorConfig
from modules.actor.planning import (
    CEMConfig,
    CollocationConfig,
    EntropicRiskConfig,
    GradientPlannerConfig,
    MPPIConfig,
    ScenarioCVaRConfig,
    TreeSearchConfig,
)
from modules.actor.policy import (
    BallActions,
    BoxActions,
    OneHotActions,
    PolicyConfig,
    PolicyProposalConfig,
    StuckPerturbationConfig,
)
from modules.actor.subgoals import (
    ImaginedLandmarkGraphConfig,
    LandmarkGraphConfig,
    RememberedGoalConfig,
)
from modules.configurator import ConfiguratorConfig, TaskSpec
from modules.cost.cost import IntrinsicCostConfig
from modules.cost.goal_critic import (
    ConvQuasimetricConfig,
    FourierQuasimetricConfig,
    GlimpseQuasimetricConfig,
    GoalCriticConfig,
    QuasimetricConfig,
)
from modules.cost.value_critics import ValueCriticsConfig
from modules.memory.lasting import LastingMemoryConfig
from modules.memory.short_term import AttentionMemoryConfig, GRUMemoryConfig
from modules.nets import GlimpseConfig
from modules.perception.image import (
    ImageEncoderConfig,
    KeypointEncoderConfig,
    KeypointMapEncoderConfig,
    SpatialEncoderConfig,
)
from modules.perception.masked_predictor import MaskedPredictorConfig
from modules.perception.multi_modal import MultiModalEncoderConfig
from modules.perception.patch_transformer import PatchTransformerEncoderConfig
from modules.perception.target_encoder import (
    EMATargetConfig,
    OnlineTargetConfig,
    StopGradientTargetConfig,
)
from modules.world_model.dynamics import (
    ConvDynamicsConfig,
    FourierDynamicsConfig,
    GlimpseDynamicsConfig,
    MLPDynamicsConfig,
)
from modules.world_model.energies import LISTAConfig, ProximalDescentConfig
from modules.world_model.hjepa import HierarchicalJEPAConfig, JEPALevelConfig, SharedCriticConfig
from modules.world_model.jepa import (
    EnsembleConfig,
    InteroceptionHeadConfig,
    TransitionHeadConfig,
    WorldModelConfig,
)
from modules.world_model.latents import (
    CategoricalLatentConfig,
    GaussianLatentConfig,
    QuantizedLatentConfig,
    SparseLatentConfig,
)

__all__ = sorted(name for name, kind in globals().items() if isinstance(kind, type))
