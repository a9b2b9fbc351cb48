"""Environments of other packages by `ami train gym`: each starts, is interrupted, resumes, is
evaluated and shown."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TINY = (
    "--collect.steps",
    40,
    "--train-jepa.optim.steps",
    3,
    "--actor-critic.steps",
    40,
    "--actor-critic.optim.batch-size",
    8,
    "--actor-critic.train-jepa.optim.batch-size",
    8,
    "--planner.horizon",
    2,
    "--planner.iterations",
    1,
    "--planner.warm-iterations",
    1,
    "--save-every",
    0.2,
)
ENVS = {
    "FrozenLake-v1": ("", ()),
    "Blackjack-v1": ("", ()),
    "Acrobot-v1": ("", ()),
    "LunarLander-v3": ("Box2D", ()),
    "CarRacing-v3": ("Box2D", ("--env.max-episode-steps", 60)),
    "MiniGrid-Empty-5x5-v0": ("minigrid", ()),
    "gym_pusht/PushT-v0": ("gym_pusht", ()),
    "PointMaze_UMaze-v3": ("gymnasium_robotics", ()),
    "ALE/Pong-v5": ("ale_py", ("--env.frame-stack", 4, "--env.max-episode-steps", 60)),
}


def ami(*argv: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ami_agent", *map(str, argv)],
        cwd=cwd, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", ENVS)
def test_the_environment_is_trained_in_interrupted_resumed_evaluated_and_shown(name, tmp_path):
    package, options = ENVS[name]
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"the package {package} is not installed")
    named = ("--env.import", package) if package not in ("", "Box2D") else ()
    observed = ("--import", package) if named else ()
    train = (
        "train",
        "gym",
        "--env.id",
        name,
        *named,
        *options,
        *TINY,
        "--episodes",
        2,
        "--out",
        "run",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "ami_agent", *map(str, train)], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    until = time.monotonic() + 200
    while not list((tmp_path / "run").glob("checkpoints/*")) and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    message, _ = process.communicate(timeout=60)
    assert "Traceback" not in message
    done = ami(*train, "--resume", cwd=tmp_path) if process.returncode else None
    if done is not None:
        assert done.returncode == 0, done.stdout + done.stderr
    found = ami(
        "eval",
        "run",
        *observed,
        "--mode",
        "react",
        "--episodes",
        2,
        "--json",
        "found.json",
        cwd=tmp_path,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert json.loads((tmp_path / "found.json").read_text())["episodes"] == 2
    shown = ami("show", "run", *observed, "--mode", "react", "--episodes", 1, cwd=tmp_path)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert (tmp_path / "run" / "show" / "index.html").exists()
