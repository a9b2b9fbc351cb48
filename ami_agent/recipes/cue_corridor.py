"""Cue Corridor: a memory that is needed."""

from __future__ import annotations

from ami_agent.build import Config
from ami_agent.learning import Learning
from ami_agent.lessons import Distil, Foresee, Live, NoLesson, Predict
from ami_agent.life import WorldConfig
from modules.bounds import Ball
from modules.configurator import Assignment, Configurator
from modules.cost import Foresight, NoCritic
from modules.dynamics import VectorDynamics
from modules.objectives import Weights
from modules.perception import VectorEncoder
from modules.planners import GradientPlanner
from modules.recall import Associative
from modules.world_model import Feeling, WorldModel


def cue_corridor() -> Config:
    """A cue seen only at the start says which arm is right: the state depends on what is recalled.

    The other form of recall is `--swap recall=belief`, none at all `--without memory`."""
    return Config(
        recipe="cue-corridor",
        world=WorldConfig(id="ami/CueCorridor-v0"),
        evaluation=WorldConfig(id="ami/CueCorridor-v0"),
        bounds=Ball(),
        perception=VectorEncoder.Config(patch=4),
        recall=Associative.Config(),
        world_model=WorldModel.Config(
            dynamics=VectorDynamics.Config(hidden=256), feeling=Feeling.Config()
        ),
        drives=("reward",),
        critic=NoCritic.Config(),
        foresight=Foresight.Config(discount=0.95),
        configurator=Configurator.Config(critic=0.0),
        planner=GradientPlanner.Config(),
        tasks={"reward": Assignment(drives={"reward": 1.0})},
        life=Live(worlds=2000, steps=40, options={"directed_fraction": 0.9}),
        objective=Predict(
            weights=Weights(
                prediction=4, variance=8, covariance=4, similarity=0, inverse=2, feeling=4
            ),
            learning=Learning(steps=500, batch=64, lr=1.5e-3),
            length=6,
            context=16,
        ),
        teacher=NoLesson(),
        foresee=Foresee(expectile=0.9, trace=0.7, learning=Learning(steps=2000, batch=256)),
        distil=Distil(rounds=3, worlds=64, steps=30, learning=Learning(steps=1500, batch=256)),
    )
