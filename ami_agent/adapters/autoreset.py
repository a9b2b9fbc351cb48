"""Gymnasium's autoreset modes of batches (NEXT_STEP, SAME_STEP, DISABLED), each made NEXT_STEP: the
step after an episode's end only resets, and its action is ignored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

from ami_agent.adapters.failures import EnvError
from modules.types import ConfigError

FINAL_OBS = ("final_obs", "final_observation")
"""What the info calls an episode's last observation, since Gymnasium 1.0 and before."""
FINAL_INFO = "final_info"
SYNC_HINT = (
    "--env.vectorization-mode sync steps environments one by one, where it can be made one by one"
)

_WARNED: set[str] = set()

log = logging.getLogger(__name__)


class SameStepDetected(Exception):
    """Some sub-environments were reset within the step that ended their episodes, others go on: one
    batch can't hold these back while the others are stepped. `make` makes the same number of
    environments that can be stepped one by one."""

    def __init__(self, make: Callable[[], VectorEnv]) -> None:
        super().__init__(
            "resets within the step that ends an episode (SAME_STEP): its sub-environments are "
            "stepped one by one from here on, and all episodes begin anew"
        )
        self.make = make


def autoreset_mode(name: str, envs: VectorEnv) -> AutoresetMode | None:
    """As the metadata declare it, by an enum, its name or its value; None where they do not."""
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
    """The same environments in NEXT_STEP mode. `singles` makes as many that are stepped one by one,
    for a batch that can't do it; ConfigError for a mode that does not exist."""
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
        envs.close()  # its workers were told the mode when they began
        spec, kwargs = envs.spec, {name: getattr(envs, name) for name in _ASYNC_ATTRIBUTES}
        envs = AsyncVectorEnv(envs.env_fns, **kwargs)
        envs.spec = spec
    if isinstance(envs, AsyncVectorEnv):
        return envs
    return NextStepAutoreset(name, envs, mode, make_singles)


_ASYNC_ATTRIBUTES = ("shared_memory", "copy", "context", "daemon", "worker", "observation_mode")


