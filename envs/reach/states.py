"""The state of B worlds, how it begins and goes on, and what an observer is told about it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..chance import draw, mix
from ..plane import direction
from .arms import BEND, LINK, NEAREST, Arm, bent, fingertip, joints, reaching, resting
from .physics import Arms
from .senses import SWIFT, Numbers, Sight
from .walks import Walk, set_out

REACHED = 0.05  # lengths of the arm; nearer to the goal than this is there
RING = (NEAREST + 0.03, 0.95)  # how far from the shoulder goals are
APART = 0.25  # at least, from a fingertip's start to its goal
TRIES = 8  # goals to choose from
CLOSE = 0.01  # so little may places of joints be off


class State(NamedTuple):
    """Everything that B worlds are; on the worlds' device."""

    arm: Arm
    goal: Tensor  # [B, 2] the angles of an arm whose fingertip is there
    ever: Tensor  # [B] bool: was there in this episode
    walk: Walk
    life: Tensor  # [B] int64: the luck that the next episode is made of
    goal_obs: Tensor  # [B, *O]

    @property
    def distance(self) -> Tensor:
        """[B] from the fingertip to its goal, in lengths of the arm."""
        return (fingertip(self.arm.angle) - fingertip(self.goal)).norm(dim=-1)

    @property
    def there(self) -> Tensor:
        """[B] bool."""
        return self.distance < REACHED


def draw_angles(uniform: Tensor) -> Tensor:
    """Uniform [B, 2] -> angles [B, 2], all alike."""
    shoulder, elbow = (2 * uniform - 1).unbind(-1)
    return torch.stack([math.pi * shoulder, BEND * elbow], -1)


def draw_goal(tip: Tensor, uniform: Tensor) -> Tensor:
    """Fingertips [B, 2], uniform [B, 2 T + 1] -> angles [B, 2] that reach for a place anywhere in
    the ring, but not near the fingertip; the elbow bends to either side."""
    around, out = uniform[:, 1:].chunk(2, dim=-1)  # [B, T]
    low, high = (radius**2 for radius in RING)  # alike by area
    place = (low + (high - low) * out).sqrt()[..., None] * direction(2 * math.pi * around)
    apart = (place - tip[:, None]).norm(dim=-1) >= APART
    first = apart.int().argmax(-1)  # none at all is apart once in millions of episodes
    place = place[torch.arange(len(tip), device=tip.device), first]
    return reaching(place, torch.where(uniform[:, 0] < 0.5, 1.0, -1.0))


def begin(senses: Sight | Numbers, life: Tensor, options: dict[str, Any]) -> State:
    """The first moment of the episodes that keys [B] hold; a user's options "factors" and
    "goal_factors" put arms and goals elsewhere."""
    uniform, _ = draw(mix(life ^ 6), 2 * TRIES + 3)
    arm = resting(draw_angles(uniform[:, :2]))
    if "factors" in options:
        arm = read_factors("factors", options["factors"], life)
    goal = draw_goal(fingertip(arm.angle), uniform[:, 2:])
    if "goal_factors" in options:
        goal = read_factors("goal_factors", options["goal_factors"], life).angle
    state = State(
        arm=arm,
        goal=goal,
        ever=torch.zeros_like(life, dtype=torch.bool),
        walk=set_out(mix(life ^ 1)),
        life=mix(life ^ 2),
        goal_obs=senses.sense(resting(goal)),
    )
    return state._replace(ever=state.there)


def advance(arms: Arms, state: State, actions: Tensor) -> State:
    """Actions [B, 2] -> the state one step later."""
    state = state._replace(arm=arms(state.arm, actions))
    return state._replace(ever=state.ever | state.there)


def to_factors(arm: Arm) -> Tensor:
    """Fingertip and elbow as fractions of the square about all that an arm can reach, and how fast
    the joints turn as a share of what is swift, [B, 6]."""
    elbow, tip = joints(arm.angle).unbind(1)
    return torch.cat([(tip + 1) / 2, (elbow + 1) / 2, arm.pace / SWIFT], -1)


def read_factors(name: str, factors: object, like: Tensor) -> Arm:
    """What a user gave as `name` -> arms, as many as [B]; ValueError where it can't be factors."""
    read = torch.as_tensor(factors, dtype=torch.float32, device=like.device)
    if read.shape != (len(like), 6):
        raise ValueError(f"{name} is {list(read.shape)}; needed is {[len(like), 6]}")
    if not bool((read[:, 4:].abs() <= 1).all()):
        raise ValueError(f"{name}: velocities must be shares of what is swift, in [-1, 1]")
    tip, elbow = (2 * read[:, :4] - 1).split(2, dim=-1)
    angle = bent(elbow, tip)
    lengths = torch.stack([elbow.norm(dim=-1), (tip - elbow).norm(dim=-1)], -1)
    fits = ((lengths - LINK).abs() < CLOSE).all(-1) & (angle[:, 1].abs() < BEND + CLOSE)
    wrong = (~fits).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(f"{name}: in world {wrong[0]} no arm has its elbow and fingertip there")
    return Arm(angle, SWIFT * read[:, 4:], angle - SWIFT * read[:, 4:])
