"""The value of the loss terms of the world model: studies for `ami ablate`.

    ami ablate benchmarks/objectives.py:collapse      # two rooms: VICReg's terms
    ami ablate benchmarks/objectives.py:published     # held-out layouts: the published ablation
    ami ablate benchmarks/objectives.py:terms         # the same for an agent with a critic
    ami ablate benchmarks/objectives.py:fixed         # the same on one layout
    ami ablate benchmarks/objectives.py:stand_ins     # other losses against collapse
    ami ablate benchmarks/objectives.py:pretraining   # perception that was trained before
    ami ablate benchmarks/objectives.py:margins       # the losses of pairs of energies
    ami ablate benchmarks/objectives.py:vicreg_paper  # its tables in small: VICReg, BYOL, SimSiam

The results are those of Mode-2; no stage trains the policy of Mode-1.
"""

from __future__ import annotations

import ami_agent as ami
from ami_agent import components
from ami_agent.config import override
from ami_agent.training import CollectBehaviour, PretrainMasked, TrainJEPA
from ami_agent.training.optim import OptimConfig
from ami_agent.training.pretrain import MaskedLossWeights
from ami_agent.training.representation_losses import LossWeights

PUBLISHED = LossWeights(
    prediction=1, variance=16, covariance=8, temporal_similarity=12, inverse_dynamics=1
)
"""Those of EB-JEPA (arXiv 2602.03604); PLDM has the same terms (arXiv 2502.14819)."""

Variants = dict[str, ami.Config]


def planned(config: ami.Config) -> ami.Config:
    """The agent without its policy, trained on the data of the behaviour policy alone."""
    changes = {
        "actor.policy_proposal": None,
        "stages.planner_rollouts": None,
        "stages.finetune_dynamics": None,
        "stages.distill_policy": None,
    }
    return override(config, changes)


def with_weights(config: ami.Config, **weights: float) -> ami.Config:
    """The config with other loss weights."""
    changes = {f"stages.train_jepa.weights.{term}": weight for term, weight in weights.items()}
    return override(config, changes)


def with_target_encoder(
    config: ami.Config, target: components.EMATargetConfig | components.StopGradientTargetConfig
) -> ami.Config:
    """The config with a target encoder in the place of variance and covariance, and the loss of
    BYOL and SimSiam."""
    single = with_weights(
        config, variance=0, covariance=0, temporal_similarity=0, prediction=0.1, byol=1
    )
    return override(single, {"stages.train_jepa.target_encoder": target})


def collapse() -> Variants:
    """What do the terms of VICReg contribute without inverse dynamics? As published, states
    collapse without variance, and covariance improves them (Bardes et al. 2022). And is inverse
    dynamics enough without these terms?"""
    base = with_weights(planned(ami.recipes.two_rooms()), inverse_dynamics=0)
    return {
        "VICReg": base,
        "no covariance": with_weights(base, covariance=0),
        "no variance": with_weights(base, variance=0),
        "neither": with_weights(base, variance=0, covariance=0),
        "inverse dynamics alone": with_weights(base, variance=0, covariance=0, inverse_dynamics=1),
    }


def _with_published_weights(recipe: ami.Config) -> ami.Config:
    base = planned(recipe)
    return override(base, {"stages.train_jepa.weights": PUBLISHED})


def _terms(whole: ami.Config) -> Variants:
    return {
        "all terms": whole,
        "no variance": with_weights(whole, variance=0),
        "no covariance": with_weights(whole, covariance=0),
        "no similarity": with_weights(whole, temporal_similarity=0),
        "no inverse dynamics": with_weights(whole, inverse_dynamics=0),
    }


