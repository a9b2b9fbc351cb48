"""Stages, variants and environments are checked before any time is spent on training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from rich.console import Console

from ami_agent import ablation
from ami_agent.adapters.env import EnvConfig
from ami_agent.adapters.fault_tolerance import gl_hint, mujoco_hint
from ami_agent.adapters.imports import choose_gl_backend, import_path
from ami_agent.config import override
from ami_agent.storage import checkpoint, run_dir
from ami_agent.train import check, train
from ami_agent.training import (
    CollectWithPlanner,
    DistillPlanner,
    GoalConditionedBC,
    OnlineActorCritic,
)
from ami_agent.validate import check_config
from modules.configurator import TaskSpec
from modules.types import ConfigError
from tests.conftest import error_line

GOALLESS = "test/Goalless-v0"
ONLY_ONE = "test/OnlyOne-v0"


class Goalless(gymnasium.Env):
    """Names no goal; with `wide`, its observations have another shape."""

    def __init__(self, wide=False):
        self.observation_space = gymnasium.spaces.Box(-1, 1, (4 if wide else 2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(self.observation_space.shape, np.float32), {}

    def step(self, action):
        return np.zeros(self.observation_space.shape, np.float32), 0.0, False, False, {}


class OnlyOne(Goalless):
    """Only one can be open at a time."""

    open = 0

    def __init__(self, level=0):
        super().__init__()
        if OnlyOne.open:
            raise RuntimeError("another instance is open")
        OnlyOne.open += 1

    def close(self):
        OnlyOne.open -= 1


for name, kind in ((GOALLESS, Goalless), (ONLY_ONE, OnlyOne)):
    gymnasium.register(name, entry_point=kind, max_episode_steps=20)


def of(tiny, env_id, **stages):
    """The tiny recipe in another environment, without goals."""
    env = EnvConfig(id=env_id)
    tasks = {"control_cost": TaskSpec(weights={"control_cost": 1.0})}
    stages = {**tiny.stages, "collect": replace(tiny.stages["collect"], options={}), **stages}
    from modules.perception.multi_modal import MultiModalEncoderConfig

    return replace(
        tiny, env=env, eval_env=env, tasks=tasks, perception=MultiModalEncoderConfig(),
        stages=stages,
    )  # fmt: skip


def test_options_of_a_later_stage_are_checked_before_the_first(capsys, tmp_path):
    flags = ["--distill-policy.options", "budgett", "30"]
    message = error_line(capsys, "train", "two-rooms", "--out", tmp_path / "run", *flags)
    assert message.startswith(
        "ami: --distill-policy.options: environment 'ami/TwoRooms-v0' can't be made"
    )
    assert "budgett" in message
    assert not (tmp_path / "run").exists()


def test_options_of_a_task_are_checked_too(tiny):
    task = TaskSpec(goal_source="env", options={"nonsense": 1})
    with pytest.raises(ConfigError, match=r"task 'odd', options: environment .* 'nonsense'"):
        check_config(replace(tiny, tasks={**tiny.tasks, "odd": task}))


def test_a_stage_whose_environment_has_other_spaces_is_refused(tiny):
    distil = replace(tiny.stages["distill_policy"], options={"wide": True})
    with pytest.raises(
        ConfigError,
        match=r"--distill-policy\.options: .* has \(4,\).* but the agent is made for \(2,\)",
    ):
        check_config(of(tiny, GOALLESS, distill_policy=distil))


def test_environments_that_exist_only_once_are_checked_one_after_another(tiny):
    distil = replace(tiny.stages["distill_policy"], options={"level": 1})
    check_config(
        of(
            tiny,
            ONLY_ONE,
            distill_policy=distil,
            planner_rollouts=CollectWithPlanner(options={"level": 2}),
        )
    )
    assert OnlyOne.open == 0


def test_a_goal_that_the_environment_does_not_name_is_reported_at_once(tiny):
    config = replace(of(tiny, GOALLESS), tasks=tiny.tasks)
    with pytest.raises(ConfigError, match=r"test/Goalless-v0 names none there"):
        check_config(config)


def test_stages_that_a_task_does_not_suit_are_refused_at_once(tiny):
    with pytest.raises(ConfigError, match="goal_bc learns ways to goals"):
        check_config(of(tiny, GOALLESS, goal_bc=GoalConditionedBC()))
    from ami_agent import recipes

    forage = recipes.forage()
    aims = {"reach": TaskSpec(goal_source="env", weights={"control_cost": 1.0})}
    with pytest.raises(ConfigError, match="the goal_source of 'reach' is 'env'; it must be 'none'"):
        check_config(
            override(
                forage,
                {
                    "tasks": aims,
                    "stages.actor_critic": OnlineActorCritic(),
                    "stages.distill_policy": None,
                    "stages.amortize_policy": None,
                },
            )
        )


def test_every_variant_is_checked_and_all_that_fail_are_named(tiny, tmp_path):
    def with_options(**options):
        return override(tiny, {"stages.distill_policy.options": options})

    configs = {"base": tiny, "one": with_options(bad=1), "two": with_options(worse=1)}
    console = Console(quiet=True)
    with pytest.raises(ConfigError) as output:
        ablation.run_study(
            ablation.StudyPlan(name="odd", configs=configs, seeds=1, episodes=1),
            out=tmp_path / "study", executor=ablation.Serial(console), console=console,
        )  # fmt: skip
    assert "one: --distill-policy.options" in str(output.value)
    assert "two: --distill-policy.options" in str(output.value)
    assert "base" not in str(output.value)
    assert not (tmp_path / "study").exists()


def stopped(config, run, before):
    """A run that fails when the stage of that name begins."""
    kind = type(config.stages[before])

    def fail(*_):
        raise KeyboardInterrupt

    begin, kind.start = kind.start, fail
    try:
        with pytest.raises(KeyboardInterrupt):
            train(config, out=run)
    finally:
        kind.start = begin


def test_a_stage_that_has_not_begun_may_be_changed_on_resume(tiny, tmp_path):
    run = tmp_path / "run"
    assert isinstance(tiny.stages["distill_policy"], DistillPlanner)
    stopped(tiny, run, "distill_policy")
    changed = override(
        tiny,
        {
            "stages.distill_policy.steps": 4,
            "stages.distill_policy.options": {"max_episode_steps": 30},
        },
    )
    agent = train(changed, out=run, resume=True)
    assert run_dir.config_of(run) == changed
    notes = run_dir.manifest_of(run)["changed on resume"]
    assert "stages.distill_policy.steps is 3, not 4" in notes
    straight = train(changed, out=tmp_path / "straight")
    for mine, other in zip(agent.parameters(), straight.parameters(), strict=True):
        assert bool((mine == other).all())
    check(changed, run, 0, resume=True)


def test_a_stage_that_has_begun_may_not_be_changed_on_resume(tiny, tmp_path):
    run = tmp_path / "run"
    stopped(tiny, run, "distill_policy")
    shorter = replace(tiny.stages["train_jepa"], length=2)
    with pytest.raises(ConfigError) as output:
        check(override(tiny, {"stages.train_jepa": shorter}), run, 0, resume=True)
    assert f"--train-jepa.length is {tiny.stages['train_jepa'].length}, not 2" in str(output.value)
    assert "the stage train_jepa has begun" in str(output.value)
    with pytest.raises(ConfigError, match=r"--planner.horizon is 8, not 3"):
        check(
            override(tiny, {"actor.planner.horizon": 3}),
            run,
            0,
            resume=True,
        )
    with pytest.raises(ConfigError, match=r"--seed is 0, not 1"):
        check(tiny, run, 1, resume=True)
    assert "changed on resume" not in run_dir.manifest_of(run)


def test_a_change_of_the_size_of_the_replay_buffer_is_refused(tiny, tmp_path):
    config = override(tiny, {"stages.planner_rollouts": CollectWithPlanner(steps=3)})
    run = tmp_path / "run"
    stopped(config, run, "planner_rollouts")
    longer = override(config, {"stages.planner_rollouts": CollectWithPlanner(steps=5)})
    with pytest.raises(ConfigError, match="its replay buffer holds"):
        run_dir.check_resumable(run, longer, 0)


def test_a_setting_that_does_not_change_the_result_may_be_changed_on_resume(tiny, tmp_path):
    run = tmp_path / "run"
    stopped(tiny, run, "distill_policy")
    patient = override(tiny, {"env.step_timeout": 900.0, "eval_env.step_timeout": 0.0})
    check(patient, run, 0, resume=True)
    run_dir.check_resumable(run, patient, 0)
    run_dir.apply_new_settings(run, patient)
    assert run_dir.config_of(run) == patient


def test_nothing_has_begun_before_the_first_checkpoint(tiny, tmp_path):
    run_dir.create(tmp_path / "run", tiny, 0, "cpu")
    changed = override(tiny, {"stages.train_jepa.length": 2})
    check(changed, tmp_path / "run", 0, resume=True)
    assert not checkpoint.checkpoints(tmp_path / "run")


def test_the_gl_backend_is_chosen_before_a_module_is_imported(tmp_path, monkeypatch):
    for variable in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    file = tmp_path / "reads_it.py"
    file.write_text("import os\nCHOSEN = os.environ.get('MUJOCO_GL')\n")
    assert import_path(str(file)).CHOSEN in ("egl", "osmesa")


def test_the_gl_backend_is_chosen_in_every_process_that_makes_an_environment():
    program = (
        "import os; from ami_agent.adapters.env import EnvConfig;"
        "EnvConfig(id='CartPole-v1').build(1).close();"
        "print(os.environ.get('MUJOCO_GL'))"
    )
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    message = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True
    ).stdout
    assert message.strip() in ("egl", "osmesa") or sys.platform != "linux"


def test_the_users_own_backend_and_a_display_are_respected(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    choose_gl_backend()
    assert os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setenv("DISPLAY", ":0")
    choose_gl_backend()
    assert "MUJOCO_GL" not in os.environ


def test_a_backend_that_does_not_work_is_named():
    message = gl_hint(ImportError("Cannot initialize a EGL device display."))
    assert "set it to egl" in message
    assert "osmesa" in message
    assert not gl_hint(ValueError("no such key"))


@pytest.mark.parametrize(("version", "is_named"), [("4.0.0", True), ("3.3.7", False)])
def test_a_mujoco_that_a_package_does_not_work_with_is_named(monkeypatch, version, is_named):
    pytest.importorskip("mujoco", reason="the hint is about an installed MuJoCo")
    monkeypatch.setattr("importlib.metadata.version", {"mujoco": version}.__getitem__)
    package = {"__name__": "gymnasium_robotics.utils.mujoco_utils"}
    with pytest.raises(AssertionError) as failure:
        exec("assert False", package)
    hint = mujoco_hint(failure.value)
    expected = " (mujoco 4.0.0 is installed, with which environments of gymnasium_robotics do not "
    assert hint.startswith(expected) if is_named else hint == ""


def test_options_are_read_back_from_a_run_folder_unchanged(tmp_path, tiny):
    options = {"size": [8, 8], "deep": {"a": None}, "text": "8"}
    config = replace(tiny, env=replace(tiny.env, options=options))
    run_dir.create(tmp_path / "run", config, 0, "cpu")
    assert run_dir.config_of(tmp_path / "run") == config
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["env"]["options"] == options
