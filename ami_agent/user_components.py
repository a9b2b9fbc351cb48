"""Components of the user's own: dataclasses with a method `build(...)`, in a file that the user
names. Settings write them down by module and class, and nothing imports that module by itself."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ami_agent.adapters.fault_tolerance import as_config_errors
from ami_agent.adapters.imports import import_path
from modules.types import ActorProtocol, ConfigError, TaskContext

if TYPE_CHECKING:
    from ami_agent.agent import Agent
    from ami_agent.config import Config

OURS = ("ami_agent", "modules")


class MissingImport(ConfigError):
    """Settings name a component of a file that the user did not name."""


_named: dict[str, str] = {}
"""Files (x.py) and modules that the user named in this process, by the name that settings write
down: the stem of the file, or the module."""
_known: dict[str, type] = {}
"""Classes of which the user has given settings in this process."""


def allow_components(names: Sequence[str]) -> None:
    """Lets settings name components of these files (x.py) and modules, which the user named. A
    module is imported when settings need it."""
    for name in names:
        _named[Path(name).stem if name.endswith(".py") else name] = name


def component_class(path: str) -> type:
    """`my_encoder.MyEncoderConfig` -> the class; ConfigError unless the user named the file that
    defines it, or gave settings of this class in this process."""
    if path in _known:
        return _known[path]
    if len(path) > 200 or not re.fullmatch(r"\w+(\.\w+)+", path):
        raise ConfigError(f"{path[:60]!r} is no class, MODULE.CLASS")
    module_name, _, class_name = path.rpartition(".")
    if module_name not in _named:
        file = module_name if "." in module_name else f"{module_name}.py"
        raise MissingImport(
            f"{path} is a component that is not part of AMI: name the file that defines it "
            f"(--import {file}; in Python imports=('{file}',))"
        )
    module = import_path(_named[module_name])
    found = getattr(module, class_name, None)
    if not isinstance(found, type) or found.__module__ != module.__name__:
        raise ConfigError(f"{module_name} defines no class {class_name!r}")
    settings = getattr(found, "__dataclass_params__", None)
    if settings is None or not settings.frozen:
        raise ConfigError(
            f"{path} is no frozen dataclass, as the settings of a component must be "
            "(@dataclass(frozen=True, kw_only=True))"
        )
    return found


def component_path(kind: type) -> str:
    """The module and class by which settings write a component of the user's down."""
    file = re.fullmatch(r"_ami_(.+)_[0-9a-f]{8}", kind.__module__)  # a module of `import_path`
    path = f"{file[1] if file else kind.__module__}.{kind.__qualname__}"
    _known[path] = kind
    return path


def class_name(settings: Any) -> str:
    """The component that these settings, or this class of settings, make: `CEMConfig` -> `CEM`;
    "None" where there is none."""
    if settings is None:
        return "None"
    kind = settings if isinstance(settings, type) else type(settings)
    return kind.__qualname__.removesuffix("Config")


def needs_files(settings: Any) -> bool:
    """Whether some component is of a class from a file, which other processes can't import."""
    return any(type(part).__module__.startswith("_ami_") for _, part in custom_components(settings))


def is_custom(settings: Any) -> bool:
    """Whether these settings are of a class that is not part of AMI."""
    return type(settings).__module__.partition(".")[0] not in OURS