class NextStepAutoreset(VectorWrapper):
    """A batch of whatever mode it declares. One that declares none is taken for SAME_STEP where it
    delivers `final_obs` at an episode's end, and for NEXT_STEP else; one that does another thing
    than it declares raises Failed."""

    def __init__(
        self, name: str, envs: VectorEnv, mode: AutoresetMode | None,
        make_singles: Callable[[], VectorEnv],
    ) -> None:  # fmt: skip
        super().__init__(envs)
        self.name, self.mode, self.make_singles = name, mode, make_singles
        self.declared = mode is not None
        self.done = np.zeros(envs.num_envs, dtype=bool)
        self.deferred_reset: tuple[Any, dict[str, Any]] | None = (
            None  # of episodes that have not begun yet
        )

    def reset(self, **kwargs: Any) -> Any:
        self.done, self.deferred_reset = np.zeros_like(self.done), None
        return self.env.reset(**kwargs)

    def step(self, actions: Any) -> Any:
        reset_mask = self.done
        if reset_mask.any() and (self.deferred_reset or self.mode is AutoresetMode.DISABLED):
            if reset_mask.all():
                return self._begin_all()
            return self._step_and_reset(actions, reset_mask)
        obs, reward, terminated, truncated, info = self.env.step(actions)
        self.done = _mask(terminated) | _mask(truncated)
        if reset_mask.any():
            self._check_only_resets(reset_mask, reward)
        if self.done.any():
            final = self._final_obs(info)
            self._check_final(final, obs)
            if self.mode is AutoresetMode.SAME_STEP:
                obs, info = self._defer_reset(obs, final, info)
        return obs, reward, terminated, truncated, info

    def _begin_all(self) -> Any:
        """All episodes ended with the last step: this one begins others, and steps nothing."""
        obs, info = self.deferred_reset or self.env.reset()
        self.done, self.deferred_reset = np.zeros_like(self.done), None
        return obs, np.zeros(len(self.done)), self.done.copy(), self.done.copy(), info

    def _step_and_reset(self, actions: Any, reset_mask: np.ndarray) -> Any:
        """DISABLED. Gymnasium's own refuse to step what is over; what begins takes a step, and is
        begun again."""
        self.env.reset(options={"reset_mask": reset_mask.copy()})
        after, reward, terminated, truncated, info = self.env.step(actions)
        obs, reset_info = self.env.reset(options={"reset_mask": reset_mask.copy()})
        self._check_partial(after, obs, reset_mask)
        info = {
            **info,
            **{key: _where(reset_mask, reset_info[key], info.get(key)) for key in reset_info},
        }
        reward, terminated, truncated = (
            np.where(reset_mask, 0, part).astype(part.dtype)
            for part in map(np.asarray, (reward, terminated, truncated))
        )
        self.done = _mask(terminated) | _mask(truncated)
        return obs, reward, terminated, truncated, info

    def _defer_reset(
        self, obs: Any, final: list[Any] | None, info: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """SAME_STEP: the last observations and infos of episodes now, the first ones of the next
        episodes with the next step."""
        if not self.done.all():
            raise SameStepDetected(self.make_singles)
        assert final is not None
        first_info = {k: v for k, v in info.items() if k.removeprefix("_") not in _FINALS}
        self.deferred_reset = obs, first_info
        return batch_rows(self.single_observation_space, final), self._final_info(
            info.get(FINAL_INFO)
        ) or first_info

    def _final_obs(self, info: Mapping[str, Any]) -> list[Any] | None:
        """The last observation of each sub-environment, [B], whose episode is over; None where the
        info holds none."""
        for key in FINAL_OBS:
            final_obs = info.get(key)
            if final_obs is None:
                continue
            if isinstance(final_obs, list) or (
                isinstance(final_obs, np.ndarray) and final_obs.dtype == object
            ):
                rows = list(final_obs)
            else:
                rows = list(iterate(self.observation_space, final_obs))
            given = _mask(info.get(f"_{key}", [row is not None for row in rows]))
            if given.any() and not given[self.done].all():
                raise EnvError(
                    f"{self._declared_text()} and gives {key} for some sub-environments whose episodes "
                    "are over, but not for all of them"
                )
            if given.any():
                return rows
        return None

    def _final_info(self, final_info: Any) -> dict[str, Any]:
        """Since Gymnasium 1.0 a dict of arrays, and before an array of dicts."""
        if isinstance(final_info, Mapping):
            return dict(final_info)
        found: dict[str, Any] = {}
        if final_info is not None:
            for number, one in enumerate(final_info):
                found = self._add_info(found, one or {}, number)
        return found

    def _check_final(self, final: list[Any] | None, obs: Any) -> None:
        """Settles the mode where none was declared."""
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
                f"{self._declared_text()}, but gives no final_obs at an episode's end; {SYNC_HINT}"
            )
        elif self.mode is not AutoresetMode.SAME_STEP and final is not None:
            rows = iterate(self.observation_space, obs)
            rows_at_end = zip(rows, final, self.done, strict=True)
            if not all(_equal(row, last) for row, last, done in rows_at_end if done):
                raise EnvError(
                    f"{self._declared_text()}, but its final_obs at an episode's end is another "
                    "observation than it returns, as in SAME_STEP: its metadata must say which"
                )

    def _check_only_resets(self, reset_mask: np.ndarray, reward: Any) -> None:
        rewards = np.asarray(reward)[reset_mask]
        if rewards.any() or self.done[reset_mask].any():
            raise EnvError(
                f"{self._declared_text()}, but the step after an episode's end gives reward "
                f"{rewards[0]:g} and done {bool(self.done[reset_mask][0])}, where it should only "
                "reset: its metadata must say which autoreset_mode it has, and SAME_STEP needs "
                "final_obs"
            )

    def _check_partial(self, after: Any, obs: Any, reset_mask: np.ndarray) -> None:
        rows = zip(
            iterate(self.observation_space, after), iterate(self.observation_space, obs),
            reset_mask, strict=True,
        )  # fmt: skip
        if not all(reset or _equal(one, other) for one, other, reset in rows):
            raise EnvError(
                f"{self._declared_text()}, but its reset changes sub-environments that options "
                f"['reset_mask'] does not name; {SYNC_HINT}"
            )

    def _declared_text(self) -> str:
        mode = f"autoreset_mode {self.mode.value}" if self.mode and self.declared else "no mode"
        return f"environment {self.name!r} is a batch that declares {mode}"


_FINALS = (*FINAL_OBS, FINAL_INFO)


def info_of_env(info: Mapping[str, Any], number: int, count: int) -> dict[str, Any]:
    """What a batch's info tells of one of its sub-environments."""
    found = {}
    for key, part in info.items():
        if key.startswith("_") and key[1:] in info:
            continue
        given = info.get(f"_{key}")
        if given is not None and not _mask(given)[number]:
            continue
        if isinstance(part, Mapping):
            found[key] = info_of_env(part, number, count)
        else:
            rows = isinstance(part, (np.ndarray, list, tuple)) and np.size(part) and len(part)
            found[key] = part[number] if rows == count else part
    return found


def batch_rows(space: Space, rows: Sequence[Any]) -> Any:
    """Single observations or actions as a batch."""
    return concatenate(space, rows, create_empty_array(space, n=len(rows)))  # type: ignore[arg-type]


def _mask(flags: Any) -> np.ndarray:
    return np.asarray(flags, dtype=bool)


def _where(reset_mask: np.ndarray, begun: Any, stepped: Any) -> Any:
    """Of each sub-environment what its reset tells, or its step where it was not reset."""
    arrays = isinstance(stepped, np.ndarray) and isinstance(begun, np.ndarray)
    if arrays and stepped.shape == begun.shape:
        return np.where(reset_mask.reshape(-1, *[1] * (stepped.ndim - 1)), begun, stepped)
    return begun


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping):
        return all(_equal(part, other[key]) for key, part in one.items())
    if isinstance(one, tuple):
        return all(map(_equal, one, other))
    return np.array_equal(np.asarray(one), np.asarray(other))
