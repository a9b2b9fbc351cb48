"""What vector environments return, alike for all of them: they reset as Gymnasium's NEXT_STEP mode
does (the step after an episode's end only resets, and its action is ignored), whatever mode they
declare, and the entries of their infos are read by environment.

Gymnasium merges the infos of single environments: beside every `name` stands a mask `_name`,
`[B]` bool, of the environments that reported it at this step; the values of the others mean
nothing. Where an environment resets within the step that ends an episode, `final_info` holds the
entries of the ended episodes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from numbers import Real
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import Space, spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import concatenate, create_empty_array, iterate
from torch import Tensor

from ami_agent.adapters.fault_tolerance import EnvError, SameStepDetected
from ami_agent.adapters.tensors import NUMERIC_KINDS
from modules.types import ConfigError

FINAL_OBS = ("final_obs", "final_observation")
"""The info's key for an episode's last observation, since Gymnasium 1.0 and before."""
FINALS = (*FINAL_OBS, "final_info")
SYNC_HINT = (
    "--env.vectorization-mode sync steps environments one by one, where single ones can be made"
)
_ASYNC_ATTRIBUTES = ("shared_memory", "copy", "context", "daemon", "worker", "observation_mode")
_WARNED: set[str] = set()

log = logging.getLogger(__name__)


def autoreset_mode(name: str, envs: VectorEnv) -> AutoresetMode | None:
    """The mode in the metadata: an enum, its name or its value; None where they declare none."""
    declared = envs.metadata.get("autoreset_mode")
    if declared is None or isinstance(declared, AutoresetMode):
        return declared
    declared_name = declared.name if isinstance(declared, Enum) else str(declared)
    normalized = declared_name.rpartition(".")[2].replace("_", "").replace("-", "").lower()
    for mode in AutoresetMode:
        if normalized == mode.value.lower():
            return mode
    raise ConfigError(
        f"environment {name!r} declares autoreset_mode {declared!r} in its metadata; it must be "
        f"one of {', '.join(mode.value for mode in AutoresetMode)}"
    )


def as_next_step(name: str, envs: VectorEnv, make_singles: Callable[[], VectorEnv]) -> VectorEnv:
    """The same environments in NEXT_STEP mode. `make_singles` makes as many that are stepped one by
    one, for a batch that can't have this mode; ConfigError for a mode that does not exist."""
    try:
        mode = autoreset_mode(name, envs)
    except ConfigError:
        envs.close()
        raise
    if type(envs) is SyncVectorEnv:
        envs.autoreset_mode = AutoresetMode.NEXT_STEP
        envs.metadata = {**envs.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}
        return envs
    if type(envs) is AsyncVectorEnv and mode is not AutoresetMode.NEXT_STEP:
        envs.close()  # its workers got the mode when they started
        spec, kwargs = envs.spec, {name: getattr(envs, name) for name in _ASYNC_ATTRIBUTES}
        envs = AsyncVectorEnv(envs.env_fns, **kwargs)
        envs.spec = spec
    if isinstance(envs, AsyncVectorEnv):
        return envs
    return NextStepAutoreset(name, envs, mode, make_singles)


class MergedInfos:
    """Merges the infos of single environments as Gymnasium does, but loses nothing where their
    values differ in type or shape: Gymnasium converts them to the type of the first, or fails."""

    num_envs: int

    def _add_info(
        self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int
    ) -> dict[str, Any]:
        for name, value in env_info.items():
            mask = vector_infos.get(f"_{name}", np.zeros(self.num_envs, dtype=bool))
            mask[env_num] = True
            merged = self._with_row(name, vector_infos.get(name), value, env_num)
            vector_infos[name], vector_infos[f"_{name}"] = merged, mask
        return vector_infos

    def _with_row(self, name: str, merged: Any, value: Any, index: int) -> Any:
        """`merged`: the values of the environments before, None if none has any."""
        if isinstance(value, dict) and (merged is None or isinstance(merged, dict)):
            return self._add_info(merged or {}, value, index)
        is_array = isinstance(value, (bool, int, float, np.generic, np.ndarray))
        row = np.asarray(value if is_array and name != "final_obs" else None)
        is_numeric = row.dtype.kind in NUMERIC_KINDS
        if merged is None:
            shape = (self.num_envs, *row.shape)
            merged = np.zeros(shape, row.dtype) if is_numeric else self._objects(None)
        elif not isinstance(merged, np.ndarray) or merged.shape[1:] != row.shape or not is_numeric:
            merged = self._objects(merged)
        else:
            merged = merged.astype(np.result_type(merged, row), copy=False)
        merged[index] = value
        return merged

    def _objects(self, values: Any) -> np.ndarray:
        """`[B]` objects: the rows of an array, or None."""
        objects = np.full(self.num_envs, None, dtype=object)
        for index, row in enumerate(values if isinstance(values, np.ndarray) else ()):
            objects[index] = row
        return objects


