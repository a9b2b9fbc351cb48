"""Comparisons that are asked for by name: measured side by side, kept, and judged alike."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import pairwise
from math import inf

import pytest
import torch
from rich.console import Console

import ami_agent as ami
from ami_agent.bench import rivals
from ami_agent.bench.baselines import EXAMS, Baselines, Trial, solved
from ami_agent.bench.rivals import Bare
from ami_agent.cli import main
from ami_agent.evaluate import play
from ami_agent.learning import Learning
from ami_agent.lessons import Live
from ami_agent.life import WorldConfig
from modules.types import UnusableInput
from tests.conftest import refuse


def ask(*argv):
    return main([str(arg) for arg in argv])


def test_without_a_name_the_names_are_told(tmp_path, capsys):
    assert ask("bench", "--json", tmp_path / "told.json") == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert set(told) == {"baselines", "thoughts", "worlds"}
    said = capsys.readouterr().out
    assert all(name in said for name in told)
    assert ask("--help") == 0
    assert "ami bench" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("chess",), "no benchmark 'chess'; there are baselines, thoughts, worlds"),
        (("worlds", "--counts", "0"), "--counts"),
        (("thoughts", "--counts", "0"), "--counts"),
        (("thoughts", "--of", "nowhere"), "nowhere"),
        (("worlds", "--env.id", "NoSuch-v0"), "NoSuch"),
        (("baselines", "--env.id", "NoSuch-v0"), "NoSuch"),
        (("baselines", "--who", "alphazero"), "alphazero"),
        (("baselines", "--episodes", "0"), "--episodes is 0"),
        (("worlds", "--seconds", "inf"), "--seconds is inf; it must be from 0"),
        (("worlds", "--env.import", "nosuch.py"), "no world could be measured"),
        (("baselines", "--solved", "nan"), "solved is nan"),
        (("baselines", "--json", "nowhere/told.json"), "a file in a folder that exists"),
    ],
)
def test_bad_input_gets_one_line(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in refuse(capsys, "bench", *argv)


def test_worlds_are_timed_in_every_way_that_they_can_be_had(tmp_path):
    def timed(name, count):
        flags = ("--env.id", name, "--counts", count, "--seconds", 0.3, "--json", tmp_path / "j")
        assert ask("bench", "worlds", *flags) == 0
        return json.loads((tmp_path / "j").read_text())[name][str(count)]

    ours = timed("ami/Maze-v0", 32)
    assert ours["batched"] > 2 * ours["sync"] > 0
    assert ours["async"] > 0
    swing = timed("Pendulum-v1", 2)
    assert swing["batched"] is None  # Gymnasium steps it one by one
    assert min(swing["sync"], swing["async"]) > 0


def test_a_mind_is_timed_in_every_mode_alone_and_in_a_batch(tiny, tmp_path):
    ami.train(tiny, out=tmp_path / "run")
    flags = ("--of", tmp_path / "run", "--counts", 1, 32, "--seconds", 0.3)
    assert ask("bench", "thoughts", *flags, "--json", tmp_path / "j") == 0
    told = json.loads((tmp_path / "j").read_text())
    assert list(told) == ["react", "plan"]
    for mode in told.values():
        assert mode["32"]["cpu"] > 2 * mode["1"]["cpu"] > 0  # a batch is thought of as one
    assert told["react"]["1"]["cpu"] > told["plan"]["1"]["cpu"]


def test_whoever_lives_in_a_world_is_judged_in_the_same_episodes():
    config = WorldConfig(id="Pendulum-v1", limit=30)
    bare = Bare(config, 4, torch.device("cpu"), config.keywords)

    def pushes(push):
        return lambda scene, seed: lambda obs: torch.full((4, 1), push)

    ours = play(pushes(0.5), config.build(4), 7)
    theirs = play(pushes(1.0), bare, 7)  # of 2, the strongest there is
    assert torch.equal(ours.felt[:, 0], theirs.felt[:, 0])
    assert ours.length.tolist() == theirs.length.tolist() == [30] * 4


def test_a_curve_is_found_once_and_of_another_task_it_is_refused(tmp_path, capsys):
    pytest.importorskip("stable_baselines3", reason="the extra `baselines` is not installed")
    world = ("--env.id", "CartPole-v1", "--seeds", 1, "--episodes", 3, "--every", 100, "--out",
             tmp_path / "kept", "--json", tmp_path / "j")  # fmt: skip
    flags = (*world, "--who", "random", "ppo")
    assert ask("bench", "baselines", *flags, "--steps", 300) == 0
    found = json.loads((tmp_path / "j").read_text())["CartPole-v1"]
    assert found["solved_at"] == 475
    ((random,),) = found["curves"]["random"]
    assert random[0] == 0
    assert 8 <= random[1] <= 60
    ((steps, mark, seconds),) = found["curves"]["ppo"][0]
    assert steps == 2048  # it learns from so many steps at once
    assert 8 <= mark <= 500
    assert seconds > 0
    kept = tmp_path / "kept" / "CartPole-v1" / "PPO-0-3.json"
    before = kept.stat().st_mtime_ns
    assert ask("bench", "baselines", *flags, "--steps", 300) == 0
    assert kept.stat().st_mtime_ns == before
    assert json.loads((tmp_path / "j").read_text())["CartPole-v1"] == found
    said = refuse(capsys, "bench", "baselines", *flags, "--steps", 400)
    assert "PPO-0-3.json was found with other settings, steps is 300, not 400" in said
    assert "SAC can't live in CartPole-v1" in refuse(
        capsys, "bench", "baselines", *world, "--who", "sac"
    )


def test_who_is_compared_with_nobody_needs_nobody(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)  # as if it were not installed
    flags = ("--env.id", "CartPole-v1", "--episodes", 2, "--out", tmp_path)
    said = refuse(capsys, "bench", "baselines", *flags)
    assert "pip install 'ami-agent[baselines]'" in said
    assert ask("bench", "baselines", *flags, "--who", "random", "--seeds", 1) == 0


def test_our_curve_tells_what_life_cost(tmp_path):
    config = ami.recipes.gym(WorldConfig(id="CartPole-v1"))
    few = Learning(steps=3, batch=8)
    config = replace(
        config, life=Live(worlds=1, steps=30), objective=replace(config.objective, learning=few),
        interact=replace(
            config.interact, learning=few, objective=replace(config.objective, learning=few)
        ),
    )  # fmt: skip
    trial = Trial(config, "ami", steps=8, every=4, episodes=2, device="cpu")
    curve = trial.curve(tmp_path, 0, Console(quiet=True))
    assert [steps for steps, _, _ in curve] == [30, 30 + 1 + 4, 30 + 1 + 8]
    assert all(8 <= mark <= 500 for _, mark, _ in curve)
    before = (tmp_path / "ami-0-2.json").stat().st_mtime_ns
    assert trial.curve(tmp_path, 0, Console(quiet=True)) == curve
    assert (tmp_path / "ami-0-2.json").stat().st_mtime_ns == before
    kept = tmp_path / "ami-0-2.json"
    for spoilt in ([], {"curve": []}, {"curve": [["a", 1, 2]]}, {"curve": [[1, 2]]}):
        found = kept.read_text()
        kept.write_text(json.dumps(spoilt))
        with pytest.raises(UnusableInput, match=r"ami-0-2\.json holds no curve"):
            trial.curve(tmp_path, 0, Console(quiet=True))
        kept.write_text(found)
    calm = replace(config, interact=replace(config.interact, noise=0.1))
    with pytest.raises(UnusableInput, match=r"other settings, interact.noise is 0.5, not 0.1"):
        replace(trial, config=calm).curve(tmp_path, 0, Console(quiet=True))
    assert ami.load(tmp_path / "0").spec.choices == (2,)


def test_what_was_kept_without_its_task_still_counts(tmp_path):
    kept = tmp_path / "CartPole-v1" / "ami-0-20.json"
    kept.parent.mkdir()
    kept.write_text(json.dumps({"curve": [[501, 20.0, 9.0], [1501, 480.0, 49.0]]}))
    bench = Baselines(
        env=WorldConfig(id="CartPole-v1"), who=("ami",), seeds=1, out=str(tmp_path), json=""
    )
    found = bench.run(Console(quiet=True))["CartPole-v1"]
    (curve,) = found["curves"]["ami"]
    assert solved(curve, found["solved_at"]) == (1501, 49.0)
    assert solved(curve, inf) is None
    assert set(EXAMS) >= {"CartPole-v1", "Pendulum-v1", "HalfCheetah-v5", "Reacher-v5"}


def test_who_learns_is_looked_at_without_his_life_being_cut_into_pieces(monkeypatch):
    """DQN explores less and less over the first tenth of its life, not of every piece of it."""
    pytest.importorskip("stable_baselines3", reason="the extra `baselines` is not installed")
    rates = []
    monkeypatch.setattr(
        rivals, "judged", lambda model, *_: rates.append(model.exploration_rate) or 0.0
    )
    curve = rivals.learn(
        "dqn", WorldConfig(id="CartPole-v1"), steps=104, every=4, seed=0, episodes=1, first=0,
        device="cpu",
    )  # fmt: skip
    assert [steps for steps, _, _ in curve] == list(range(4, 105, 4))
    assert rates[0] == pytest.approx(1 - 0.95 * 4 / 10.4)
    assert rates[1] == pytest.approx(1 - 0.95 * 8 / 10.4)
    assert rates[2:] == pytest.approx([0.05] * 24)
    assert all(before < after for (_, _, before), (_, _, after) in pairwise(curve))
