"""Settings as flags of the command line."""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import field, fields, is_dataclass, make_dataclass
from difflib import get_close_matches
from functools import partial
from operator import attrgetter
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from ami_agent.adapters.make import UnparsedOptions, join_option_flags, parse_options
from ami_agent.cli.help import field_descriptions, select_groups, split_help
from ami_agent.config import OPTIONAL_STAGES, STAGES, Config, override
from ami_agent.config_io import component_choices, component_of, defaults_of, flag_of
from ami_agent.training import Stage
from ami_agent.user_components import component_class
from modules.types import BadSetting, ConfigError

AnySettings = TypeVar("AnySettings")


def choose_components(
    config: Config, argv: Sequence[str], keep: bool = False
) -> tuple[Config, list[str]]:
    """Flags that name the class of a component, `--planner CEM` or `--perception
    my_encoder.MyEncoderConfig`, and `--intrinsic.NAME CLASS` for a further intrinsic cost. Returns
    the settings with these, and the other flags, which are then those of the new classes. `keep`:
    a component that is of that class already keeps its settings, in place of the defaults."""
    _check_once(argv)
    config = _with_optional_stages(config, argv)
    paths = {flag_of(path): path for path in component_choices()}
    left: list[str] = []
    waiting = list(argv)
    while waiting:
        flag, equals, value = waiting.pop(0).partition("=")
        is_intrinsic = flag.startswith("--intrinsic.")
        if flag not in paths and not is_intrinsic:
            left.append(f"{flag}{equals}{value}")
            continue
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise ConfigError(f"{flag} needs the name of a class")
            value = waiting.pop(0)
        try:
            if is_intrinsic:
                name = flag.removeprefix("--intrinsic.").replace("-", "_")
                changed = override(config, _intrinsic(config, name, value))
                before, after = (c.cost.intrinsic.get(name) for c in (config, changed))
                names_class = "." not in name
            else:
                path, names_class = paths[flag], True
                changed = override(config, {path: component_of(path, value)})
                before, after = map(attrgetter(path), (config, changed))
            if not (keep and names_class and type(before) is type(after)):
                config = changed
        except ConfigError as error:
            raise ConfigError(f"{flag} {value}: {error}") from None
    return config, left


def _with_optional_stages(config: Config, argv: Sequence[str]) -> Config:
    """The settings with the optional stages of which there are flags, with their defaults where the
    recipe does not have them: `--pretrain.optim.steps 500`."""
    flags = (arg[2:] for arg in argv if arg.startswith("--") and "." in arg)
    given = {flag.partition(".")[0].replace("-", "_") for flag in flags}
    added = {
        f"stages.{name}": kind()
        for name, kind in OPTIONAL_STAGES.items()
        if name in given and name not in config.stages
    }
    return override(config, added)


def _intrinsic(config: Config, name: str, value: str) -> dict[str, Any]:
    """The change of `--intrinsic.NAME CLASS`, or of `--intrinsic.NAME.FIELD NUMBER`."""
    if "." not in name:
        settings = defaults_of(component_class(value))
        return {"cost.intrinsic": {**config.cost.intrinsic, name: settings}}
    try:
        return {f"cost.intrinsic.{name}": float(value)}
    except ValueError:
        raise ConfigError("it must be a number") from None


def parse(
    default: AnySettings, argv: Sequence[str], program: str, beside: Sequence[Any] = ()
) -> AnySettings:
    """Flags replace fields of `default`, a dataclass, with the classes that it has there. Raises
    ConfigError with one line for an unknown flag or an unusable value. `beside`: the settings whose
    flags the command takes too, for its help."""
    argv, group = split_help(argv)
    if group is not None:
        config = vars(default).get("config")
        names = config.stages if isinstance(config, Config) else ()
        stages = [name.replace("_", "-") for name in names]
        texts = [_help_text(settings, program) for settings in (default, *beside)]
        print(select_groups(texts, stages, group, program), end="")
        raise SystemExit(0)
    return _to_original_class(_parse(default, argv, program), default, "--")