class NextStepAutoreset(MergedInfos, VectorWrapper):
    """A batch in NEXT_STEP mode. One that declares no mode is taken for SAME_STEP if it delivers
    `final_obs`, else for NEXT_STEP. EnvError for one that contradicts its declared mode."""

    def __init__(
        self, name: str, envs: VectorEnv, mode: AutoresetMode | None,
        make_singles: Callable[[], VectorEnv],
    ) -> None:  # fmt: skip
        super().__init__(envs)
        self.name, self.mode, self.make_singles = name, mode, make_singles
        self.declared = mode is not None
        self.done = np.zeros(envs.num_envs, dtype=bool)
        # first observations and infos of episodes that begin with the next step
        self.deferred_reset: tuple[Any, dict[str, Any]] | None = None

    def reset(self, **kwargs: Any) -> Any:
        self.done, self.deferred_reset = np.zeros_like(self.done), None
        obs, info = self.env.reset(**kwargs)
        return obs, self._info(info)

    def step(self, actions: Any) -> Any:
        reset_mask = self.done
        if reset_mask.any() and (self.deferred_reset or self.mode is AutoresetMode.DISABLED):
            if not reset_mask.all():
                return self._step_and_reset(actions, reset_mask)
            # the last step ended all episodes: this one resets and steps nothing
            obs, info = self.deferred_reset or self.env.reset()
            self.done, self.deferred_reset = np.zeros_like(self.done), None
            return obs, np.zeros(len(self.done)), self.done.copy(), self.done.copy(), info
        obs, reward, terminated, truncated, info = self._step(actions)
        self.done = terminated | truncated
        if reset_mask.any():
            rewards = reward[reset_mask]
            if rewards.any() or self.done[reset_mask].any():
                raise EnvError(
                    f"{self._declaration()}, but the step after an episode's end gives reward "
                    f"{rewards[0]:g} and done {bool(self.done[reset_mask][0])}, where it should "
                    "only reset: its metadata must say which autoreset_mode it has, and SAME_STEP "
                    "needs final_obs"
                )
        if self.done.any():
            final = self._final_obs(info)
            self._check_final(final, obs)
            if self.mode is AutoresetMode.SAME_STEP:
                obs, info = self._defer_reset(obs, final, info)
        return obs, reward, terminated, truncated, info

    def _step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """A step of the batch, with `[B]` float64 rewards and `[B]` bool flags, whatever kinds of
        arrays it returns; EnvError where they are no numbers, or of another size."""
        obs, reward, terminated, truncated, info = self.env.step(actions)
        rewards = self._numbers("reward", reward, "numbers")
        flags = []
        for what, value in (("terminated", terminated), ("truncated", truncated)):
            found = self._numbers(what, value, "bools")
            if not ((found == 0) | (found == 1)).all():
                raise EnvError(
                    f"environment {self.name!r}: its {what} is {value}; it must be bools"
                )
            flags.append(found.astype(bool))
        return obs, rewards, *flags, self._info(info)

    def _info(self, info: Any) -> dict[str, Any]:
        if not isinstance(info, Mapping):
            kind = type(info).__name__
            raise EnvError(f"environment {self.name!r}: its info is a {kind}; it must be a dict")
        return dict(info)

    def _numbers(self, what: str, value: Any, needed: str) -> np.ndarray:
        try:
            value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
            found = np.array(value, dtype=np.float64)  # the batch may write into its array
        except (TypeError, ValueError, OverflowError):
            found = np.empty(0)
        if found.size != self.num_envs:
            shape = tuple(np.shape(value))
            raise EnvError(
                f"environment {self.name!r}: its {what} is a {type(value).__name__} of shape "
                f"{shape}; it must be {needed} of shape {(self.num_envs,)}"
            )
        return found.reshape(self.num_envs)

    def _step_and_reset(self, actions: Any, reset_mask: np.ndarray) -> Any:
        """DISABLED. Gymnasium's environments refuse a step after an episode's end; so an episode
        that begins is reset, stepped with the others, and reset again."""
        self.env.reset(options={"reset_mask": reset_mask.copy()})
        after, reward, terminated, truncated, info = self._step(actions)
        obs, reset_info = self.env.reset(options={"reset_mask": reset_mask.copy()})
        stepped, returned = (iterate(self.observation_space, part) for part in (after, obs))
        rows = zip(stepped, returned, reset_mask, strict=True)
        if not all(is_reset or _equal(one, other) for one, other, is_reset in rows):
            raise EnvError(
                f"{self._declaration()}, but its reset changes sub-environments that options "
                f"['reset_mask'] does not name; {SYNC_HINT}"
            )
        merged = {key: _where(reset_mask, reset_info[key], info.get(key)) for key in reset_info}
        reward, terminated, truncated = (
            np.where(reset_mask, 0, part).astype(part.dtype)
            for part in (reward, terminated, truncated)
        )
        self.done = terminated | truncated
        return obs, reward, terminated, truncated, {**info, **merged}

    def _defer_reset(
        self, obs: Any, final: list[Any] | None, info: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """SAME_STEP: returns the last observations and infos of the ended episodes; the first ones
        of the next episodes come with the next step."""
        if not self.done.all():
            raise SameStepDetected(self.make_singles)
        assert final is not None
        first_info = {k: v for k, v in info.items() if k.removeprefix("_") not in FINALS}
        self.deferred_reset = obs, first_info
        final_info = self._final_info(info.get("final_info")) or first_info
        return batch_rows(self.single_observation_space, final), final_info

    def _final_obs(self, info: Mapping[str, Any]) -> list[Any] | None:
        """[B] the last observations, where episodes are done; None where the info holds none."""
        for key in FINAL_OBS:
            if (final_obs := info.get(key)) is None:
                continue
            is_object_array = isinstance(final_obs, np.ndarray) and final_obs.dtype == object
            if isinstance(final_obs, list) or is_object_array:
                rows = list(final_obs)
            else:
                rows = list(iterate(self.observation_space, final_obs))
            given = np.asarray(info.get(f"_{key}", [row is not None for row in rows]), dtype=bool)
            if given.any() and not given[self.done].all():
                raise EnvError(
                    f"{self._declaration()} and gives {key} for some sub-environments whose "
                    "episodes are done, but not for all of them"
                )
            if given.any():
                return rows
        return None

    def _final_info(self, final_info: Any) -> dict[str, Any]:
        """A dict of arrays since Gymnasium 1.0, an array of dicts before."""
        if isinstance(final_info, Mapping):
            return dict(final_info)
        found: dict[str, Any] = {}
        if final_info is not None:
            for index, single in enumerate(final_info):
                found = self._add_info(found, single or {}, index)
        return found

    def _check_final(self, final: list[Any] | None, obs: Any) -> None:
        """Chooses the mode where the batch declares none; EnvError where it contradicts itself."""
        if self.mode is None:
            self.mode = AutoresetMode.NEXT_STEP if final is None else AutoresetMode.SAME_STEP
            if final is None and self.name not in _WARNED:
                _WARNED.add(self.name)
                log.warning(
                    f"environment {self.name!r} is a batch that declares no autoreset_mode and "
                    "gives no final_obs: taken for NEXT_STEP"
                )
        elif self.mode is AutoresetMode.SAME_STEP and final is None:
            raise EnvError(
                f"{self._declaration()}, but gives no final_obs at an episode's end; {SYNC_HINT}"
            )
        elif self.mode is not AutoresetMode.SAME_STEP and final is not None:
            rows = iterate(self.observation_space, obs)
            rows_at_end = zip(rows, final, self.done, strict=True)
            if not all(_equal(row, last) for row, last, done in rows_at_end if done):
                raise EnvError(
                    f"{self._declaration()}, but its final_obs at an episode's end is another "
                    "observation than it returns, as in SAME_STEP: its metadata must say which"
                )

    def _declaration(self) -> str:
        mode = f"autoreset_mode {self.mode.value}" if self.mode and self.declared else "no mode"
        return f"environment {self.name!r} is a batch that declares {mode}"


class SingleEnv(gymnasium.Env):
    """A batch of one as a single environment, for environments that exist as batches only."""

    def __init__(self, name: str, batch: VectorEnv) -> None:
        # a batch of one is never stepped in part
        self.batch = NextStepAutoreset(name, batch, autoreset_mode(name, batch), lambda: batch)
        self.observation_space = batch.single_observation_space
        self.action_space = batch.single_action_space
        self.metadata = {k: v for k, v in batch.metadata.items() if k != "autoreset_mode"}
        self.render_mode = batch.render_mode
        self.spec = batch.spec
        self.done = False
        self.action: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        if self.done and seed is None and not options:  # the next step of the batch resets
            obs, _, _, _, info = self.batch.step(self.action)
        else:
            obs, info = self.batch.reset(seed=seed, options=options)
        self.done = False
        return self._row(obs), _info_of_one(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.action = batch_rows(self.action_space, [action])
        obs, reward, terminated, truncated, info = self.batch.step(self.action)
        is_terminated, is_truncated = bool(terminated[0]), bool(truncated[0])
        self.done, row = is_terminated or is_truncated, self._row(obs)
        return row, float(reward[0]), is_terminated, is_truncated, _info_of_one(info)

    def render(self) -> Any:
        frames = self.batch.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        self.batch.close()

    def _row(self, obs: Any) -> Any:
        return next(iter(iterate(self.batch.observation_space, obs)))


def reported(info: Mapping[str, Any], name: str, num_envs: int) -> np.ndarray:
    """`[B]` bool: the environments that reported the entry."""
    value = info.get(name)
    if value is None:
        return np.zeros(num_envs, dtype=bool)
    mask = info.get(f"_{name}")
    if mask is None:
        return np.ones(num_envs, dtype=bool)
    found = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
    if found.dtype != bool or found.shape != (num_envs,):
        return np.ones(num_envs, dtype=bool)  # an entry of that name, not a mask
    return found


def read_numbers(info: Mapping[str, Any], names: Sequence[str], done: Tensor) -> Tensor:
    """`[B]` numbers under the first of these names that an environment reported; NaN for anything
    else. `done` `[B]`: the episodes that this step ended."""
    is_done = done.cpu().numpy()
    final = _final_info(info, len(is_done))
    found = np.full(len(is_done), np.nan)
    for name in names:
        final_value = np.where(is_done, _numbers(final, name, len(is_done)), np.nan)
        current_value = _numbers(info, name, len(is_done))
        value = np.where(np.isnan(final_value), current_value, final_value)
        found = np.where(np.isnan(found), value, found)
    return torch.as_tensor(found).float()


def _final_info(info: Mapping[str, Any], num_envs: int) -> Mapping[str, Any]:
    final = info.get("final_info")
    if isinstance(final, Mapping):
        return final
    if not isinstance(final, np.ndarray) or final.shape != (num_envs,):
        return {}
    rows = [row if isinstance(row, Mapping) else {} for row in final]  # before Gymnasium 1.0
    names = {name for row in rows for name in row}
    return {name: [row.get(name) for row in rows] for name in names}


def _numbers(info: Mapping[str, Any], name: str, num_envs: int) -> np.ndarray:
    value = info.get(name)
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    rows: Any = value if _is_batch(value) else [value]
    if len(rows) != num_envs:
        return np.full(num_envs, np.nan)
    if isinstance(rows, np.ndarray) and rows.dtype.kind in NUMERIC_KINDS and rows.size == num_envs:
        found = rows.reshape(num_envs).astype(np.float64)
    else:
        found = np.array([_number(row) for row in rows])
    return np.where(reported(info, name, num_envs), found, np.nan)


def _number(value: Any) -> float:
    """The value as a number; NaN where it is none."""
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return float(value) if isinstance(value, (Real, np.bool_)) else np.nan


def _is_batch(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _info_of_one(info: Mapping[str, Any]) -> dict[str, Any]:
    """The info of a batch of one as a single environment would return it."""
    found = {}
    for name, value in info.items():
        is_mask = name.startswith("_") and name[1:] in info
        if is_mask or not reported(info, name, 1)[0]:
            continue
        if isinstance(value, Mapping):
            found[name] = _info_of_one(value)
        else:
            found[name] = value[0] if _is_batch(value) and len(value) == 1 else value
    return found


def read_table(info: Mapping[str, Any], name: str, num_envs: int, width: int) -> Any:
    """`[B, width]` numbers that every environment always reports; EnvError where one is missing."""
    label = f"info[{name!r}] of the environment"
    value = info.get(name)
    missing = np.flatnonzero(~reported(info, name, num_envs))
    if len(missing):
        raise EnvError(f"{label} {missing[0]} is missing; it must be there at every reset and step")
    shape = tuple(value.shape) if isinstance(value, (np.ndarray, Tensor)) else None
    if shape != (num_envs, width):
        description = f"a {type(value).__name__}" if shape is None else f"of shape {shape}"
        raise EnvError(f"{label} is {description}; it must be of shape {(num_envs, width)}")
    if isinstance(value, np.ndarray) and value.dtype.kind not in NUMERIC_KINDS:
        raise EnvError(f"{label} holds {value.dtype}; it must hold numbers")
    return value


def fill_missing(
    info: Mapping[str, Any], name: str, space: spaces.Space, has_value: np.ndarray
) -> Any:
    """The reported observations; where there is none (`has_value` `[B]`), that of another one."""
    rows = np.where(has_value, np.arange(len(has_value)), np.flatnonzero(has_value)[0])
    return _take_rows(info[name], rows, space)


def _take_rows(value: Any, rows: np.ndarray, space: spaces.Space) -> Any:
    if isinstance(value, Mapping) and isinstance(space, spaces.Dict):
        inner = space.spaces
        return {
            key: _take_rows(part, rows, inner[key]) for key, part in value.items() if key in inner
        }
    if isinstance(value, Tensor):
        return value[torch.as_tensor(rows, device=value.device)]
    if isinstance(value, np.ndarray) and value.dtype == object and value.ndim == 1:
        # lists or tuples, as single environments return
        return batch_rows(space, [value[row] for row in rows])
    return value[rows] if isinstance(value, np.ndarray) else value


def batch_rows(space: Space, rows: Sequence[Any]) -> Any:
    """Single observations or actions as a batch."""
    return concatenate(space, rows, create_empty_array(space, n=len(rows)))  # type: ignore[arg-type]


def _where(reset_mask: np.ndarray, from_reset: Any, from_step: Any) -> Any:
    """For each sub-environment the info of its reset, or of its step where it was not reset."""
    arrays = isinstance(from_step, np.ndarray) and isinstance(from_reset, np.ndarray)
    if arrays and from_step.shape == from_reset.shape:
        mask = reset_mask.reshape(-1, *[1] * (from_step.ndim - 1))
        return np.where(mask, from_reset, from_step)
    return from_reset


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return all(_equal(part, other[key]) for key, part in one.items())
    if isinstance(one, tuple):
        return all(map(_equal, one, other))
    return np.array_equal(np.asarray(one), np.asarray(other))
