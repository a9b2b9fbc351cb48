"""Makes vector environments from Gymnasium ids and keyword arguments: settings of any JSON value,
on the command line as pairs NAME VALUE that are added to the recipe's.

After an episode's end the next step only resets, and its action is ignored (Gymnasium's
NEXT_STEP)."""

from __future__ import annotations

import contextlib
import inspect
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import cloudpickle
import gymnasium
import numpy as np
import torch
from gymnasium import Env
from gymnasium.envs.registration import EnvSpec, _find_spec
from gymnasium.spaces import Space
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import _async_worker
from gymnasium.wrappers import FrameStackObservation, TimeLimit
from tyro.constructors import PrimitiveConstructorSpec

from ami_agent import interrupt
from ami_agent.adapters import fault_tolerance as faults
from ami_agent.adapters.goal_env import GoalInInfo
from ami_agent.adapters.imports import absolute_import, choose_gl_backend, import_path
from ami_agent.adapters.numpy_random import OwnNumpyRandom
from ami_agent.adapters.plain_rendering import PlainRendering
from ami_agent.adapters.tensors import NUMERIC_KINDS
from ami_agent.adapters.vector_env import MergedInfos, SingleEnv, as_next_step
from ami_agent.storage.files import parse_json
from modules.types import STEPS, BadSetting, ConfigError

if TYPE_CHECKING:
    from ami_agent.adapters.env import EnvConfig

RESERVED_OPTIONS = frozenset(inspect.signature(gymnasium.make_vec).parameters) - {"kwargs"}
"""Names that an environment's keyword arguments can't have."""
MAX_DEPTH, MAX_LENGTH = 8, 100_000
"""Levels of nested lists and dicts in one keyword argument, and its characters as JSON."""
JSON_VALUE = (
    "None, a bool, a finite number below 2**63, a string, or a list or a dict (whose keys are "
    f"strings) of these, nested at most {MAX_DEPTH} deep and of at most {MAX_LENGTH} characters"
)
PYTHON_LITERALS: Mapping[str, Any] = {"True": True, "False": False, "None": None}
LIMIT_ATTRIBUTES = ("max_episode_steps", "max_steps", "_max_episode_steps")
"""Attributes in which environments that truncate episodes themselves keep their limit."""


class ActionRepeat(gymnasium.Wrapper):
    """Repeats each action, until an episode's end, and adds up the rewards."""

    def __init__(self, env: gymnasium.Env, action_repeat: int) -> None:
        super().__init__(env)
        self.action_repeat = action_repeat

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        total = 0.0
        infos: dict[str, Any] = {}
        for _ in range(self.action_repeat):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            infos |= info  # success may be reported at one of these steps alone
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, infos


class ResetOptions(gymnasium.Wrapper):
    """Passes these options to every reset; those of a caller replace them by name."""

    def __init__(self, env: gymnasium.Env, options: Mapping[str, Any]) -> None:
        super().__init__(env)
        self.options = options

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.env.reset(seed=seed, options={**self.options, **(options or {})})