def custom_components(settings: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The settings of the user's own classes within a Config, by path."""
    if dataclasses.is_dataclass(settings):
        parts = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
        if path.strip(".") and is_custom(settings):
            yield path.removeprefix("."), settings
    else:
        parts = dict(settings) if isinstance(settings, Mapping) else {}
    for name, part in parts.items():
        yield from custom_components(part, f"{path}.{name}")


def build_component(
    path: str, settings: Any, *args: Any, kind: type = object, method: str = "build"
) -> Any:
    """What `settings.build(*args)` makes, an instance of `kind`; None where there are no settings.
    ConfigError in one line where code of the user's own within it fails."""
    if settings is None:
        return None
    custom = dict(custom_components({path: settings}))
    if not custom:
        return getattr(settings, method)(*args)
    if is_custom(settings) and not callable(getattr(settings, method, None)):
        name = f"{path} {component_path(type(settings))}"
        raise ConfigError(f"{name} has no method {method}(...), which makes the component")
    names = ", ".join(
        f"{part} {component_path(type(value))}"
        for part, value in custom.items()
        if hasattr(value, "build")
    )
    with as_config_errors(f"{names}: {method} failed"):
        built = getattr(settings, method)(*args)
    if not isinstance(built, kind):
        raise ConfigError(
            f"{names}: {method} made a {type(built).__name__}; it must be an ami.{kind.__name__}"
        )
    return built


def require_attributes(path: str, part: Any, *names: str) -> None:
    """Raises ConfigError unless the component, or its settings, have these attributes."""
    missing = [name for name in names if not hasattr(part, name)]
    if missing:
        raise ConfigError(
            f"{path} {component_path(type(part))} has no {' and no '.join(missing)}, "
            "which AMI needs"
        )


@torch.no_grad()
def check_custom(agent: Agent, config: Config) -> None:
    """Tries components of the user's own on zeros, in the order in which an action meets them;
    ConfigError names the first that fails or answers in another shape."""
    custom = {path: component_path(type(part)) for path, part in custom_components(config)}
    if not custom or agent.device.type == "meta":
        return
    was_training = agent.training
    with torch.random.fork_rng(devices=[]):
        _try_components(agent.eval(), config, custom)
    agent.train(was_training)


def _try_part(
    custom: Mapping[str, str], prefix: str, what: str, shape: tuple[int, ...],
    run: Callable[[], Tensor],
) -> Tensor:  # fmt: skip
    """What `run` returns; ConfigError where it fails, or is no tensor of this shape. `prefix`: the
    path of the components that it runs."""
    named = [f"{path} {kind}" for path, kind in custom.items() if path.startswith(prefix)]
    label = ", ".join(named) or prefix
    with as_config_errors(f"{label}: {what} failed"):
        found = run()
    if not isinstance(found, Tensor) or tuple(found.shape) != shape:
        given = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ConfigError(f"{label}: {what} gave {given}; it must be a tensor of shape {shape}")
    return found


def _try_components(agent: Agent, config: Config, custom: Mapping[str, str]) -> None:
    size, try_part = prod(agent.shape), partial(_try_part, custom)
    features = try_part(
        "perception", "encoding an observation", (1, size),
        lambda: agent.perception(agent.spec.zeros(1), agent.configurator.default_modality_weights),
    )  # fmt: skip
    actions = torch.zeros(1, 2, 3, agent.spec.action_dim, device=features.device)
    states = try_part(
        "world_model", "imagining 3 steps of 2 action sequences", (1, 2, 4, size),
        lambda: agent.world_model.imagine(features, actions).states,
    )  # fmt: skip
    task = next(iter(agent.tasks.values()))
    goal = None if task.goal_source == "none" else agent.spec.zeros(1)
    context = agent.configurator.context(task.to_task(goal, "plan"), torch.zeros_like(features))
    rollout = agent.world_model.imagine(features, actions)
    for name, cost_fn in agent.cost.cost_functions().items():
        prefix = f"cost.intrinsic.{name}" if name in config.cost.intrinsic else "cost"
        energy = partial(cost_fn, rollout, context)
        try_part(prefix, f"the cost {name!r} of 2 imagined futures", (1, 2), energy)
    interoceptive = agent.cost.interoceptive_cost
    critics = interoceptive.value_critics
    if critics is not None:
        try_part(
            "cost.value_critics", "the values of 2 imagined futures",
            (1, 2, 3, len(interoceptive.drives.names)), lambda: critics(states[:, :, 1:]),
        )  # fmt: skip
    _try_actors(agent, context, custom)


def _try_actors(agent: Agent, context: TaskContext, custom: Mapping[str, str]) -> None:
    state, subgoals = torch.zeros_like(context.goal), agent.subgoals
    if subgoals is not None:
        _try_part(
            custom, "actor.subgoals", "the subgoal", tuple(state.shape),
            lambda: subgoals(state, context, subgoals.initial_carry(0))[0].goal,
        )  # fmt: skip
    for mode, actor in agent.actors.items():

        def plan(mode: str = mode, actor: ActorProtocol = actor) -> Tensor:
            noisy = agent.evaluator.with_noise(context._replace(mode=mode), torch.Generator())
            return actor(state, noisy, actor.initial_carry(0))[0].actions

        horizon = 1 if mode == "react" else context.horizon
        shape = (1, horizon, agent.spec.action_dim)
        _try_part(custom, "actor", f"a plan's actions in mode {mode!r}", shape, plan)
