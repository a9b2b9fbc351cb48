"""Every number in the settings has both bounds, and sizes fit into memory."""

from __future__ import annotations

import math
import types
from contextlib import closing
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import torch
from hypothesis import strategies as st

import ami_agent.cli.command_flags as flags
from ami_agent import config_io, hardware, recipes
from ami_agent.adapters.env import EnvConfig
from ami_agent.bench import BENCHMARKS
from ami_agent.cli import config_flags
from ami_agent.cli.command_flags import EnvFlags, TrainFlags
from ami_agent.config import Config
from ami_agent.hardware import (
    allocation_failure,
    available_memory,
    check_memory,
    missing_operation,
)
from ami_agent.memory_estimate import check_size
from ami_agent.training.actor_critic import ActorCriticStage
from ami_agent.training.optim import OptimConfig
from ami_agent.validate import check_stages
from modules.configurator import TaskSpec
from modules.types import BadSetting, ConfigError
from tests.conftest import error_line
from tests.fuzz import fuzzed

COMMANDS = [kind for kind in vars(flags).values() if isinstance(kind, type) and is_dataclass(kind)]


def members(hint: Any) -> tuple[Any, ...]:
    """The types that a field may have, Annotated and unions taken apart."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(part for each in get_args(hint) for part in members(each))
    return (hint,)


def settings_classes() -> list[type]:
    """Every dataclass that a flag, a file or a Python user can fill, found by reflection."""
    found: dict[type, None] = {}

    def visit(kind: type) -> None:
        if kind in found:
            return
        found[kind] = None
        for hint in get_type_hints(kind).values():
            for part in members(hint):
                for inner in (part, *(p for each in get_args(part) for p in members(each))):
                    if is_dataclass(inner):
                        visit(inner)  # type: ignore[arg-type]

    for kind in (Config, EnvFlags, ActorCriticStage, *COMMANDS, *map(type, BENCHMARKS.values())):
        visit(kind)
    return list(found)


def numbers(kind: type) -> list[tuple[str, Any]]:
    """Fields that hold numbers: the type of one, and how a value is made of it."""
    found = []
    for name, hint in get_type_hints(kind).items():
        for part in members(hint):
            if part in (int, float):
                found.append((name, part, lambda number: number))
            elif get_origin(part) is tuple and get_args(part)[0] in (int, float):
                found.append((name, get_args(part)[0], lambda number: (number,)))
            elif get_origin(part) is dict and get_args(part)[1] in (int, float):
                found.append((name, get_args(part)[1], lambda number: {"name": number}))
    return [(name, (part, wrap)) for name, part, wrap in found]


def example(kind: type) -> Any:
    """One with valid values, whatever has no default included."""
    if kind is Config:
        return recipes.two_rooms()
    hints, given_ = get_type_hints(kind), {}
    for field in fields(kind):
        if field.default is MISSING and field.default_factory is MISSING:
            (part, *_) = members(hints[field.name])
            plain = {int: 1, float: 1.0, str: "name"}
            if get_origin(part) is tuple:
                given_[field.name] = (2,)
            else:
                given_[field.name] = plain[part] if part in plain else example(part)
    return kind(**given_)


EVERY = [(kind, name, made) for kind in settings_classes() for name, made in numbers(kind)]


def test_reflection_finds_the_numbers():
    assert len(EVERY) > 250
    assert {name for kind, name, _ in EVERY if kind is OptimConfig} == {
        "steps", "batch_size", "lr", "warmup_steps", "grad_clip_norm", "weight_decay",
        "final_lr_fraction",
    }  # fmt: skip


@pytest.mark.parametrize("kind", settings_classes(), ids=lambda kind: kind.__qualname__)
def test_every_number_has_a_type_and_both_bounds(kind):
    whole = example(kind)
    for name, (part, wrap) in numbers(kind):
        bad = [math.nan, math.inf, -math.inf, 1e30, -1e30, 10**400, True, "3"]
        bad += [2.5] if part is int else []
        for number in bad:
            with pytest.raises(BadSetting) as output:
                replace(whole, **{name: wrap(number)})
            assert str(output.value).startswith(name), f"{kind.__qualname__}.{name} takes {number}"
            assert "\n" not in str(output.value)


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--train-jepa.optim.lr", "-1", "is -1.0; it must be from 0 to 10"),
        ("--train-jepa.weights.variance", "-1", "it must be from 0 to 1e+06"),
        ("--planner.horizon", "0", "is 0; it must be a whole number from 1 to 10000"),
        ("--planner.horizon", "2.5", "is '2.5'; it must be a whole number"),
        ("--train-jepa.optim.warmup-steps", "1000000000000", "it must be a whole number from 0 to"),
        ("--train-jepa.task-modality-prob", "1.5", "is 1.5; it must be from 0 to 1"),
        ("--value-critics.discount", "1", "it must be from 0 to less than 1"),
        ("--episodes", "0", "it must be a whole number from 1 to 1000000"),
        ("--save-every", "nan", "is nan; it must be from 0 to 1e+09"),
        ("--seed", "-1", "is -1; it must be a whole number from 0 to 2147483647"),
        ("--threads", "x", "is 'x'; it must be a whole number"),
    ],
)
def test_messages_name_the_flag_as_it_stands_in_the_recipe(flag, value, message, capsys, tmp_path):
    line = error_line(capsys, "train", "forage", "--out", tmp_path / "run", flag, value)
    assert flag in line
    assert message in line
    assert not (tmp_path / "run").exists()


def test_keys_of_mappings_are_named_as_they_are_given(capsys):
    line = error_line(capsys, "train", "two-rooms", "--configurator.modality-weights", "obs", "-2")
    assert "--configurator.modality-weights obs is -2.0; it must be from 0 to 1e+06" in line


def test_a_recipe_has_a_name():
    for name in ("", "x" * 201):
        with pytest.raises(BadSetting, match=r"recipe is .*; it must be a name of 1 to 200 char"):
            replace(recipes.two_rooms(), recipe=name)


def test_a_task_has_bounds_too():
    with pytest.raises(BadSetting, match=r"drives pain is -1; it must be from 0"):
        TaskSpec(drives={"pain": -1})
    with pytest.raises(BadSetting, match=r"cvar_alpha is 2"):
        TaskSpec(cvar_alpha=2.0)


def parsed(*words: str) -> dict[str, Any]:
    found, rest = config_flags.parse_known(
        EnvFlags(env=EnvConfig(id="x", options={"old": 1})), ["--env.options", *words], "test"
    )
    assert rest == []
    return found.env.options


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], {}),
        (["a", "[8, 8]", "b", '{"c": {"d": [1]}}'], {"a": [8, 8], "b": {"c": {"d": [1]}}}),
        (["n", "null", "m", "None"], {"n": None, "m": None}),
        (["t", "true", "f", "False"], {"t": True, "f": False}),
        (["i", "-1", "x", "1e-3", "y", ".5"], {"i": -1, "x": 1e-3, "y": 0.5}),
        (["s", '"8"', "w", "train", "e", '""'], {"s": "8", "w": "train", "e": ""}),
    ],
)  # fmt: skip
def test_options_can_be_emptied_and_hold_any_json(words, options):
    assert parsed("none", *words) == options
    found = parsed("none", *words).values()
    assert [type(value) for value in found] == [*map(type, options.values())]


def test_options_stand_beside_those_of_the_recipe_unless_these_are_taken_away():
    assert parsed("new", "2") == {"old": 1, "new": 2}
    assert parsed("old", "2") == {"old": 2}
    assert parsed("none", "new", "2") == {"new": 2}
    assert parsed() == {}


def test_an_option_may_have_a_flag_of_its_own():
    default = EnvFlags(env=EnvConfig(id="x", options={"old": 1}))
    argv = ["--env.options.new", "2", "--env.options.old=3", "--env.id", "y"]
    found = config_flags.parse(default, argv, "test").env
    assert (found.id, found.options) == ("y", {"old": 3, "new": 2})


def test_the_value_of_such_a_flag_is_never_another_flag():
    default = EnvFlags(env=EnvConfig(id="x"))
    found = config_flags.parse(default, ["--env.options.a=", "--env.id", "y"], "test").env
    assert (found.id, found.options) == ("y", {"a": ""})
    for rest in (["--env.id", "y"], []):
        with pytest.raises(ConfigError, match=r"--env\.options\.a needs a value"):
            config_flags.parse(default, ["--env.options.a", *rest], "test")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["size"], "'size' has no value"),
        (["a", "1", "a", "2"], "'a' is given 2 times"),
        (["a", "[1"], "is no JSON"),
        (["a", "[" * 5000], "no JSON|deep"),
        (["a", "[" * 12 + "]" * 12], "nested at most 8 deep"),
        (["a", '{"b": 1, "b": 2}'], "the name 'b' occurs twice"),
        (["a", "nan"], "finite"),
        (["a", "9" * 5000], "finite"),
        (["", "1"], "each with a name"),
    ],
)
def test_options_that_mean_nothing_are_refused_in_one_line(words, message):
    with pytest.raises(ConfigError, match=message) as output:
        parsed(*words)
    assert str(output.value).startswith("--env.options")
    assert "\n" not in str(output.value)


def test_a_flag_is_spelled_in_a_message_as_on_the_command_line():
    default = EnvFlags(env=EnvConfig(id="x"))
    with pytest.raises(ConfigError, match=r"^--env\.reset-options: 'task_id' has no value"):
        config_flags.parse(default, ["--env.reset-options", "task_id"], "test")


def test_options_are_the_same_after_saving():
    options = {"size": [8, 8], "config": {"a": None, "b": [True, 1, 1.0, "1"]}, "empty": {}}
    config = recipes.two_rooms()
    config = replace(config, env=replace(config.env, options=options))
    again = config_io.from_json(config_io.to_json(config), "here")
    assert again == config
    assert repr(again.env.options) == repr(options)
    with pytest.raises(BadSetting, match=r"options size is \(8, 8\); it must be None, a bool"):
        EnvConfig(id="x", options={"size": (8, 8)})


def spec_of(config: Config) -> Any:
    with closing(config.env.build(1)) as env:
        return env.spec


SPECS = {name: cache(lambda name=name: spec_of(recipes.recipe(name))) for name in recipes.RECIPES}


@pytest.mark.parametrize("name", ["two-rooms", "two-rooms-random", "maze", "maze-levels", "forage"])
def test_recipes_fit_into_memory_and_nothing_is_allocated_to_know_it(name):
    agent = check_size(recipes.recipe(name), SPECS[name]())
    assert all(part.is_meta for part in agent.parameters())


LARGE = [
    ("--collect.num-envs", "1000000", "the replay buffer would take about"),
    ("--train-jepa.optim.batch-size", "1000000", "a batch of train_jepa would take about"),
    ("--planner.num-proposals", "1000000", "planning would take about"),
    ("--planner.horizon", "10000", "planning would take about"),
    ("--distill-policy.num-envs", "1000000", "planning would take about"),
]


@pytest.mark.parametrize(("flag", "value", "message"), LARGE)
def test_a_size_beyond_memory_is_refused_before_it_is_allocated(
    flag, value, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(hardware, "available_memory", lambda: 2 * 2**30)
    line = error_line(capsys, "train", "two-rooms", "--out", tmp_path / "run", flag, value)
    assert message in line
    assert "of memory are free: make --" in line
    assert not (tmp_path / "run").exists()


def test_layers_that_are_too_wide_are_named_as_the_cause(capsys, tmp_path):
    flags_ = ["--perception.state-dim", "65536"]
    line = error_line(capsys, "train", "two-rooms", "--out", tmp_path / "run", *flags_)
    assert "an agent of these layers would have" in line
    assert "make layers narrower" in line


def test_available_memory_is_what_this_machine_has():
    free = available_memory()
    if free is None:
        pytest.skip("this system does not say")
    assert 2**20 < free < 2**50
    check_memory(free / 2, "half of it", "nothing")
    with pytest.raises(ConfigError, match="all of it would take about"):
        check_memory(2**60, "all of it", "anything")


def test_allocation_failures_are_one_line():
    with pytest.raises(RuntimeError) as output:
        torch.empty(2**60, dtype=torch.uint8)
    line = allocation_failure(output.value)
    assert line.startswith("more memory was needed than there is")
    assert "\n" not in line
    assert allocation_failure(MemoryError())
    assert allocation_failure(RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"))
    assert not allocation_failure(RuntimeError("shapes don't match"))
    assert not allocation_failure(ValueError("x"))


FUZZED = ("two-rooms", "maze", "maze-levels", "forage")
ODD = ["-1", "0", "1", "1e9", "1e30", "nan", "inf", "-inf", "2.5", "", "-0.0", "9" * 30, "65536"]


@cache
def numeric_flags(name: str) -> list[str]:
    """Every flag of a recipe that holds one number."""
    found = []

    def visit(part: Any, path: str) -> None:
        for field in fields(part):
            value = getattr(part, field.name)
            label = f"{path}{field.name.replace('_', '-')}"
            if is_dataclass(value):
                visit(value, f"{label}." if field.name != "config" else path)
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                found.append(label)

    visit(TrainFlags(config=recipes.recipe(name)), "--")
    return found


def tried(name: str, changes: list[tuple[str, str]]) -> None:
    """What `ami train` does before it builds anything; it must raise nothing but ConfigError."""
    words = [word for change in changes for word in change]
    found = config_flags.parse(TrainFlags(config=recipes.recipe(name)), words, f"ami train {name}")
    config_io.to_json(found.config)
    check_stages(found.config)
    check_size(found.config, SPECS[name]())


@st.composite
def mutations(draw: Any) -> tuple[str, list[tuple[str, str]]]:
    name = draw(st.sampled_from(FUZZED))
    flags_ = st.sampled_from(numeric_flags(name))
    chosen = draw(st.lists(flags_, min_size=1, max_size=3, unique=True))
    values = st.one_of(st.sampled_from(ODD), st.integers().map(str), st.floats().map(str))
    return name, [(flag, draw(values)) for flag in chosen]


@fuzzed(mutations(), examples=25)
def test_no_flag_is_answered_with_a_traceback(mutation):
    name, changes = mutation
    message = "accepted"
    try:
        tried(name, changes)
    except ConfigError as error:
        message = str(error)
    assert message
    assert "\n" not in message


def test_an_operation_that_a_device_lacks_is_named_in_one_line():
    sparse = torch.sparse_coo_tensor(
        torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (2,), check_invariants=True
    )
    with pytest.raises(NotImplementedError) as output:
        sparse.cumsum(0)
    line = missing_operation(output.value)
    assert "the device has no operation aten::cumsum" in line
    assert "--device cpu" in line
    assert "\n" not in line
    text = "The operator 'aten::igamma' is not currently implemented for the MPS device. If you"
    line = missing_operation(NotImplementedError(text))
    assert "no operation aten::igamma: PYTORCH_ENABLE_MPS_FALLBACK=1" in line
    assert not missing_operation(RuntimeError(text))
    assert not missing_operation(NotImplementedError("not yet"))