class CheckedFlags(gymnasium.Wrapper):
    """Raises ValueError where `terminated` or `truncated` is not True, False, 1 or 0: a vector
    environment would take NaN and any text for True."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, *flags, info = self.env.step(action)
        terminated, truncated = map(_to_bool, ("terminated", "truncated"), flags)
        return obs, reward, terminated, truncated, info


def _to_bool(name: str, flag: Any) -> bool:
    found = np.asarray(flag)
    if found.size != 1 or found.dtype.kind not in NUMERIC_KINDS or found.item() not in (0, 1):
        raise ValueError(f"its {name} is {flag!r:.40}; it must be True or False")
    return bool(found)


class EnvFactory:
    """Makes one environment. In a worker process that shares no memory with this one (start methods
    spawn and forkserver), the imports that register it come before anything else is unpickled."""

    def __init__(self, spec: EnvSpec, config: EnvConfig, options: Mapping[str, Any]) -> None:
        self.imports = tuple(map(absolute_import, config.imports))
        self.parts: Any = (deepcopy(spec), dict(options), build_wrappers(config))

    def __getstate__(self) -> dict[str, Any]:
        return {"imports": self.imports, "parts": cloudpickle.dumps(self.parts)}

    def __call__(self) -> gymnasium.Env:
        for module in self.imports:
            import_path(module)
        if isinstance(self.parts, bytes):
            self.parts = cloudpickle.loads(self.parts)
        spec, options, wrappers = self.parts
        if spec.entry_point is None:
            env: gymnasium.Env = SingleEnv(spec.id, _make_vec(deepcopy(spec), 1, options))
        else:
            env = CheckedFlags(gymnasium.make(deepcopy(spec), **options))
        for wrapper in wrappers:
            env = wrapper(env)
        return env


def make(config: EnvConfig, num_envs: int, options: Mapping[str, Any]) -> VectorEnv:
    """`num_envs` of these environments; `options`: all their keyword arguments. ConfigError where
    they can't be made."""
    choose_gl_backend()
    if reserved := [option for option in options if option in RESERVED_OPTIONS]:
        raise ConfigError(
            f"option {reserved[0]!r} of environment {config.id!r} is a parameter of "
            "gymnasium.make_vec and none of the environment; --env.vectorization-mode sets how "
            "environments are stepped"
        )
    for module in config.imports:
        import_path(module)
    is_auto = config.vectorization_mode == "auto"
    has_wrappers = bool(build_wrappers(config))
    if is_auto and has_wrappers and hasattr(native_entry_point(config.id), "behaviour_action"):
        raise ConfigError(
            "max_episode_steps, action_repeat, frame_stack, goal_from_obs or plain_rendering would "
            f"step {config.id} one by one, without the reference policies and interoception that "
            "it has as a batch: set its own keyword arguments (--env.options max_episode_steps "
            "30), or do without them (--env.vectorization-mode sync)"
        )
    make_envs = _make_batch if is_auto and not has_wrappers else _make_singles
    checked = partial(_make_checked, make_envs, config, num_envs, options)
    return faults.FaultTolerantVectorEnv(config.id, checked, config.step_timeout)


def _make_checked(make_envs: Callable[..., VectorEnv], config: EnvConfig, *args: Any) -> VectorEnv:
    failed = f"environment {config.id!r} can't be made"
    try:
        return make_envs(config, *args)
    except ConfigError:
        raise
    except (gymnasium.error.NameNotFound, gymnasium.error.NamespaceNotFound) as error:
        hint = " If a package registers it, import that: --env.import NAME"
        raise faults.EnvCreationError(
            f"{failed}: {error}{'' if config.imports else hint}"
        ) from error
    except BaseException as error:  # third-party code may raise anything
        if faults.is_interrupt(error) or isinstance(error, faults.CallTimeout):
            raise
        raise faults.EnvCreationError(
            f"{failed}: {faults.describe_error(error)}{faults.mujoco_hint(error)}"
        ) from error


def _make_batch(config: EnvConfig, num_envs: int, options: Mapping[str, Any]) -> VectorEnv:
    """The environment's own batch; environments stepped one by one where it has none."""
    spec = gymnasium.registry.get(config.id)
    if spec is not None and spec.vector_entry_point is None:
        return _make_singles(config, num_envs, options)
    envs = _make_vec(config.id, num_envs, options)
    if envs.num_envs != num_envs:
        found = envs.num_envs
        envs.close()
        raise ConfigError(
            f"environment {config.id!r} is a batch of {found} where num_envs is {num_envs}"
        )
    singles = partial(_make_checked, _make_singles, config, num_envs, options)
    return as_next_step(config.id, envs, singles)


def _make_vec(spec: str | EnvSpec, num_envs: int, options: Mapping[str, Any]) -> VectorEnv:
    with warnings.catch_warnings():
        # `as_next_step` handles the modes, or warns of them
        warnings.filterwarnings("ignore", message=".*(AutoresetMode|autoreset_mode)")
        return gymnasium.make_vec(spec, num_envs=num_envs, **options)


