"""Settings as text: to JSON and back, and as flags of the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from functools import cache, partial
from math import isfinite
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import cattrs
import cattrs.v
import tyro
from cattrs.preconf.json import make_converter
from cattrs.strategies import configure_tagged_union

from ami_agent.build import Config
from ami_agent.options import Unparsed, joined_pairs, parse_options
from modules.types import BadSetting, UnusableInput

Settings = TypeVar("Settings")


@cache
def _converter() -> cattrs.Converter:
    """Each of several possible classes is written down by its name, and found again by the type of
    the field: no registry of classes."""
    converter = make_converter(forbid_extra_keys=True)
    for kind in (bool, int, float, str):
        converter.register_structure_hook(kind, _plain)
    converter.register_structure_hook_factory(
        lambda kind: get_origin(kind) in (tuple, dict), partial(_container, converter)
    )
    for union in _unions(Config):
        configure_tagged_union(
            union, converter, tag_generator=lambda kind: kind.__qualname__, tag_name="is"
        )
    return converter


def _plain(value: Any, kind: type) -> Any:
    """The value of a field that is no container, of just its kind: half a step is no step, and True
    is no number. A whole number may stand for a float."""
    allowed = (int, float) if kind is float else (kind,)
    beyond = (kind is float and not isfinite(value)) if type(value) in allowed else True
    if beyond or (kind is str and len(value) > LONGEST):
        raise UnusableInput(f"{_shown(value)} is given, and {KINDS[kind]} is needed")
    return kind(value)


LONGEST = 1000
"""Characters of a text."""
KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: f"text of at most {LONGEST} characters",
}


def _container(converter: cattrs.Converter, kind: Any) -> Callable[[Any, Any], Any]:
    """Structures a list or an object where it is one: text would pass for a list of letters."""
    several = get_args(kind)

    def listed(value: Any, _: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise UnusableInput(f"{_shown(value)} is given, and a list is needed")
        return tuple(converter.structure(part, several[0]) for part in value)

    def named(value: Any, _: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise UnusableInput(f"{_shown(value)} is given, and an object is needed")
        return {name: converter.structure(part, several[1]) for name, part in value.items()}

    return listed if get_origin(kind) is tuple else named


def _shown(value: Any) -> str:
    """The value, shortened."""
    return told if len(told := repr(value)) <= 60 else f"{told[:60]}..."


def _unions(kind: type) -> list[Any]:
    """Every union of dataclasses among the fields of a dataclass, at any depth, inner first."""
    found: list[Any] = []
    for hint in get_type_hints(kind).values():
        several = get_origin(hint) in (Union, types.UnionType)
        candidates = get_args(hint) if several else [hint]
        members = [member for member in candidates if dataclasses.is_dataclass(member)]
        for member in members:
            found += _unions(member)  # type: ignore[arg-type]
        if several and members:
            found.append(hint)
    return list(dict.fromkeys(found))


def to_json(config: Config) -> dict[str, Any]:
    """A Config as plain data, complete; raises UnusableInput for a number that is not finite."""
    data = _converter().unstructure(config)
    for path, value in _leaves(data):
        if isinstance(value, float) and not isfinite(value):
            raise UnusableInput(f"{path} is {value}; settings must be finite numbers")
    return data


def _leaves(data: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(data, dict):
        yield path.lstrip("."), data
        return
    for name, part in data.items():
        yield from _leaves(part, f"{path}.{name}")


def from_json(data: Any, source: str) -> Config:
    """The Config back; raises UnusableInput naming the first field that doesn't fit."""
    try:
        return _converter().structure(_renewed(data), Config)
    except Exception as error:  # what another wrote may fail anywhere
        raise UnusableInput(
            f"{source} holds no settings of this version: {_reason(error)}"
        ) from None


def _renewed(data: Any) -> Any:
    """Settings that were written down when life was always lived, in today's words."""
    if isinstance(data, dict) and isinstance(data.get("life"), dict):
        return {**data, "life": {"is": "Live", **data["life"]}}
    return data


def _reason(error: BaseException) -> str:
    if isinstance(error, cattrs.errors.BaseValidationError):
        first, *more = cattrs.transform_error(error, "", _message)
        first = f"{first.rpartition(' @ ')[2].lstrip('.')}: {first.rpartition(' @ ')[0]}"
        return f"{first} (and {len(more)} more)" if more else first
    return f"{type(error).__name__} {error}"


