"""Command lines with mistakes of every kind: each is carried out, or refused in one line that names
something of it. Everything is checked before the work begins, and there these tests stop."""

from __future__ import annotations

import inspect
import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium.envs.registration import load_env_creator
from hypothesis import event, example
from hypothesis import strategies as st

import ami_agent.cli.main as cli
from ami_agent import config_io, viewer
from ami_agent.ablation.executors import ProcessPool, Ray, Serial
from ami_agent.bench import BENCHMARKS
from ami_agent.cli.config_flags import RENAMED_FLAGS
from ami_agent.config import override
from ami_agent.logger import one_line
from ami_agent.storage import run_dir
from ami_agent.viewer import live
from modules import compiled
from tests.fuzz import Begun, answer, fuzzed

SHIPPED = Path(__file__).parents[1] / "runs/reference/two-rooms"
FILES = {
    "broken.py": "1 / 0",
    "exits.py": "raise SystemExit(0)",
    "recipe.py": "def three():\n    return 3\ndef fails():\n    raise KeyError('a\\nb')\n"
    "def variants():\n    return {}\n",
    "empty.json": "",
}
"""Files in the folder where the commands run; `a_folder`, `run` and `a link to nowhere` too."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a run whose agent hardly plans, and some invalid files."""
    where = tmp_path_factory.mktemp("flags")
    shutil.copytree(SHIPPED, where / "run")
    config = run_dir.config_of(SHIPPED)
    planner = replace(config.actor.planner, horizon=2, iterations=2, warm_iterations=1)
    brief = replace(config.eval_env, options={"max_episode_steps": 4})
    config = override(config, {"actor.planner": planner, "eval_env": brief})
    run_dir.write_json(where / "run" / "config.json", config_io.to_json(config))
    for name, text in FILES.items():
        (where / name).write_text(text)
    (where / "a_folder").mkdir()
    (where / "a link to nowhere").symlink_to("nowhere")
    return where


@pytest.fixture(autouse=True)
def _no_work(place, monkeypatch):
    """The work after the checks is left out, or cut short."""
    monkeypatch.chdir(place)
    torch.set_num_threads(1)

    def begun(*args: Any, **options: Any) -> Any:
        raise Begun

    def brief(agent: Any, env: Any, *, episodes: int, **options: Any) -> Any:
        return evaluate_modes(agent, env, episodes=1, **options)

    evaluate_modes = cli.evaluate_modes
    monkeypatch.setattr(cli, "evaluate_modes", brief)
    for owner, name in [
        (cli, "locked"), (cli, "make_probe"), (viewer, "show"), (live, "show_live"),
        (compiled, "ahead_of_time"), (compiled, "just_in_time"),
        *((executor, "run") for executor in (Serial, ProcessPool, Ray)),
        *((type(bench), "measure") for bench in BENCHMARKS.values()),
    ]:  # fmt: skip
        monkeypatch.setattr(owner, name, begun)
    for command, subjects in SUBJECTS.items():
        for subject in subjects:
            assert flags_of(command, subject)


# --- command lines -------------------------------------------------------------------------------

SUBJECTS = {
    "train": ["two-rooms", "maze-levels", "gym"],
    "ablate": ["forage"],
    "eval": ["run"],
    "show": ["run"],
    "probe": ["run"],
    "bench": ["", "baselines", "planning-speed", "env-speed"],
    "list": [""],
}
ODD_SUBJECTS = [
    "two_rooms", "Two-Rooms", "two-room", "a_folder", "empty.json", "nowhere", "a link to nowhere",
    "/", "/dev/null", "/proc/self", "..", "recipe.py:three", "recipe.py:fails", "recipe.py:none",
    "recipe.py:variants", "recipe.py:", "recipe.py", "broken.py:f", "exits.py:f", ".py:f", ":",
    "broken.py:", "a_folder/x.py:f", "recipe.py:three:fails", "[red]", "run/config.json", "gym",
]  # fmt: skip
NUMBERS = [
    "-1", "0", "1", "2", "1e9", "1e30", "nan", "inf", "-inf", "2.5", "-0.0", "9" * 30, "9" * 5000,
    "65536", "0x10", "1_000", "٣", "1e-320", "+1", " 1", "1 ", "1,5",
]  # fmt: skip
WORDS = [
    "", " ", "true", "none", "None", "null", "[red]x[/red]", "[/]", "[link=file:///]x", "{", "{}",
    "[1, 2]", '{"a": 1}', "\\", "%s %d", "{0}", "a\nb", "\x1b[31m", "\udc80", "ä", "日本",
    "\u202e", "\0", "a" * 5000, "-", "--", "-h", "--help", "=", "a=b", "*", "~", "$HOME", "`true`",
]  # fmt: skip
PATHS = ["nowhere/x.json", "empty.json", "a_folder", "a link to nowhere", "/dev/full", "/dev/null",
         "/proc/x", "run", "run/config.json", ".", "..", "", "/", "n" * 300, "x\0y"]  # fmt: skip
