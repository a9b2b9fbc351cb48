"""What the infos of several environments say, one environment at a time.

Gymnasium merges the infos of single environments: beside every `name` stands a mask `_name`,
`[B]` bool, of the environments that reported it at this step; the values of the others mean
nothing. Where an environment resets within the step that ends an episode, `final_info` holds what
the ends reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from torch import Tensor

from ami_agent.adapters.fault_tolerance import EnvError


def reported(info: Mapping[str, Any], name: str, num_envs: int) -> np.ndarray:
    """`[B]` bool: the environments that reported it."""
    value = info.get(name)
    if value is None:
        return np.zeros(num_envs, dtype=bool)
    mask = info.get(f"_{name}")
    if mask is None:
        return np.ones(num_envs, dtype=bool)
    found = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
    if found.dtype != bool or found.shape != (num_envs,):
        return np.ones(num_envs, dtype=bool)  # another entry that is called so, and no mask
    return found


def read_numbers(info: Mapping[str, Any], names: Sequence[str], over: Tensor) -> Tensor:
    """`[B]` numbers under the first of these names that an environment reported; NaN where it
    reported none, or what is no number. `over` `[B]`: the episodes that this step ended."""
    is_done = over.cpu().numpy()
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
    single = [one if isinstance(one, Mapping) else {} for one in final]  # Gymnasium's before 1.0
    names = {name for one in single for name in one}
    return {name: [one.get(name) for one in single] for name in names}


def _numbers(info: Mapping[str, Any], name: str, num_envs: int) -> np.ndarray:
    value = info.get(name)
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    several = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim)
    rows: Any = value if several else [value]
    if len(rows) != num_envs:
        return np.full(num_envs, np.nan)
    if isinstance(rows, np.ndarray) and rows.dtype.kind in "biuf" and rows.size == num_envs:
        found = rows.reshape(num_envs).astype(np.float64)
    else:
        found = np.array([_number(one) for one in rows])
    return np.where(reported(info, name, num_envs), found, np.nan)


def _number(one: Any) -> float:
    """NaN for what is no number."""
    if isinstance(one, np.ndarray) and one.size == 1:
        one = one.item()
    return float(one) if isinstance(one, (Real, np.bool_)) else np.nan


def read_table(info: Mapping[str, Any], name: str, num_envs: int, width: int) -> Any:
    """`[B, width]` finite numbers that an environment reports at every reset and step; Failed where
    it doesn't."""
    label = f"info[{name!r}] of the environment"
    value = info.get(name)
    missing = np.flatnonzero(~reported(info, name, num_envs))
    if len(missing):
        raise EnvError(f"{label} {missing[0]} is missing; it must be there at every reset and step")
    shape = tuple(value.shape) if isinstance(value, (np.ndarray, Tensor)) else None
    if shape != (num_envs, width):
        description = f"a {type(value).__name__}" if shape is None else f"of shape {shape}"
        raise EnvError(f"{label} is {description}; it must be of shape {(num_envs, width)}")
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biuf":
        raise EnvError(f"{label} holds {value.dtype}; it must hold numbers")
    return value


def fill_missing(
    info: Mapping[str, Any], name: str, space: spaces.Space, has_value: np.ndarray
) -> Any:
    """What was reported, observations of this space; where an environment reported nothing, what
    another did stands in its place."""
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
        single = [value[row] for row in rows]  # lists or tuples, as single environments gave them
        empty: Any = create_empty_array(space, len(rows))
        return concatenate(space, single, empty)
    return value[rows] if isinstance(value, np.ndarray) else value
