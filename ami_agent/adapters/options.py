"""Keyword arguments of an environment as settings: any JSON value by name, on the command line as
pairs NAME VALUE that are added to the recipe's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Annotated, Any, TypeAlias

from tyro.constructors import PrimitiveConstructorSpec

from modules.types import BadSetting, ConfigError

MAX_DEPTH = 8
"""Levels of nested lists and dicts."""
MAX_LENGTH = 10_000
"""Values in one keyword argument, and characters of one string."""
PYTHON_LITERALS: Mapping[str, Any] = {"True": True, "False": False, "None": None}


def parse_options(words: Sequence[str], default: Mapping[str, Any]) -> dict[str, Any]:
    """Pairs NAME VALUE, added to those of `default` or replacing them by name; a leading "none", or
    no word at all, removes the defaults."""
    kept = {} if not words or words[0] == "none" else default
    words = words[1:] if words[:1] == ["none"] else words
    if len(words) % 2:
        raise ConfigError(
            f"{words[-1]!r} has no value; write NAME VALUE NAME VALUE ..., or none for no option"
        )
    names = words[::2]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{name!r} is given {names.count(name)} times")
    given = zip(names, words[1::2], strict=True)
    return {**kept, **{name: _parse_value(name, text) for name, text in given}}


def join_option_flags(argv: Sequence[str]) -> list[str]:
    """Flags `--env.options.NAME VALUE` become one `--env.options NAME VALUE ...`."""
    rest: list[str] = []
    pairs: dict[str, list[str]] = {}
    words = iter(argv)
    for word in words:
        flag, _, value = word.partition("=")
        path, found, name = flag.partition(".options.")
        if not (found and path.startswith("--") and name):
            rest.append(word)
            continue
        pairs.setdefault(f"{path}.options", []).extend([name, value or next(words, "")])
    return [*rest, *(word for flag, named in pairs.items() for word in (flag, *named))]


def _parse_value(name: str, text: str) -> Any:
    """JSON, or True, False, None and numbers as Python writes them; else a string."""
    if text in PYTHON_LITERALS:
        return PYTHON_LITERALS[text]
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=float)
    except ConfigError as error:
        raise ConfigError(f"{name!r} is {text}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{name!r} is nested more than {MAX_DEPTH} deep") from None
    except ValueError:
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        if text[:1] in ("[", "{", '"'):
            raise ConfigError(
                f"{name!r} is {text[:60]}, which is no JSON; write a string that begins so in "
                "double quotes, '\"...\"'"
            ) from None
        return text


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ConfigError("a name is given twice")
    return dict(pairs)


def _words(options: Mapping[str, Any]) -> list[str]:
    """The reverse of `parse_options`."""
    return [word for name, value in options.items() for word in (name, _to_text(value))]


def _to_text(value: Any) -> str:
    if isinstance(value, str) and value and _parse_text(value) == value:
        return value
    return json.dumps(value)


def _parse_text(text: str) -> Any:
    try:
        return _parse_value("", text)
    except ConfigError:
        return None


class UnparsedOptions(list[str]):
    """Words from the command line; `parse_options` needs the defaults of the flag they follow."""


Options: TypeAlias = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME VALUE ...]",
        instance_from_str=UnparsedOptions,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=_words,
    ),
]
"""Values are None, bool, int, float, str, and lists and dicts of these."""


def check_options(options: object) -> None:
    """Raises BadSetting for options that JSON can't hold without loss."""
    if not isinstance(options, dict):
        raise BadSetting("options", options, "a dict of keyword arguments")
    for name, value in options.items():
        if not isinstance(name, str) or not name:
            raise BadSetting("options", options, "keyword arguments, each with a name")
        if problem := _problem(value, MAX_DEPTH, [MAX_LENGTH]):
            raise BadSetting(f"options {name}", value, problem)


def _problem(value: Any, depth: int, num_left: list[int]) -> str:
    """The requirement that a JSON value fails; empty where there is none. `num_left` counts down
    the values."""
    num_left[0] -= 1
    if num_left[0] < 0:
        return f"at most {MAX_LENGTH} values"
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, int):
        return "" if abs(value) < 2**63 else "a number below 2**63"
    if isinstance(value, float):
        return "" if isfinite(value) else "a finite number"
    if isinstance(value, str):
        return "" if len(value) <= MAX_LENGTH else f"a string of at most {MAX_LENGTH} characters"
    if not isinstance(value, (list, dict)):
        return "None, a bool, a number, a string, or a list or a dict of these"
    if not depth:
        return f"nested at most {MAX_DEPTH} deep"
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        return "a dict whose keys are strings"
    parts = value.values() if isinstance(value, dict) else value
    return next((problem for part in parts if (problem := _problem(part, depth - 1, num_left))), "")
