"""Sample efficiency beside Stable-Baselines3: environment steps to a return threshold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium
from rich.console import Console

from ami_agent import config_io
from ami_agent.adapters.env import EnvConfig
from ami_agent.bench import sb3
from ami_agent.bench.cache import measured_once
from ami_agent.bench.sb3 import Curve
from ami_agent.cli.command_flags import CommandFlags, Device, resolve_device, with_absolute_imports
from ami_agent.config import Config, override
from ami_agent.evaluation.evaluate import FIRST_EVAL_SEED, run_many
from ami_agent.evaluation.policies import make_random_policy
from ami_agent.logger import RunLogger, format_number, print_line, print_table
from ami_agent.recipes.gym import gym
from ami_agent.storage import files
from ami_agent.train import train
from ami_agent.training import OnlineActorCritic
from modules.actor.policy import OneHotActions
from modules.types import EPISODES, STEPS

Algorithm = Literal["random", "ami", "sac", "td3", "ppo", "dqn", "her"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Steps in an environment, between evaluations, and the return that counts as solved."""

    steps: int = 10_000
    eval_every: int = 1000
    baseline_steps: int = 10_000
    baseline_eval_every: int = 1000
    solved_at: float | None = None  # None: the reward threshold that Gymnasium registers
    updates_per_step: float = 1.0  # of this agent


