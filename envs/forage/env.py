"""The environment: how episodes begin, what is observed and drawn, and the Gymnasium classes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from .. import base, draw
from ..rng import between, splitmix64, uniform
from . import dynamics
from .dynamics import State

ENERGY = (0.3, 0.8)  # as episodes begin
RIPE = 0.7  # probability of a food to be ripe as an episode begins

SIDE = 272  # pixels of the arena's side
LEFT, TOP = 24, 12  # pixels beside and above the arena
BAR = (298.0, 308.0)  # rows of the energy bar
FOOD_RADIUS = 13.0  # pixels; more than the agent's, so that both are visible
HAZE = 0.35  # opacity of a food's haze at its centre
COLOURS = {
    "arena": (250, 248, 243),
    "border": (70, 74, 84),
    "hazard": (225, 70, 60),
    "food": (46, 150, 72),
    "unripe": (250, 248, 243),
    "pole": (70, 62, 54),
    "pennant": (245, 170, 20),
    "track": (222, 220, 214),
    "empty": (210, 70, 50),
    "full": (60, 165, 90),
}


def observation_space() -> spaces.Dict:
    low = {
        "body": np.zeros(2),
        "energy": np.zeros(1),
        "food": np.array([(-1, -1, 0)] * dynamics.NUM_FOODS),
        "hazard": np.array([-1, -1, 0]),
        "flag": np.array([-1, -1]),
    }
    return spaces.Dict({name: spaces.Box(np.float32(bound), 1) for name, bound in low.items()})


def to_pixels(position: Tensor) -> Tensor:
    """Positions [..., 2] -> `(x, y)` [..., 2] in the pixels of a frame."""
    return position * SIDE + torch.tensor([LEFT - 0.5, TOP - 0.5], device=position.device)


def depth_in_arena(pixels: Tensor, rim: float) -> Tensor:
    """How many pixels inside the arena, with a rim around it, every pixel is, [N, N]."""
    middle = torch.tensor([LEFT, TOP], device=pixels.device) + SIDE / 2 - 0.5
    across, down = (pixels - middle[:, None]).abs()
    return SIDE / 2 + rim - torch.maximum(across[None], down[:, None])


def draw_hazard(frames: Tensor, pixels: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """A disk that is redder where damage is larger, as far as it lies in the arena."""
    depth = radius[:, None, None] - draw.pixel_distance(pixels, centre)
    deep = 0.25 + 0.55 * depth / radius[:, None, None]
    inside = torch.minimum(depth, depth_in_arena(pixels, 0))
    return blend(frames, (inside + 0.5).clamp(0, 1) * deep - 0.5, "hazard")


def draw_food(frames: Tensor, pixels: Tensor, centre: Tensor, growth: Tensor) -> Tensor:
    """A green disk, filled from below as far as it has grown, in a haze that fades to where the
    agent can't eat from."""
    distance = draw.pixel_distance(pixels, centre)
    near = (1 - distance / (SIDE * dynamics.MOUTH)).clamp(min=0)
    haze = (depth_in_arena(pixels, 0) + 0.5).clamp(0, 1) * HAZE * near
    frames = blend(frames, haze - 0.5, "food")
    frames = blend(frames, FOOD_RADIUS - distance, "food")
    level = centre[:, 1] + (FOOD_RADIUS - 1.5) * (1 - 2 * growth)
    hollow = (level[:, None] - pixels)[..., None].expand(-1, -1, len(pixels))
    return blend(frames, torch.minimum(FOOD_RADIUS - 2 - distance, hollow), "unripe")


def draw_flag(frames: Tensor, pixels: Tensor, foot: Tensor) -> Tensor:
    """A pennant on a pole, and a ring within which the flag counts as reached."""
    from_ring = draw.pixel_distance(pixels, foot) - SIDE * dynamics.AT_FLAG
    frames = blend(frames, 0.8 - from_ring.abs(), "pennant")
    across = (pixels - foot[:, :1])[:, None, :]
    up = (foot[:, 1:] - pixels)[:, :, None]
    slope = 6.0 - across * (6.0 / 16)
    frames = blend(frames, torch.minimum(across, slope - (up - 20).abs()), "pennant")
    return blend(frames, torch.minimum(1.3 - across.abs(), 13 - (up - 13).abs()), "pole")