def parse_known(
    default: AnySettings, argv: Sequence[str], program: str
) -> tuple[AnySettings, list[str]]:
    """`default` with the fields that its flags replace, and the flags that are not of it, `--help`
    among them."""
    argv, group = split_help(argv)
    found, rest = _parse(default, argv, program, return_unknown_args=True)
    help_flags = [] if group is None else ["--help", *filter(None, [group])]
    return _to_original_class(found, default, "--"), [*rest, *help_flags]


def _parse(default: Any, argv: Sequence[str], program: str, **kwargs: Any) -> Any:
    argv = join_option_flags(argv)
    _check_once(argv)
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            return _tyro(_concrete_class(default), argv, program, **kwargs)
    except SystemExit:
        message = _parser_message(output.getvalue())
        raise ConfigError(message + _meant_flag(message, argv, default)) from None


def _help_text(default: Any, program: str) -> str:
    """What the parser says of all flags."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        _tyro(_concrete_class(default, with_help=True), ["--help"], program)
    return output.getvalue()


def _tyro(kind: Any, argv: Sequence[str], program: str, **kwargs: Any) -> Any:
    flags = (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(kind, args=list(argv), prog=program, config=flags, **kwargs)


def _check_once(argv: Sequence[str]) -> None:
    """Raises ConfigError for a flag that is given twice, since only the last would count, and for
    one without a name, or with blanks in it, of which some kinds are invisible."""
    names = []
    for arg in argv:
        if arg[:2] == "--":
            name = arg.partition("=")[0]
            if name == "--":
                raise ConfigError(f"{arg!r} is not a flag: a flag has a name after the dashes")
            if not name.isprintable() or any(map(str.isspace, name)):
                raise ConfigError(f"{name!r} is not a flag: the name of a flag has no blanks")
            names.append(name)
    flags = Counter(name.replace("_", "-") for name in names)
    for flag, count in flags.items():
        if count > 1:
            raise ConfigError(f"{flag} is given {count} times; give it once, with all its values")


def _concrete_class(default: Any, hidden: Collection[str] = (), with_help: bool = False) -> Any:
    """A subclass of the dataclass of `default` whose fields have just the classes they have there;
    flags for unions of dataclasses would otherwise become subcommands. `hidden`: fields that get no
    flag, `name` or, within a field, `name.inner`."""
    kind, concrete_fields = type(default), []
    if isinstance(default, Stage):
        hidden = {*hidden, *default.overridden_settings}
    help_texts = field_descriptions(kind) if with_help else {}
    for name, hint in get_type_hints(kind, include_extras=True).items():
        value = getattr(default, name)
        if name == "stages" and isinstance(default, Config):
            value, hint = _as_dataclass(value), Annotated[hint, UNPREFIXED]
        if is_dataclass(value):
            inner = {h.partition(".")[2] for h in hidden if h.startswith(f"{name}.")}
            concrete = _concrete_class(value, inner, with_help)
            metadata = hint.__metadata__ if get_origin(hint) is Annotated else ()
            marked = tuple([concrete, *metadata])  # Python 3.10 has no star in an index
            hint = Annotated[marked] if metadata else concrete
            concrete_fields.append((name, hint, field(default_factory=concrete)))
        else:
            if value is None and any(map(is_dataclass, get_args(hint))):
                hint = None  # a component that is left out
            if name in hidden or not _has_flag(value, hint):
                hint = Annotated[hint, tyro.conf.Suppress]
            if text := help_texts.get(name):
                hint = Annotated[hint, tyro.conf.arg(help=text)]
            concrete_fields.append((name, hint, field(default_factory=partial(copy, value))))
    return make_dataclass(
        kind.__name__, concrete_fields, bases=(kind,), frozen=True, kw_only=True,
        namespace={"__post_init__": _unchecked},
    )  # fmt: skip


def _has_flag(value: Any, hint: Any) -> bool:
    """Whether a field that is no dataclass has a flag: there are none within a mapping, nor of a
    component that is left out, nor of a field that is marked so."""
    is_left_out = value is None and (hint is None or any(map(is_dataclass, get_args(hint))))
    is_mapping = isinstance(value, dict) and any(map(is_dataclass, value.values()))
    is_suppressed = tyro.conf.Suppress in getattr(hint, "__metadata__", ())
    return not (is_left_out or is_mapping or is_suppressed)


def _flags(settings: Any, path: str = "--") -> Iterator[str]:
    """The flags of these settings, those without effect included."""
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        value = getattr(settings, name)
        if name == "stages" and isinstance(settings, Config):
            yield from _flags(_as_dataclass(value), path)
        elif is_dataclass(value):
            flag = _flag_name(name, hint)
            yield from _flags(value, f"{path}{flag}." if flag else path)
        elif _has_flag(value, hint):
            yield f"{path}{_flag_name(name, hint)}"


def _overridden_flags(default: Any) -> dict[str, str]:
    """The flags that stages leave out, as they would have no effect, each with the one that decides
    in its place."""
    configs = [part for part in (default, *vars(default).values()) if isinstance(part, Config)]
    return {
        flag_of(f"{name}.{setting}"): flag_of(f"{name}.{decisive}")
        for config in configs
        for name, stage in config.stages.items()
        for setting, decisive in stage.overridden_settings.items()
    }


UNPREFIXED = tyro.conf.arg(name="")  # the flags of a stage begin with its name


def _as_dataclass(stages: Mapping[str, Any]) -> Any:
    """The stages as fields of a dataclass, each of its own class, so that each has flags."""
    stage_fields = [(name, type(stage)) for name, stage in stages.items()]
    return make_dataclass("Stages", stage_fields, frozen=True, kw_only=True)(**stages)


def _unchecked(settings: Any) -> None:
    """Values are checked in `_to_original_class`, where it is known which flag they come from."""


def _to_original_class(found: Any, default: Any, path: str) -> Any:
    """The values of `found` in the class of `default`, whose flags begin with `path`; ConfigError,
    which names the flag, for values that this class refuses."""
    values = {}
    hints = get_type_hints(type(default), include_extras=True)
    for name in (each.name for each in fields(default)):
        value, before = getattr(found, name), getattr(default, name)
        if name == "stages" and isinstance(default, Config):
            stages = _to_original_class(value, _as_dataclass(before), path)
            value = {stage: getattr(stages, stage) for stage in before}
        elif is_dataclass(before):
            flag = _flag_name(name, hints[name])
            value = _to_original_class(value, before, f"{path}{flag}." if flag else path)
        elif isinstance(value, UnparsedOptions):
            try:
                value = parse_options(value, before)
            except ConfigError as error:
                flag = _flag_name(name, hints[name])
                raise ConfigError(f"{path}{flag}: {error}") from None
        values[name] = value
    try:
        return type(default)(**values)
    except BadSetting as error:
        name, _, rest = error.name.partition(" ")  # a key of a dict follows its name
        flag = _flag_name(name, hints.get(name)) + f" {rest}".rstrip()
        raise BadSetting(f"{path}{flag}", error.value, error.expected) from None
    except ConfigError as error:
        where = f"{path.rstrip('.')}: " if path.strip("-") else ""
        raise ConfigError(f"{where}{error}") from None


def _flag_name(name: str, hint: Any) -> str:
    metadata = hint.__metadata__ if get_origin(hint) is Annotated else ()
    given = [mark.name for mark in metadata if isinstance(getattr(mark, "name", None), str)]
    return given[0] if given else name.replace("_", "-")


RENAMED_FLAGS = {
    "--curve": "--eval-every-stage",
    "--keep-memory": "--keep-replay-buffer",
    "--changes": "--perturbations",
    "--who": "--algorithms",
    "--env.limit": "--env.max-episode-steps",
    "--env.repeat": "--env.action-repeat",
    "--env.stack": "--env.frame-stack",
    "--env.vector": "--env.vectorization-mode",
    "--hierarchy.": "--subgoals.",
    "--futures.": "--risk.",
    "--temper.": "--stuck-recovery.",
    "--critic.": "--goal-critic.",
    "--foresight.": "--value-critics.",
    "--recall.": "--short-term.",
    "--auto.": "--adaptive.",
    **{
        f"--{old}.": f"--{stage.replace('_', '-')}."
        for stage, old in STAGES.items()
        if old != stage
    },
}
"""Flags of version 0.1, or how they begin, and what they are called now."""


MAX_MEANT, MIN_SIMILARITY = 3, 0.86
"""Flags that a message names as probably meant, and how alike a single one is, at least."""


def _meant_flag(message: str, argv: Sequence[str], default: Any) -> str:
    """What replaces an old flag among these, or one without effect, and what was probably meant by
    one that is not known, as the end of a message."""
    overridden = _overridden_flags(default)
    for arg in argv:
        flag = arg.partition("=")[0]
        if by := overridden.get(flag.replace("_", "-")):
            return f" ({flag} has no effect: {by} decides it)"
        for old, new in RENAMED_FLAGS.items():
            if flag == old or (old.endswith(".") and flag.startswith(old)):
                return f" ({flag} is called {new}{'...' if new.endswith('.') else ''} now)"
    unknown = re.match(r"Unrecognized options: (--[^\s,=]+)", message)
    if not unknown:
        return ""
    name = unknown[1].replace("_", "-").removeprefix("--")
    flags = [flag for flag in _flags(default) if flag not in overridden]
    ends = [flag for flag in flags if flag.endswith(f".{name}")]
    meant = sorted(ends, key=lambda flag: flag.count("."))[:MAX_MEANT]
    meant = meant or get_close_matches(f"--{name}", flags, 1, MIN_SIMILARITY)
    return f" (perhaps you meant {' or '.join(meant)}?)" if meant else ""


PLAIN_MESSAGES = {
    r"^Error parsing (--\S+): invalid literal for int\(\) with base 10: (.*)": (
        r"\1 is \2; it must be a whole number"
    ),
    r"^Error parsing (--\S+): could not convert string to float: (.*)": (
        r"\1 is \2; it must be a number"
    ),
    r"^Error parsing (--\S+): no type matching \{None\}\|INT .* from \[(.*)\]\.$": (
        r"\1 is \2; it must be a whole number"
    ),
    r"^Error parsing (--\S+): no type matching \{None\}\|FLOAT .* from \[(.*)\]\.$": (
        r"\1 is \2; it must be a number"
    ),
    r"^Error parsing (--\S+): Failed to parse key-value pairs!$": (
        r"\1 needs pairs, each a name and a value"
    ),
    r"^Error parsing (--\S+)": r"\1",
    r"^Missing value for argument '(?:\(')?(--[\w.-]+)(?:',\))?'\. Expected 1 values\.$": (
        r"\1 needs a value"
    ),
    r"^Missing value for argument '(?:\(')?(--[\w.-]+)(?:',\))?'\. Expected (\d+) values\.$": (
        r"\1 needs \2 values"
    ),
    r"^invalid choice (.*) for argument '(--\S+)'\. Expected one of \((.*)\)\.$": (
        r"\2 is \1; choose one of \3"
    ),
    r"^Unrecognized options:[ ,]*$": "an empty argument, '', belongs to no flag",
}
"""Messages of the parser, and the same without Python's names."""


def _parser_message(box: str) -> str:
    """The error of the parser without its frame."""
    bare = re.sub(r"[\u2500-\u257f]+|-{3,}", "\n", box)
    paragraphs = re.split(r"\n\s*\n", re.sub(r"[ \t]+", " ", bare))
    lines = [" ".join(p.split()) for p in paragraphs]
    _, message, *_ = [*filter(None, lines), "", ""]  # below a title that says the same
    for pattern, plain in PLAIN_MESSAGES.items():
        message = re.sub(pattern, plain, message)
    return message
