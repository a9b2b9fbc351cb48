"""Forage: several tasks in one world."""

from __future__ import annotations

from ami_agent.build import Config
from ami_agent.learning import Learning
from ami_agent.lessons import Amortise, Distil, Foresee, Live, NoLesson, Predict
from ami_agent.life import WorldConfig
from modules.auto import Auto
from modules.bounds import Ball
from modules.configurator import Assignment, Configurator
from modules.cost import Foresight, NoCritic
from modules.dynamics import VectorDynamics
from modules.objectives import Weights
from modules.perception import Senses
from modules.planners import GradientPlanner
from modules.world_model import Feeling, WorldModel


def forage() -> Config:
    """Energy, food that regrows, a hazard: one world model and four tasks, told by their drives."""
    place = {"food": 0.0, "hazard": 0.0, "flag": 0.0, "energy": 0.0}
    return Config(
        recipe="forage",
        world=WorldConfig(id="ami/Forage-v0", options={"split": "train"}),
        evaluation=WorldConfig(id="ami/Forage-v0", options={"split": "test"}),
        bounds=Ball(),
        perception=Senses.Config(vector=12),
        landmarks=400,
        world_model=WorldModel.Config(
            dynamics=VectorDynamics.Config(hidden=256), feeling=Feeling.Config()
        ),
        drives=("hunger", "pain", "taste", "reward"),
        critic=NoCritic.Config(),
        foresight=Foresight.Config(discount=0.95),
        configurator=Configurator.Config(
            critic=0.0, told=("hunger", "taste", "pain", "reward", "boredom", "reach")
        ),
        planner=GradientPlanner.Config(horizon=10),
        tasks={
            "eat": Assignment(drives={"taste": 1.0}, options={"task": "eat"}),
            "flag": Assignment(drives={"reward": 1.0, "pain": 2.0}, options={"task": "flag"}),
            "explore": Assignment(
                weights={"boredom": 1.0}, attend=place, options={"task": "explore"}
            ),
            "stay": Assignment(
                aim="here",
                weights={"reach": 1.0, "effort": 0.05},
                attend=place,
                options={"task": "stay"},
            ),
        },
        life=Live(worlds=1000, steps=205, options={"max_episode_steps": 40}),
        objective=Predict(
            weights=Weights(
                prediction=10, variance=4, covariance=0.5, similarity=0, inverse=1, feeling=10
            ),
            learning=Learning(steps=5000, batch=128, lr=4e-3),
            length=8,
            primed=0.3,
        ),
        teacher=NoLesson(),
        foresee=Foresee(
            learning=Learning(steps=2400, batch=128, lr=2e-3),
            trace=0.5,
            expectile=0.5,
            futures=12,
            horizon=6,
        ),
        amortise=Amortise(
            learning=Learning(steps=2500, batch=256, lr=2e-3), horizon=6, tasks=("eat", "flag")
        ),
        distil=Distil(
            rounds=8,
            worlds=64,
            steps=40,
            learning=Learning(steps=1500, batch=512),
            imitate=("explore", "stay"),
        ),
        auto=Auto.Config(slack=0.1),
    )
