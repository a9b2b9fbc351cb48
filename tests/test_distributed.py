"""Several processes train as one does: the same data, the same loss, one run folder; and none waits
for another that has ended."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import ami_agent as ami
import ami_agent.cli.main as cli
from ami_agent.config import override
from ami_agent.storage import checkpoint, run_dir
from ami_agent.training import PretrainMasked, distributed
from ami_agent.training.optim import OptimConfig
from ami_agent.training.pretrain import MaskedLossWeights
from ami_agent.training.representation_losses import covariance, variance
from modules.perception.target_encoder import EMATargetConfig
from tests.conftest import error_line, small
from tests.kills import child, rows
from tests.test_signals import until

ROOT = Path(__file__).parent.parent
training = sys.modules[ami.train.__module__]
SHIPPED = ROOT / "runs" / "reference" / "two-rooms"


STARTED: list[int] = []


@pytest.fixture(autouse=True)
def _none_is_left():
    yield
    while STARTED:
        with suppress(OSError):  # it has ended
            pid = STARTED.pop()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def start(do: Callable[[], None], folder: Path, size: int = 2) -> list[int]:
    """The processes that do it together, as torchrun would start them."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def of_rank(rank: int) -> Callable[[], None]:
        def run() -> None:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
            torch.set_num_threads(1)
            do()

        return run

    pids = [child(of_rank(rank), folder / f"log-{rank}") for rank in range(size)]
    STARTED.extend(pids)
    return pids


def end(pids: list[int], seconds: float = 120) -> list[int]:
    """Their exit codes, which they must have within so many seconds."""
    codes, deadline = {}, time.monotonic() + seconds
    while len(codes) < len(pids):
        assert time.monotonic() < deadline, "these processes do not end"
        for pid in set(pids) - set(codes):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                STARTED.remove(pid)
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def together(do: Callable[[], None], folder: Path, size: int = 2) -> None:
    codes = end(start(do, folder, size))
    logs = [path.read_text() for path in sorted(folder.glob("log-*"))]
    assert codes == [0] * size, "\n".join(logs)


def recipe(name: str) -> ami.Config:
    """The stages of a recipe that learn from what is recorded alike in all processes."""
    config = small(ami.recipes.recipe(name))
    stages = dict(config.stages)
    if name == "two-rooms":  # the goal of a state is any other of the batch
        stages["train_goal_critic"] = replace(stages["train_goal_critic"], group_size=1)
        del stages["distill_policy"]  # an untrained planner magnifies rounding; see below
    else:
        kept = ("collect", "train_jepa", "train_goal_critic", "distill_paths")
        stages = {n: stage for n, stage in stages.items() if n in kept}
        stages["train_jepa"] = replace(stages["train_jepa"], target_encoder=EMATargetConfig())
    subgoals = ami.recipes.two_rooms().actor.subgoals
    return override(config, {"stages": stages, "actor.subgoals": subgoals})


def check_same_curve(one: Path, several: Path, tolerance: float) -> None:
    """The same metrics of the same stages and steps, in one log. The probes, linear regressions,
    magnify the rounding of the states."""
    ours, theirs = (
        {(row.pop("stage"), row["step"]): row for row in rows(run)} for run in (one, several)
    )
    assert list(ours) == list(theirs)
    for key, row in ours.items():
        limit = 100 * tolerance if key[0] == "state" else tolerance
        assert row == pytest.approx(theirs[key], rel=limit, abs=limit), key