BUDGETS: Mapping[str, Budget] = {
    "Pendulum-v1": Budget(
        steps=3000, eval_every=250, baseline_steps=6000, baseline_eval_every=500, solved_at=-200.0,
    ),
    "CartPole-v1": Budget(
        steps=3000, eval_every=250, baseline_steps=50_000, baseline_eval_every=4096,
    ),
    "InvertedPendulum-v5": Budget(
        steps=3000, eval_every=250, baseline_steps=12_000, baseline_eval_every=1000,
    ),
    "Reacher-v5": Budget(
        steps=12_000, eval_every=1000, baseline_steps=20_000, baseline_eval_every=2000,
    ),
    "HalfCheetah-v5": Budget(
        steps=30_000, eval_every=3000, baseline_steps=100_000, baseline_eval_every=10_000,
        updates_per_step=0.5,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SB3Comparison(CommandFlags):
    """Environment steps until an environment is solved, beside Stable-Baselines3 with its default
    settings.

    The default is five environments of Gymnasium. Learning curves are kept: a command that was
    stopped continues with the missing ones."""

    env: EnvConfig = field(default_factory=lambda: EnvConfig(id=""))
    """One environment, any that is registered with Gymnasium."""
    algorithms: tuple[Algorithm, ...] = ()
    """By default random actions, this agent ("ami"), and SAC, with HER in goal-conditioned
    environments, or PPO where actions are discrete."""
    steps: Annotated[int, STEPS] = 0
    """Environment steps; by default those of the environment's budget, or 10000. This agent takes
    500 random steps before."""
    eval_every: Annotated[int, STEPS] = 0
    """Steps between evaluations; by default those of the environment's budget, or 1000."""
    solved_at: Annotated[float | None, (-1e12, 1e12)] = None
    """Mean return that counts as solved; by default Gymnasium's reward threshold."""
    seeds: Annotated[int, (1, 10_000)] = 3
    episodes: Annotated[int, EPISODES] = 20
    """Episodes of an evaluation."""
    out: str = "runs/baselines"
    """Folder of the runs and curves."""
    device: Device = "auto"

    def measure(self, console: Console) -> dict[str, Any]:
        """By environment: the threshold, and by algorithm the curve of each seed."""
        env_ids = [self.env.id] if self.env.id else list(BUDGETS)
        comparisons = {name: self._compare(name, console) for name in env_ids}
        print_table(console, "environment steps until solved", COLUMNS, _rows(comparisons))
        return comparisons

    def _compare(self, name: str, console: Console) -> dict[str, Any]:
        config = gym(with_absolute_imports(replace(self.env, id=name)))
        algorithms = self.algorithms or ("random", "ami", default_algorithm(config))
        if set(algorithms) - {"random", "ami"}:
            sb3.check_installed()
        budget, folder = self._budget(name), Path(self.out) / name
        budgets = {"random": (0, 0), "ami": (budget.steps, budget.eval_every)}
        baseline_budget = (budget.baseline_steps, budget.baseline_eval_every)
        curves: dict[str, list[Curve]] = {}
        for algorithm in algorithms:
            print_line(console, f"{name}: {algorithm}")
            trial = Trial(
                config, algorithm, *budgets.get(algorithm, baseline_budget), self.episodes,
                resolve_device(self.device), budget.updates_per_step,
            )  # fmt: skip
            curves[algorithm] = [trial.curve(folder, seed, console) for seed in range(self.seeds)]
        return {"solved_at": budget.solved_at, "curves": curves}

    def _budget(self, name: str) -> Budget:
        budget = BUDGETS.get(name, Budget())
        registered = gymnasium.spec(name).reward_threshold if self.solved_at is None else None
        thresholds = (self.solved_at, budget.solved_at, registered)
        return replace(
            budget,
            steps=self.steps or budget.steps,
            eval_every=self.eval_every or budget.eval_every,
            baseline_steps=self.steps or budget.baseline_steps,
            baseline_eval_every=self.eval_every or budget.baseline_eval_every,
            solved_at=next((threshold for threshold in thresholds if threshold is not None), None),
        )


def default_algorithm(config: Config) -> Algorithm:
    """The algorithm of Stable-Baselines3 that suits the environment."""
    if isinstance(config.action_space, OneHotActions):
        return "ppo"
    online = config.find(OnlineActorCritic)
    assert online is not None
    return "her" if online.hindsight_fraction else "sac"


@dataclass(frozen=True)
class Trial:
    """One algorithm in one environment."""

    config: Config
    algorithm: str
    steps: int
    eval_every: int
    episodes: int
    device: str
    updates_per_step: float = 1.0

    def curve(self, folder: Path, seed: int, console: Console) -> Curve:
        """The learning curve of a seed, measured once and kept. Raises ConfigError where the kept
        curve has other settings; it does not depend on the version of the code."""
        label = self.algorithm if self.algorithm in ("random", "ami") else self.algorithm.upper()
        path = folder / f"{label}-{seed}-{self.episodes}.json"
        settings = {"env": asdict(self.config.env), "steps": self.steps, "every": self.eval_every}
        if self.algorithm == "ami":
            settings = config_io.to_json(self._agent_config())
        points = measured_once(
            path, json.loads(json.dumps(settings)), "curve",
            lambda: self._measure(folder / str(seed), seed, console), _is_curve,
        )  # fmt: skip
        return [tuple(point) for point in points]

    def _agent_config(self) -> Config:
        changes = {
            "stages.actor_critic.steps": self.steps,
            "stages.actor_critic.eval_every": self.eval_every,
            "stages.actor_critic.updates_per_step": self.updates_per_step,
        }
        return override(self.config, changes)

    def _measure(self, run: Path, seed: int, console: Console) -> Curve:
        if self.algorithm == "ami":
            return self._train_agent(run, seed, console)
        if self.algorithm == "random":
            results = run_many(
                make_random_policy, self.config.eval_env, self.episodes, FIRST_EVAL_SEED, "cpu"
            )
            return [(0, float(results.signal_sums[:, 0].mean()), 0.0)]
        env = self.config.eval_env
        return sb3.learning_curve(
            sb3.make_model(self.algorithm, env, seed, self.device),
            steps=self.steps, eval_every=self.eval_every,
            mean_return=lambda model: sb3.mean_return_of(
                model, env, self.episodes, FIRST_EVAL_SEED
            ),
        )  # fmt: skip

    def _train_agent(self, run: Path, seed: int, console: Console) -> Curve:
        """The curve of the agent's evaluations during training: of Mode-1, which also collects the
        data, and before that, after random actions, of Mode-2."""
        resume = (run / "config.json").exists()
        with closing(RunLogger(run, console)) as logger:
            train(
                self._agent_config(), out=run, seed=seed, device=self.device, resume=resume,
                logger=logger, eval_episodes=self.episodes,
            )  # fmt: skip
        rows = files.read_metrics(run / "metrics.jsonl", "eval/")
        points: list[Any] = [[row.get(name) for name in CURVE_FIELDS] for row in rows]
        return [(int(point[0]), point[1], point[2]) for point in points if _is_point(point)]


CURVE_FIELDS = ("env_steps", "return", "seconds")
"""The names in metrics.jsonl of the numbers of a point."""


def _is_curve(found: object) -> bool:
    return isinstance(found, list) and bool(found) and all(map(_is_point, found))


def _is_point(point: object) -> bool:
    """Whether it is a list of three numbers."""
    if not isinstance(point, list):
        return False
    return len(point) == len(CURVE_FIELDS) and all(map(files.is_number, point))


def steps_to_threshold(curve: Curve, threshold: float | None) -> tuple[int, float] | None:
    """Steps and seconds of the first point that reaches the threshold."""
    for steps, mean_return, seconds in curve:
        if threshold is not None and mean_return >= threshold:
            return steps, seconds
    return None


COLUMNS = ["environment", "solved at", "algorithm", "steps until solved", "seconds", "final return"]


def _rows(comparisons: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, comparison in comparisons.items():
        threshold = comparison["solved_at"]
        text, unsolved = ("-", "-") if threshold is None else (f"{threshold:g}", "unsolved")
        for algorithm, curves in comparison["curves"].items():
            points = [steps_to_threshold(curve, threshold) for curve in curves]
            by_seed = (
                [unsolved if point is None else str(point[0]) for point in points],
                ["-" if point is None else f"{point[1]:.0f}" for point in points],
                [f"{format_number(curve[-1][1])} at {curve[-1][0]}" for curve in curves],
            )
            rows.append([name, text, algorithm, *map(", ".join, by_seed)])
    return rows
