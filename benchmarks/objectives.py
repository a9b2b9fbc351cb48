"""What the terms of the objective are worth: studies for `ami ablate`.

    ami ablate benchmarks/objectives.py:collapse      # two rooms: VICReg's terms
    ami ablate benchmarks/objectives.py:terms         # walls never seen: the published ablation
    ami ablate benchmarks/objectives.py:fixed         # the same on one layout
    ami ablate benchmarks/objectives.py:stand_ins     # what else keeps a state from collapsing

Mode-2 is judged; nothing is distilled, so Mode-1 knows nothing.
"""

from __future__ import annotations

from dataclasses import replace

import ami_agent as ami
from ami_agent.boxes import Itself, MovingAverage, NoHabit, Stopped
from ami_agent.lessons import NoLesson
from modules.objectives import Weights

PUBLISHED = Weights(prediction=1, variance=16, covariance=8, similarity=12, inverse=1)
"""EB-JEPA's (arXiv 2602.03604); PLDM's are of the same kind (arXiv 2502.14819)."""

Variants = dict[str, ami.Config]


def planned(config: ami.Config) -> ami.Config:
    """Judged by what it plans alone, on what was learnt from walks alone."""
    return replace(
        config, habit=NoHabit.Config(), practice=NoLesson(), refine=NoLesson(), distil=NoLesson()
    )


def weighed(config: ami.Config, **weights: float) -> ami.Config:
    """The same with other weights."""
    changed = replace(config.objective.weights, **weights)
    return replace(config, objective=replace(config.objective, weights=changed))


def collapse() -> Variants:
    """VICReg without its variance collapses, and its covariance adds (Bardes et al. 2022); where
    nothing else keeps what the body moves in the state, as inverse dynamics does."""
    base = weighed(planned(ami.recipes.two_rooms()), inverse=0)
    return {
        "VICReg": base,
        "no covariance": weighed(base, covariance=0),
        "no variance": weighed(base, variance=0),
        "neither": weighed(base, variance=0, covariance=0),
        "inverse dynamics alone": weighed(base, variance=0, covariance=0, inverse=1),
    }


def _terms(base: ami.Config) -> Variants:
    whole = replace(base, objective=replace(base.objective, weights=PUBLISHED))
    return {
        "all terms": whole,
        "no variance": weighed(whole, variance=0),
        "no covariance": weighed(whole, covariance=0),
        "no similarity": weighed(whole, similarity=0),
        "no inverse dynamics": weighed(whole, inverse=0),
    }


def terms() -> Variants:
    """On walls never seen; EB-JEPA reports 97, 47, 46, 61 and 1 % with a vector state."""
    return _terms(planned(ami.recipes.two_rooms_random()))


def fixed() -> Variants:
    """On one layout; PLDM reports 98, 13, 29, 71 and 98 %."""
    return _terms(planned(ami.recipes.two_rooms()))


def stand_ins() -> Variants:
    """In the place of variance and covariance: other objectives, or other targets."""
    base = planned(ami.recipes.two_rooms())
    bare = weighed(base, variance=0, covariance=0)

    def aimed(target: Itself.Config | MovingAverage.Config | Stopped.Config) -> ami.Config:
        return replace(bare, objective=replace(bare.objective, target=target))

    return {
        "VICReg": base,
        "Barlow Twins": weighed(bare, redundancy=8),
        "SIGReg": weighed(bare, gaussianity=16),
        "InfoNCE": weighed(bare, contrast=1),
        "margin": weighed(bare, margin=16),
        "SwAV": weighed(bare, prototypes=1),
        "moving average (BYOL)": aimed(MovingAverage.Config()),
        "stopped gradient (SimSiam)": aimed(Stopped.Config()),
    }
