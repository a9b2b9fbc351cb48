"""Settings as JSON, and the classes that each field of them may hold."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache, partial
from math import isfinite
from typing import Any, Union, get_args, get_origin, get_type_hints

import cattrs
import cattrs.v
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, make_mapping_structure_fn
from cattrs.preconf.json import make_converter

from ami_agent.config import Config
from ami_agent.user_components import MissingImport, class_name, component_class, component_path
from modules.types import ConfigError, shorten


@cache
def _converter() -> cattrs.Converter:
    """Classes are written down by their names, and found by the types of fields: no registry."""
    converter = make_converter(forbid_extra_keys=True)
    for kind in (bool, int, float, str):
        converter.register_structure_hook(kind, _structure_scalar)
    converter.register_structure_hook_factory(
        lambda kind: get_origin(kind) in (tuple, dict), partial(_structure_container, converter)
    )
    for hint in dict.fromkeys(hint for _, hint in _components(Config)):
        _register_component(converter, hint)
    return converter


def _components(kind: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and type of every field, at any depth, that holds a component: of one class out of
    several, or one that the user may replace. The values of a mapping are at `name.*`."""
    for name, hint in get_type_hints(kind).items():
        inner_path = path + name
        if get_origin(hint) is dict:
            inner_path, hint = f"{inner_path}.*", get_args(hint)[1]
        members = _members(hint)
        is_single = members == [hint]
        is_component = hasattr(hint, "build") and hint.__module__.startswith("modules.")
        if members and (is_component or not is_single):
            yield inner_path, hint
        for member in members:
            yield from _components(member, f"{inner_path}.")


def _members(hint: Any) -> list[type]:
    """The dataclasses of which a field of this type may be."""
    is_union = get_origin(hint) in (Union, types.UnionType)
    return list(filter(is_dataclass, get_args(hint) if is_union else [hint]))


def _register_component(converter: cattrs.Converter, hint: Any) -> None:
    """A field that holds one of these classes, written down by its name; or one of the user's own,
    written down by its module and name."""
    members = _members(hint)
    by_name = {member.__qualname__: member for member in members}
    sole = members[0] if members == [hint] else None
    optional = types.NoneType in get_args(hint)

    @cache
    def hooks_of(kind: type) -> tuple[Any, Any]:
        return (
            make_dict_unstructure_fn(kind, converter),
            make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True),
        )

    def unstructure(value: Any) -> dict[str, Any] | None:
        if value is None and optional:
            return None
        kind: Any = type(value)
        data: dict[str, Any] = hooks_of(kind)[0](value)
        if kind is sole:
            return data
        return {**data, "_type": kind.__qualname__ if kind in members else component_path(kind)}

    def structure(value: Any, _: Any) -> Any:
        if value is None and optional:
            return None
        if not isinstance(value, dict):
            raise ConfigError(f"{shorten(value)} is given, and an object is needed")
        name = value.get("_type", next((n for n in by_name if n in ONCE_ALONE), None))
        if optional and name in LEFT_OUT:
            return None
        kind = sole if name is None and sole else _named_class(name, by_name)
        return hooks_of(kind)[1]({k: v for k, v in value.items() if k != "_type"}, kind)

    converter.register_structure_hook_func(lambda kind: kind == hint, structure)
    converter.register_unstructure_hook_func(lambda kind: kind == hint, unstructure)


LEFT_OUT = ("FlatConfig", "NoPolicyProposalConfig", "NoStuckRecoveryConfig")
"""What runs of earlier versions wrote down where a part is left out; now it is None."""
ONCE_ALONE = ("ScenarioCVaRConfig",)
"""The only choice of their field in earlier versions, whose runs did not write it down."""


def _named_class(name: Any, by_name: Mapping[str, type]) -> type:
    """One of these classes, or one of the user's own, by the name that settings write down."""
    if str(name) in by_name:
        return by_name[str(name)]
    if "." in str(name):
        return component_class(str(name))
    raise ConfigError(f"_type is {shorten(name)}; it must be {' or '.join(by_name)}")


def _structure_scalar(value: Any, kind: type) -> Any:
    """A value of just this kind: True is no number. A whole number may stand for a float."""
    is_valid = type(value) in ((int, float) if kind is float else (kind,))
    if is_valid and kind in (float, str):
        is_valid = isfinite(value) if kind is float else len(value) <= MAX_TEXT
    if not is_valid:
        raise ConfigError(f"{shorten(value)} is given, and {TYPE_NAMES[kind]} is needed")
    return kind(value)


MAX_TEXT = 1000  # characters of a text
TYPE_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: f"text of at most {MAX_TEXT} characters",
}


def _structure_container(converter: cattrs.Converter, kind: Any) -> Callable[[Any, Any], Any]:
    """Structures a list or an object where it is one: text would pass for a list of letters."""
    is_list = get_origin(kind) is tuple
    structure_mapping: Any = None if is_list else make_mapping_structure_fn(kind, converter)

    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, list if is_list else dict):
            needed = "a list" if is_list else "an object"
            raise ConfigError(f"{shorten(value)} is given, and {needed} is needed")
        if is_list:
            return tuple(converter.structure(part, get_args(kind)[0]) for part in value)
        return structure_mapping(value, kind)

    return structure


