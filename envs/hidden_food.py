"""Hidden Food: the food lies where it lay in the episode before, and can't be observed. The arena
is the unit square; y grows downwards."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from . import base, draw
from .batch import where
from .geometry import direction, rotate, shrink_to_disk
from .rng import between, integers, splitmix64, uniform, von_mises

STEP = 0.05  # how far a full action moves the agent
CENTRE = 0.5  # x and y of the middle of all starts
START_OFFSET = 0.03  # at most, from the centre along each axis
SITE_RADIUS = 0.4  # from the centre to the sites, which lie on a circle
MOUTH = 0.08  # from which distance the agent eats
MAX_SITES = 12  # further apart than twice the mouth

KAPPA = 5.0  # of the heading's noise
SEGMENT_STEPS = (5, 20)  # that the behaviour policy goes to a target
OUTSIDE = 0.4  # how far beyond the borders a target may lie
STRENGTH = (0.2, 1.4)  # of the actions, before they are cut off at 1

SITE_COLOUR, FOOD_COLOUR, BORDER_COLOUR = (210, 208, 202), (46, 150, 72), (70, 74, 84)
FOOD_PIXELS = 9.0


class State(NamedTuple):
    position: Tensor  # [B, 2]
    food: Tensor  # [B, 2]
    episode: Tensor  # [B] int64: episodes of the lifetime before this one
    behaviour: base.SegmentState

    @property
    def ate(self) -> Tensor:
        """[B] bool: the agent is near enough to the food to eat it."""
        return (self.position - self.food).norm(dim=-1) <= MOUTH


def sites(count: int, device: torch.device) -> Tensor:
    """Where food may lie, [count, 2]: on a circle, at equal distances."""
    angle = 2 * math.pi * torch.arange(count, device=device) / count
    return CENTRE + SITE_RADIUS * direction(angle)


def behaviour_step(
    behaviour: base.SegmentState, position: Tensor
) -> tuple[base.SegmentState, Tensor]:
    """The behaviour policy one step on, and its actions [B, 2]: it goes to one random target after
    another, with a noisy heading and steps of any length."""
    u, keys = uniform(behaviour.keys, 5)
    target = u[:, 1:3] * (1 + 2 * OUTSIDE) - OUTSIDE
    new = behaviour._replace(target=target, steps_left=integers(u[:, 0], SEGMENT_STEPS))
    behaviour = where(behaviour.steps_left <= 0, new, behaviour)
    ahead = behaviour.target - position
    heading = ahead / ahead.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    actions = rotate(heading, von_mises(u[:, 3], KAPPA)) * between(u[:, 4:], STRENGTH).clamp(max=1)
    return behaviour._replace(steps_left=behaviour.steps_left - 1, keys=keys), actions


class HiddenFoodVectorEnv(base.TorchVectorEnv[State]):
    """B agents in the unit square, each with one food at one of `num_sites` sites.

    A lifetime is a sequence of episodes with the food at the same site. A reset with a seed begins
    a lifetime and draws the site; a reset without one, and what follows the end of an episode,
    begins the next episode of the same lifetime. Every episode begins near the centre; the first of
    a lifetime lasts long enough to visit all sites, the later ones `later_episode_steps`, enough
    for one site.

    Observed is the agent's x and y alone. The action [2], shortened to length 1, moves the agent by
    0.05. Within 0.08 of the food the agent eats it, which ends the episode: the reward and
    `info["interoception"]` [1], the meal, are 1 then, else 0. Dynamics tests: full steps to the
    right at the "border", and in the "open"."""

    description = (
        "The agent (blue) looks for food (green) at one of several sites (grey) and can't see it. "
        "The food lies where it lay in the episode before."
    )
    max_episode_steps = 300
    factor_names: ClassVar[tuple[str, ...]] = ("body x", "body y", "food x", "food y")
    interoception_names: ClassVar[tuple[str, ...]] = ("meal",)

    def __init__(
        self,
        num_envs: int = 1,
        *,
        num_sites: int = 8,
        later_episode_steps: int = 11,
        **options: Any,
    ) -> None:
        """`max_episode_steps` is the limit of the first episode of a lifetime."""
        super().__init__(
            num_envs, spaces.Box(np.float32(0), 1, (2,)), spaces.Box(-1, 1, (2,)), **options
        )
        base.check_range("num_sites", num_sites, 1, MAX_SITES)
        base.check_range("later_episode_steps", later_episode_steps, 1, math.inf)
        self.num_sites, self.later_episode_steps = num_sites, later_episode_steps

    def reset(
        self, *, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[base.Obs, dict[str, Any]]:
        """Begins lifetimes; without a seed and options, the next episodes of the present ones."""
        before = self._state
        obs, infos = super().reset(seed=seed, options=options)
        if before is None or seed is not None or options:
            return obs, infos
        self._state = self.state._replace(food=before.food, episode=before.episode + 1)
        return obs, self._infos()

    def _begin_anew(self, state: State, rows: Tensor) -> State:
        begun = super()._begin_anew(state, rows)
        episode = state.episode.index_add(0, rows, torch.ones_like(rows))
        return begun._replace(food=state.food, episode=episode)

    def _time_limit(self, state: State) -> np.ndarray:
        first = (state.episode == 0).cpu().numpy()
        return np.where(first, self.max_episode_steps, self.later_episode_steps)

    def _reset_state(self, keys: Tensor, options: dict[str, Any]) -> State:
        u, behaviour_keys = uniform(splitmix64(keys ^ 4), 3)
        position = CENTRE + START_OFFSET * (2 * u[:, 1:] - 1)
        food = sites(self.num_sites, keys.device)[(self.num_sites * u[:, 0]).long()]
        if options.get("factors") is not None:
            factors = self._read_factors("factors", options["factors"], len(keys))
            position, food = factors.split(2, -1)
        behaviour = base.SegmentState.begin(position, behaviour_keys)
        return State(position, food, torch.zeros_like(keys), behaviour)

    def _step_state(self, state: State, actions: Tensor) -> State:
        moved = state.position + STEP * shrink_to_disk(actions, 1.0)
        return state._replace(position=moved.clamp(0, 1))

    def _observe(self, state: State) -> Tensor:
        return state.position.clone()

    def _success(self, state: State) -> Tensor:
        return state.ate

    def _reward(self, state: State) -> Tensor:
        return state.ate.float()

    def _terminated(self, state: State) -> np.ndarray:
        return state.ate.cpu().numpy()

    def _factors(self, state: State) -> Tensor:
        return torch.cat([state.position, state.food], -1)

    def _info(self, state: State) -> dict[str, base.TensorObs]:
        return {"interoception": state.ate.float()[:, None], "episode_of_lifetime": state.episode}

    def _expert(self, state: State) -> Tensor:
        return shrink_to_disk((state.food - state.position) / STEP, 1.0)

    def _behave(self, state: State) -> tuple[base.SegmentState, Tensor]:
        return behaviour_step(state.behaviour, state.position)

    def _dynamics_tests(self, keys: Tensor) -> dict[str, tuple[State, Tensor]]:
        """Full steps to the right, from 0.2 to 2 of them before the border, and in the middle."""
        state, (u, _) = self._reset_state(keys, {}), uniform(splitmix64(keys ^ 8), 4)
        border_x = 1 - STEP * between(u[:, 0], (0.2, 2.0))
        open_x, y = between(u[:, 1], (0.3, 0.6)), between(u[:, 2], (0.05, 0.95))
        action = u.new_tensor([1.0, 0.0]).expand(len(keys), -1)
        return {
            name: (state._replace(position=torch.stack([x, y], -1)), action)
            for name, x in (("border", border_x), ("open", open_x))
        }

    def _to_pixels(self, factors: Tensor) -> Tensor:
        return draw.unit_to_pixels(factors[..., :2])

    def _draw(self, state: State) -> Tensor:
        frames = draw.white_frames(self.num_envs, self.device)
        pixels = draw.frame_pixels(self.device)
        middle = draw.unit_to_pixels(torch.tensor([[0.5, 0.5]], device=self.device))[0]
        across, down = (pixels - middle[:, None]).abs()
        outside = torch.maximum(across[None], down[:, None]) - draw.UNIT_SIDE / 2
        frames = draw.blend(frames, (1.5 - outside.abs())[None], BORDER_COLOUR)
        for site in sites(self.num_sites, self.device):
            spot = draw.unit_to_pixels(site).expand(self.num_envs, -1)
            frames = draw.blend_disk(frames, spot, draw.UNIT_SIDE * MOUTH, SITE_COLOUR)
        food = draw.unit_to_pixels(state.food)
        frames = draw.blend_disk(frames, food, FOOD_PIXELS, FOOD_COLOUR)
        return draw.to_bytes(draw.blend_agent(frames, draw.unit_to_pixels(state.position)))


class HiddenFoodEnv(base.SingleEnv):
    vector_env = HiddenFoodVectorEnv
