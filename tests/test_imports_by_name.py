"""A run folder is not a program: what its config.json names is imported only where the user names
it too."""

from __future__ import annotations

import json
import re
import shutil
import sys
from contextlib import closing
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_args, get_type_hints

import gymnasium
import pytest

import ami_agent as ami
import ami_agent.cli.main as cli
from ami_agent import recipes
from ami_agent.adapters import imports
from ami_agent.adapters.env import EnvConfig
from ami_agent.bench.speed import PlanningSpeed
from ami_agent.cli.main import main
from ami_agent.config import Config, build
from ami_agent.storage import checkpoint, run_dir
from modules.types import ConfigError
from tests.conftest import error_line

SHIPPED = Path(__file__).parent.parent / "runs/reference/two-rooms"
LINE = """
from pathlib import Path
import gymnasium, numpy as np

with (Path(__file__).parent / "imported").open("a") as mark:
    mark.write(f"{__file__}\\n")


class Line(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = float(self.np_random.uniform(-0.9, 0.9))
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.place = float(np.clip(self.place + 0.1 * float(action[0]), -1, 1))
        return np.array([self.place], np.float32), 1 - abs(self.place), False, False, {}


gymnasium.register("ami-named/Line-v0", entry_point=Line, max_episode_steps=5)
"""


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch, tmp_path):
    """No test knows what another has imported."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    gymnasium.registry.pop("ami-named/Line-v0", None)
    for name in set(sys.modules) - before:
        if "line" in name or name.startswith("_ami_"):
            del sys.modules[name]


@pytest.fixture
def file(tmp_path) -> Path:
    """An unknown file, which leaves a mark where it is imported."""
    path = tmp_path / "theirs" / "line.py"
    path.parent.mkdir()
    path.write_text(LINE)
    return path


@pytest.fixture
def run(tmp_path, file) -> Path:
    """The folder of a run in the environment of that file; the file was not imported by this
    process, as far as can be seen."""
    env = EnvConfig(id="ami-named/Line-v0", imports=(str(file),))
    config = recipes.gym(env)
    with closing(config.env.build(1)) as made:
        agent = build(config, made.spec)
    run_dir.create(tmp_path / "run", config, 0, "cpu")
    checkpoint.save(
        checkpoint.checkpoint_dir(tmp_path / "run", 1), run_dir.weights(agent), {"stage_index": 1}
    )
    gymnasium.registry.pop("ami-named/Line-v0")
    for name in [n for n, m in sys.modules.items() if getattr(m, "__file__", "") == str(file)]:
        del sys.modules[name]
    (file.parent / "imported").unlink()
    return tmp_path / "run"


def rewritten(run: Path, **changes: object) -> Path:
    """The run with other settings of both environments."""
    config = json.loads((run / "config.json").read_text())
    for env in ("env", "eval_env"):
        config[env] |= changes
    (run / "config.json").write_text(json.dumps(config))
    return run


def imported(folder: Path) -> bool:
    return (folder / "imported").exists()


@pytest.mark.parametrize("command", ["eval", "show", "probe"])
def test_a_folder_imports_nothing_and_says_what_it_needs(capsys, run, file, command):
    message = error_line(capsys, command, run)
    assert f"{run} needs code" in message
    assert f"--import {file}" in message
    assert not imported(file.parent)


def test_no_other_reader_of_a_folder_imports(capsys, run, file):
    with pytest.raises(ConfigError, match=re.escape(f'imports=("{file}",)')):
        ami.load(run)
    with pytest.raises(ConfigError, match="--import"):
        PlanningSpeed(run=str(run)).measure(None)  # type: ignore[arg-type]
    (run / "memory").mkdir()
    message = error_line(
        capsys, "train", "gym", "--env.id", "Pendulum-v1", "--data.run", run, "--out", "other"
    )
    assert "spaces.json" in message  # its data are read without its code
    assert not imported(file.parent)


@pytest.mark.parametrize("flag", ["--import", "--env.import"])
def test_named_files_and_modules_are_imported(run, file, flag):
    assert main(["eval", str(run), "--episodes", "1", "--mode", "react", flag, str(file)]) == 0
    assert imported(file.parent)


@pytest.mark.parametrize("flag", ["--import", "--env.import"])
def test_training_takes_the_file_of_an_environment_by_either_flag(file, flag):
    argv = [flag, str(file), "--env.id", "ami-named/Line-v0"]
    config, left = cli._recipe("gym", argv, "ami train gym")
    assert config.env.imports == config.eval_env.imports == (str(file),)
    assert left == []


def test_a_run_is_resumed_with_the_file_that_the_user_names(tmp_path, run, file, monkeypatch):
    def resumed(*files: Path) -> Config:
        argv = [word for each in files for word in ("--import", str(each))]
        return cli._recipe("gym", argv, "ami train gym", run)[0]

    with pytest.raises(ConfigError, match=rf"--import {re.escape(str(file))}$"):
        resumed()
    assert not imported(file.parent)
    here = Path(shutil.copytree(file.parent, tmp_path / "mine")) / "line.py"
    assert resumed(here).env.imports == (str(here),)  # never the one that the folder names
    assert not imported(file.parent)
    (tmp_path / "more.py").write_text("")
    assert resumed(tmp_path / "more.py", file) == run_dir.settings_of(run)


def test_a_file_of_the_same_name_elsewhere_is_accepted(tmp_path, run, file):
    here = Path(shutil.copytree(file.parent, tmp_path / "mine")) / "line.py"
    agent = ami.load(run, imports=("mine/line.py",))
    assert agent.spec.action_dim == 1
    assert (here.parent / "imported").read_text() == f"{here}\n"
    assert not imported(file.parent)
    config = run_dir.config_of(run, imports=(str(here),))
    assert config.env.imports == config.eval_env.imports == (str(here),)


def test_another_file_is_refused_and_what_is_missing_is_reported(tmp_path, run, file):
    (tmp_path / "other.py").write_text("")
    with pytest.raises(ConfigError, match=r"--import \S+line\.py ") as refused_message:
        ami.load(run, imports=("other.py",))
    assert "other.py" not in str(refused_message.value)


def test_a_folder_may_be_trusted(run, file):
    assert ami.load(run, trust=True).spec.action_dim == 1
    assert imported(file.parent)


def test_modules_that_this_process_has_imported_need_no_naming(run, file):
    ami.load(run, imports=(str(file),))
    assert ami.load(run).spec.action_dim == 1


def test_a_module_before_a_colon_is_an_import(tmp_path, run, file, monkeypatch):
    shutil.copy(file, tmp_path / "line_module.py")
    monkeypatch.syspath_prepend(tmp_path)
    rewritten(run, id="line_module:ami-named/Line-v0", imports=[])
    with pytest.raises(ConfigError, match=r"--import line_module "):
        ami.load(run)
    assert not imported(tmp_path)
    assert ami.load(run, imports=("line_module",)).spec.action_dim == 1
    assert imported(tmp_path)
    assert run_dir.config_of(run, imports=("line_module",)).env.id == "ami-named/Line-v0"


def test_packages_must_be_named_too(tmp_path, run, monkeypatch):
    (tmp_path / "minigrid_line").mkdir()
    (tmp_path / "minigrid_line" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    rewritten(run, id="MiniGrid-Empty-5x5-v0", imports=["minigrid_line.envs"])
    with pytest.raises(ConfigError, match=r"--import minigrid_line\.envs "):
        ami.load(run)
    config = run_dir.config_of(run, imports=("minigrid_line",))
    assert config.env.imports == ("minigrid_line", "minigrid_line.envs")


def test_an_environment_within_an_environment_is_an_import(run):
    rewritten(run, id="GymV26Environment-v0", imports=[], options={"env_id": "antigravity:X"})
    with pytest.raises(ConfigError, match=r"--import antigravity "):
        ami.load(run)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "option", [{"vectorization_mode": "async"}, {"wrappers": "os:system"}, {"num_envs": 3}]
)
def test_options_are_no_parameters_of_gymnasium_itself(run, option):
    rewritten(run, id="Pendulum-v1", imports=[], options=option)
    with pytest.raises(ConfigError, match=f"option '{next(iter(option))}' of environment"):
        ami.load(run)


def test_our_own_environments_and_gymnasium_s_need_no_naming():
    assert ami.load(SHIPPED).spec.action_dim == 2
    for name in ("CartPole-v1", "ami/Maze-v0"):
        config = run_dir.settings_of(SHIPPED)
        env = EnvConfig(id=name)
        config = replace(config, env=env, eval_env=env)
        assert imports.check_trusted(config, SHIPPED, (), False) == config


def test_another_environment_is_named_as_in_training(run, file, capsys):
    line = ("--episodes", "1", "--mode", "react", "--env.import", file)
    assert main(["eval", str(run), "--env", "ami-named/Line-v0", *map(str, line)]) == 0
    assert main(["eval", str(run), "--env.id", "ami-named/Line-v0", *map(str, line)]) == 0
    message = error_line(capsys, "eval", run, "--env", "x", "--env.id", "y", "--import", file)
    assert "--env is given 2 times" in message


def test_a_missing_namespace_has_the_hint_of_a_missing_name(capsys):
    for name in ("nowhere/Thing-v0", "NoSuchThing-v0"):
        message = error_line(capsys, "train", "gym", "--env.id", name, "--out", "other")
        assert "import that: --env.import NAME" in message


def test_settings_name_no_environment_elsewhere():
    """A wrapper whose imports would have to be named as well."""

    def parts_of(hint: object) -> list[object]:
        return [hint, *(part for arg in get_args(hint) for part in parts_of(arg))]

    def find_envs(kind: type) -> list[str]:
        found = []
        for field in fields(kind):
            for part in parts_of(get_type_hints(kind)[field.name]):
                if part is EnvConfig:
                    found.append(field.name)
                elif isinstance(part, type) and is_dataclass(part):
                    found += [f"{field.name}.{name}" for name in find_envs(part)]
        return found

    assert find_envs(Config) == ["env", "eval_env"]


def test_escape_sequences_in_names_do_not_reach_the_terminal(capsys, run):
    rewritten(run, imports=["\x1b[2Jevil.py"])
    message = error_line(capsys, "eval", run)
    assert "\x1b" not in message
    assert r"\x1b[2Jevil.py" in message