def _message(error: BaseException, kind: type | None) -> str:
    """What is wrong with one field."""
    if isinstance(error, UnusableInput):
        return str(error)
    return cattrs.v.format_exception(error, kind)


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two pieces of plain data differ, one phrase each; of two that are not of the same kind
    no more than the kinds."""
    if isinstance(one, dict) and isinstance(other, dict):
        same = one.get("is") == other.get("is")
        names = dict.fromkeys([*one, *other] if same else ["is"])
        return [d for n in names for d in differences(one.get(n), other.get(n), f"{path}.{n}")]
    return [] if one == other else [f"{path.lstrip('.')} is {one!r}, not {other!r}"]


def parse(default: Settings, argv: Sequence[str], program: str) -> Settings:
    """Flags that replace fields of `default`, a dataclass; where a field may be one of several
    classes, the flags are those of the class it has in `default`.

    Raises UnusableInput with one line for a flag or a value that won't do.
    """
    return _widen(_parse(default, argv, program), default, "--")


def parse_known(default: Settings, argv: Sequence[str], program: str) -> tuple[Settings, list[str]]:
    """The same, and the flags that are of something else, a call for help among them."""
    helping = [arg for arg in argv if arg in ("-h", "--help")]
    asked = [arg for arg in argv if arg not in helping]
    if helping:
        with contextlib.suppress(SystemExit):
            _parse(default, helping, program)
    found, rest = _parse(default, asked, program, return_unknown_args=True)
    return _widen(found, default, "--"), [*rest, *helping]


def _parse(default: Any, argv: Sequence[str], program: str, **how: Any) -> Any:
    argv = joined_pairs(argv)
    _check_once(argv)
    said, complaint = io.StringIO(), io.StringIO()
    flags = (tyro.conf.FlagCreatePairsOff,)
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
            return tyro.cli(_narrow(default), args=list(argv), prog=program, config=flags, **how)
    except SystemExit as stop:
        if stop.code:
            raise UnusableInput(_one_line(complaint.getvalue() or said.getvalue())) from None
        print(said.getvalue(), end="")  # --help
        raise


def _check_once(argv: Sequence[str]) -> None:
    """Of a flag that is given twice only the last would count, and nobody would know."""
    flags = Counter(arg.partition("=")[0].replace("_", "-") for arg in argv if arg[:2] == "--")
    for flag, times in flags.items():
        if times > 1:
            raise UnusableInput(f"{flag} is given {times} times; give it once, with all its values")


def _narrow(default: Any) -> Any:
    """A subclass of the dataclass of `default` whose fields have just the classes they have there;
    flags for unions of dataclasses would otherwise become subcommands."""
    kind, fields = type(default), []
    for name, hint in get_type_hints(kind, include_extras=True).items():
        value = getattr(default, name)
        if dataclasses.is_dataclass(value):
            narrow = _narrow(value)
            marks = hint.__metadata__ if get_origin(hint) is Annotated else ()
            marked = tuple([narrow, *marks])  # Python 3.10 has no star in an index
            hint = Annotated[marked] if marks else narrow
            fields.append((name, hint, dataclasses.field(default_factory=narrow)))
        else:
            if isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values())):
                hint = Annotated[hint, tyro.conf.Suppress]  # no flags within a mapping
            fields.append((name, hint, dataclasses.field(default_factory=partial(copy, value))))
    return dataclasses.make_dataclass(
        kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True,
        namespace={"__post_init__": _unchecked},
    )  # fmt: skip


def _unchecked(settings: Any) -> None:
    """Values are checked in `_widen`, where it is known which flag they come from."""


def _widen(found: Any, default: Any, path: str) -> Any:
    """The same values in the class of `default`, whose flags begin with `path`; UnusableInput,
    which names the flag, for values that this class refuses."""
    values = {}
    hints = get_type_hints(type(default), include_extras=True)
    for field in dataclasses.fields(default):
        value, before = getattr(found, field.name), getattr(default, field.name)
        if dataclasses.is_dataclass(before):
            name = _flag_name(field.name, hints[field.name])
            value = _widen(value, before, f"{path}{name}." if name else path)
        elif isinstance(value, Unparsed):
            try:
                value = parse_options(value, before)
            except UnusableInput as error:
                raise UnusableInput(f"{path}{field.name}: {error}") from None
        values[field.name] = value
    try:
        return type(default)(**values)
    except BadSetting as error:
        name, _, rest = error.name.partition(" ")  # a key of a dict follows its name
        flag = _flag_name(name, hints.get(name)) + f" {rest}".rstrip()
        raise BadSetting(f"{path}{flag}", error.value, error.right) from None
    except UnusableInput as error:
        where = f"{path.rstrip('.')}: " if path.strip("-") else ""
        raise UnusableInput(f"{where}{error}") from None


def _flag_name(name: str, hint: Any) -> str:
    """What a field is called on the command line."""
    marks = hint.__metadata__ if get_origin(hint) is Annotated else ()
    given = [mark.name for mark in marks if isinstance(getattr(mark, "name", None), str)]
    return given[0] if given else name.replace("_", "-")


PLAINER = {
    r"^Error parsing (--\S+): invalid literal for int\(\) with base 10: (.*)": (
        r"\1 is \2; it must be a whole number"
    ),
    r"^Error parsing (--\S+): could not convert string to float: (.*)": (
        r"\1 is \2; it must be a number"
    ),
    r"^Error parsing (--\S+)": r"\1",
}
"""What the parser says, and the same without Python's names for it."""


def _one_line(box: str) -> str:
    """What went wrong, without its frame, and the likeliest flag that was meant."""
    bare = re.sub(r"[\u2500-\u257f]+|-{3,}", "\n", box)
    paragraphs = re.split(r"\n\s*\n", re.sub(r"[ \t]+", " ", bare))
    told = [" ".join(p.split()) for p in paragraphs]
    message = next((text for text in told if ":" in text), " ".join(told))
    meant = re.search(r"Perhaps you meant:\s*(--\S+)", " ".join(told))
    for pattern, plain in PLAINER.items():
        message = re.sub(pattern, plain, message)
    return message + (f" (perhaps you meant {meant[1]}?)" if meant else "")
