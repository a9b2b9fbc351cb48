"""Two Rooms: one layout, layouts that differ, and a background that distracts."""

from __future__ import annotations

from dataclasses import replace

from ami_agent.build import Config
from ami_agent.learning import Learning
from ami_agent.lessons import (
    Distil,
    Live,
    Practise,
    Predict,
    Refine,
    Separate,
    ShortestPaths,
    Survey,
)
from ami_agent.life import WorldConfig
from modules.actor import NoHabit, Restless
from modules.bounds import Ball
from modules.configurator import Configurator
from modules.cost import Critic
from modules.distance import MapQuasimetric, WaveQuasimetric
from modules.dynamics import MapDynamics, VectorDynamics, WaveDynamics
from modules.hierarchy import LandmarkGraph
from modules.objectives import Weights
from modules.perception import KeypointEncoder, MapEncoder, Senses, VectorEncoder
from modules.planners import GradientPlanner
from modules.world_model import WorldModel


def two_rooms() -> Config:
    """One layout: a vector state, a critic learnt from walks without reward."""
    return Config(
        recipe="two-rooms",
        world=WorldConfig(id="ami/TwoRooms-v0", variant="fixed"),
        evaluation=WorldConfig(id="ami/TwoRooms-v0", variant="fixed"),
        bounds=Ball(),
        perception=VectorEncoder.Config(patch=8),
        world_model=WorldModel.Config(dynamics=VectorDynamics.Config(hidden=256)),
        configurator=Configurator.Config(reach=2.0),
        planner=GradientPlanner.Config(),
        life=Live(
            worlds=1500, steps=32, options={"max_episode_steps": 32, "directed_fraction": 0.5}
        ),
        objective=Predict(learning=Learning(steps=1300, batch=128, lr=1.5e-3)),
        teacher=Separate(learning=Learning(steps=4000, batch=256)),
        distil=Distil(learning=Learning(steps=5000, batch=512, lr=2e-3), steps=32),
    )


def two_rooms_slow() -> Config:
    """The one layout for a dot ten times as slow: goals are a hundred steps away and more, and are
    reached from landmark to landmark. A point in the image makes the state, as steps of a seventh
    of a pixel need it; the critic counts in strides of ten steps."""
    base = two_rooms()
    world = WorldConfig(id="ami/TwoRooms-v0", variant="slow")
    return replace(
        base,
        recipe="two-rooms-slow",
        world=world,
        evaluation=world,
        perception=KeypointEncoder.Config(state=2),
        world_model=WorldModel.Config(dynamics=WaveDynamics.Config()),
        critic=Critic.Config(distance=WaveQuasimetric.Config()),
        planner=GradientPlanner.Config(horizon=12, proposals=2, carried=1),
        hierarchy=LandmarkGraph.Config(patience=10),
        # long enough to come through the door: where few do, the critic takes it for a wall
        life=Live(
            worlds=250, steps=256, options={"max_episode_steps": 256, "directed_fraction": 0.5}
        ),
        objective=Predict(
            weights=Weights(prediction=10, variance=4, covariance=0.5, similarity=0, inverse=1),
            learning=Learning(steps=1300, batch=128, lr=2e-3),
        ),
        teacher=Separate(length=10, learning=Learning(steps=2000, batch=256, lr=2e-3)),
        survey=Survey(walks=600, length=40),
    )


def two_rooms_distracted() -> Config:
    """The one layout again, before a background in which things move that nothing can be done
    about: the Configurator primes perception not to attend to it."""
    world = WorldConfig(id="ami/TwoRooms-v0", variant="fixed", options={"num_distractors": 4})
    base = two_rooms()
    return replace(
        base,
        recipe="two-rooms-distracted",
        world=world,
        evaluation=world,
        perception=Senses.Config(),
        configurator=replace(base.configurator, attend={"background": 0.0}),
    )


def _map_state(recipe: str, variant: str, *, patch: int, stride: float, practice: int) -> Config:
    """Layouts that differ by episode: a map state, variance within an episode, a critic taught by
    dynamic programming. `stride`: the longest step of the walks, in pixels; `practice`: steps of
    it, enough to meet the wall."""
    return Config(
        recipe=recipe,
        world=WorldConfig(id="ami/TwoRooms-v0", variant=variant, options={"split": "train"}),
        evaluation=WorldConfig(id="ami/TwoRooms-v0", variant=variant, options={"split": "test"}),
        bounds=Ball(),
        perception=MapEncoder.Config(patch=patch),
        world_model=WorldModel.Config(dynamics=MapDynamics.Config()),
        planner=GradientPlanner.Config(proposals=2, carried=1),
        temper=Restless.Config(),
        habit=NoHabit.Config(),
        life=Live(
            worlds=320,
            steps=640,
            options={"max_episode_steps": 640, "directed_fraction": 0.7, "max_step": stride},
        ),
        objective=Predict(
            weights=Weights(
                prediction=4,
                variance=8,
                covariance=4,
                variance_within=8,
                covariance_within=4,
                similarity=0,
                inverse=5,
            ),
            learning=Learning(steps=2200, batch=64, lr=1.5e-3),
            length=5,
            together=4,
        ),
        critic=Critic.Config(distance=MapQuasimetric.Config()),
        teacher=Separate(together=32, learning=Learning(steps=1000, batch=128)),
        paths=ShortestPaths(),
        practice=Practise(steps=practice),
        refine=Refine(),
        distil=Distil(rounds=3, worlds=96, steps=24, learning=Learning(steps=1500, batch=256)),
    )


def two_rooms_random() -> Config:
    """Wall and door drawn per episode, 32x32 images; judged on layouts never seen."""
    return _map_state("two-rooms-random", "random", patch=4, stride=1.45, practice=20)


def eb_random() -> Config:
    """EB-JEPA's random walls (arXiv 2602.03604): 65x65 images, 200 steps, its success rule.

    The walks that fill memory take steps up to what the protocol allows when planning.
    """
    return _map_state("two-rooms-eb-random", "eb-random", patch=8, stride=2.45, practice=48)
