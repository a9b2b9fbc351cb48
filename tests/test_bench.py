"""Benchmarks by name: measured side by side, stored, and evaluated in the same episodes."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from math import inf

import pytest
import torch
from rich.console import Console
from torch import nn

import ami_agent as ami
from ami_agent import HOME
from ami_agent.adapters.env import EnvConfig
from ami_agent.bench import sb3
from ami_agent.bench.baselines import BUDGETS, SB3Comparison, Trial, steps_to_threshold
from ami_agent.bench.references import (
    BATCH,
    ELITES,
    HIDDEN,
    POLICY_TRAJECTORIES,
    SOLVERS,
    TDMPC2,
    SolverCost,
    first_state,
    plan_repeatedly,
    trajectories,
)
from ami_agent.bench.sb3 import RawEnvAdapter
from ami_agent.cli.main import main
from ami_agent.components import CEMConfig
from ami_agent.config import override
from ami_agent.evaluation.evaluate import run_episodes
from ami_agent.storage import run_dir
from ami_agent.training import CollectBehaviour
from ami_agent.training.optim import OptimConfig
from modules.types import ConfigError
from tests.conftest import error_line

SHIPPED = HOME / "runs" / "reference" / "two-rooms"


def run_cli(*argv):
    return main([str(arg) for arg in argv])


def test_without_a_name_the_benchmarks_are_listed(tmp_path, capsys):
    assert run_cli("bench", "--json", tmp_path / "results.json") == 0
    output = json.loads((tmp_path / "results.json").read_text())
    names = {"references", "baselines", "suites", "planning-speed", "env-speed"}
    assert set(output) == names
    message = capsys.readouterr().out
    assert all(name in message for name in output)
    assert run_cli("--help") == 0
    assert "ami bench" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ("chess",),
            "no benchmark 'chess'; there are references, baselines, suites, planning-speed",
        ),
        (("env-speed", "--num-envs", "0"), "--num-envs"),
        (("planning-speed", "--num-envs", "0"), "--num-envs"),
        (("planning-speed", "--run", "nowhere"), "nowhere"),
        (("env-speed", "--env.id", "NoSuch-v0"), "NoSuch"),
        (("baselines", "--env.id", "NoSuch-v0"), "NoSuch"),
        (("baselines", "--algorithms", "alphazero"), "alphazero"),
        (("baselines", "--episodes", "0"), "--episodes is 0"),
        (("env-speed", "--seconds", "inf"), "--seconds is inf; it must be from 0"),
        (("env-speed", "--env.import", "nosuch.py"), "no environment could be measured"),
        (("baselines", "--solved-at", "nan"), "solved-at is nan"),
        (("baselines", "--json", "nowhere/results.json"), "a file in a folder that exists"),
        (("references", "--out", "nowhere/ratios.png"), "--out nowhere/ratios.png: it must be a"),
        (("references", "--run", "nowhere"), "nowhere"),
        (("references", "--seconds", "-1"), "--seconds is -1"),
    ],
)
def test_bad_input_gets_one_line(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error_line(capsys, "bench", *argv)


def test_envs_are_timed_in_every_vectorization_mode(tmp_path):
    def timed(name, count):
        flags = ("--env.id", name, "--num-envs", count, "--seconds", 0.3, "--json", tmp_path / "j")
        assert run_cli("bench", "env-speed", *flags) == 0
        return json.loads((tmp_path / "j").read_text())[name][str(count)]

    ours = timed("ami/Maze-v0", 32)
    assert ours["batched"] > 2 * ours["sync"] > 0
    assert ours["async"] > 0
    swing = timed("Pendulum-v1", 2)
    assert swing["batched"] is None  # Gymnasium steps it one by one
    assert min(swing["sync"], swing["async"]) > 0


def test_an_agent_is_timed_in_every_mode_alone_and_in_a_batch(tiny, tmp_path):
    ami.train(tiny, out=tmp_path / "run")
    flags = ("--run", tmp_path / "run", "--num-envs", 1, 32, "--seconds", 0.3)
    assert run_cli("bench", "planning-speed", *flags, "--json", tmp_path / "j") == 0
    output = json.loads((tmp_path / "j").read_text())
    assert list(output) == ["react", "plan"]
    for mode in output.values():
        assert mode["32"]["cpu"] > 2 * mode["1"]["cpu"] > 0  # a batch is planned for as one
    assert output["react"]["1"]["cpu"] > output["plan"]["1"]["cpu"]


def test_references_that_are_not_installed_are_left_out_with_the_reason(
    tmp_path, monkeypatch, capsys
):
    for name in ("stable_baselines3", "stable_worldmodel"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    files = tmp_path / "ratios.png", tmp_path / "j"
    flags = ("--run", SHIPPED, "--seconds", 0, "--out", files[0], "--json", files[1])
    assert run_cli("bench", "references", *flags) == 0
    output = json.loads(files[1].read_text())
    planners = {name: row for name, row in output.items() if row["unit"] == "plans"}
    assert [row["reference"] for row in planners.values()] == [
        "our CEM 512 x 6",
        "our MPPI 512 x 6",
        *SOLVERS,
    ]
    for row in output.values():
        measured = row["reference_rate"] is not None
        assert row["our_rate"] > 0
        assert measured == (not row["left_out"])
        if measured:
            assert row["ratio"] == row["our_rate"] / row["reference_rate"]
    left_out = {row["reference"] for row in output.values() if row["left_out"]}
    assert left_out == {*SOLVERS, "SB3's SAC"}
    assert output["16 ami/Maze-v0 / SyncVectorEnv"]["ratio"] > 1
    message = capsys.readouterr().out
    assert "stable-worldmodel can't be imported" in message
    assert "stable-baselines3 is not installed" in message
    assert files[0].read_bytes().startswith(b"\x89PNG")


def test_the_sampling_planners_have_the_size_of_td_mpc2():
    agent, sizes = ami.load(SHIPPED), []
    with closing(run_dir.settings_of(SHIPPED).env.build(1)) as env:
        state, context = first_state(agent, env)
    agent.evaluator.callbacks.append(lambda found: sizes.append(found.rollout.actions.shape))
    proposal = trajectories(agent, POLICY_TRAJECTORIES)
    cem = CEMConfig(**TDMPC2, num_elites=ELITES).build(agent.evaluator, proposal)
    short = context._replace(horizon=TDMPC2["horizon"], iterations=TDMPC2["iterations"])
    assert plan_repeatedly(cem, state, short)() == 1
    *iterations, last = sizes
    # beside its 512 samples, the mean and the best of the iteration before
    assert iterations == [(1, 512 + 2, 3, 2)] * 6
    assert last == (1, 2, 3, 2)
    candidates = torch.randn(1, 5, 8, 2, generator=torch.Generator().manual_seed(0))
    info = {"state": state[:, None].expand(-1, 5, -1)}
    energy = SolverCost(agent, context).get_cost(info, candidates)
    actions = agent.evaluator.action_space.squash(candidates)
    assert torch.equal(energy, agent.evaluator.evaluate(state, actions, context).energy)


def test_sac_is_updated_with_batches_and_layers_of_the_same_size():
    pytest.importorskip("stable_baselines3", reason="the extra `baselines` is not installed")
    model = sb3.make_model("sac", EnvConfig(id="Pendulum-v1"), seed=0, device="cpu")
    widths = {m.out_features for m in model.actor.latent_pi if isinstance(m, nn.Linear)}
    assert (model.batch_size, widths) == (BATCH, {HIDDEN})


def test_every_algorithm_is_evaluated_in_the_same_episodes():
    config = EnvConfig(id="Pendulum-v1", max_episode_steps=30)
    bare = RawEnvAdapter(config, 4, torch.device("cpu"), config.make_kwargs)

    def pushes(push):
        return lambda scene, seed: lambda obs: torch.full((4, 1), push)

    ours = run_episodes(pushes(0.5), config.build(4), 7)
    theirs = run_episodes(pushes(1.0), bare, 7)  # of 2, the strongest baseline
    assert torch.equal(ours.signal_sums[:, 0], theirs.signal_sums[:, 0])
    assert ours.length.tolist() == theirs.length.tolist() == [30] * 4


def test_a_learning_curve_is_measured_once_and_that_of_another_task_is_refused(tmp_path, capsys):
    pytest.importorskip("stable_baselines3", reason="the extra `baselines` is not installed")
    env = ("--env.id", "CartPole-v1", "--seeds", 1, "--episodes", 3, "--eval-every", 100, "--out",
             tmp_path / "kept", "--json", tmp_path / "j")  # fmt: skip
    flags = (*env, "--algorithms", "random", "ppo")
    assert run_cli("bench", "baselines", *flags, "--steps", 300) == 0
    found = json.loads((tmp_path / "j").read_text())["CartPole-v1"]
    assert found["solved_at"] == 475
    ((random,),) = found["curves"]["random"]
    assert random[0] == 0
    assert 8 <= random[1] <= 60
    ((steps, metric, seconds),) = found["curves"]["ppo"][0]
    assert steps == 2048  # it learns from so many steps at once
    assert 8 <= metric <= 500
    assert seconds > 0
    kept = tmp_path / "kept" / "CartPole-v1" / "PPO-0-3.json"
    before = kept.stat().st_mtime_ns
    assert run_cli("bench", "baselines", *flags, "--steps", 300) == 0
    assert kept.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "j").read_text())["CartPole-v1"] == found
    message = error_line(capsys, "bench", "baselines", *flags, "--steps", 400)
    assert "PPO-0-3.json was measured with other settings, steps is 300, not 400" in message
    assert "SAC does not support CartPole-v1" in error_line(
        capsys, "bench", "baselines", *env, "--algorithms", "sac"
    )


def test_without_algorithms_to_compare_no_extra_is_needed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)  # as if it were not installed
    flags = ("--env.id", "CartPole-v1", "--episodes", 2, "--out", tmp_path)
    message = error_line(capsys, "bench", "baselines", *flags)
    assert "pip install 'ami-agent[baselines]'" in message
    assert run_cli("bench", "baselines", *flags, "--algorithms", "random", "--seeds", 1) == 0


def test_the_learning_curve_of_ami_counts_env_steps_and_returns(tmp_path):
    config = ami.recipes.gym(EnvConfig(id="CartPole-v1"))
    few = OptimConfig(steps=3, batch_size=8)
    config = override(
        config,
        {
            "stages.collect": CollectBehaviour(num_envs=1, steps=30),
            "stages.train_jepa.optim": few,
            "stages.actor_critic.optim": few,
            "stages.actor_critic.train_jepa": replace(config.stages["train_jepa"], optim=few),
        },
    )
    trial = Trial(config, "ami", steps=8, eval_every=4, episodes=2, device="cpu")
    curve = trial.curve(tmp_path, 0, Console(quiet=True))
    assert [steps for steps, _, _ in curve] == [30, 30 + 1 + 4, 30 + 1 + 8]
    assert all(8 <= metric <= 500 for _, metric, _ in curve)
    before = (tmp_path / "ami-0-2.json").stat().st_mtime_ns
    assert trial.curve(tmp_path, 0, Console(quiet=True)) == curve
    assert (tmp_path / "ami-0-2.json").stat().st_mtime_ns == before
    kept = tmp_path / "ami-0-2.json"
    for corrupt in ([], {"curve": []}, {"curve": [["a", 1, 2]]}, {"curve": [[1, 2]]}):
        found = kept.read_text()
        kept.write_text(json.dumps(corrupt))
        with pytest.raises(ConfigError, match=r"ami-0-2\.json holds no curve"):
            trial.curve(tmp_path, 0, Console(quiet=True))
        kept.write_text(found)
    calm = override(config, {"stages.actor_critic.action_noise": 0.1})
    with pytest.raises(ConfigError, match=r"actor_critic\.action_noise is 0.5, not 0.1"):
        replace(trial, config=calm).curve(tmp_path, 0, Console(quiet=True))
    assert ami.load(tmp_path / "0").spec.choices == (2,)


def test_a_stored_curve_without_a_task_still_counts(tmp_path):
    kept = tmp_path / "CartPole-v1" / "ami-0-20.json"
    kept.parent.mkdir()
    kept.write_text(json.dumps({"curve": [[501, 20.0, 9.0], [1501, 480.0, 49.0]]}))
    bench = SB3Comparison(
        env=EnvConfig(id="CartPole-v1"), algorithms=("ami",), seeds=1, out=str(tmp_path), json=""
    )
    found = bench.measure(Console(quiet=True))["CartPole-v1"]
    (curve,) = found["curves"]["ami"]
    assert steps_to_threshold(curve, found["solved_at"]) == (1501, 49.0)
    assert steps_to_threshold(curve, inf) is None
    assert set(BUDGETS) >= {"CartPole-v1", "Pendulum-v1", "HalfCheetah-v5", "Reacher-v5"}


def test_evaluations_during_training_do_not_restart_the_exploration_schedule():
    """The exploration rate of DQN falls over the first tenth of its training, not of each part."""
    pytest.importorskip("stable_baselines3", reason="the extra `baselines` is not installed")
    rates = []
    curve = sb3.learning_curve(
        sb3.make_model("dqn", EnvConfig(id="CartPole-v1"), seed=0, device="cpu"),
        steps=104, eval_every=4,
        mean_return=lambda model: rates.append(model.exploration_rate) or 0.0,
    )  # fmt: skip
    assert [steps for steps, _, _ in curve] == list(range(4, 105, 4))
    assert rates[0] == pytest.approx(1 - 0.95 * 4 / 10.4)
    assert rates[1] == pytest.approx(1 - 0.95 * 8 / 10.4)
    assert rates[2:] == pytest.approx([0.05] * 24)
    assert all(before < after for (_, _, before), (_, _, after) in pairwise(curve))


def test_the_script_for_a_gpu_measures_the_updates_of_every_stage(tiny, monkeypatch):
    monkeypatch.syspath_prepend(str(HOME / "benchmarks"))
    import gpu

    uses = gpu.stage_uses(tiny, "cpu", measured=1)
    assert list(uses) == list(tiny.stages)
    for use in uses.values():
        assert use.updates_per_second > 0
        assert use.busy is use.waits is None  # no device beside the host
