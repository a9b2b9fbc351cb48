"""What the terms of the objective are worth: studies for `ami ablate`.

    ami ablate benchmarks/objectives.py:collapse      # two rooms: VICReg's terms
    ami ablate benchmarks/objectives.py:published     # walls never seen: the published ablation
    ami ablate benchmarks/objectives.py:terms         # the same, of an agent with a critic
    ami ablate benchmarks/objectives.py:fixed         # the same on one layout
    ami ablate benchmarks/objectives.py:stand_ins     # what else keeps a state from collapsing

Mode-2 is judged; nothing is distilled, so Mode-1 knows nothing.
"""

from __future__ import annotations

from dataclasses import replace

import ami_agent as ami
from ami_agent import boxes
from ami_agent.learning import Learning
from ami_agent.lessons import Live, NoLesson, Predict
from modules.objectives import Weights

PUBLISHED = Weights(prediction=1, variance=16, covariance=8, similarity=12, inverse=1)
"""EB-JEPA's (arXiv 2602.03604); PLDM's are of the same kind (arXiv 2502.14819)."""

Variants = dict[str, ami.Config]


def planned(config: ami.Config) -> ami.Config:
    """Judged by what it plans alone, on what was learnt from walks alone."""
    habit, none = boxes.NoHabit.Config(), NoLesson()
    return replace(config, habit=habit, practice=none, refine=none, distil=none)


def weighed(config: ami.Config, **weights: float) -> ami.Config:
    """The same with other weights."""
    changed = replace(config.objective.weights, **weights)
    return replace(config, objective=replace(config.objective, weights=changed))


def collapse() -> Variants:
    """What do the terms of VICReg do, where inverse dynamics has no weight? As published, states
    collapse without variance, and covariance adds (Bardes et al. 2022). And is inverse dynamics
    enough without them?"""
    base = weighed(planned(ami.recipes.two_rooms()), inverse=0)
    return {
        "VICReg": base,
        "no covariance": weighed(base, covariance=0),
        "no variance": weighed(base, variance=0),
        "neither": weighed(base, variance=0, covariance=0),
        "inverse dynamics alone": weighed(base, variance=0, covariance=0, inverse=1),
    }


def _weighed_as_published(recipe: ami.Config) -> ami.Config:
    base = planned(recipe)
    return replace(base, objective=replace(base.objective, weights=PUBLISHED))


def _terms(whole: ami.Config) -> Variants:
    return {
        "all terms": whole,
        "no variance": weighed(whole, variance=0),
        "no covariance": weighed(whole, covariance=0),
        "no similarity": weighed(whole, similarity=0),
        "no inverse dynamics": weighed(whole, inverse=0),
    }


def published() -> Variants:
    """What is each term of the objective worth on walls never seen, where plans are made as in
    EB-JEPA: a vector state, and no cost but its distance to the goal's? EB-JEPA reports 97 % with
    all terms; without variance, covariance, similarity and inverse dynamics 47, 46, 61 and 1 %.

    Its weights don't carry over, for its actions are in pixels: what tells the dot from the walls
    is inverse dynamics, and a weight of 1 on our smaller actions leaves the dot out of the state.
    """
    base = planned(ami.recipes.two_rooms_random())
    walks = {"max_episode_steps": 64, "directed_fraction": 0.5, "max_step": 1.45}
    whole = replace(
        base,
        perception=boxes.VectorEncoder.Config(patch=4, channels=32, hidden=256, state=64),
        world_model=boxes.WorldModel.Config(dynamics=boxes.VectorDynamics.Config(hidden=256)),
        critic=boxes.NoCritic.Config(),
        teacher=NoLesson(),
        paths=NoLesson(),
        configurator=boxes.Configurator.Config(reach=1, critic=0),
        planner=boxes.GradientPlanner.Config(horizon=20, proposals=16, carried=8),
        temper=boxes.Calm.Config(),
        life=Live(worlds=3000, steps=64, options=walks),
        objective=Predict(
            weights=Weights(prediction=2, variance=16, covariance=8, similarity=24, inverse=80),
            learning=Learning(steps=3000, batch=96, lr=1.5e-3),
        ),
    )
    return _terms(whole)


def terms() -> Variants:
    """What is each term worth on walls never seen, to an agent that plans with a learnt critic,
    with a map state?"""
    return _terms(_weighed_as_published(ami.recipes.two_rooms_random()))


def fixed() -> Variants:
    """What is each term worth on one layout? PLDM reports 98 % with all terms; without variance,
    covariance, similarity and inverse dynamics 13, 29, 71 and 98 %."""
    return _terms(_weighed_as_published(ami.recipes.two_rooms()))


def stand_ins() -> Variants:
    """What else keeps states from collapsing, in the place of variance and covariance: which other
    objectives, or other targets? Inverse dynamics has no weight. What only its targets keep from
    collapsing agrees in direction alone with them, as published, and hardly in length; and it has
    no temporal similarity, whose gradient goes both ways."""
    base = collapse()["VICReg"]
    bare = weighed(base, variance=0, covariance=0)

    def aimed(target: boxes.MovingAverage.Config | boxes.Stopped.Config) -> ami.Config:
        alone = weighed(bare, similarity=0, prediction=0.1, agreement=1)
        return replace(alone, objective=replace(alone.objective, target=target))

    return {
        "VICReg": base,
        "Barlow Twins": weighed(bare, redundancy=8),
        "SIGReg": weighed(bare, gaussianity=16),
        "InfoNCE": weighed(bare, contrast=1),
        "margin": weighed(bare, margin=16),
        "SwAV": weighed(bare, prototypes=1),
        "moving average (BYOL)": aimed(boxes.MovingAverage.Config()),
        "stopped gradient (SimSiam)": aimed(boxes.Stopped.Config()),
    }
