"""Entries of the infos that vector environments merge, by environment.

Gymnasium merges the infos of single environments: beside every `name` stands a mask `_name`,
`[B]` bool, of the environments that reported it at this step; the values of the others mean
nothing. Where an environment resets within the step that ends an episode, `final_info` holds the
entries of the ended episodes.
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
    """`[B]` numbers under the first of these names that an environment reported; NaN where it
    reported none, or something else than a number. `done` `[B]`: the episodes that this step
    ended."""
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
    is_batch = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim)
    rows: Any = value if is_batch else [value]
    if len(rows) != num_envs:
        return np.full(num_envs, np.nan)
    if isinstance(rows, np.ndarray) and rows.dtype.kind in "biuf" and rows.size == num_envs:
        found = rows.reshape(num_envs).astype(np.float64)
    else:
        found = np.array([_number(row) for row in rows])
    return np.where(reported(info, name, num_envs), found, np.nan)


def _number(value: Any) -> float:
    """The value as a number; NaN where it is none."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.item()
    return float(value) if isinstance(value, (Real, np.bool_)) else np.nan


def read_table(info: Mapping[str, Any], name: str, num_envs: int, width: int) -> Any:
    """`[B, width]` numbers that every environment reports at every reset and step; EnvError where
    one is missing."""
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
    """The reported observations of this space; an environment that reported none (`has_value`
    `[B]`) gets the observation of another."""
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
        singles = [value[row] for row in rows]  # lists or tuples, as single environments return
        empty: Any = create_empty_array(space, len(rows))
        return concatenate(space, singles, empty)
    return value[rows] if isinstance(value, np.ndarray) else value
