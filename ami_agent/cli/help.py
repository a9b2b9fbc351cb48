"""The help of a command: its flags in groups, of which those that users set most often are shown,
and the others are listed."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import is_dataclass

import docstring_parser

from ami_agent.argument_checks import unknown_name

ALL = "all"
WHOLE = 6
"""Groups of flags, at most, that are all shown."""
NAME_COLUMN, WIDTH = 36, 80
"""Characters of the name of a group in the list, and of a line."""


def split_help(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """The arguments without `--help [GROUP]`, and GROUP: empty where none is named, None where
    there is no such flag."""
    for place, arg in enumerate(argv):
        flag, _, group = arg.partition("=")
        if flag in ("-h", "--help"):
            named = [name for name in argv[place + 1 : place + 2] if name[:1] != "-"]
            rest = [*argv[:place], *argv[place + 1 + len(named) :]]
            return rest, group or "".join(named)
    return list(argv), None


def select_groups(texts: Sequence[str], stages: Collection[str], group: str, program: str) -> str:
    """Of the parser's texts, one for each set of flags, the groups to show: `group` and what is
    within it, ALL, or without a name the command's own flags and those of the environment and of
    the training stages, then a list of the others. ConfigError for a group that there is not."""
    head = texts[0].partition("\n\n")[0]
    groups: dict[str, str] = {}
    for text in texts:
        for part in re.split(r"(?m)^(?= \S.*options *$| options *$)", text)[1:]:
            title = part.splitlines()[0].strip().removesuffix("options").strip()
            groups.setdefault(title, part.rstrip())
    first = ["", "env", *stages]
    names = sorted(groups, key=lambda name: _rank(name, first))
    if len(names) <= WHOLE or group == ALL:
        return "\n\n".join([head, *(groups[name] for name in names)]) + "\n"
    if group:
        group = group.strip("-").replace("_", "-")
        found = [name for name in names if f".{group}." in f".{name}."]
        if not found:
            raise unknown_name("group of flags", group, [*filter(None, names), ALL])
        return "\n\n".join([head, *(groups[name] for name in found)]) + "\n"
    shown, listed = [n for n in first if n in groups], [n for n in names if n not in first]
    title = f" more options: {program} --help GROUP, or --help {ALL} "
    lines = [_line(name, groups[name]) for name in listed]
    listing = "\n".join([title, " " + "-" * (WIDTH - 2), *lines])
    return "\n\n".join([head, *(groups[name] for name in shown), listing]) + "\n"


def _rank(name: str, first: Sequence[str]) -> int:
    """Groups follow the one that they are within."""
    outer = name.partition(".")[0]
    return first.index(outer) if outer in first else len(first)


def _line(name: str, group: str) -> str:
    """The name of a group, and as many of its flags as the line holds."""
    flags = re.findall(r"(?m)^  --([\w.-]*\w)", group)
    own = [flag.rpartition(".")[2] for flag in flags]
    text = ", ".join(own)
    while len(text) > WIDTH - NAME_COLUMN - 2:
        own.pop()
        text = ", ".join([*own, "..."])
    return f"  {name:{NAME_COLUMN}}{text}"


def field_descriptions(kind: type) -> dict[str, str]:
    """The docstrings of the fields of a dataclass, each on one line: the parser would keep the ends
    of their lines."""
    found = {}
    for base in filter(is_dataclass, reversed(kind.__mro__)):
        with suppress(OSError, TypeError):  # a class without a source
            for param in docstring_parser.parse_from_object(base).params:
                found[param.arg_name] = " ".join((param.description or "").split())
    return found
