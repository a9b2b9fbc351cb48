"""Named settings, as functions. A variant is a `dataclasses.replace` away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ami_agent.build import Config
from ami_agent.learning import Learning
from ami_agent.lessons import (
    Amortise,
    Distil,
    Foresee,
    Live,
    NoLesson,
    Practise,
    Predict,
    Refine,
    Separate,
    ShortestPaths,
)
from ami_agent.life import WorldConfig
from modules.actor import NoHabit, Restless
from modules.auto import Auto
from modules.bounds import Ball
from modules.configurator import Assignment, Configurator
from modules.cost import Critic, Foresight, MapQuasimetric, NoCritic
from modules.dynamics import MapDynamics, VectorDynamics
from modules.objectives import Weights
from modules.perception import MapEncoder, Senses, VectorEncoder
from modules.planners import GradientPlanner
from modules.recall import Associative
from modules.types import UnusableInput
from modules.world_model import Feeling, WorldModel


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
        life=Live(worlds=1500, steps=32, options={"budget": 32, "errands": 0.5}),
        objective=Predict(learning=Learning(steps=1300, batch=128, lr=1.5e-3)),
        teacher=Separate(learning=Learning(steps=4000, batch=256)),
        distil=Distil(learning=Learning(steps=5000, batch=512, lr=2e-3), steps=32),
    )


def forage() -> Config:
    """Energy, food that regrows, a hazard: one world model and four tasks, told by their drives."""
    place = {"food": 0.0, "hazard": 0.0, "flag": 0.0, "energy": 0.0}
    return Config(
        recipe="forage",
        world=WorldConfig(id="ami/Forage-v0", options={"layouts": "train"}),
        evaluation=WorldConfig(id="ami/Forage-v0", options={"layouts": "test"}),
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
        life=Live(worlds=1000, steps=205, options={"budget": 40}),
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
        life=Live(worlds=2000, steps=40, options={"errands": 0.9}),
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


def two_rooms_distracted() -> Config:
    """The one layout again, before a background in which things move that nothing can be done
    about: the Configurator primes perception not to attend to it."""
    world = WorldConfig(id="ami/TwoRooms-v0", variant="fixed", options={"distraction": 4})
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
        world=WorldConfig(id="ami/TwoRooms-v0", variant=variant, options={"layouts": "train"}),
        evaluation=WorldConfig(id="ami/TwoRooms-v0", variant=variant, options={"layouts": "test"}),
        bounds=Ball(),
        perception=MapEncoder.Config(patch=patch),
        world_model=WorldModel.Config(dynamics=MapDynamics.Config()),
        planner=GradientPlanner.Config(proposals=2, carried=1),
        temper=Restless.Config(),
        habit=NoHabit.Config(),
        life=Live(worlds=320, steps=640, options={"budget": 640, "errands": 0.7, "stride": stride}),
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


RECIPES: Mapping[str, Callable[[], Config]] = {
    "two-rooms": two_rooms,
    "two-rooms-random": two_rooms_random,
    "two-rooms-eb-random": eb_random,
    "forage": forage,
    "cue-corridor": cue_corridor,
    "two-rooms-distracted": two_rooms_distracted,
}


def recipe(name: str) -> Config:
    """The settings of that name; raises UnusableInput if there are none."""
    if name not in RECIPES:
        raise UnusableInput(f"no recipe {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]()