def published() -> Variants:
    """What is each loss term worth on held-out layouts, with planning as in EB-JEPA: a vector
    state, and its distance to the goal's state as the only cost? EB-JEPA reports 97 % with all
    terms; without variance, covariance, similarity and inverse dynamics 47, 46, 61 and 1 %.

    Its weights can't be used here, because its actions are in pixels: inverse dynamics is the term
    that represents the point mass, and with a weight of 1 on the smaller actions of this
    environment the state does not contain it.
    """
    base = planned(ami.recipes.two_rooms_random())
    rollouts = {"max_episode_steps": 64, "directed_fraction": 0.5, "max_step": 1.45}
    whole = override(
        base,
        {
            "perception": components.ImageEncoderConfig(
                patch=4, channels=32, hidden=256, state_dim=64
            ),
            "world_model": components.WorldModelConfig(
                dynamics=components.MLPDynamicsConfig(hidden=256)
            ),
            "cost.goal_critic": None,
            "stages.train_goal_critic": None,
            "stages.distill_paths": None,
            "configurator": components.ConfiguratorConfig(goal_distance=1, critic=0),
            "actor.planner": components.GradientPlannerConfig(
                horizon=20, num_proposals=16, num_warm_starts=8
            ),
            "actor.stuck_recovery": None,
            "stages.collect": CollectBehaviour(num_envs=3000, steps=64, options=rollouts),
            "stages.train_jepa": TrainJEPA(
                weights=LossWeights(
                    prediction=2,
                    variance=16,
                    covariance=8,
                    temporal_similarity=24,
                    inverse_dynamics=80,
                ),
                optim=OptimConfig(steps=3000, batch_size=96, lr=1.5e-3),
            ),
        },
    )
    return _terms(whole)


def terms() -> Variants:
    """What is each loss term worth on held-out layouts, for an agent with a map state and a learned
    critic?"""
    return _terms(_with_published_weights(ami.recipes.two_rooms_random()))


def fixed() -> Variants:
    """What is each loss term worth on one layout? PLDM reports 98 % with all terms; without
    variance, covariance, similarity and inverse dynamics 13, 29, 71 and 98 %."""
    return _terms(_with_published_weights(ami.recipes.two_rooms()))


def stand_ins() -> Variants:
    """Which other losses or target encoders prevent collapse in place of variance and covariance?
    Inverse dynamics has no weight. The variants with a target encoder match the direction of its
    states, as published, and hardly their length; they have no temporal similarity, whose gradient
    also flows into the target."""
    base = collapse()["VICReg"]
    bare = with_weights(base, variance=0, covariance=0)
    return {
        "VICReg": base,
        "Barlow Twins": with_weights(bare, barlow_twins=8),
        "SIGReg": with_weights(bare, sigreg=16),
        "InfoNCE": with_weights(bare, info_nce=1),
        "margin": with_weights(bare, margin=16),
        "SwAV": with_weights(bare, prototypes=1),
        "moving average (BYOL)": with_target_encoder(base, components.EMATargetConfig()),
        "stopped gradient (SimSiam)": with_target_encoder(
            base, components.StopGradientTargetConfig()
        ),
    }


def pretraining() -> Variants:
    """What is masked pretraining of perception worth before a world model that has a third of its
    updates? The background of distractors has no weight, and is not learnt from."""
    base = override(
        planned(ami.recipes.two_rooms_distracted()), {"stages.train_jepa.optim.steps": 433}
    )
    optim = OptimConfig(steps=433, batch_size=64)
    alone = PretrainMasked(optim=optim, weights=MaskedLossWeights())
    return {
        "no pretraining": base,
        "moving average": override(base, {"stages.pretrain": alone}),
        "moving average and VICReg": override(
            base, {"stages.pretrain": PretrainMasked(optim=optim)}
        ),
    }


def margins() -> Variants:
    """Which losses of the energies of correct and of incorrect answers prevent collapse in place
    of variance and covariance (LeCun et al. 2006, table 1)? Inverse dynamics has no weight."""
    base = collapse()["VICReg"]
    bare = with_weights(base, variance=0, covariance=0)
    return {
        "VICReg": base,
        "square-square": with_weights(bare, margin=16),
        "hinge": with_weights(bare, hinge=16),
        "square-exponential": with_weights(bare, square_exponential=16),
    }


def vicreg_paper() -> Variants:
    """Do the ablations of VICReg's paper (Bardes et al. 2022) come out alike in small: VICReg
    without its terms, and a variance term beside the target encoders of BYOL and SimSiam? Inverse
    dynamics has no weight, and the world model has half of the updates of `two-rooms`."""
    base = override(collapse()["VICReg"], {"stages.train_jepa.optim.steps": 450})
    byol = with_target_encoder(base, components.EMATargetConfig())
    simsiam = with_target_encoder(base, components.StopGradientTargetConfig())
    return {
        "VICReg": base,
        "VICReg, no variance": with_weights(base, variance=0),
        "VICReg, no covariance": with_weights(base, covariance=0),
        "VICReg, neither": with_weights(base, variance=0, covariance=0),
        "BYOL": byol,
        "BYOL and variance": with_weights(byol, variance=16),
        "SimSiam": simsiam,
        "SimSiam and variance": with_weights(simsiam, variance=16),
    }
