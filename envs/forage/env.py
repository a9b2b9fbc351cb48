"""The environment: how episodes begin, what is observed, and the Gymnasium classes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ..rng import between, keys_from_seeds, splitmix64, uniform
from ..single_env import SingleEnv
from ..vector_env import (
    NUM_TESTS,
    DynamicsTest,
    TensorObs,
    TorchVectorEnv,
    check_range,
    check_unit_rows,
    choose,
    read_factors,
    repeated,
    run_test,
)
from .dynamics import (
    GRID,
    MARGIN,
    NUM_FOODS,
    SPLITS,
    STEP,
    TASKS,
    BehaviourState,
    EpisodeRecord,
    State,
    damage_at,
    mark_visited,
    sample_layout,
    step_state,
    to_factors,
)
from .policies import EXPERTS, behaviour_step, init_behaviour
from .render import draw_frames, to_pixels

ENERGY = (0.3, 0.8)  # as episodes begin
RIPE = 0.7  # probability of a food to be ripe as an episode begins
FACTOR_NAMES = ("body x", "body y", "energy", *(f"food {i + 1}" for i in range(NUM_FOODS)))


def sample_energy_growth(keys: Tensor) -> Tensor:
    """Keys [B] -> energy and growths as episodes begin, [B, 3]."""
    u, _ = uniform(splitmix64(keys ^ 6), 1 + 2 * NUM_FOODS)
    for_energy, for_ripe, young = u.split([1, NUM_FOODS, NUM_FOODS], dim=-1)
    growth = torch.where(for_ripe < RIPE, 1.0, young)
    return torch.cat([between(for_energy, ENERGY), growth], -1)


def reset_state(keys: Tensor, split: str, factors: Tensor | None = None) -> State:
    """The first state of the episodes of keys [B]; `factors` [B, 5] set positions, energies and
    growths."""
    layout = sample_layout(keys, split)
    if factors is None:
        factors = torch.cat([layout.start, sample_energy_growth(keys)], -1)
    position, energy, growth = factors[:, :2], factors[:, 2], factors[:, 3:]
    zero = torch.zeros_like(energy)
    visited = mark_visited(zero.bool()[:, None].repeat(1, GRID * GRID), position)
    return State(
        position=position,
        energy=energy,
        growth=growth,
        damage=damage_at(position, layout.hazard, layout.radius),
        meal=torch.zeros_like(energy),
        layout=layout._replace(start=position),
        record=EpisodeRecord(zero, zero, zero, zero, visited, zero.bool()),
        behaviour=init_behaviour(position, splitmix64(keys ^ 4)),
        next_key=splitmix64(keys ^ 2),
    )


def observe(state: State) -> dict[str, Tensor]:
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


def _box(*low: float) -> spaces.Box:
    """From these bounds to 1."""
    return spaces.Box(np.array(low, np.float32), np.ones(len(low), np.float32))


def observation_space() -> spaces.Dict:
    food = spaces.Box(np.array([(-1, -1, 0)] * NUM_FOODS, np.float32), 1, dtype=np.float32)
    return spaces.Dict(
        {
            "body": _box(0, 0),
            "energy": _box(0),
            "food": food,
            "hazard": _box(-1, -1, 0),
            "flag": _box(-1, -1),
        }
    )


class ForageVectorEnv(TorchVectorEnv[State]):
    """B agents in the unit square, each with foods, a hazard and a flag.

    The action [2], shortened to length 1, moves the agent by 0.05. Observed are: "body" [2], its x
    and y; "energy" [1]; "food" [2, 3], dx, dy, growth; "hazard" [3], dx, dy, radius; "flag" [2],
    dx, dy; dx and dy are relative to the agent. Near a food the agent eats a larger fraction of
    what has grown the nearer it is, and the rest grows on. `info["interoception"]` [3] is energy,
    which every step costs and food restores; damage, which grows towards the hazard's centre; and
    the meal, how much was eaten in this step.

    The reward is 1 for every step that ends at the flag, else 0, whatever the task. Episodes end
    after `max_episode_steps` and never before. Reset option: "factors" [B, 5] sets positions,
    energies and growths; the layout stays the seed's. Dynamics tests: full steps to the right at
    the "border", and in the "open".
    """

    description = (
        "The agent (blue) eats food (green), which grows back where it was eaten, and is damaged "
        "near the hazard (red). The bar below is its energy; the flag is a position to go to."
    )
    factor_names: ClassVar[tuple[str, ...]] = FACTOR_NAMES
    interoception_names: ClassVar[tuple[str, ...]] = ("energy", "damage", "meal")

    def __init__(
        self,
        num_envs: int = 1,
        *,
        task: str = "eat",
        split: str = "all",
        max_episode_steps: int = 150,
        directed_fraction: float = 0.6,
        device: str | torch.device = "cpu",
        output: str = "numpy",
        render_mode: str | None = None,
    ) -> None:
        """`task` is how an episode is evaluated ("score" and "success" in infos) and which expert
        acts: "eat", "flag", "explore" or "stay"; it changes nothing else.

        `split` is which layouts are drawn: "all", "train" or "test"; their number is unlimited,
        and "train" and "test" share none. `directed_fraction` is how many of the behaviour policy's
        segments that aren't idle lead to a target.

        Raises ValueError for names that don't exist and for numbers out of range.
        """
        self.evaluate = choose("task", task, TASKS)
        self.expert = EXPERTS[task]
        self.directed_fraction = directed_fraction
        self._split = choose("split", split, {name: name for name in SPLITS})
        check_range("directed_fraction", directed_fraction, 0, 1)
        super().__init__(
            num_envs,
            observation_space(),
            spaces.Box(-1, 1, (2,), np.float32),
            max_episode_steps=max_episode_steps,
            device=device,
            output=output,
            render_mode=render_mode,
        )

    def _reset_state(self, keys: Tensor, options: dict[str, Any]) -> State:
        given, factors = options.get("factors"), None
        if given is not None:
            factors = read_factors("factors", given, (len(keys), len(FACTOR_NAMES)), self.device)
            check_unit_rows("factors", factors)
        return self._with_success(reset_state(keys, self._split, factors))

    def _step_state(self, state: State, actions: Tensor) -> State:
        return self._with_success(step_state(state, actions))

    def _with_success(self, state: State) -> State:
        """The state that records whether its episode ever succeeded."""
        succeeded = state.record.succeeded | self.evaluate(state).success
        return state._replace(record=state.record._replace(succeeded=succeeded))

    def _observe(self, state: State) -> TensorObs:
        return observe(state)

    def _reward(self, state: State) -> Tensor:
        return state.at_flag.float()

    def _info(self, state: State) -> dict[str, Tensor]:
        evaluation = self.evaluate(state)
        return {
            "interoception": torch.stack([state.energy, state.damage, state.meal], -1),
            "factors": to_factors(state),
            "score": evaluation.score,
            "success": state.record.succeeded,
            "final_success": evaluation.success,
            "cells": state.cells,
            "damage": state.record.damage,
            "eaten": state.record.eaten,
        }

    def _expert(self, state: State) -> Tensor:
        """Only the expert of the task "flag" keeps away from the hazard."""
        return self.expert(state)

    def _behave(self, state: State) -> tuple[BehaviourState, Tensor]:
        return behaviour_step(state.behaviour, state.position, state.layout, self.directed_fraction)

    def _dynamics_tests(self, seed: int) -> dict[str, DynamicsTest]:
        """Full steps to the right, from 0.2 to 2 of them before the border, and in the middle."""
        keys = keys_from_seeds(range(seed, seed + NUM_TESTS), self.device)
        state, (u, _) = reset_state(keys, self._split), uniform(splitmix64(keys ^ 8), 4)
        border_x = 1 - STEP * between(u[:, 0], (0.2, 2.0))
        border_y = between(u[:, 1], (MARGIN, 1 - MARGIN))
        open_x, open_y = between(u[:, 2], (0.3, 0.6)), between(u[:, 3], (0.3, 0.7))
        actions = repeated([1.0, 0.0], NUM_TESTS, self.device)
        starts = {"border": (border_x, border_y), "open": (open_x, open_y)}
        return {
            name: run_test(
                state._replace(position=torch.stack(start, -1)),
                actions,
                step_state,
                observe,
                to_factors,
            )
            for name, start in starts.items()
        }

    def _to_pixels(self, factors: Tensor) -> Tensor:
        return to_pixels(factors[..., :2])

    def _draw(self, state: State) -> Tensor:
        return draw_frames(state)


class ForageEnv(SingleEnv[ForageVectorEnv]):
    """One environment of `ForageVectorEnv`."""

    vector_env = ForageVectorEnv
    interoception_names = ForageVectorEnv.interoception_names