def _make_singles(config: EnvConfig, num_envs: int, options: Mapping[str, Any]) -> VectorEnv:
    """Environments stepped one by one, or each in a worker process."""
    # an id that is not in the registry: "module:Name-v0", or the latest version of "Name"
    spec = gymnasium.registry.get(config.id) or _find_spec(config.id)
    factories = [EnvFactory(spec, config, options)] * num_envs
    is_async = config.vectorization_mode == "async"
    with faults.mute_gym_logger(is_async):
        envs = AsyncEnvs(factories) if is_async else SyncEnvs(factories)
    envs.spec = deepcopy(spec)
    envs.spec.kwargs |= options
    return envs


class SyncEnvs(MergedInfos, SyncVectorEnv):
    """Where one environment can't be made, those made before it are closed."""

    def __init__(self, factories: Sequence[Callable[[], gymnasium.Env]]) -> None:
        envs: list[gymnasium.Env] = []

        def make_and_record(factory: Callable[[], gymnasium.Env]) -> gymnasium.Env:
            envs.append(factory())
            return envs[-1]

        try:
            super().__init__([partial(make_and_record, factory) for factory in factories])
        except BaseException:
            for env in envs:
                with contextlib.suppress(Exception, SystemExit):
                    env.close()
            raise


class AsyncEnvs(MergedInfos, AsyncVectorEnv):
    """Where one environment can't be made, the processes of the others are ended. Errors in the
    environments' code keep their place, and never end a process silently."""

    def __init__(self, factories: Sequence[Callable[[], gymnasium.Env]]) -> None:
        try:
            super().__init__(factories, worker=_worker)
        except BaseException:
            faults.kill_workers(self)
            raise


class _LocatedErrors(gymnasium.Wrapper):
    """Puts file and line into the messages of errors: only type and message of an exception get
    from one process to another, and only where both know the type."""

    def reset(self, **kwargs: Any) -> Any:
        return _with_location(self.env.reset, **kwargs)

    def step(self, action: Any) -> Any:
        return _with_location(self.env.step, action)

    def render(self) -> Any:
        return _with_location(self.env.render)


