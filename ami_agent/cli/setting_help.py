"""The help text of settings: the docstrings of their fields and classes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import docstring_parser

from ami_agent.config import Config


def setting_help(config: Config, path: str) -> str:
    """The help of a setting, `actor.planner.horizon`: the docstring of the field, or of the field
    that holds it where that is a mapping; of a stage, or of a choice of class (`path._type`), the
    first paragraph of the docstring of the class. Empty where there is none."""
    settings: Any = config
    *outer, last = path.split(".")
    for name in outer:
        inner = settings.get(name) if isinstance(settings, Mapping) else getattr(settings, name, 0)
        if not is_dataclass(inner) and name != "stages":
            return _first_paragraph(_docstring(type(settings), name))
        settings = inner
    if isinstance(settings, Mapping):
        settings, last = settings.get(last), "_type"
    return _first_paragraph(_docstring(type(settings), last))


def _docstring(cls: type, name: str) -> str | None:
    if name == "_type":  # of the settings of a class, the class itself
        owner = cls.__qualname__.removesuffix("Config")
        return getattr(sys.modules[cls.__module__], owner, cls).__doc__
    fields = docstring_parser.parse_from_object(cls).params
    return next((field.description for field in fields if field.arg_name == name), None)


def _first_paragraph(text: str | None) -> str:
    """The first paragraph, on one line."""
    return " ".join((text or "").partition("\n\n")[0].split())
