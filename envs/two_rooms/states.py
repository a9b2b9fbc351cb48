"""The state of B worlds, its beginning, and what an observer is told about it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..chance import draw, mix
from .background import Drift, drift, set_adrift
from .physics import Arena, is_free, place_in_room, right_room_share
from .policies import Scene, Walk, set_out
from .rendering import draw_walls, observe
from .variants import Variant


class State(NamedTuple):
    """Everything that B worlds are; on the worlds' device."""

    position: Tensor  # [B, 2] pixels
    goal: Tensor  # [B, 2]
    layout: Tensor  # [B, 2] wall x, door y
    ever: Tensor  # [B] bool: the success rule was met in this episode
    walk: Walk
    life: Tensor  # [B] int64: the luck that the next episode is made of
    walls: Tensor  # [B, S, S] uint8
    goal_obs: Tensor  # [B, C, S, S] uint8
    blobs: Drift

    @property
    def scene(self) -> Scene:
        return Scene(self.position, self.layout)

    @property
    def distance(self) -> Tensor:
        """[B] pixels from the dot to its goal."""
        return (self.position - self.goal).norm(dim=-1)


class Birth(NamedTuple):
    """How an episode begins, where chance leaves off and a user may choose instead."""

    position: Tensor  # [B, 2]
    goal: Tensor  # [B, 2]
    layout: Tensor  # [B, 2]


def draw_layouts(rows: Tensor, uniform: Tensor) -> Tensor:
    """Table [N, 2] and uniform [B] -> layouts [B, 2]."""
    return rows[(uniform * len(rows)).long().clamp(max=len(rows) - 1)]


def conceive(variant: Variant, rows: Tensor, life: Tensor) -> Birth:
    """Keys [B] -> layout, start and goal, each from its world's own luck."""
    uniform, keys = draw(life, 4)
    layout = draw_layouts(rows, uniform[:, 0])
    right = uniform[:, 1] < right_room_share(variant.arena, layout)
    start = place_in_room(variant.arena, layout, right, uniform[:, 2:])
    return Birth(start, variant.goal(variant, start, layout, keys), layout)


def begin(variant: Variant, birth: Birth, life: Tensor, distraction: int = 0) -> State:
    """The first moment of an episode, with so many blobs in the background; `life` [B] are the keys
    it was conceived from."""
    walls = draw_walls(variant.canvas, variant.arena, birth.layout)
    state = State(
        position=birth.position,
        goal=birth.goal,
        layout=birth.layout,
        ever=torch.zeros_like(life, dtype=torch.bool),
        walk=set_out(birth.position, mix(life ^ 1)),
        life=mix(life ^ 2),
        walls=walls,
        goal_obs=observe(variant.canvas, walls, birth.goal),
        blobs=set_adrift(variant.canvas, distraction, variant.motion.reach, mix(life ^ 4)),
    )
    return state._replace(ever=state.distance < variant.radius)


def move(variant: Variant, state: State, actions: Tensor) -> State:
    """Actions [B, 2] in the action space's units -> the state one step later."""
    wanted = variant.motion.move(actions)
    position = variant.motion.contact(variant.arena, state.position, wanted, state.layout)
    state = state._replace(position=position, blobs=drift(variant.canvas, state.blobs))
    return state._replace(ever=state.ever | (state.distance < variant.radius))


def to_factors(arena: Arena, position: Tensor, layout: Tensor) -> Tensor:
    """Pixels [..., 2] and [..., 2] -> dot x, dot y, wall x, door y as fractions, [..., 4]."""
    return (torch.cat([position, layout], -1) - arena.low) / arena.side


def from_factors(arena: Arena, factors: Tensor) -> tuple[Tensor, Tensor]:
    """[..., 4] fractions -> positions [..., 2] and layouts [..., 2], these in whole pixels."""
    pixels = (arena.low + factors * arena.side).clamp(arena.low, arena.high)
    return pixels[..., :2], pixels[..., 2:].round()


def read_factors(arena: Arena, name: str, factors: object, like: Tensor) -> Tensor:
    """What a user gave as `name` -> [B, 4] like [B]; ValueError where it can't be factors."""
    read = torch.as_tensor(factors, dtype=torch.float32, device=like.device)
    if read.shape != (len(like), 4):
        raise ValueError(f"{name} is {list(read.shape)}; needed is {[len(like), 4]}")
    if not bool(((read >= 0) & (read <= 1)).all()):
        raise ValueError(f"{name} must be fractions of the arena, each in [0, 1]")
    return read


def require_free(arena: Arena, name: str, position: Tensor, layout: Tensor) -> None:
    """ValueError naming the first world whose place [B, 2] is inside its wall."""
    stuck = (~is_free(arena, position, layout)).nonzero().flatten().tolist()
    if stuck:
        place = [round(p, 2) for p in position[stuck[0]].tolist()]
        raise ValueError(f"{name}: in world {stuck[0]} the dot at {place} px is inside the wall")


def require_rooms(arena: Arena, layout: Tensor) -> None:
    """ValueError naming the first world whose layout [B, 2] leaves no two rooms and a door."""
    room = arena.half_wall + 2 * arena.clearance
    gap = torch.tensor([room, arena.half_door], device=layout.device)
    fits = (layout - gap >= arena.low) & (layout + gap <= arena.high)
    cramped = (~fits.all(-1)).nonzero().flatten().tolist()
    if cramped:
        place = layout[cramped[0]].tolist()
        raise ValueError(f"factors: world {cramped[0]} has no room for wall x, door y at {place}")


def choose(variant: Variant, birth: Birth, options: dict[str, object], life: Tensor) -> Birth:
    """The birth with what the user's options "factors" and "goal_factors" say instead."""
    arena = variant.arena
    if "factors" in options:
        factors = read_factors(arena, "factors", options["factors"], life)
        position, layout = from_factors(arena, factors)
        require_rooms(arena, layout)
        require_free(arena, "factors", position, layout)
        goal = variant.goal(variant, position, layout, mix(life ^ 3))
        birth = Birth(position, goal, layout)
    if "goal_factors" in options:
        factors = read_factors(arena, "goal_factors", options["goal_factors"], life)
        birth = birth._replace(goal=from_factors(arena, factors)[0])
        require_free(arena, "goal_factors", birth.goal, birth.layout)
    return birth