CODE = ["broken.py", "exits.py", "recipe.py", "nowhere.py", "no_module", "a.b.c", "..", "recipe",
        "broken.py:f", "recipe.py:fails", "recipe.py:three", "recipe.Nothing", ".py"]  # fmt: skip
NAMES = ["CartPole-v1", "Pendulum-v1", "Nowhere-v0", "CartPole-v99", "no_module:Env-v0", "a/b/c-v0",
         "ami/TwoRooms-v0", "ami/Forage-v0", "FrozenLake-v1", "random", "reach", "moon", "cpu",
         "cuda", "plan", "both", "CEM", "gradientplanner", "planner=cem", "planner=", "=cem",
         "goal_critic", "policy_proposal", "actor", "size", "sync", "async", "local",
         "localhost:1", "reward"]  # fmt: skip
values = st.one_of(
    *map(st.sampled_from, (NUMBERS, WORDS, PATHS, CODE, NAMES)),
    st.integers().map(str), st.floats().map(str), st.text(st.characters(), max_size=20),
)  # fmt: skip
FITTING = {
    "INT": st.one_of(st.sampled_from(NUMBERS), st.integers(-2, 10).map(str)),
    "FLOAT": st.one_of(st.sampled_from(NUMBERS), st.floats(-1, 2).map(str)),
    "STR": st.one_of(*map(st.sampled_from, (PATHS, CODE, NAMES))),
}
"""Values for the flags whose help names this kind."""


@cache
def flags_of(command: str, subject: str) -> dict[str, str]:
    """The flags that the help shows, and the kind of their value."""
    argv = [command, *([subject] if subject and subject != "run" else [])]
    shown = answer(*argv, "--help", "all").output
    return dict(re.findall(r"^ +(--\w[\w.-]*)(?:,[^A-Z{]*)? *(\S*)", shown, re.M))


@st.composite
def not_quite_flags(draw: Any, flag: str) -> str:
    """Something like this flag."""
    old = draw(st.sampled_from(sorted(RENAMED_FLAGS)))
    others = [
        old + "steps" * old.endswith("."), flag[: draw(st.integers(1, len(flag)))], flag.upper(),
        flag.replace("-", "_"), flag[1:], f"{flag}.x", f"{flag}s", f"--no{flag[1:]}", "--import",
        "--intrinsic.pull", "--env.options.x", "--configurator.modality-weights", "--planner",
        "--" + draw(st.text(st.characters(), max_size=10)), draw(values),
    ]  # fmt: skip
    return draw(st.sampled_from(others))


@st.composite
def command_lines(draw: Any) -> list[str]:
    """A command with some flags, most of which it has, each with no value, one or several."""
    command = draw(st.sampled_from([*SUBJECTS, "train"]))
    subject = draw(st.sampled_from(SUBJECTS[command]))
    argv = [command, *([subject] if subject else [])]
    if draw(st.integers(0, 9)) == 0:
        argv[-1] = draw(st.one_of(st.sampled_from(ODD_SUBJECTS), values))
    known = flags_of(command, subject)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 2, 4]))):
        flag = draw(st.sampled_from(sorted(known)))
        fitting = FITTING.get(known[flag], values)
        if draw(st.integers(0, 4)) == 0:
            flag = draw(not_quite_flags(flag))
        given = draw(
            st.one_of(
                st.lists(fitting, min_size=1, max_size=1), st.lists(fitting, max_size=3),
                st.lists(values, max_size=3),
            )
        )  # fmt: skip
        argv += [f"{flag}={given[0]}"] if given and draw(st.booleans()) else [flag, *given]
    return argv