@pytest.mark.parametrize("name", ["two-rooms", "two-rooms-random", "windy-rooms"])
def test_two_processes_record_the_same_steps_and_have_the_loss_of_one(name, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    config, options = recipe(name), {"seed": 3, "keep_replay_buffer": True}
    agent = ami.train(config, out=tmp_path / "one", **options)
    together(lambda: ami.train(config, out=tmp_path / "two", **options), tmp_path)
    # rounding, which differs between processors: up to 1.5e-4 was seen on one
    check_same_curve(tmp_path / "one", tmp_path / "two", 1e-3)
    one, two = (checkpoint.load(tmp_path / run / "memory")[0] for run in ("one", "two"))
    assert all(torch.equal(part, two[name]) for name, part in one.items())
    weights = dict(ami.load(tmp_path / "two").named_parameters())
    parts = agent.named_parameters()
    pairs = ((part - weights[name]).detach().abs().flatten() for name, part in parts)
    difference = torch.cat(list(pairs))
    # where a gradient is almost 0, rounding decides on its sign, and Adam steps that way
    assert float(difference.max()) < 1e-3
    assert float((difference > 1e-4).double().mean()) < 1e-4


def test_two_processes_distil_the_plans_of_one(tmp_path):
    config, agent = run_dir.settings_of(SHIPPED), ami.load(SHIPPED).requires_grad_()
    stage = config.stages["distill_policy"]
    optim = replace(stage.optim, steps=20, batch_size=64, warmup_steps=1)
    stage = replace(stage, optim=optim, rounds=2, num_envs=8, steps=4)
    start_weights = {name: part.clone() for name, part in agent.state_dict().items()}

    def distil(out: Path) -> None:
        agent.load_state_dict(start_weights)
        with distributed.joined("cpu", ""):
            run = stage.start(agent, config.env, 3)
            assert isinstance(run.total, int)
            metrics = [run.update() for _ in range(run.total)]
            if not distributed.world().rank:
                torch.save((metrics, run.all_labels._asdict()), out)

    distil(tmp_path / "one")
    together(lambda: distil(tmp_path / "two"), tmp_path)
    one, two = (torch.load(tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-3)
    for ours, theirs in zip(one[0], two[0], strict=True):
        torch.testing.assert_close(ours["loss"], theirs["loss"], rtol=1e-3, atol=1e-5)


def test_two_processes_pretrain_perception_with_the_gradient_of_one(tmp_path):
    stage = PretrainMasked(
        optim=OptimConfig(steps=2, batch_size=8),
        num_frames=2,
        weights=MaskedLossWeights(variance=1.0, covariance=1.0, sigreg=1.0, flow=1.0),
    )
    config = recipe("two-rooms")
    agent = ami.build(config, config.env.build(1).spec, num_envs=8, buffer_size=33)
    collect = config.collect.start(agent, config.env, 3)
    while collect.step < collect.total:
        collect.update()
    collect.finish()
    start_weights = {name: part.clone() for name, part in agent.state_dict().items()}

    def pretrain(out: Path) -> None:
        agent.load_state_dict(start_weights)
        with distributed.joined("cpu", ""):
            run = stage.start(agent, config.env, 3)
            metrics = run.update()
            gradients = [p.grad for p in agent.perception.parameters()]
            if not distributed.world().rank:
                torch.save((metrics, gradients), out)

    pretrain(tmp_path / "one")
    together(lambda: pretrain(tmp_path / "two"), tmp_path)
    one, two = (torch.load(tmp_path / name) for name in ("one", "two"))
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_the_gradient_of_several_is_that_of_the_joined_batch(tmp_path):
    torch.manual_seed(0)
    first, second = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()
    batch = torch.randn(12, 5, dtype=torch.float64)
    parameters = [*first.parameters(), *second.parameters()]

    def gradient() -> tuple[list[torch.Tensor], torch.Tensor]:
        split, share = distributed.split, distributed.share
        states = split(first, batch)
        ahead = split(second, states.tanh())  # a share of what was gathered
        loss = variance(states) + covariance(ahead) + (ahead.roll(1, 0) * ahead).sum()
        loss = loss + second(first(share(batch))).square().mean() + first.weight.square().sum()
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        means = distributed.average_gradients(parameters, {"loss": loss.detach()})
        return [parameter.grad for parameter in parameters], means["loss"]

    def save() -> None:
        with distributed.joined("cpu", ""):
            torch.save(gradient(), tmp_path / f"gradient-{distributed.world().rank}")

    together(save, tmp_path, size=3)
    for rank in range(3):
        torch.testing.assert_close(torch.load(tmp_path / f"gradient-{rank}"), gradient())


def command(config: ami.Config, run: Path, *flags: str) -> Callable[[], None]:
    """`ami train` of these settings; what it prints, and its exit code, are in files."""

    def do() -> None:
        cli.recipe = lambda name: config  # type: ignore[assignment]
        out, errors, rank = io.StringIO(), io.StringIO(), os.environ["RANK"]
        with redirect_stdout(out), redirect_stderr(errors):
            code = cli.main(["train", "two-rooms", "--out", str(run), "--episodes", "1", *flags])
        run.with_name(f"said-{rank}").write_text(f"{code}\n{out.getvalue()}\n{errors.getvalue()}")

    return do


def said(run: Path, rank: int) -> tuple[int, list[str]]:
    code, *lines = run.with_name(f"said-{rank}").read_text().split("\n")
    return int(code), [line for line in lines if line.startswith("ami: ")]


def test_a_process_that_dies_ends_the_others_in_one_line_and_any_number_resumes(tmp_path):
    config, run = (
        override(small(ami.recipes.two_rooms(), 150), {"stages.distill_policy": None}),
        tmp_path / "run",
    )
    for lost, flags in enumerate([(), ("--resume",)]):
        known = checkpoint.checkpoints(run)
        pids = start(command(config, run, "--save-every", "0.1", *flags), tmp_path)
        until(lambda known=known: len({*checkpoint.checkpoints(run)} - {*known}) > 1, 120)
        os.kill(pids[lost], signal.SIGKILL)
        assert end(pids, seconds=20)[lost] == -signal.SIGKILL
        line = f"process {1 - lost} of 2 has lost another process of the run"
        assert said(run, 1 - lost) == (1, [f"ami: {line}; continue with --resume"])
        assert checkpoint.load(checkpoint.latest(run))[1]["updates"] < 24 + 2 * 150
    ami.train(config, out=run, resume=True)  # in a single process
    ami.train(config, out=tmp_path / "whole")
    check_same_curve(tmp_path / "whole", run, 1e-3)


def test_a_signal_saves_and_ends_the_run_in_every_process(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    config, run = small(ami.recipes.two_rooms(), 100_000), tmp_path / "run"
    pids, log = start(command(config, run), tmp_path), run / "metrics.jsonl"
    until(lambda: log.exists() and b"train_jepa" in log.read_bytes(), 120)
    for pid in reversed(pids):
        os.kill(pid, signal.SIGTERM)
    assert end(pids, seconds=20) == [0, 0]  # the processes of the test itself
    assert "interrupted by SIGTERM" in said(run, 0)[1][0]
    assert "continue with --resume" in said(run, 0)[1][0]
    assert [said(run, rank)[0] for rank in (0, 1)] == [1, 1]
    assert len(checkpoint.checkpoints(run)) > 1


REFUSED = {
    "train two-rooms --collect.num-envs 1501": "collect.num_envs is 1501, which 2 processes",
    "train two-rooms --train-jepa.optim.batch-size 127": "make it a multiple of 2",
    "train two-rooms-random --train-jepa.optim.batch-size 4": "in groups of 4: make it a multiple",
    "train gym": "the stage actor_critic learns in a single process",
    "eval runs/reference/two-rooms": "ami eval runs in a single process",
}


@pytest.mark.parametrize("argv", REFUSED)
def test_what_several_processes_cannot_share_is_refused_in_one_line(
    argv, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    assert REFUSED[argv] in error_line(capsys, *argv.split())
    monkeypatch.setenv("RANK", "1")
    assert cli.main(argv.split()) == 2
    assert capsys.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())  # nothing has begun


def test_processes_with_other_seeds_are_refused(tmp_path):
    def do() -> None:
        with pytest.raises(ami.ConfigError, match="the same settings and seed"):
            ami.train(recipe("two-rooms"), out=tmp_path / "run", seed=int(os.environ["RANK"]))

    together(do, tmp_path)
    assert not (tmp_path / "run").exists()


def test_torchrun_trains_and_evaluates_one_run(tmp_path):
    flags = (
        "--collect.num-envs 8 --collect.steps 16 --train-jepa.optim.steps 4 "
        "--train-goal-critic.optim.steps 4 --distill-policy.optim.steps 4 "
        "--distill-policy.rounds 1 --distill-policy.num-envs 4 --distill-policy.steps 2 "
        "--eval-env.options max_episode_steps 4 --episodes 1 --device cpu "
        "--planner.iterations 1 --planner.warm-iterations 1 --planner.horizon 2"
    )
    run = tmp_path / "run"
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv += ["-m", "ami_agent", "train", "two-rooms", "--out", str(run), *flags.split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        argv, capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("in 2 processes") == 1
    assert {"react", "plan"} <= json.loads((run / "eval.json").read_text()).keys()
    assert [path.name for path in run.glob("events*")] == [
        path.name for path in run.glob("events*") if path.stat().st_size
    ]
    steps = [(row["stage"], row["step"]) for row in rows(run)]
    assert len(steps) == len(set(steps))  # one process has logged
