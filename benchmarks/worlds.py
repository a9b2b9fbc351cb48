"""How many steps of life it takes to solve Gymnasium's worlds, beside Stable-Baselines3: the same
worlds, the same thresholds, the same episodes that judge.

    pip install 'ami-agent[baselines,mujoco]'
    python benchmarks/worlds.py --seeds 3 --episodes 20
    python benchmarks/worlds.py --only CartPole-v1

A world is solved where the mean return of the judging episodes reaches the threshold that
Gymnasium registers (Pendulum has none: -200). Runs and curves are kept in runs/worlds: a command
that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import gymnasium
import torch
from rich.console import Console

import ami_agent as ami
from ami_agent import runs
from ami_agent.evaluate import EPISODES_FROM, play_many
from ami_agent.life import Act, WorldConfig
from ami_agent.players import Begin, Scene
from ami_agent.report import table

Curve = list[tuple[int, float, float]]
"""Steps of life, mean return of the judging episodes, seconds of training."""


@dataclass(frozen=True)
class Exam:
    """A world, how long it is lived in, and the baseline that suits it."""

    steps: int
    every: int
    baseline: str
    baseline_steps: int
    baseline_every: int
    solved: float | None = None  # as registered, unless given

    def threshold(self, name: str) -> float:
        registered = gymnasium.spec(name).reward_threshold
        found = registered if self.solved is None else self.solved
        assert found is not None
        return found


WHO = ("ami", "sb3")

EXAMS = {
    "Pendulum-v1": Exam(3000, 250, "SAC", 6000, 500, solved=-200.0),
    "CartPole-v1": Exam(3000, 250, "PPO", 50_000, 4096),
    "InvertedPendulum-v5": Exam(3000, 250, "SAC", 12_000, 1000),
    "Reacher-v5": Exam(12_000, 1000, "SAC", 20_000, 2000),
}


def ours(name: str, exam: Exam, seed: int, episodes: int, out: Path) -> Curve:
    """Judged is Mode-1, which is who lives while all learn."""
    config = ami.recipes.gym(WorldConfig(id=name))
    interact = replace(config.interact, steps=exam.steps, judge=exam.every)
    config = replace(config, interact=interact)
    begun = (out / "config.json").exists()
    ami.train(config, out=out, seed=seed, resume=begun, curve=episodes)
    curve: Curve = []
    for line in (out / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["stage"] == "curve/reward":
            curve.append((int(row["lived"]), row["return"], row["seconds"]))
    return curve


def theirs(name: str, exam: Exam, seed: int, episodes: int) -> Curve:
    """Stable-Baselines3 with its default settings."""
    import stable_baselines3
    from stable_baselines3.common.env_util import make_vec_env

    kind = getattr(stable_baselines3, exam.baseline)
    model = kind("MlpPolicy", make_vec_env(name, 1, seed=seed), seed=seed, device="cpu")
    curve, seconds = [], 0.0
    while model.num_timesteps < exam.baseline_steps:
        began = time.perf_counter()
        model.learn(exam.baseline_every, reset_num_timesteps=not curve)
        seconds += time.perf_counter() - began
        outcome = play_many(_player(model), WorldConfig(id=name), episodes, EPISODES_FROM, "cpu")
        curve.append((model.num_timesteps, float(outcome.felt[:, 0].mean()), seconds))
    return curve


def _player(model: object) -> Begin:
    def begin(scene: Scene, seed: int) -> Act:
        def act(obs: torch.Tensor) -> torch.Tensor:
            chosen, _ = model.predict(obs.numpy(), deterministic=True)  # type: ignore[attr-defined]
            return scene.world.from_world(chosen)

        return act

    return begin


def solved(curve: Curve, threshold: float) -> tuple[int, float] | None:
    """The first steps and seconds with which the threshold was reached."""
    return next(((steps, s) for steps, mark, s in curve if mark >= threshold), None)


def kept(path: Path, find: Callable[[], Curve]) -> Curve:
    """A curve, found once."""
    if not path.exists():
        curve = find()
        path.parent.mkdir(parents=True, exist_ok=True)
        runs.write_json(path, {"curve": curve})
    return [tuple(point) for point in runs.read_json(path)["curve"]]  # type: ignore[misc]


def told(found: Sequence[tuple[int, float] | None]) -> str:
    return ", ".join("not" if f is None else f"{f[0]}" for f in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--only", choices=list(EXAMS), nargs="*", default=list(EXAMS))
    parser.add_argument("--who", choices=WHO, nargs="*", default=WHO)
    parser.add_argument("--out", type=Path, default=Path("runs/worlds"))
    asked = parser.parse_args()
    rows = []
    for name in asked.only:
        exam, folder = EXAMS[name], asked.out / name
        threshold = exam.threshold(name)
        for who in ("ami" if who == "ami" else exam.baseline for who in asked.who):
            curves = []
            for seed in range(asked.seeds):
                place = folder / f"{who}-{seed}-{asked.episodes}.json"
                find = partial(theirs, name, exam, seed, asked.episodes)
                if who == "ami":
                    find = partial(ours, name, exam, seed, asked.episodes, folder / str(seed))
                curves.append(kept(place, find))
            found = [solved(curve, threshold) for curve in curves]
            last = ", ".join(f"{curve[-1][1]:.1f} at {curve[-1][0]}" for curve in curves)
            seconds = ", ".join("-" if f is None else f"{f[1]:.0f}" for f in found)
            rows.append([name, f"{threshold:g}", who, told(found), seconds, last])
    columns = ["world", "solved at", "who", "steps until solved", "seconds", "return at the end"]
    Console(width=160).print(table("steps of life until a world is solved", columns, rows))


if __name__ == "__main__":
    main()
