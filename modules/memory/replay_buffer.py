"""Replay buffer: the steps of B environments, and windows of them to train on.

A ring buffer of rows. Row k holds observation k, the action taken there and the interoceptive
signals that came with observation k + 1. There is one row more than steps, so that a window can end
with the newest observation. Of observations that are stacks of frames only the newest frame is
stored, and earlier rows provide the others; so there is one more row for each older frame.

Environments restart as Gymnasium's vector environments do (autoreset mode NEXT_STEP): the step
after the end of an episode is a reset. Its observation is the last of the old episode, its action
is ignored and its next observation is the first of the new episode.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from copy import copy

import torch
from torch import Tensor, nn

from modules.memory.replay_storage import (
    ALL_PARTS,
    OBS_ONLY,
    STEP_PARTS,
    Parts,
    Storage,
    check_finite,
    check_like,
    check_stacks,
    checksum,
    from_obs_parts,
    gather_rows,
    obs_parts,
    step_parts,
)
from modules.memory.replay_windows import Windows, draw_future, draw_windows, find_windows
from modules.types import ConfigError, Observation, Trajectory, Transition, tree_map

__all__ = ["ALL_PARTS", "BY_ENV", "OBS_ONLY", "Parts", "ReplayBuffer"]

BY_ENV = ("age", "episode", "done")
"""Entries of `state_dict` whose second dimension is the row; of all others it is the first."""

SPLIT_CHUNK = 65_536
"""Steps that `split_episodes` reads at once; bounds memory."""


class ReplayBuffer:
    """The last `capacity` steps of each of B environments, on one device."""

    def __init__(
        self, capacity: int, example: Transition, device: torch.device | str = "cpu",
        stack: int = 1, storage: Storage | None = None,
    ) -> None:  # fmt: skip
        """`capacity` includes resets; `example` `[B, ...]` provides shapes and types only. `stack`:
        the number of frames in an observation, along its first axis, the latest last; every episode
        begins with its first frame repeated. `storage`: where the steps are stored instead of the
        device's memory."""
        if capacity < 1:
            raise ConfigError(f"capacity is {capacity}; it must be at least 1 step")
        num_envs, self._capacity, self._stack = len(example.action), capacity, stack
        self._rows, self._columns = capacity + stack, capacity + 1
        self._device = torch.device(device)
        self._templates = {
            name: torch.empty_like(part, device="meta")
            for name, part in {**obs_parts(example.obs), **step_parts(example)}.items()
        }
        self._storage = storage
        self._store = {
            name: self._zeros((self._rows, *part.shape), part.dtype)
            for name, part in self._frames(self._templates).items()
        }  # each [rows, B, ...]
        self._age = torch.zeros((num_envs, self._rows), dtype=torch.int32, device=device)
        self._episode = torch.zeros((num_envs, self._rows), dtype=torch.int64, device=device)
        self._episode[:, 0] = torch.arange(num_envs, device=device)
        self._done = torch.zeros((num_envs, self._rows), dtype=torch.bool, device=device)
        self._last_done = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self._steps = 0
        self._run_start = 0  # the step at which the latest run began
        self._recorded = (0, 0)  # steps that were added as episodes before any other; checksum
        self._windows: dict[tuple[int, bool, bool], Windows] = {}

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if self._storage is not None:
            return self._storage.zeros(shape, dtype)
        return torch.zeros(shape, dtype=dtype, device=self._device)

    def _rows_of(self, part: Tensor, index: Tensor) -> Tensor:
        """`[rows, B, ...]`, indices `[N, T]` into rows * B -> `[N, T, ...]`."""
        if self._storage is not None:
            self._storage.prefetch(part, index)
        return gather_rows(part, index)

    @classmethod
    def num_bytes(cls, capacity: int, example: Transition, stack: int = 1) -> int:
        """Bytes that such a buffer takes; `example` is of one environment or of all."""
        parts = {**obs_parts(example.obs), **step_parts(example)}.items()
        row = sum(part.nbytes // (stack if n.startswith("obs") else 1) for n, part in parts)
        bookkeeping = len(example.action) * (4 + 8 + 1)  # age, episode, done
        return (capacity + stack) * (row + bookkeeping)

    @property
    def num_envs(self) -> int:
        """B"""
        return len(self._last_done)

    def __len__(self) -> int:
        """Stored transitions of all environments, resets not included."""
        return len(self._find(1).start)

    def add(self, transition: Transition) -> None:
        """Adds one step of all B environments; ConfigError if a number is not finite or a shape is
        wrong. The check makes the host wait for the device of `transition`; environments take their
        actions from the host, so it waits at every step anyway."""
        parts = {**obs_parts(transition.obs), **step_parts(transition)}
        next_parts = obs_parts(transition.next_obs)
        check_finite({**parts, **{f"next {k}": v for k, v in next_parts.items()}})
        for name, part in (*parts.items(), *next_parts.items()):
            check_like(name, self._templates[name], part)
        if self._stack > 1:
            first = self._age[:, self._steps % self._rows] == 0
            for name, part in next_parts.items():
                check_stacks(name, parts[name], part, first, self._last_done, self._stack)
        self._write(self._steps, parts)
        self._write(self._steps + 1, next_parts)
        self._advance(self._last_done)
        self._last_done.copy_(transition.terminated | transition.truncated)
        self._done[:, self._steps % self._rows] = self._last_done

    def add_episode(self, episode: Trajectory) -> None:
        """Adds one whole recorded episode of each of B environments, obs `[B, T + 1, *O]`. It takes
        one step of the capacity more, unless it is the first; ConfigError as for `add`."""
        parts = {
            **obs_parts(episode.obs),
            "action": episode.actions,
            "interoception": episode.interoception,
            "terminated": episode.terminated,
        }
        check_finite(parts)
        steps = episode.actions.shape[1]
        if steps > self._capacity:
            raise ConfigError(
                f"the replay buffer keeps {self._capacity} steps, but the episode has {steps}"
            )
        num_before, (num_recorded, sum_before) = self._steps, self._recorded
        self.start_run()
        parts, before = self._newest_frames(parts)
        age = torch.arange(-before, steps + 1, dtype=torch.int32, device=self._device)
        rows = (age + before + self._steps) % self._rows
        for name, part in parts.items():
            values = part.transpose(0, 1).to(self._device)  # [T, B, ...]
            check_like(name, self._store[name][0], values[0])
            first = 0 if name.startswith("obs") else before
            stored = self._store[name]
            stored[rows[first : first + len(values)]] = values.to(stored.dtype)
        self._age[:, rows] = age
        self._episode[:, rows] = self._episode[:, rows[:1]]
        self._done[:, rows] = age == steps
        self._steps += before + steps
        if num_recorded == num_before:
            self._recorded = (self._steps, checksum(parts, sum_before))
        self._last_done.fill_(True)
        self._windows.clear()

    def start_run(self) -> None:
        """Begins a new run of data collection, with `break_episodes`."""
        self.break_episodes()
        self._run_start = self._steps

    def break_episodes(self) -> None:
        """Separates the next step from the steps before. It takes one step of the capacity, unless
        the buffer is empty."""
        if self._steps:
            self._advance(torch.ones_like(self._last_done))
        self._last_done.zero_()
        self._windows.clear()

    def sample(
        self,
        count: int,
        length: int,
        generator: torch.Generator,
        group_size: int = 1,
        latest_run: bool = False,
        parts: Parts = ALL_PARTS,
    ) -> Trajectory:
        """`count` windows of `length` steps, uniform over all stored ones: obs `[count, length + 1,
        *O]`. They come in groups of `group_size` from the same episode; with `latest_run` only from
        the steps since the last `start_run`. Windows of finished episodes that are shorter are
        padded (`Trajectory.valid`). Only the given `parts` are read. ConfigError if there is no
        window."""
        found = self._require_windows(length, latest_run)
        start = found.start[draw_windows(found, count, group_size, generator)]
        return self._read(start, length, found.padded, parts)

    def sample_with_future(
        self,
        count: int,
        length: int,
        generator: torch.Generator,
        group_size: int = 1,
        parts: Parts = ALL_PARTS,
    ) -> tuple[Trajectory, Observation]:
        """The windows of `sample`, and for each an observation `[count, *O]` drawn uniformly from
        its last one to the last stored one of its episode (hindsight goals)."""
        found = self._require_windows(length)
        drawn = draw_windows(found, count, group_size, generator)
        future = found.start[draw_future(found, drawn, generator)]
        env, steps, _ = self._locate(future, length, found.padded)
        last_obs = self._read_obs(env, steps[:, -1:], parts.obs)
        windows = self._read(found.start[drawn], length, found.padded, parts)
        return windows, tree_map(lambda part: part[:, 0], last_obs)

    def fraction(self, length: int, latest_run: bool = False) -> Tensor:
        """The fraction of the stored steps that lie in some window of that length; scalar. The
        others belong to shorter episodes that are unfinished, interrupted or partly overwritten."""
        return self._find(length, latest_run).fraction

    def has_episode_end(self) -> bool:
        """Whether any stored episode has ended or was interrupted."""
        kept = self._age[:, self._order()][:, : self._steps - self._oldest() + 1]
        return bool((kept[:, 1:] == 0).any() or self._last_done.any())

    def values(self, name: str, last_steps: int = 0) -> Tensor:
        """The stored values of that name, `[N, ...]`, oldest first in each environment: of every
        transition, or of the last `last_steps` steps. Of observations, those before the action."""
        env, steps, _ = self._locate(self._find(1).start, 1, padded=False)
        if last_steps:
            recent = steps[:, 1] > self._steps - last_steps
            env, steps = env[recent], steps[recent]
        if name.startswith("obs"):
            obs = obs_parts(self._read_obs(env, steps[:, :1], (name.removeprefix("obs."),)))
            return obs[name][:, 0]
        index = (steps[:, :1] % self._rows) * len(self._last_done) + env[:, None]
        return self._rows_of(self._store[name], index)[:, 0]

    @property
    def num_added(self) -> int:
        """Steps ever added, over all environments."""
        return self._steps * len(self._last_done)

    @property
    def recorded(self) -> Tensor:
        """`[2]` int64: the steps that were added as whole episodes before any other step, and their
        checksum: they can be read again from where they were recorded."""
        return torch.tensor(self._recorded)

    def recent_actions(self, steps: int) -> Tensor:
        """The actions of the last `steps` steps, or of all if fewer are stored; `[T, B, A]`."""
        rows = torch.arange(max(self._oldest(), self._steps - steps), self._steps)
        return self._store["action"][(rows % self._rows).to(self._device)]

    def ends_with(self, obs: Observation) -> bool:
        """Whether `obs` `[B, *O]` is the newest observation."""
        row, device = self._steps % self._rows, self._device
        return all(
            torch.equal(self._store[n][row], p.to(device)) for n, p in obs_parts(obs).items()
        )

    def episode_ids(self, length: int = 1) -> Tensor:
        """`[E]` int64: the ids of the episodes of which at least `length` steps are stored."""
        windows = self._find(length, pad=False)
        first = windows.start[windows.episode_bounds[:-1]]
        env, since = first // self._columns, first % self._columns
        return self._episode[env, (since + self._oldest()) % self._rows]

    def episode_lengths(self) -> Tensor:
        """`[E]` int64: the stored steps of each of these episodes."""
        return self._find(1, pad=False).episode_bounds.diff()

    def get_episode(self, episode: int | Tensor) -> Trajectory:
        """The stored steps of one episode, obs `[1, T + 1, *O]`; ConfigError if there are none."""
        order = self._order()
        in_episode = (self._episode[:, order] == episode) & (self._age[:, order] >= 0)
        if self._steps < self._capacity:
            in_episode[:, self._steps + 1 :] = False
        length = int(in_episode.sum()) - 1
        if length < 1:
            raise ConfigError(f"the replay buffer keeps no step of episode {int(episode)}")
        return self._read(in_episode.flatten().int().argmax()[None], length, padded=False)

    def map_observations(
        self, encode: Callable[[Observation, Tensor], Tensor], steps_at_once: int = 1
    ) -> ReplayBuffer:
        """A read-only copy with states in the place of observations. `encode` takes the
        observations `[B, *O]` of every step in order, and which of the B environments begin an
        episode there; those of `steps_at_once` steps as one batch, where a state depends on its own
        observation alone."""
        other, states = copy(self), torch.empty(0)
        all_envs = torch.arange(self.num_envs, device=self._device)
        with torch.no_grad():
            for first in range(self._oldest(), self._steps + 1, steps_at_once):
                steps = torch.arange(first, min(first + steps_at_once, self._steps + 1))
                rows = steps % self._rows
                step_of_each = steps.to(all_envs).repeat_interleave(self.num_envs)
                obs = self._read_obs(all_envs.repeat(len(steps)), step_of_each[:, None])
                begins = (self._age[:, rows] == 0).T.flatten()
                state = encode(tree_map(lambda part: part[:, 0], obs), begins)
                if not len(states):
                    states = self._new_states(state[: self.num_envs])
                states[rows] = state.unflatten(0, (len(steps), self.num_envs))
        other._store = {"obs": states, **{name: self._store[name] for name in STEP_PARTS}}
        other._stack = 1
        return other

    def _new_states(self, example: Tensor) -> Tensor:
        """Zeros for a state `[B, D]` of every filled row, which lie where the steps lie, unless the
        states are on another device."""
        shape = (min(self._rows, self._steps + 1), *example.shape)
        if self._storage is None or example.device.type != "cpu":
            return example.new_zeros(shape)
        return self._storage.zeros(shape, example.dtype)

    def split_episodes(self, split_at: Callable[[Trajectory], Tensor]) -> ReplayBuffer:
        """A read-only copy whose episodes are split at some of their steps, as if the environment
        had been reset there: no window contains such a step. `split_at` takes steps as windows of
        length 1, obs `[N, 2, *O]`, and tells which to split at, `[N]` bool. Not for observations
        that are stacks of frames."""
        other, start = copy(self), self._find(1, pad=False).start
        is_split = torch.zeros_like(self._done)
        for part in start.split(SPLIT_CHUNK):
            env, steps, _ = self._locate(part, 1, padded=False)
            is_split[env, steps[:, 0] % self._rows] = split_at(self._read(part, 1, padded=False))
        order = self._order()
        first = nn.functional.pad(is_split[:, order], (1, 0))[:, :-1]  # of a part of an episode
        column = torch.arange(len(order), device=self._device)
        since = torch.where(first, column, -len(order)).cummax(1).values
        other._age, other._episode = self._age.clone(), self._episode.clone()
        other._age[:, order] = torch.minimum(self._age[:, order], (column - since).int())
        other._episode[:, order] += self.num_envs * first.cumsum(1)
        other._done, other._windows = self._done | is_split, {}
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """The filled part, as views that the next `add` may overwrite."""
        filled = min(self._steps + 1, self._rows)
        return {
            **{name: part[:filled] for name, part in self._store.items()},
            "age": self._age[:, :filled],
            "episode": self._episode[:, :filled],
            "done": self._done[:, :filled],
            "ended": self._last_done,
            "steps": torch.tensor([self._steps, self._rows - 1, self._run_start]),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` saved; ConfigError if this buffer was built otherwise. With
        `first` the state holds the steps from that one on, in order, and the buffer has those
        before it already."""
        expected = {*self._store, "age", "episode", "done", "ended", "steps"}
        if set(state) - {"first"} != expected:
            raise ConfigError(
                f"the replay buffer needs {sorted(expected)}, but was given {sorted(state)}"
            )
        steps, num_rows, run_start = state["steps"].tolist()
        if num_rows != self._rows - 1:
            raise ConfigError(
                f"the replay buffer keeps {self._rows - 1} steps, the saved one {num_rows}"
            )
        rows: Tensor | slice = slice(0, state["age"].shape[1])
        if "first" in state:
            rows = torch.arange(int(state["first"]), steps + 1, device=self._device) % self._rows
        else:
            self._age.zero_()
            self._done.zero_()
            self._recorded = (0, 0)
        for name, part in self._store.items():
            check_like(name, part[0], state[name][0])
            part[rows] = state[name].to(self._device)
        self._age[:, rows] = state["age"].to(self._device)
        self._episode[:, rows] = state["episode"].to(self._device)
        self._done[:, rows] = state["done"].to(self._device)
        self._last_done.copy_(state["ended"])
        self._steps, self._run_start = steps, run_start
        self._windows.clear()

    def _write(self, step: int, parts: Mapping[str, Tensor]) -> None:
        for name, part in self._frames(parts).items():
            self._store[name][step % self._rows].copy_(part)

    def _advance(self, reset_mask: Tensor) -> None:
        """`reset_mask` `[B]`: the environments in which the step from this row is a reset."""
        row, following = self._steps % self._rows, (self._steps + 1) % self._rows
        self._age[:, following] = (self._age[:, row] + 1).masked_fill(reset_mask, 0)
        self._episode[:, following] = self._episode[:, row] + reset_mask * len(reset_mask)
        self._done[:, following] = False
        self._steps += 1
        self._windows.clear()

    def _frames(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The newest frame of observations `[B, stack * F, ...]`, and all other parts unchanged;
        ConfigError for observations that are not divisible into frames."""
        found = dict(parts)
        for name, part in parts.items():
            if name.startswith("obs") and self._stack > 1:
                if part.shape[1] % self._stack:
                    shape = list(part.shape)
                    raise ConfigError(f"{name} {shape} is not a stack of {self._stack} frames")
                found[name] = part[:, -(part.shape[1] // self._stack) :]
        return found

    def _newest_frames(self, parts: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
        """Parts of an episode `[B, T, ...]` as they are stored, and the number of frames before its
        first observation that are stored as well: 0 unless the recording starts mid-episode."""
        stack, found, before = self._stack, dict(parts), 0
        obs = {name: part for name, part in parts.items() if name.startswith("obs")}
        if stack == 1 or not obs:
            return found, before
        frames = {}
        for name, part in obs.items():
            check_like(name, self._templates[name], part[:, 0])
            split = part.unflatten(2, (stack, -1))  # [B, T + 1, N, F, ...]
            if not split[:, 1:, :-1].equal(split[:, :-1, 1:]):
                raise ConfigError(f"{name} is not a stack of {stack} frames, the latest last")
            frames[name] = split
        if not all(p[:, 0, 1:].equal(p[:, 0, :-1]) for p in frames.values()):
            before = stack - 1
        for name, split in frames.items():
            older = split[:, 0, stack - 1 - before : stack - 1]
            found[name] = torch.cat([older, split[:, :, -1]], 1)
        return found, before

    def _order(self) -> Tensor:
        """The indices of the rows from which windows are drawn, oldest first."""
        columns = torch.arange(self._columns, device=self._device)
        return (columns + self._oldest()) % self._rows

    def _find(self, length: int, latest_run: bool = False, pad: bool = True) -> Windows:
        if length < 1:
            raise ConfigError(f"the length of a window is {length}; it must be at least 1 step")
        key = (length, latest_run, pad)
        if key not in self._windows:
            if oldest := self._oldest():
                age, done = self._age[:, self._order()], self._done[:, self._order()]
            else:  # rows that were never written hold no window
                age, done = self._age[:, : self._steps + 1], self._done[:, : self._steps + 1]
            since = max(0, self._run_start - oldest) if latest_run else 0
            found = find_windows(age, done, length, since, pad)
            if not oldest and self.num_envs > 1:
                env, first = found.start // age.shape[1], found.start % age.shape[1]
                found = found._replace(start=env * self._columns + first)
            self._windows[key] = found
        return self._windows[key]

    def _require_windows(self, length: int, latest_run: bool = False) -> Windows:
        """The windows of that length; ConfigError if there are none."""
        found = self._find(length, latest_run)
        if not len(found.start):
            run = " of the latest run" if latest_run else ""
            raise ConfigError(
                f"the replay buffer has no window of {length} steps within one episode{run}; "
                f"the longest one has {self.max_window()} steps"
            )
        return found

    def _locate(
        self, start: Tensor, length: int, padded: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """`start` `[N]` as in `Windows` -> environments `[N]`, step numbers of the observations
        `[N, T + 1]`, the last one repeated after the end of an episode, and the valid steps."""
        env, first = start // self._columns, start % self._columns + self._oldest()
        steps = first[:, None] + torch.arange(length + 1, device=self._device)
        if not padded:
            return env, steps, None
        episode = self._episode[env[:, None], steps % self._rows]
        valid = (episode == episode[:, :1])[:, 1:] & (steps[:, 1:] <= self._steps)
        return env, torch.minimum(steps, (first + valid.sum(1))[:, None]), valid

    def _read(
        self, start: Tensor, length: int, padded: bool, parts: Parts = ALL_PARTS
    ) -> Trajectory:
        """`start` `[N]` as in `Windows` -> the N windows of `length` steps that begin there."""
        env, steps, valid = self._locate(start, length, padded)
        obs = self._read_obs(env, steps, parts.obs)
        index = (steps[:, :-1] % self._rows) * len(self._last_done) + env[:, None]
        requested = (parts.actions, parts.interoception, True)
        actions, interoception, terminated = (
            self._rows_of(self._store[name], index if read else index[:, :0])
            for name, read in zip(STEP_PARTS, requested, strict=True)
        )
        if valid is not None:
            actions, interoception, terminated = (
                _zero_padding(valid, part) for part in (actions, interoception, terminated)
            )
        episode = self._episode[env, steps[:, 0] % self._rows]
        return Trajectory(obs, actions, interoception, terminated, episode, valid)

    def _read_obs(
        self, env: Tensor, steps: Tensor, only: Collection[str] | None = None
    ) -> Observation:
        """The observations of environments `[N]` at step numbers `[N, T]`: all modalities, or those
        named in `only`."""
        stored = {
            name: part
            for name, part in self._store.items()
            if name.startswith("obs") and (only is None or name.removeprefix("obs.") in only)
        }
        env = env[:, None]
        if self._stack == 1:
            index = (steps % self._rows) * len(self._last_done) + env
            return from_obs_parts({n: self._rows_of(part, index) for n, part in stored.items()})
        back = torch.arange(self._stack - 1, -1, -1, device=self._device)
        older = (steps[..., None] - back).clamp_min(max(0, self._steps - self._rows + 1))
        episode = self._episode[env[..., None], older % self._rows]
        # the first frame of an episode is repeated in the place of older ones
        first = (episode != episode[..., -1:]).sum(-1, keepdim=True)
        older = torch.maximum(older, older.gather(-1, first))
        index = (older % self._rows) * len(self._last_done) + env[..., None]
        frames = {name: self._rows_of(part, index.flatten(1)) for name, part in stored.items()}
        shape = index.shape[1:]
        return from_obs_parts({n: f.unflatten(1, shape).flatten(2, 3) for n, f in frames.items()})

    def _oldest(self) -> int:
        """The number of the oldest stored step; its row is that number modulo the rows."""
        return max(0, self._steps - self._capacity)

    def max_window(self) -> int:
        """Steps of the longest window within one episode."""
        kept = torch.arange(self._columns, device=self._device)
        return max(0, int(torch.minimum(self._age[:, self._order()], kept).max()))


def _zero_padding(valid: Tensor, part: Tensor) -> Tensor:
    """`[N, T, ...]`, set to 0 where a step is not valid; a part that was not read has T = 0."""
    padded = ~valid[:, : part.shape[1]]
    return part.masked_fill(padded.view(*padded.shape, *[1] * (part.ndim - 2)), 0)