def _with_location(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except BaseException as error:
        if faults.is_interrupt(error):
            raise
        raise faults.EnvWorkerError(faults.describe_error(error)) from None


def _worker(
    index: int, factory: Callable[[], gymnasium.Env], pipe: Any, parent_pipe: Any, *others: Any
) -> None:
    """Gymnasium's worker, which here reports why an environment can't be made and leaves Ctrl-C to
    the parent process, which ends it."""
    interrupt.isolate_worker()
    torch.set_num_threads(1)  # there are as many processes as cores
    try:
        env = _with_location(factory)
    except faults.EnvWorkerError as error:
        parent_pipe.close()
        pipe.recv()  # the parent's first request
        _, errors, *_ = others  # after the shared memory
        errors.put((index, faults.EnvWorkerError, str(error), ""))
        pipe.send((None, False))
        return
    _async_worker(index, lambda: _LocatedErrors(env), pipe, parent_pipe, *others)


def build_wrappers(config: EnvConfig) -> list[Callable[[Any], Any]]:
    """The wrappers around each single environment, the inner first."""
    wrappers: list[Callable[[Any], Any]] = []
    if config.own_numpy_random:
        wrappers.append(OwnNumpyRandom)
    if config.plain_rendering:
        wrappers.append(PlainRendering)
    if config.reset_options:
        wrappers.append(partial(ResetOptions, options=config.reset_options))
    if config.goal_from_obs:
        wrappers.append(GoalInInfo)
    if config.action_repeat > 1:
        wrappers.append(partial(ActionRepeat, action_repeat=config.action_repeat))
    if config.max_episode_steps:
        wrappers.append(partial(TimeLimit, max_episode_steps=config.max_episode_steps))
    if config.frame_stack > 1:
        wrappers.append(partial(FrameStackObservation, stack_size=config.frame_stack))
    return wrappers


def native_entry_point(env_id: str) -> Any:
    """The constructor of the environment's own batch; None where it has none."""
    spec = gymnasium.registry.get(env_id)
    entry = spec.vector_entry_point if spec else None
    return gymnasium.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry


def native_vector_space(env_id: str, options: Mapping[str, Any]) -> Space | None:
    """The single observation space of the environment's own batch; None where it has none."""
    if native_entry_point(env_id) is None:
        return None
    try:
        with contextlib.closing(gymnasium.make_vec(env_id, num_envs=1, **options)) as envs:
            return envs.single_observation_space
    except (Exception, SystemExit):  # third-party code may raise anything
        return None


def declared_time_limit(envs: VectorEnv) -> tuple[int, str]:
    """The steps after which the environment itself truncates, and the attribute; 0 if none says."""
    unwrapped = envs.unwrapped
    env = unwrapped.envs[0] if isinstance(unwrapped, SyncVectorEnv) else unwrapped
    for name in LIMIT_ATTRIBUTES:
        try:
            value = env.get_wrapper_attr(name) if isinstance(env, Env) else getattr(env, name)
        except Exception:  # a property of third-party code may raise anything
            continue
        if isinstance(value, int | np.integer) and 1 < value <= STEPS[1]:  # more is no limit
            return int(value), name
    return 0, ""


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
        flag, equals, value = word.partition("=")
        path, found, name = flag.partition(".options.")
        if not (found and path.startswith("--") and name):
            rest.append(word)
            continue
        value = value if equals else next(words, "--")
        if not equals and value.startswith("--"):
            raise ConfigError(f"{flag} needs a value; {flag}= is an empty text")
        pairs.setdefault(f"{path}.options", []).extend([name, value])
    return [*rest, *(word for flag, named in pairs.items() for word in (flag, *named))]


def _parse_value(name: str, text: str) -> Any:
    """JSON, or True, False, None and numbers as Python writes them; else a string."""
    if text in PYTHON_LITERALS:
        return PYTHON_LITERALS[text]
    try:
        return parse_json(text.encode())
    except ValueError as error:
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(text)
        if text[:1] in ("[", "{", '"'):
            raise ConfigError(
                f"{name!r} is {text[:60]}, which is no JSON ({error}); write a string that begins "
                "so in double quotes, '\"...\"'"
            ) from None
        return text


def _to_words(options: Mapping[str, Any]) -> list[str]:
    """The reverse of `parse_options`."""
    words = []
    for name, value in options.items():
        words += [name, json.dumps(value)]
        with contextlib.suppress(ConfigError):
            if isinstance(value, str) and value and _parse_value("", value) == value:
                words[-1] = value
    return words


class UnparsedOptions(list[str]):
    """Words from the command line; `parse_options` needs the defaults of the flag they follow."""


Options: TypeAlias = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME VALUE ...]",
        instance_from_str=UnparsedOptions,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=_to_words,
    ),
]
"""Values are None, bool, int, float, str, and lists and dicts of these."""


def check_options(options: object, setting: str = "options") -> None:
    """Raises BadSetting for options that JSON can't hold without loss."""
    if not isinstance(options, dict):
        raise BadSetting(setting, options, "a dict of keyword arguments")
    for name, value in options.items():
        if not isinstance(name, str) or not name:
            raise BadSetting(setting, options, "keyword arguments, each with a name")
        try:
            text = json.dumps(value)
            is_same = parse_json(text.encode()) == value  # a tuple would become a list
        except (TypeError, ValueError, RecursionError):
            is_same = False
        if not is_same or len(text) > MAX_LENGTH or _depth(value) > MAX_DEPTH:
            raise BadSetting(f"{setting} {name}", value, JSON_VALUE)


def _depth(value: Any) -> int:
    if not isinstance(value, (list, dict)):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)