def draw_energy(frames: Tensor, pixels: Tensor, energy: Tensor) -> Tensor:
    """A bar as long as the energy, redder when there is little, with a mark at one half."""
    thick = (BAR[1] - BAR[0]) / 2
    height = (pixels - (BAR[0] + BAR[1]) / 2)[:, None]
    ends = (LEFT + thick - 0.5, LEFT + SIDE - thick - 0.5)
    track = thick - torch.hypot(pixels - pixels.clamp(*ends), height)[None]
    frames = blend(frames, track, "track")
    filled = torch.minimum(track, LEFT - 0.5 + SIDE * energy[:, None, None] - pixels)
    frames = blend(frames, filled, "empty")
    tint = (1.6 * energy - 0.3).clamp(0, 1)[:, None, None]
    frames = blend(frames, torch.minimum((filled + 0.5).clamp(0, 1), tint) - 0.5, "full")
    mark = 0.8 - (pixels - (LEFT + SIDE / 2 - 0.5)).abs()
    return blend(frames, torch.minimum(mark, thick + 3 - height.abs())[None], "border")


def blend(frames: Tensor, depth: Tensor, name: str) -> Tensor:
    return draw.blend(frames, depth, COLOURS[name])


class ForageVectorEnv(base.TorchVectorEnv[State]):
    """B agents in the unit square, each with foods, a hazard and a flag.

    The action [2], shortened to length 1, moves the agent by 0.05. Observed are: "body" [2], its x
    and y; "energy" [1]; "food" [2, 3], dx, dy, growth; "hazard" [3], dx, dy, radius; "flag" [2],
    dx, dy; dx and dy are relative to the agent. Near a food the agent eats a larger fraction of
    what has grown the nearer it is, and the rest grows on. `info["interoception"]` [3] is energy,
    which every step costs and food restores; damage, which grows towards the hazard's centre; and
    the meal, how much was eaten in this step. The reward is 1 for every step that ends at the flag,
    else 0, whatever the task. Dynamics tests: full steps to the right at the "border", and in the
    "open"."""

    description = (
        "The agent (blue) eats food (green), which grows back where it was eaten, and is damaged "
        "near the hazard (red). The bar below is its energy; the flag is a position to go to."
    )
    factor_names: ClassVar[tuple[str, ...]] = (
        *("body x", "body y", "energy"),
        *(f"food {i + 1}" for i in range(dynamics.NUM_FOODS)),
    )
    max_episode_steps = 150
    interoception_names: ClassVar[tuple[str, ...]] = ("energy", "damage", "meal")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        task: str = "eat",
        split: str = "all",
        directed_fraction: float = 0.6,
        **options: Any,
    ) -> None:
        """`task` is how an episode is evaluated ("score" and "success" in infos) and which expert
        acts: "eat", "flag", "explore" or "stay"; it changes nothing else. `split` is which layouts
        are drawn: "all", "train" or "test", which share none. `directed_fraction` is how many of
        the behaviour policy's segments that aren't idle lead to a target."""
        base.choose("task", task, dynamics.TASKS)
        self.task, self.directed_fraction = task, directed_fraction
        self._split = base.choose("split", split, {name: name for name in dynamics.SPLITS})
        base.check_range("directed_fraction", directed_fraction, 0, 1)
        super().__init__(num_envs, observation_space(), spaces.Box(-1, 1, (2,)), **options)

    def _reset_state(self, keys: Tensor, options: dict[str, Any]) -> State:
        layout = dynamics.sample_layout(keys, self._split)
        if options.get("factors") is not None:
            factors = self._read_factors("factors", options["factors"], len(keys))
        else:
            counts = [1, dynamics.NUM_FOODS, dynamics.NUM_FOODS]
            u, _ = uniform(splitmix64(keys ^ 6), sum(counts))
            for_energy, for_ripe, young = u.split(counts, dim=-1)
            growth = torch.where(for_ripe < RIPE, 1.0, young)
            factors = torch.cat([layout.start, between(for_energy, ENERGY), growth], -1)
        position, energy, growth = factors[:, :2], factors[:, 2], factors[:, 3:]
        zero = torch.zeros_like(energy)
        visited = zero.bool()[:, None].repeat(1, dynamics.GRID**2)
        visited = dynamics.mark_visited(visited, position)
        return State(
            position=position,
            energy=energy,
            growth=growth,
            damage=dynamics.damage_at(position, layout.hazard, layout.radius),
            meal=zero,
            layout=layout._replace(start=position),
            record=dynamics.EpisodeRecord(zero, zero, zero, zero, visited),
            behaviour=base.SegmentState.begin(position, splitmix64(keys ^ 4)),
        )

    def _step_state(self, state: State, actions: Tensor) -> State:
        return dynamics.step_state(state, actions)

    def _success(self, state: State) -> Tensor:
        return dynamics.TASKS[self.task](state).success

    def _observe(self, state: State) -> base.TensorObs:
        """Foods, hazard and flag are positions relative to the agent."""
        layout, here = state.layout, state.position
        food = torch.cat([layout.food - here[:, None], state.growth[..., None]], -1)
        return {
            "body": here,
            "energy": state.energy[:, None],
            "food": food,
            "hazard": torch.cat([layout.hazard - here, layout.radius[:, None]], -1),
            "flag": layout.flag - here,
        }

    def _reward(self, state: State) -> Tensor:
        return state.at_flag.float()

    def _factors(self, state: State) -> Tensor:
        return torch.cat([state.position, state.energy[:, None], state.growth], -1)

    def _info(self, state: State) -> dict[str, Tensor]:
        return {
            "interoception": torch.stack([state.energy, state.damage, state.meal], -1),
            "score": dynamics.TASKS[self.task](state).score,
            "cells": state.cells,
            "damage": state.record.damage,
            "eaten": state.record.eaten,
        }

    def _expert(self, state: State) -> Tensor:
        """Only the expert of the task "flag" keeps away from the hazard."""
        return dynamics.EXPERTS[self.task](state)

    def _behave(self, state: State) -> tuple[base.SegmentState, Tensor]:
        return dynamics.behaviour_step(
            state.behaviour, state.position, state.layout, self.directed_fraction
        )

    def _dynamics_tests(self, keys: Tensor) -> dict[str, tuple[State, Tensor]]:
        """Full steps to the right, from 0.2 to 2 of them before the border, and in the middle."""
        state, (u, _) = self._reset_state(keys, {}), uniform(splitmix64(keys ^ 8), 4)
        border_x = 1 - dynamics.STEP * between(u[:, 0], (0.2, 2.0))
        border_y = between(u[:, 1], (dynamics.MARGIN, 1 - dynamics.MARGIN))
        open_x, open_y = between(u[:, 2], (0.3, 0.6)), between(u[:, 3], (0.3, 0.7))
        action = u.new_tensor([1.0, 0.0]).expand(len(keys), -1)
        starts = {"border": (border_x, border_y), "open": (open_x, open_y)}
        return {
            name: (state._replace(position=torch.stack(start, -1)), action)
            for name, start in starts.items()
        }

    def _to_pixels(self, factors: Tensor) -> Tensor:
        return to_pixels(factors[..., :2])

    def _draw(self, state: State) -> Tensor:
        layout, pixels = state.layout, draw.frame_pixels(self.device)
        frames = draw.white_frames(self.num_envs, self.device)
        frames = blend(frames, depth_in_arena(pixels, 2), "border")
        frames = blend(frames, depth_in_arena(pixels, 0), "arena")
        frames = draw_hazard(frames, pixels, to_pixels(layout.hazard), SIDE * layout.radius)
        for food, growth in zip(layout.food.unbind(1), state.growth.unbind(1), strict=True):
            frames = draw_food(frames, pixels, to_pixels(food), growth)
        frames = draw_flag(frames, pixels, to_pixels(layout.flag))
        frames = draw_energy(frames, pixels, state.energy)
        return draw.to_bytes(draw.blend_agent(frames, to_pixels(state.position)))


class ForageEnv(base.SingleEnv):
    vector_env = ForageVectorEnv
