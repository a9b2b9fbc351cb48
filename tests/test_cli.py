"""The command line: what it does, and what it says to input that won't do."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

import ami_agent as ami
import ami_agent.cli.main as cli
from ami_agent import config_io, recipes
from ami_agent.adapters.fault_tolerance import EnvError
from ami_agent.cli import command_flags
from ami_agent.cli.main import main
from ami_agent.config import override
from ami_agent.storage import checkpoint
from ami_agent.storage.run_dir import write_json
from ami_agent.train import Trainer, train
from modules.types import ConfigError
from tests.conftest import OWN_RECIPES, error_line, small
from tests.kills import printed

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run with a handful of updates."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(small(ami.recipes.two_rooms(), iterations=2), out=folder)
    return folder


@pytest.fixture
def own(run, tmp_path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def brief(config: ami.Config) -> ami.Config:
    """The same with short episodes and little planning, for commands that evaluate it."""
    planner = replace(config.actor.planner, horizon=3, iterations=2, warm_iterations=1)
    short = replace(config.eval_env, options={"max_episode_steps": 10})
    return override(config, {"actor.planner": planner, "eval_env": short})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fly"], "no command 'fly'; there are train, eval"),
        (["trian"], "no command 'trian' (perhaps you meant train?); there are train, eval"),
        (["bench", "plan-speed"], "no benchmark 'plan-speed' (perhaps you meant planning-speed?)"),
        (["train"], "needs a RECIPE first"),
        (["train", "kitchen"], "no recipe 'kitchen'; there are two-rooms, "),
        (
            ["train", "two_rooms"],
            "no recipe 'two_rooms' (perhaps you meant two-rooms?); there are two-rooms, ",
        ),
        (["train", "two-rooms", "--out"], "ami: --out needs a value\n"),
        (["eval", "x", "--mode", "fast"], "--mode is 'fast'; choose one of 'react', 'plan', "),
        (["data", "inspect", "x", "--keys", "a"], "--data.keys needs pairs, each a name and a"),
        (
            ["train", "two-rooms", "--env.id", "Pendulum-v1"],
            "is made for ami/TwoRooms-v0, and ami train gym --env.id Pendulum-v1 trains in any",
        ),
        (
            ["ablate", "two-rooms", "--env.id", "Pendulum-v1", "--without", "drives"],
            "changes nothing in two-rooms; it has",
        ),
        (
            ["ablate", "two-rooms", "--env.id", "Pendulum-v1", "--without", "policy"],
            "is made for ami/TwoRooms-v0, and ami train gym --env.id Pendulum-v1 trains in any",
        ),
        (["train", "two-rooms", "--planner.horizn", "3"], "perhaps you meant --planner.horizon"),
        (["train", "two-rooms", "--planner.horizon", "far"], "--planner.horizon"),
        (["train", "two-rooms", "--seed", "1.5"], "--seed"),
        (["train", "two-rooms", "--device", "tpu"], "--device 'tpu': PyTorch finds no such device"),
        (
            ["train", "two-rooms", "--device", "meta"],
            "--device 'meta': PyTorch finds no such device",
        ),
        (["eval", "nowhere", "--device", "cuda:99"], "nowhere is not a run folder"),
        (["train", "two-rooms", "--train-jepa.weights.variance", "nan"], "is nan"),
        (["train", "two-rooms", "--episodes", "0"], "--episodes is 0"),
        (["train", "two-rooms", "--env.variant", "moon"], "choose one of"),
        (["train", "two-rooms", "--env.id", "ami/Nowhere-v0"], "ami/Nowhere"),
        (["train", "two-rooms", "--resume"], "has no config.json"),
        (["eval", "nowhere"], "nowhere is not a run folder"),
        (["eval"], "needs a DIR first"),
        (["ablate", "two-rooms"], "add --without PART (there are goal_critic, policy"),
        (["ablate", "two-rooms", "--without", "soul"], "no such part; it has goal_critic, "),
        (["ablate", "two-rooms", "--swap", "planner=magic"], "GradientPlanner, Collocation, CEM"),
        (["ablate", "two-rooms", "--swap", "goal_critic=goalcritic"], "changes nothing"),
        (
            ["ablate", "two-rooms", "--swap", "goal_critic=none"],
            "on the command line, --without",
        ),
        (
            ["train", "two-rooms-random", "--distill-paths.nodes-per-graph", "900"],
            "an episode of 640 steps has 641",
        ),
        (["train", "two-rooms", "--train-jepa.length", "33"], "but an episode has 32 steps"),
        (["train", "two-rooms", "--refine", "yes"], "--refine"),
        (["train", "two-rooms", "--eval-every-stage", "-1"], "--eval-every-stage is -1"),
        (
            ["train", "two-rooms", "--perception.patch", "0"],
            "--perception.patch is 0; it must be a whole number from 1",
        ),
        (["train", "two-rooms", "--env.variant", "random"], "env and eval_env must be alike"),
        (
            ["train", "two-rooms-random", "--stuck-recovery.check-every", "0"],
            "--stuck-recovery.check-every is 0",
        ),
        (
            ["train", "two-rooms-random", "--finetune-dynamics.length", "21"],
            "but an episode has 20 steps",
        ),
        (
            ["ablate", "two-rooms", "--json", "nowhere/results.json"],
            "a file in a folder that exists",
        ),
        (["list", "everything"], "everything"),
        (["train", "two-rooms", "--drives", "greed"], "greed"),
        (["train", "forage", "--drives", "hunger", "thirst"], "'thirst'; there are hunger, pain"),
        (
            ["train", "forage", "--value-critics.discount", "1.0"],
            "discount is 1.0; it must be from 0 to less than 1",
        ),
    ],
)
def test_bad_input_gets_one_line(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in error_line(capsys, *argv)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--actor-critic.step", "(perhaps you meant --actor-critic.steps?)"),
        ("--steps", "(perhaps you meant --collect.steps or --actor-critic.steps or "),
        ("--optim.steps", "(perhaps you meant --train-jepa.optim.steps?)"),
        ("--actor-critic.optim.steps", "has no effect: --actor-critic.steps decides it"),
        ("--actor-critic.train-jepa.optim.steps", "--actor-critic.steps decides it"),
        ("--actor-critic.zeal", "Unrecognized options: --actor-critic.zeal, 300\n"),
    ],
)
def test_a_flag_that_is_suggested_has_an_effect(flag, message, capsys):
    # a flag that is there after all would be refused for the episodes, and nothing is trained
    said = error_line(capsys, "train", "gym", flag, "300", "--episodes", "0")
    assert message in said
    for named in re.findall(r"--[\w.-]+", said.partition("perhaps you meant")[2]):
        assert not re.fullmatch(r"--actor-critic\.(train-jepa\.)?optim\.steps", named)


@pytest.mark.parametrize("command", ["train", "ablate"])
@pytest.mark.parametrize(("flag", "said"), [("--recipe", "--recipe, maze"), ("--recip", "--recip")])
def test_the_name_of_a_recipe_is_no_flag_of_another(command, flag, said, capsys):
    # a flag that is there after all would be refused for the episodes, and nothing is trained
    line = error_line(capsys, command, "two-rooms", flag, "maze", "--episodes", "0")
    assert f"Unrecognized options: {said}" in line
    assert "perhaps" not in line


def test_a_run_that_was_probably_meant_is_named(own, capsys, monkeypatch):
    monkeypatch.chdir(own.parent)
    (own.parent / "runs" / "two-rooms").mkdir(parents=True)
    own.rename("runs/two-rooms/0")
    for given in ("two-rooms", "runs/two-rooms", "two-rooms/0"):
        message = error_line(capsys, "eval", given)
        assert f"{given} is not a run folder" in message
        assert "(perhaps you meant runs/two-rooms/0?)" in message
    message = error_line(capsys, "eval", "runs/two-rooms/0/config.json")
    assert "config.json is a file; a run folder is needed (perhaps you meant runs/two-" in message
    data = ("--env.id", "CartPole-v1", "--data.run", "two-rooms")
    assert "you meant runs/two-rooms/0?" in error_line(capsys, "train", "gym", *data)


@pytest.mark.parametrize("command", ["train", "ablate"])
def test_a_file_without_a_function_is_answered_with_its_functions(command, capsys, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def fast():\n    pass\n")
    message = error_line(capsys, command, file)
    assert f"{file}:FUNCTION; it defines fast" in message
    assert "nowhere.py:FUNCTION\n" in error_line(capsys, command, "nowhere.py")


def test_a_flag_that_is_given_twice_is_refused(capsys):
    message = error_line(
        capsys, "ablate", "two-rooms", "--without", "goal_critic", "--without=policy_proposal"
    )
    assert "--without is given 2 times; give it once" in message
    assert "--env.id is given 2 times" in error_line(
        capsys, "train", "gym", "--env.id", "Pendulum-v1", "--env.id", "CartPole-v1"
    )


def test_a_flag_reaches_its_module(capsys, tmp_path):
    assert "--out" in error_line(capsys, "train", "two-rooms", "--out")
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help", "all"])
    assert stop.value.code == 0
    assert "--planner.horizon" in capsys.readouterr().out


def test_the_help_fills_its_lines_and_begins_with_what_is_tuned_most(capsys):
    with pytest.raises(SystemExit):
        main(["train", "two-rooms", "--help"])
    text = capsys.readouterr().out
    words = " ".join(text.split())
    assert "Results depend on their number in the last digits; --resume keeps" in words
    threads = text[text.index("--threads") :].partition("  --")[0].splitlines()
    assert all(len(line.rstrip()) > 60 for line in threads[1:-3])  # none ends in the middle
    names = ("env options", "collect options", "train-jepa options", "more options", "planner  ")
    places = [text.index(f" {name}") for name in names]
    assert places == sorted(places)
    assert len(text.splitlines()) < 220


def test_the_help_names_every_group_of_flags_and_shows_one_by_its_name(capsys):
    def shown(*argv: str) -> str:
        with pytest.raises(SystemExit):
            main(["train", "gym", *argv])
        return capsys.readouterr().out

    brief, whole, risk = (shown("--help", *name) for name in ([], ["all"], ["risk"]))
    groups = re.findall(r"(?m)^ (\S+) options *$", whole)
    assert len(groups) == len(set(groups)) > 20
    for name in groups:
        assert re.search(rf"(?m)^ {name} options *$|^  {name}  +\w", brief), name
    flags = re.findall(r"(?m)^  (--[a-z][\w.-]*)", risk)
    assert flags
    assert all(flag.startswith("--risk.") for flag in flags)
    assert "--data.path" in whole  # of another set of flags, that of recorded data
    assert whole.count("--env.id") == 1
    message = error_line(capsys, "train", "gym", "--help", "plannr")
    assert "no group of flags 'plannr' (perhaps you meant planner?)" in message


def test_train_writes_figures_a_curve_and_a_picture(tiny, tmp_path, monkeypatch, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(cli, "recipe", lambda name: brief(tiny))
    out, output = tmp_path / "run", tmp_path / "results.json"
    argv = [
        "train",
        "two-rooms",
        "--out",
        out,
        "--json",
        output,
        "--episodes",
        "2",
        "--eval-every-stage",
        "3",
    ]
    assert main([str(a) for a in argv]) == 0
    message = capsys.readouterr().out
    assert "react" in message
    assert "…" not in message  # no figure is cut
    for policy in ("plan", "react", "random", "oracle"):
        assert f"evaluate, {policy}  20/20  " in message
    figures = json.loads(output.read_text())
    assert list(figures) == ["plan", "react"]
    assert figures["plan"]["recipe"] == "two-rooms"
    assert json.loads((out / "eval.json").read_text()) == figures
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    curve = [line for line in lines if line["stage"] == "eval/reach"]
    assert len(curve) == 3  # after the objective, the critic, the policy
    assert [line["seconds"] for line in curve] == sorted(line["seconds"] for line in curve)
    assert all(line["final_success"] in (0, 1 / 3, 2 / 3, 1) for line in curve)
    board = EventAccumulator(str(out))
    board.Reload()
    assert board.Tags()["images"] == ["episode", "film"]
    resume = [str(a) for a in ["train", "two-rooms", "--out", out, "--resume", "--episodes", 2]]
    assert main(resume) == 0  # nothing is left to learn

    def fail(*args, **kwargs):
        raise EnvError("it failed")

    capsys.readouterr()
    monkeypatch.setattr(cli, "evaluate_modes", fail)
    assert main(resume) == 1
    said = f"ami: it failed; {out} is trained and saved; --resume evaluates it again\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("name", sorted(OWN_RECIPES))
def test_a_resumed_run_is_found_by_the_name_of_its_recipe(name):
    assert recipes.recipe(name).recipe == name


def test_show_writes_a_page(run, tmp_path):
    output = tmp_path / "results.json"
    argv = ["show", run, "--episodes", "1", "--out", tmp_path / "show", "--json", output]
    assert main([str(a) for a in argv]) == 0
    page = Path(json.loads(output.read_text())["page"])
    assert "seed 1000000: " in page.read_text()


def test_an_env_with_other_spaces_is_refused(run, capsys):
    message = error_line(capsys, "eval", run, "--env", "Pendulum-v1")
    assert "Pendulum-v1 has (3,) torch.float32 and 1 actions, but the agent is made for" in message


def test_eval_writes_the_figures_of_the_contract(run, tmp_path, capsys):
    output = tmp_path / "eval.json"
    assert (
        main(["eval", str(run), "--episodes", "3", "--mode", "react", "--json", str(output)]) == 0
    )
    figures = json.loads(output.read_text())
    assert figures["recipe"] == "two-rooms"
    assert figures["env"] == "ami/TwoRooms-v0"
    assert figures["episodes"] == 3
    assert figures["mode"] == "react"
    assert figures["task"] == "reach"
    assert figures["planned"] == figures["violated"] == 0  # Mode-1
    assert figures["signal_sums"] == {}
    assert figures["score"] is None
    assert set(figures["ms_per_action"]) == {"mean", "p50", "p95"}
    for label in (figures, figures["baselines"]["random"], figures["baselines"]["oracle"]):
        for figure in ("success", "final_success"):
            low, high = label[figure]["ci95"]
            assert 0 <= low <= label[figure]["mean"] <= high <= 1
    assert figures["baselines"]["oracle"]["final_success"]["mean"] == 1
    shown = capsys.readouterr().out
    for policy in ("react", "random", "oracle"):
        assert f"evaluate, {policy}  150/150  " in shown


@pytest.mark.parametrize("names", [[], ["random"], ["oracle"]])
def test_eval_compares_with_the_baselines_of_its_flag(run, tmp_path, capsys, names):
    output = tmp_path / "eval.json"
    flags = ["--episodes", "2", "--mode", "react", "--baselines", *names, "--json", output]
    assert main([str(arg) for arg in ["eval", run, *flags]]) == 0
    baselines = json.loads(output.read_text())["baselines"]
    assert {name for name, found in baselines.items() if found} == set(names)
    assert baselines.keys() == {"random", "oracle"}  # null where they don't apply
    shown = capsys.readouterr().out
    for name, words in (("random", "random actions"), ("oracle", "the oracle")):
        assert (f"evaluate, {name} " in shown) == (words in shown) == (name in names)
    message = error_line(capsys, "eval", run, "--baselines", "chance")
    assert "--baselines" in message
    assert "'random', 'oracle'" in message


def test_a_task_that_the_agent_does_not_know_is_refused(run, capsys):
    message = error_line(capsys, "eval", run, "--task", "fly", "--episodes", "2")
    assert "no task 'fly'; this agent has reach" in message


def test_the_same_seed_gives_the_same_figures(run, tmp_path):
    def figures(name: str) -> dict:
        output = tmp_path / name
        assert main(["eval", str(run), "--episodes", "4", "--json", str(output)]) == 0
        return json.loads(output.read_text())

    one, other = figures("one"), figures("other")
    for clock in ("ms_per_action", "ms_per_decision", "ms_per_action_batched"):
        del one[clock], other[clock]
    assert one == other


def test_list_names_recipes_and_the_choices_of_each_module(capsys, tmp_path):
    assert main(["list", "--json", str(tmp_path / "results.json")]) == 0
    assert "two-rooms" in json.loads((tmp_path / "results.json").read_text())["recipes"]
    message = capsys.readouterr().out
    assert "two-rooms-eb-random" in message
    words = message.replace("│", " ").split()
    assert "GradientPlanner, Collocation, CEM, MPPI" in " ".join(words)
    assert "cost.goal_critic.distance" in words


def test_probe_says_whether_the_state_has_collapsed(run, capsys, tmp_path):
    assert main(["probe", str(run), "--json", str(tmp_path / "marks.json")]) == 0
    metrics = json.loads((tmp_path / "marks.json").read_text())
    assert {"effective_rank", "error dot x", "wall imagined", "door true"} <= set(metrics)
    assert set(metrics["scorecard"]["linear"]) == {"agent", "untrained", "observation"}
    assert (run / "probe.png").stat().st_size > 10_000
    shown = capsys.readouterr().out
    assert "worse than the raw observation: " in shown
    assert "the relative open-loop error is " in shown


@pytest.mark.parametrize("file", ["config.json", "manifest.json"])
def test_a_settings_file_cut_short_is_named(file, own, capsys):
    text = (own / file).read_text()
    (own / file).write_text(text[: len(text) // 2])
    argv = ["eval", own] if file == "config.json" else ["train", "two-rooms", "--out", own]
    message = error_line(capsys, *argv, *([] if file == "config.json" else ["--resume"]))
    assert file in message or "other settings" in message


def test_settings_of_another_version_are_refused(own, capsys):
    known = json.loads((own / "config.json").read_text())
    known["actor"]["planner"]["clairvoyance"] = 7
    (own / "config.json").write_text(json.dumps(known))
    assert "clairvoyance" in error_line(capsys, "eval", own)


@pytest.mark.parametrize("named", [{"_type": "OracleConfig"}, {}])
def test_a_class_that_is_no_component_is_refused(named, own, capsys):
    known = json.loads((own / "config.json").read_text())
    known["actor"]["planner"] = named
    (own / "config.json").write_text(json.dumps(known))
    assert "holds no settings of this version" in error_line(capsys, "eval", own)


def test_parts_that_earlier_versions_left_out_by_name_are_left_out(own):
    known = json.loads((own / "config.json").read_text())
    old = {"subgoals": "Flat", "stuck_recovery": "NoStuckRecovery"}
    old["policy_proposal"] = "NoPolicyProposal"
    known["actor"] |= {part: {"_type": f"{name}Config"} for part, name in old.items()}
    actor = config_io.from_json(known, "config.json").actor
    assert (actor.subgoals, actor.stuck_recovery, actor.policy_proposal) == (None, None, None)
    known["actor"]["planner"] = {"_type": "FlatConfig"}  # a planner there always is
    with pytest.raises(ConfigError, match="it must be GradientPlannerConfig or"):
        config_io.from_json(known, "config.json")


def test_weights_of_another_agent_are_refused(own, capsys):
    known = json.loads((own / "config.json").read_text())
    known["perception"]["state_dim"] = 7
    (own / "config.json").write_text(json.dumps(known))
    assert "does not fit the settings" in error_line(capsys, "eval", own)


def test_a_damaged_checkpoint_is_named(own, capsys):
    weights = checkpoint.latest(own) / "tensors.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert str(weights) in error_line(capsys, "eval", own)


def test_an_env_that_the_agent_was_not_trained_for_is_refused(run, capsys):
    message = error_line(capsys, "eval", run, "--variant", "random", "--episodes", "2")
    assert (
        "has (2, 32, 32) torch.uint8 and 2 actions, but the agent is made for (2, 65, 65)"
        in message
    )


def test_a_full_disk_ends_a_run_in_one_line_and_keeps_what_was_saved(tmp_path, monkeypatch):
    config, run_updates = small(ami.recipes.two_rooms(), 40), Trainer._run_updates

    def full(self, index, name, stage_run):
        if name == "train_goal_critic":
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        run_updates(self, index, name, stage_run)

    monkeypatch.setattr(cli, "recipe", lambda name: config)
    monkeypatch.setattr(Trainer, "_run_updates", full)
    argv = ["train", "two-rooms", "--out", str(tmp_path / "run"), "--save-every", "0"]
    done = printed(lambda: main(argv))
    assert done.code == 1, done.errors
    assert done.errors.startswith("ami: ")
    assert done.errors.count("\n") == 1
    _, facts = checkpoint.load(checkpoint.latest(tmp_path / "run"))
    assert facts["stage_index"] == 2  # the world model was trained and is kept


def test_a_study_trains_every_variant_and_can_be_continued(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "recipe", lambda name: replace(brief(tiny), recipe="two-rooms"))
    argv = ["ablate", "two-rooms", "--without", "goal_critic"]
    argv += [
        "--seeds",
        "1",
        "--episodes",
        "2",
        "--out",
        str(tmp_path),
        "--json",
        str(tmp_path / "j"),
    ]
    assert main(argv) == 0
    message = capsys.readouterr().out
    assert "without goal_critic" in message
    study = json.loads((tmp_path / "j").read_text())
    assert list(study["variants"]) == ["two-rooms", "without goal_critic"]
    before = (tmp_path / "two-rooms" / "0" / "manifest.json").stat().st_mtime_ns
    assert main(argv) == 0
    assert (tmp_path / "two-rooms" / "0" / "manifest.json").stat().st_mtime_ns == before


def test_the_shipped_run_goes_through_the_door(tmp_path):
    shipped, output = ROOT / "runs" / "reference" / "two-rooms", tmp_path / "eval.json"
    for mode in ("plan", "react"):
        argv = ["eval", str(shipped), "--mode", mode, "--episodes", "20", "--json", str(output)]
        assert main(argv) == 0
        assert json.loads(output.read_text())["final_success"]["mean"] >= 0.9


def test_results_are_written_to_a_pipe_as_to_a_file_and_change_nothing_else(tmp_path):
    precious, target, link, pipe = (tmp_path / n for n in ("a.unfinished", "b", "link", "pipe"))
    precious.write_text("mine")
    write_json(tmp_path / "a.json", {"a": 1})
    assert precious.read_text() == "mine"
    link.symlink_to(target)
    write_json(link, {"a": 1}, follow_links=True)
    assert link.is_symlink()
    assert json.loads(target.read_text()) == {"a": 1}
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_json(pipe, {"a": 1})
    assert json.loads(os.read(reader, 100)) == {"a": 1}
    os.close(reader)
    assert pipe.is_fifo()
    reader, writer = os.pipe()
    command_flags.check_file_path("--json", f"/dev/fd/{writer}")  # as /dev/stdout in a pipeline
    write_json(Path(f"/dev/fd/{writer}"), {"a": 2}, follow_links=True)
    assert json.loads(os.read(reader, 100)) == {"a": 2}
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("seconds", ["nan", "-1"])
def test_infinite_seconds_are_refused(seconds, capsys):
    assert "--save-every is" in error_line(capsys, "train", "two-rooms", "--save-every", seconds)


FAKE_AMI = """#!/bin/sh
echo "$@" >> called
test "$1" = show && exit 0
for flag; do test "$flag" = --resume && test -e refused && exit $(cat refused); done
mkdir -p runs/demo && touch runs/demo/config.json runs/demo/eval.json
"""
TRAINED, RESUMED, SHOWN = (
    "train two-rooms --out runs/demo", "train two-rooms --out runs/demo --resume", "show runs/demo",
)  # fmt: skip


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("found", "refused", "calls", "kept"),
    [
        ((), 0, (TRAINED, SHOWN), False),
        (("config.json", "mine"), 0, (RESUMED, SHOWN), True),  # interrupted
        (("config.json", "mine"), 1, (RESUMED,), True),  # interrupted again
        (("config.json", "mine"), 2, (RESUMED, TRAINED, SHOWN), False),  # of another version
        (("config.json", "eval.json", "mine"), 0, (TRAINED, SHOWN), False),  # finished
    ],
)
def test_make_demo_continues_what_was_interrupted(found, refused, calls, kept, tmp_path):
    (tmp_path / "ami").write_text(FAKE_AMI)
    (tmp_path / "ami").chmod(0o755)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    for name in found:
        (tmp_path / "runs" / "demo" / name).touch()
    if refused:
        (tmp_path / "refused").write_text(str(refused))
    argv = ["make", "-f", str(ROOT / "Makefile"), "demo", "READY=", f"BIN={tmp_path}"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (refused != 1), done.stderr
    assert tuple((tmp_path / "called").read_text().splitlines()) == calls
    assert (tmp_path / "runs" / "demo" / "mine").exists() == kept
