"""Cube data of OGBench (Park et al. 2025, arXiv 2410.20092), made again by the package's own rule:
its environment and its scripted arm, which carries one block after another to places drawn at
random. `play`: the arm follows a plan with correlated noise. `noisy`: it reacts to the present
state, with noise on every action and some actions at random."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from ami_agent.data.ogbench_episodes import EpisodeRecorder, OGBenchData

EPISODES = {"single": 1000, "double": 1000, "triple": 3000, "quadruple": 5000}
STEPS = 1001
STACKING = {
    "single": (0.0, 0.0), "double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5),
}  # fmt: skip
"""Bounds of the probability, drawn for each episode, that a block is to be put on another."""
NOISE = 0.1  # of the plan; in `noisy` the largest standard deviation of an action's first numbers
NOISE_SMOOTHING = 0.5  # steps over which the noise of a plan is correlated
MIN_NORM = 0.4  # of the way that the reacting arm takes in one step
RANDOM_ACTIONS = 0.1  # fraction in `noisy`
NOISE_SHAPE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])  # x, y, z, yaw, gripper


@dataclass(frozen=True, kw_only=True)
class CubeData(OGBenchData):
    """How many blocks, and the rule: "play" or "noisy"."""

    blocks: str
    rule: str

    def recorder(self) -> ScriptedArm:
        return ScriptedArm(self)


def cube_data(dataset: str, episodes: int = 0) -> CubeData | None:
    """The data set of that name, "cube-single-play" with or without "-v0"; None for another name.
    `episodes`: of training, 0 is the official number."""
    found = re.fullmatch(r"cube-(\w+)-(play|noisy)(-v0)?", dataset)
    if not found or found[1] not in EPISODES:
        return None
    return CubeData(
        blocks=found[1], rule=found[2], episodes=episodes or EPISODES[found[1]], steps=STEPS
    )


class ScriptedArm(EpisodeRecorder):
    """OGBench's scripted arm. When a block is at its place, or time for it is up, the environment
    draws the next place."""

    def __init__(self, data: CubeData) -> None:
        from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
        from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle

        self.data: CubeData = data
        make: Any = gymnasium.make
        self.env = make(
            f"cube-{data.blocks}-v0", terminate_at_goal=False, mode="data_collection",
            disable_env_checker=True,
        ).unwrapped  # fmt: skip
        self.oracle: Any = (
            CubePlanOracle(env=self.env, noise=NOISE, noise_smoothing=NOISE_SMOOTHING)
            if data.rule == "play"
            else CubeMarkovOracle(env=self.env, min_norm=MIN_NORM)
        )

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        env, oracle, draw = self.env, self.oracle, np.random.mtrand._rand
        obs, info = env.reset(seed=int(draw.randint(2**31)))
        p_stack = draw.uniform(*STACKING[self.data.blocks])
        noise = draw.uniform(0, NOISE) * NOISE_SHAPE
        oracle.reset(obs, info)
        for step in range(self.data.steps):
            action = self._action(obs, info, noise)
            next_obs, _, _, _, info = env.step(action)
            position, velocity = info["prev_qpos"], info["prev_qvel"]
            if oracle.done:
                _, info = env.set_new_target(p_stack=p_stack)
                oracle.reset(next_obs, info)
            yield obs, action, step == self.data.steps - 1, position, velocity
            obs = next_obs

    def _action(self, obs: np.ndarray, info: dict[str, Any], noise: np.ndarray) -> np.ndarray:
        draw = np.random.mtrand._rand
        if self.data.rule == "noisy" and draw.uniform() < RANDOM_ACTIONS:
            return draw.uniform(-1, 1, len(NOISE_SHAPE))
        action = np.asarray(self.oracle.select_action(obs, info))
        if self.data.rule == "noisy":
            action = action + draw.normal(0, noise)
        return np.clip(action, -1, 1)