def to_json(config: Config) -> dict[str, Any]:
    """A Config as plain data, complete; raises ConfigError for a number that is not finite."""
    data: dict[str, Any] = _converter().unstructure(config)
    _check_finite(data)
    return data


def _check_finite(data: Any, path: str = "") -> None:
    for name, part in data.items() if isinstance(data, dict) else ():
        _check_finite(part, f"{path}.{name}")
    if isinstance(data, float) and not isfinite(data):
        raise ConfigError(f"{path.lstrip('.')} is {data}; settings must be finite numbers")


def from_json(data: Any, source: str) -> Config:
    """The Config back; raises ConfigError naming the first field that doesn't fit."""
    try:
        return _converter().structure(data, Config)
    except Exception as error:  # what another wrote may fail anywhere
        if missing := _missing_import(error):
            raise MissingImport(
                f"{source} needs code that is not imported unless you name it: {missing}"
            ) from None
        raise ConfigError(
            f"{source} holds no settings of this version: {_error_text(error)}"
        ) from None


def _missing_import(error: BaseException) -> MissingImport | None:
    """The first component among these errors whose file the user did not name."""
    if isinstance(error, MissingImport):
        return error
    inner = (_missing_import(each) for each in getattr(error, "exceptions", ()))
    return next(filter(None, inner), None)


def _error_text(error: BaseException) -> str:
    if isinstance(error, cattrs.errors.BaseValidationError):
        first, *more = cattrs.transform_error(error, "", _message)
        message, _, path = first.rpartition(" @ ")
        path = re.sub(r"\['(.*?)'\]", r".\1", path).lstrip(".")  # ['key'] -> .key
        return f"{path}: {message}" + (f" (and {len(more)} more)" if more else "")
    return f"{type(error).__name__} {error}"


def _message(error: BaseException, kind: type | None) -> str:
    is_ours = isinstance(error, ConfigError)
    return str(error) if is_ours else cattrs.v.format_exception(error, kind)


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two pieces of plain data differ, one phrase each; of two that are not of the same kind
    no more than the kinds."""
    if isinstance(one, dict) and isinstance(other, dict):
        same = one.get("_type") == other.get("_type")
        names = dict.fromkeys([*one, *other] if same else ["_type"])
        return [d for n in names for d in differences(one.get(n), other.get(n), f"{path}.{n}")]
    kinds = [part.get("_type", part) if isinstance(part, dict) else part for part in (one, other)]
    return [] if one == other else [f"{path.lstrip('.')} is {kinds[0]!r}, not {kinds[1]!r}"]


def component_choices() -> dict[str, dict[str, type]]:
    """Every field that holds a component, by its path: the classes it may be of, by name."""
    choices: dict[str, dict[str, type]] = {}
    for path, hint in _components(Config):
        if "*" not in path:
            choices[path] = {class_name(kind): kind for kind in _members(hint)}
            if types.NoneType in get_args(hint):
                choices[path]["None"] = types.NoneType
    return choices


def find_component(name: str) -> str:
    """The path of a component, given by its path or by the end of it: `planner` -> `actor.planner`,
    the outermost of several. ConfigError where there is none."""
    paths = list(component_choices())
    found = [path for path in paths if f".{path}".endswith(f".{name}")]
    outermost = [path for path in found if path.count(".") == min(p.count(".") for p in found)]
    if len(outermost) != 1:
        raise ConfigError(f"components are {', '.join(outermost or paths)}")
    return outermost[0]


def component_of(path: str, name: str) -> Any:
    """The default settings of a component by the name of its class, whatever its case, or by
    module and class of the user's own. ConfigError for a class that can't stand there."""
    choices = component_choices()[path]
    by_name = {choice.lower(): kind for choice, kind in choices.items()}
    kind = by_name.get(name.lower().removesuffix("config"))
    if kind is None and "." in name:
        kind = component_class(name)
    if kind is None:
        raise ConfigError(
            f"{path} may be {', '.join(choices)}, or a class of your own, MODULE.CLASS"
        )
    return defaults_of(kind)


def defaults_of(kind: type) -> Any:
    try:
        return kind()
    except Exception as error:  # code of the user's own may fail anywhere
        raise ConfigError(f"{class_name(kind)} has no default settings: {error}") from None


UNPREFIXED_FIELDS = ("memory", "cost", "actor", "stages")
"""Fields of Config of which the flags have no prefix."""


def flag_of(path: str) -> str:
    """A setting on the command line: `actor.planner.horizon` -> `--planner.horizon`."""
    first, _, rest = path.partition(".")
    return "--" + (rest if first in UNPREFIXED_FIELDS and rest else path).replace("_", "-")