@fuzzed(command_lines(), examples=75)
@example(["train", "two-rooms", "--train-jepa.weights.interoception", "1", "", ""])
@example(["show", "run", "--live=/"])
@example(["train", " "])
@example(["eval", "run", "--compile"])
@example(["ablate", "forage", "--\xa0"])
@example(["train", "two-rooms", "--=-1"])
@example(["train", "two-rooms", "--0\r0"])
def test_a_command_line_is_executed_or_refused_in_one_line(argv):
    found = answer(*argv)
    event(f"{argv[0] if argv[0] in SUBJECTS else 'other'} {found.code}")
    if found.code:
        pieces = {piece for arg in argv for piece in re.split(r"[=.:/-]+", arg)}
        pieces |= {arg.partition("=")[2] for arg in argv}
        written = {as_text(part) for part in {*argv, *pieces} for as_text in (one_line, repr)}
        named = {part.strip("'\"")[:40].strip() for part in written} - {""}
        named |= {"''", "' '", "."}  # how '' and blanks are shown, as text and as a folder
        assert any(part in found.error for part in named), found.error


ENVS = ["TwoRooms", "CueCorridor", "Forage", "Maze", "WindyRooms", "PointMaze", "Reach", "Push"]
CHOICES = ["fixed", "random", "swm", "train", "test", "all", "eat", "image", "state", "u", "medium",
           "far", "torch", "numpy", "cpu", "cuda", "rgb_array", "human", "wide", ""]  # fmt: skip


ANY_JSON = ["[1, 2]", "[]", "{}", '{"a": 1}', "true", "false", "null", "100000", "1000000000",
            str(2**62), '"8"']  # fmt: skip


@cache
def options_of(env: str) -> dict[str, str]:
    """The keyword arguments of the environment, and their type."""
    entry = gymnasium.registry[f"ami/{env}-v0"].vector_entry_point
    made = load_env_creator(entry) if isinstance(entry, str) else entry
    parameters = inspect.signature(made).parameters.values()
    return {p.name: str(p.annotation) for p in parameters if p.name not in ("num_envs", "output")}


@st.composite
def option_lines(draw: Any) -> list[str]:
    """An environment of ours with some options, each with JSON, mostly of its type."""
    env = draw(st.sampled_from(ENVS))
    kinds = options_of(env)
    argv = ["train", "gym", "--env.id", f"ami/{env}-v0", "--env.options"]
    for name in draw(st.lists(st.sampled_from(sorted(kinds)), min_size=1, max_size=3, unique=True)):
        fitting = {
            "int": st.one_of(st.integers(0, 40).map(str), st.sampled_from(NUMBERS)),
            "str": st.sampled_from(CHOICES),
            "float": st.floats(-0.5, 1.5).map(str),
        }.get(kinds[name].partition(" ")[0], st.sampled_from(ANY_JSON))
        odd = draw(st.integers(0, 5)) == 0
        argv += [name, draw(st.one_of(st.sampled_from(ANY_JSON), values) if odd else fitting)]
    return argv


@fuzzed(option_lines(), examples=30)
@example(["train", "gym", "--env.id", "ami/Reach-v0", "--env.options", "side", "--", "x", "--"])
def test_options_of_an_environment_are_accepted_or_refused_in_one_line(argv):
    found = answer(*argv)
    event(f"{argv[3]} {found.code}")
    if found.code:
        assert re.search(rf"options|{argv[3]}|'--'", found.error), found.error


@pytest.mark.parametrize("env", ["TwoRooms", "Reach"])
def test_the_recipe_for_any_environment_accepts_ours(env):
    """The recipe adds a time limit, which batch-only environments can't have, and need not."""
    assert answer("train", "gym", "--env.id", f"ami/{env}-v0").code == 0
