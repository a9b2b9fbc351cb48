"""Any Gymnasium world: what the mind is made of is read off the world's spaces."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from math import ceil, prod

from ami_agent.build import Config
from ami_agent.learning import Learning
from ami_agent.lessons import Interact, Live, NoLesson, Predict, Recorded, Rehearse
from ami_agent.lessons.foresight import EPISODE_STEPS, discount_for
from ami_agent.lessons.hindsight import rewarded
from ami_agent.life import Spec, WorldConfig
from modules.actor import Policy
from modules.bounds import Box, Choice
from modules.configurator import Assignment, Configurator
from modules.cost import Foresight, NoCritic
from modules.dynamics import VectorDynamics
from modules.objectives import Weights
from modules.perception import Senses
from modules.planners import GradientPlanner
from modules.world_model import StepFeeling, WorldModel

MANY = 16
"""Numbers seen and done, above which a body takes wider layers to know."""

DEFAULT_WORLD = WorldConfig(id="Pendulum-v1")
NOTHING = Recorded()


def gym(world: WorldConfig = DEFAULT_WORLD, data: Recorded = NOTHING) -> Config:
    """Any Gymnasium world (`--env.id ID`): its reward is a drive, and life and learning
    interleave; or, where there are data of it (`--data.minari ID`), all is learnt from these."""
    world = replace(world, mortal=True)
    with closing(world.build(1)) as one:
        spec, known = one.spec, one.inner.spec
        lasts, _ = one.limit(world)
        recorded = data.whole(one) if data != NOTHING else None
    if not known.max_episode_steps and not world.limit:
        world = _limited(world, spec, max(EPISODE_STEPS, ceil(lasts)))
    learning = Learning(steps=0, batch=128, last=0.2)
    interleaved = Predict(weights=_weights(spec), learning=learning, length=3)
    hindsight = 0.8 if rewarded(spec, world) else 0.0
    hidden = 256 if _numbers(spec) > MANY else 128
    return Config(
        recipe="gym",
        world=world,
        evaluation=world,
        bounds=Choice(sizes=spec.choices) if spec.choices else Box(),
        perception=_perception(spec),
        world_model=WorldModel.Config(
            dynamics=VectorDynamics.Config(hidden=hidden), feeling=StepFeeling.Config(hidden=hidden)
        ),
        drives=("reward",),
        critic=NoCritic.Config(),
        foresight=Foresight.Config(
            hidden=hidden, discount=discount_for(lasts) if lasts else 0, critics=2, norm=True
        ),
        configurator=Configurator.Config(critic=0.0),
        planner=GradientPlanner.Config(horizon=6, proposals=2),
        policy=Policy.Config(hidden=hidden),
        tasks={"reward": Assignment(drives={"reward": 1.0})},
        life=recorded or Live(worlds=1, steps=500),
        objective=Predict(weights=_weights(spec), learning=replace(learning, steps=500), length=3),
        teacher=NoLesson(),
        interact=Rehearse(objective=interleaved, hindsight=hindsight)
        if recorded
        else Interact(
            objective=interleaved, hindsight=hindsight, noise=0.5 if spec.choices else 0.2
        ),
        distil=NoLesson(),
    )


def _limited(world: WorldConfig, spec: Spec, limit: int) -> WorldConfig:
    """With a time limit; without, where single environments, which alone can have one, would show
    something else than the environment's own vector version."""
    limited = replace(world, limit=limit)
    with closing(limited.build(1)) as one:
        return limited if one.spec == spec else world


def _numbers(spec: Spec) -> int:
    """That are seen, pictures aside, and done."""
    seen = (prod(shape) for shape in spec.shapes.values() if len(shape) < 3)
    return sum(seen) + spec.action_dim


def _weights(spec: Spec) -> Weights:
    """Numbers are states as they are and can't collapse: their errors count in units of how much
    they change. What is made of pictures is learnt, and could."""
    if all(len(shape) < 3 for shape in spec.shapes.values()):
        return Weights(
            prediction=0, change=1, variance=0, covariance=0, similarity=0, inverse=0, feeling=1
        )
    return Weights(prediction=20, variance=16, covariance=1, similarity=0, inverse=1, feeling=4)


def _perception(spec: Spec) -> Senses.Config:
    """Vectors are states as they are; every picture is looked at in about 8 by 8 patches."""
    pictures = any(len(shape) == 3 for shape in spec.shapes.values())
    return Senses.Config(vector=0, patch=0 if pictures else 8)
