"""Who else may live in a world: the algorithms of Stable-Baselines3, with its default settings."""

from __future__ import annotations

import time
from functools import cached_property
from importlib.util import find_spec
from typing import Any, TypeAlias

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ami_agent.bench.translation import (
    Plain,
    Translated,
    check_action,
    plain_actions,
    plain_observations,
)
from ami_agent.evaluate import play
from ami_agent.life import Act, World, WorldConfig
from ami_agent.players import Begin, Scene
from ami_agent.vectors import around, bring
from modules.types import UnusableInput

SMALLEST = 36
"""Pixels to a side of the smallest picture that its convolutions fit into."""

FIRST = 1000
"""Steps, or an episode, before hindsight learns: it looks back on episodes that are over."""

Curve: TypeAlias = list[tuple[int, float, float]]
"""Steps of life, mean return of the judging episodes, seconds of training."""


class Bare(World):
    """Environments with the plain spaces that an algorithm is trained with (`Translated`)."""

    who = "the algorithm"

    @cached_property
    def observe(self) -> Plain:
        return plain_observations(self.envs.single_observation_space)

    @cached_property
    def choose(self) -> Plain:
        return plain_actions(self.envs.single_action_space)

    def sensed(self, obs: Any, what: str = "") -> Any:
        return self.observe.convert(obs)

    def to_world(self, action: Any) -> np.ndarray:
        taken = self.choose.convert(action)
        check_action(taken, self.envs.action_space, self.who)
        return taken


def check_installed() -> None:
    """Raises UnusableInput if Stable-Baselines3 isn't there."""
    if find_spec("stable_baselines3") is None:
        raise UnusableInput(
            "stable-baselines3 is not installed: pip install 'ami-agent[baselines]', or compare "
            "with nobody: --who ami"
        )


def alone(config: WorldConfig) -> gymnasium.Env:
    """One of these worlds, as Gymnasium knows it."""
    for module in config.imports:
        bring(module)
    env = gymnasium.make(config.id, **config.keywords)
    for wrap in around(config.limit, config.repeat, config.stack):
        env = wrap(env)
    return env


def learn(
    who: str, config: WorldConfig, *, steps: int, every: int, seed: int, episodes: int, first: int,
    device: str,
) -> Curve:  # fmt: skip
    """Judged after every so many steps, and what was learnt from them, in the episodes of seed
    `first` and on; UnusableInput where who learns so can't live there."""
    from stable_baselines3.common.callbacks import BaseCallback  # an extra

    model = _model(who, config, seed, device)
    curve: Curve = []

    class Judge(BaseCallback):
        """Looks on at one life, in which exploration fades as its length has it: cut into pieces,
        it would fade in each."""

        began = time.perf_counter()

        def _on_rollout_start(self) -> None:
            lived = curve[-1][0] if curve else 0
            if self.num_timesteps >= lived + every:
                self._look()

        def _on_step(self) -> bool:
            return True

        def _on_training_end(self) -> None:
            if not curve or curve[-1][0] < self.num_timesteps:
                self._look()

        def _look(self) -> None:
            now = time.perf_counter()
            found = judged(model, config, episodes, first)
            curve.append((self.num_timesteps, found, now - self.began))
            self.began += time.perf_counter() - now

    model.learn(steps, callback=Judge())
    model.get_env().close()
    return curve


def _model(who: str, config: WorldConfig, seed: int, device: str) -> Any:
    import stable_baselines3 as sb3  # an extra
    from stable_baselines3.common.env_util import make_vec_env

    kinds = {"sac": sb3.SAC, "td3": sb3.TD3, "ppo": sb3.PPO, "dqn": sb3.DQN, "her": sb3.SAC}
    envs = make_vec_env(lambda: Translated(alone(config), who.upper()), 1, seed=seed)
    lasts = config.limit or envs.get_attr("spec")[0].max_episode_steps or 0
    hindsight = {
        "replay_buffer_class": sb3.HerReplayBuffer, "learning_starts": max(FIRST, lasts + 1)
    }  # fmt: skip
    try:
        return kinds[who](
            _policy(envs.observation_space), envs, seed=seed, device=device,
            **(hindsight if who == "her" else {}),
        )  # fmt: skip
    except (AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise UnusableInput(f"{who.upper()} can't live in {config.id}: {told}") from None


def _policy(space: Any) -> str:
    from stable_baselines3.common.preprocessing import is_image_space

    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    large = is_image_space(space) and sorted(space.shape)[1] >= SMALLEST
    return "CnnPolicy" if large else "MlpPolicy"


def judged(model: Any, config: WorldConfig, episodes: int, first: int) -> float:
    """The mean return of so many episodes, those in which the agent is judged."""
    world = Bare(config, episodes, torch.device("cpu"), config.keywords)
    outcome = play(_player(model), world, first)
    world.close()
    return float(outcome.felt[:, 0].mean())


def _player(model: Any) -> Begin:
    def begin(scene: Scene, seed: int) -> Act:
        def act(obs: Any) -> Tensor:
            chosen, _ = model.predict(obs, deterministic=True)
            return torch.as_tensor(chosen)

        return act

    return begin
