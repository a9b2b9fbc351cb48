"""Keyword arguments of an environment as settings: any JSON value by name, on the command line as
pairs NAME VALUE that stand beside the recipe's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Annotated, Any, TypeAlias

from tyro.constructors import PrimitiveConstructorSpec

from modules.types import BadSetting, UnusableInput

DEEPEST = 8
"""Lists within lists, or dicts within dicts."""
LARGEST = 10_000
"""Values in one keyword argument, and characters of one text."""
WORDS: Mapping[str, Any] = {"True": True, "False": False, "None": None}


def parse_options(words: Sequence[str], default: Mapping[str, Any]) -> dict[str, Any]:
    """Pairs NAME VALUE beside those of `default`, or in their place; "none" before them takes the
    defaults away, and no word at all too."""
    kept = {} if not words or words[0] == "none" else default
    words = words[1:] if words[:1] == ["none"] else words
    if len(words) % 2:
        raise UnusableInput(
            f"{words[-1]!r} has no value; write NAME VALUE NAME VALUE ..., or none for no option"
        )
    names = words[::2]
    for name in names:
        if names.count(name) > 1:
            raise UnusableInput(f"{name!r} is given {names.count(name)} times")
    given = zip(names, words[1::2], strict=True)
    return {**kept, **{name: _parse_value(name, text) for name, text in given}}


def joined_pairs(argv: Sequence[str]) -> list[str]:
    """`--env.options.NAME VALUE`, a flag for each, becomes `--env.options NAME VALUE ...`."""
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
    """JSON; True, False, None and numbers as Python writes them; all else is text."""
    if text in WORDS:
        return WORDS[text]
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=float)
    except UnusableInput as error:
        raise UnusableInput(f"{name!r} is {text}: {error}") from None
    except RecursionError:
        raise UnusableInput(f"{name!r} is nested more than {DEEPEST} deep") from None
    except ValueError:
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        if text[:1] in ("[", "{", '"'):
            raise UnusableInput(
                f"{name!r} is {text[:60]}, which is no JSON; a text that begins so is written in "
                "double quotes, '\"...\"'"
            ) from None
        return text


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise UnusableInput("a name is given twice")
    return dict(pairs)


def _words(options: Mapping[str, Any]) -> list[str]:
    """The reverse of `parse_options`."""
    return [word for name, value in options.items() for word in (name, _written(value))]


def _written(value: Any) -> str:
    if isinstance(value, str) and value and _parse_text(value) == value:
        return value
    return json.dumps(value)


def _parse_text(text: str) -> Any:
    try:
        return _parse_value("", text)
    except UnusableInput:
        return None


class Unparsed(list[str]):
    """Words from the command line; parsed where it is known which flag they follow."""


Options: TypeAlias = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME VALUE ...]",
        instance_from_str=Unparsed,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=_words,
    ),
]
"""Values are None, bool, int, float, str, and lists and dicts of these."""


def check_options(options: object) -> None:
    """Raises BadSetting for what could not be written down as JSON, or not be read back."""
    if not isinstance(options, dict):
        raise BadSetting("options", options, "a dict of keyword arguments")
    for name, value in options.items():
        if not isinstance(name, str) or not name:
            raise BadSetting("options", options, "keyword arguments, each with a name")
        if fault := _fault(value, DEEPEST, [LARGEST]):
            raise BadSetting(f"options {name}", value, fault)


def _fault(value: Any, depth: int, left: list[int]) -> str:
    """What a JSON value must be where this one is not; `left` counts down the values."""
    left[0] -= 1
    if left[0] < 0:
        return f"at most {LARGEST} values"
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, int):
        return "" if abs(value) < 2**63 else "a number below 2**63"
    if isinstance(value, float):
        return "" if isfinite(value) else "a finite number"
    if isinstance(value, str):
        return "" if len(value) <= LARGEST else f"a text of at most {LARGEST} characters"
    if not isinstance(value, (list, dict)):
        return "None, a bool, a number, a text, or a list or a dict of these"
    if not depth:
        return f"nested at most {DEEPEST} deep"
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        return "a dict whose keys are texts"
    parts = value.values() if isinstance(value, dict) else value
    return next((fault for part in parts if (fault := _fault(part, depth - 1, left))), "")
