"""Memory, the replay buffer: steps of B environments, and windows of them to learn from.

A ring of rows. Row k holds the observation k, the action taken on it and the interoception felt on
arrival at observation k + 1. One row more than there are steps, so that the newest observation, on
which nothing was done yet, can end a window. Of observations that are stacks of frames only the
newest frame is kept, and the rows before complete them; so there are as many more rows as older
frames.

Worlds restart as Gymnasium's vector worlds do (autoreset mode NEXT_STEP): the step after an end
only resets. Its observation is the last of the old episode, its action is ignored and its next
observation is the first of the new episode.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from copy import copy

import torch
from torch import Tensor

from modules.memory.rows import (
    ALL_PARTS,
    OBS_ONLY,
    STEP_PARTS,
    Parts,
    Windows,
    check_finite,
    check_like,
    check_stacks,
    draw_future,
    draw_windows,
    find_windows,
    from_obs_parts,
    gather_rows,
    newest_frame,
    obs_parts,
    step_parts,
)
from modules.types import ConfigError, Observation, Trajectory, Transition, tree_map

__all__ = ["ALL_PARTS", "BY_ENV", "OBS_ONLY", "Parts", "ReplayBuffer"]

BY_ENV = ("age", "episode", "done")
"""Parts of a state whose rows are the second dimension; of all others they are the first."""


class ReplayBuffer:
    """The last `capacity` steps of each of B worlds, kept on one device."""

    def __init__(
        self, capacity: int, example: Transition, device: torch.device | str = "cpu", stack: int = 1
    ) -> None:
        """`capacity` counts resets too; `example` `[B, ...]` lends shapes and types, no values.
        `stack`: an observation is so many frames along its first axis, the latest last, and every
        episode begins with its first frame repeated."""
        if capacity < 1:
            raise ConfigError(f"a memory needs a capacity of at least 1 step, not {capacity}")
        num_envs, self._capacity, self._stack = len(example.action), capacity, stack
        self._rows = capacity + stack
        self._device = torch.device(device)
        self._templates = {
            name: torch.empty_like(part, device="meta")
            for name, part in {**obs_parts(example.obs), **step_parts(example)}.items()
        }
        self._store = {
            name: torch.zeros((self._rows, *part.shape), dtype=part.dtype, device=device)
            for name, part in self._frames(self._templates).items()
        }  # each [rows, B, ...]
        self._age = torch.zeros((num_envs, self._rows), dtype=torch.int32, device=device)
        self._episode = torch.zeros((num_envs, self._rows), dtype=torch.int64, device=device)
        self._episode[:, 0] = torch.arange(num_envs, device=device)
        self._done = torch.zeros((num_envs, self._rows), dtype=torch.bool, device=device)
        self._last_done = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self._steps = 0
        self._run_start = 0  # the step with which the latest life began
        self._windows: dict[tuple[int, bool, bool], Windows] = {}

    @classmethod
    def num_bytes(cls, capacity: int, example: Transition, stack: int = 1) -> int:
        """Bytes that such a memory takes; `example` is of one environment or of all."""
        kept = {**obs_parts(example.obs), **step_parts(example)}
        frames = {
            n: part.nbytes // (stack if n.startswith("obs") else 1) for n, part in kept.items()
        }
        bookkeeping = len(example.action) * (
            4 + 8 + 1
        )  # age, number of the episode, whether it is done
        return (capacity + stack) * (sum(frames.values()) + bookkeeping)

    @property
    def num_envs(self) -> int:
        """B, the number of lives that are kept."""
        return len(self._last_done)

    def __len__(self) -> int:
        """Transitions that can be recalled, over all worlds; steps that only reset don't count."""
        return len(self._find(1).start)

    def add(self, transition: Transition) -> None:
        """Add one step of all B worlds; ConfigError if a number is not finite or a shape wrong.

        The check makes the host wait for the device `lived` is on. Worlds take their actions from
        the host, so it waits at every step anyway.
        """
        parts, next_parts = (
            {**obs_parts(transition.obs), **step_parts(transition)},
            obs_parts(transition.next_obs),
        )
        check_finite({**parts, **{f"next {k}": v for k, v in next_parts.items()}})
        for name, part in (*parts.items(), *next_parts.items()):
            check_like(name, self._templates[name], part)
        self._check_stacks(parts, next_parts)
        self._write(self._steps, parts)
        self._write(self._steps + 1, next_parts)
        self._advance(self._last_done)
        self._last_done.copy_(transition.terminated | transition.truncated)
        self._done[:, self._steps % self._rows] = self._last_done

    def add_episode(self, episode: Trajectory) -> None:
        """Add a whole episode that each of the B worlds lived elsewhere, obs `[B, T + 1, *O]`. It
        costs one step more, unless it is the first; ConfigError as for `add`."""
        parts = {
            **obs_parts(episode.obs), "action": episode.actions, "interoception": episode.interoception,
            "terminated": episode.terminated,
        }  # fmt: skip
        check_finite(parts)
        steps = episode.actions.shape[1]
        if steps > self._capacity:
            raise ConfigError(f"memory keeps {self._capacity} steps, the episode has {steps}")
        self.start_run()
        parts, before = self._newest_frames(parts)
        age = torch.arange(-before, steps + 1, dtype=torch.int32, device=self._device)
        rows = (age + (before + self._steps)) % self._rows
        for name, part in parts.items():
            values = part.transpose(0, 1).to(self._device)  # [T, B, ...]
            check_like(name, self._store[name][0], values[0])
            first = 0 if name.startswith("obs") else before
            self._store[name][rows[first : first + len(values)]] = values.to(
                self._store[name].dtype
            )
        self._age[:, rows] = age
        self._episode[:, rows] = self._episode[:, rows[:1]]
        self._done[:, rows] = age == steps
        self._steps += before + steps
        self._last_done.fill_(True)
        self._windows.clear()

    def start_run(self) -> None:
        """Another life begins, with all that `break_episodes` does."""
        self.break_episodes()
        self._run_start = self._steps

    def break_episodes(self) -> None:
        """What comes next does not follow from what came before. It costs one step of the capacity,
        unless nothing was lived yet."""
        if self._steps:
            self._advance(torch.ones_like(self._last_done))
        self._last_done.zero_()
        self._windows.clear()

    def sample(
        self, count: int, length: int, generator: torch.Generator, group_size: int = 1,
        latest_run: bool = False, parts: Parts = ALL_PARTS,
    ) -> Trajectory:  # fmt: skip
        """`count` windows of `length` steps, uniform over all kept: obs [count, length + 1].

        They come in runs of `group_size` from the same episode, each drawn anew from it; if `latest`,
        only from the life that began with the last interruption. Those of episodes that are done
        and shorter are padded (`Trajectory.valid`). Only the `parts` asked for are read.
        ConfigError if there is no window.
        """
        found = self._require_windows(length, latest_run)
        start = found.start[draw_windows(found, count, group_size, generator)]
        return self._read(start, length, found.padded, parts)

    def sample_with_future(
        self, count: int, length: int, generator: torch.Generator, group_size: int = 1,
        parts: Parts = ALL_PARTS,
    ) -> tuple[Trajectory, Observation]:  # fmt: skip
        """The same, and for each window what was seen `[count, *O]` at a moment drawn uniformly
        from its last to the last that is kept of its episode."""
        found = self._require_windows(length)
        drawn = draw_windows(found, count, group_size, generator)
        future = found.start[draw_future(found, drawn, generator)]
        env, steps, _ = self._locate(future, length, found.padded)
        future_obs = tree_map(
            lambda part: part[:, 0], self._read_obs(env, steps[:, -1:], parts.obs)
        )
        return self._read(found.start[drawn], length, found.padded, parts), future_obs

    def fraction(self, length: int, latest_run: bool = False) -> Tensor:
        """The fraction of the steps kept that lie in some window of that length; scalar. What lies
        in none: episodes that go on, or were broken off, or of which so few steps are left."""
        return self._find(length, latest_run).fraction

    def has_episode_end(self) -> bool:
        """Whether any episode that is kept has ended, or was cut."""
        kept = self._age[:, self._order()][:, : self._steps - self._oldest() + 1]
        return bool((kept[:, 1:] == 0).any() or self._last_done.any())

    def values(self, name: str, last_steps: int = 0) -> Tensor:
        """What is kept under that name, of every transition, oldest first in each environment, or
        of those in the `latest` steps: `[N, ...]`. The observations are those that actions were
        taken on."""
        env, steps, _ = self._locate(self._find(1).start, 1, padded=False)
        if last_steps:
            recent = steps[:, 1] > self._steps - last_steps
            env, steps = env[recent], steps[recent]
        if name.startswith("obs"):
            obs = obs_parts(self._read_obs(env, steps[:, :1], (name.removeprefix("obs."),)))
            return obs[name][:, 0]
        index = (steps[:, :1] % self._rows) * len(self._last_done) + env[:, None]
        return gather_rows(self._store[name], index)[:, 0]

    @property
    def num_added(self) -> int:
        """Steps that were ever remembered, in all worlds."""
        return self._steps * len(self._last_done)

    def recent_actions(self, steps: int) -> Tensor:
        """`[T, B, A]`: what was done in the latest so many steps; fewer where fewer are kept."""
        rows = torch.arange(max(self._oldest(), self._steps - steps), self._steps)
        return self._store["action"][(rows % self._rows).to(self._device)]

    def ends_with(self, obs: Observation) -> bool:
        """Whether the newest observation `[B, *O]` is this one."""
        row, device = self._steps % self._rows, self._device
        return all(
            torch.equal(self._store[n][row], p.to(device)) for n, p in obs_parts(obs).items()
        )

    def episode_ids(self, length: int = 1) -> Tensor:
        """[E] int64: the numbers of the episodes of which at least `length` steps are kept."""
        windows = self._find(length, pad=False)
        first = windows.start[windows.episode_bounds[:-1]]
        env, since = first // self._columns, first % self._columns
        return self._episode[env, (since + self._oldest()) % self._rows]

    def get_episode(self, episode: int | Tensor) -> Trajectory:
        """All that is kept of one episode, obs [1, T + 1, ...]; ConfigError if nothing is."""
        order = self._order()
        mine = (self._episode[:, order] == episode) & (self._age[:, order] >= 0)
        if self._steps < self._capacity:
            mine[:, self._steps + 1 :] = False
        length = int(mine.sum()) - 1
        if length < 1:
            raise ConfigError(f"memory keeps no step of episode {int(episode)}")
        return self._read(mine.flatten().int().argmax()[None], length, padded=False)

    def map_observations(self, encode: Callable[[Observation, Tensor], Tensor]) -> ReplayBuffer:
        """The same lives, read-only, with states in the place of observations: `encode` is shown
        `[B, *O]` of every step in the order they were lived, and which of B begin an episode."""
        other, states = copy(self), torch.empty(0)
        all_envs = torch.arange(self.num_envs, device=self._device)
        with torch.no_grad():
            for step in range(self._oldest(), self._steps + 1):
                row = step % self._rows
                obs = self._read_obs(all_envs, torch.full_like(all_envs, step)[:, None])
                state = encode(tree_map(lambda part: part[:, 0], obs), self._age[:, row] == 0)
                if not len(states):
                    states = state.new_zeros(min(self._rows, self._steps + 1), *state.shape)
                states[row] = state
        other._store = {"obs": states, **{name: self._store[name] for name in STEP_PARTS}}
        other._stack = 1
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """The filled part, as views that the next `add` may change."""
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
        """Become the memory `state` was taken from; ConfigError if it was built otherwise."""
        expected = {*self._store, "age", "episode", "ended", "steps"}
        if set(state) - {"done"} != expected:  # memories of older versions don't have it
            raise ConfigError(f"memory needs {sorted(expected)}, was given {sorted(state)}")
        steps, num_rows, run_start = state["steps"].tolist()
        if num_rows != self._rows - 1:
            raise ConfigError(f"memory keeps {self._rows - 1} steps, the saved one {num_rows}")
        for name, part in self._store.items():
            check_like(name, part[0], state[name][0])
            part[: len(state[name])] = state[name].to(self._device)
        self._age.zero_()[:, : state["age"].shape[1]] = state["age"].to(self._device)
        self._episode[:, : state["age"].shape[1]] = state["episode"].to(self._device)
        done = state.get("done", state["terminated"].T.roll(1, 1) & (state["age"] > 0))
        self._done.zero_()[:, : done.shape[1]] = done.to(self._device)
        self._last_done.copy_(state["ended"])
        self._steps, self._run_start = steps, run_start
        self._windows.clear()

    def _write(self, step: int, parts: Mapping[str, Tensor]) -> None:
        for name, part in self._frames(parts).items():
            self._store[name][step % self._rows].copy_(part)

    def _advance(self, reset_mask: Tensor) -> None:
        """`reset_mask` [B]: the worlds in which the step from this row to the next only resets."""
        row, following = self._steps % self._rows, (self._steps + 1) % self._rows
        self._age[:, following] = (self._age[:, row] + 1).masked_fill(reset_mask, 0)
        self._episode[:, following] = self._episode[:, row] + reset_mask * len(reset_mask)
        self._done[:, following] = False
        self._steps += 1
        self._windows.clear()

    def _frames(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The newest frame of what is seen `[B, ...]`, and the rest as it is."""
        return {
            name: newest_frame(name, part, self._stack) if name.startswith("obs") else part
            for name, part in parts.items()
        }

    def _check_stacks(self, obs: Mapping[str, Tensor], next_obs: Mapping[str, Tensor]) -> None:
        if self._stack == 1:
            return
        first = self._age[:, self._steps % self._rows] == 0
        for name, part in next_obs.items():
            current, device = obs[name], part.device
            check_stacks(
                name, current, part, first.to(device), self._last_done.to(device), self._stack
            )

    def _newest_frames(self, parts: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
        """Parts of an episode `[B, T, ...]` as they are kept, and the number of frames before its
        first observation that are kept as well: those of an episode that begins in its middle."""
        stack, found, before = self._stack, dict(parts), 0
        obs_parts = {name: part for name, part in parts.items() if name.startswith("obs")}
        if stack == 1 or not obs_parts:
            return found, before
        frames = {}
        for name, part in obs_parts.items():
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

    @property
    def _columns(self) -> int:
        """Rows from which windows are drawn, in the order of time."""
        return self._capacity + 1

    def _order(self) -> Tensor:
        """Which rows these are, oldest first."""
        columns = torch.arange(self._columns, device=self._device)
        return (columns + self._oldest()) % self._rows

    def _find(self, length: int, latest_run: bool = False, pad: bool = True) -> Windows:
        if length < 1:
            raise ConfigError(f"a stretch has at least 1 step, not {length}")
        if (length, latest_run, pad) not in self._windows:
            rows, since = (
                self._order(),
                max(0, self._run_start - self._oldest()) if latest_run else 0,
            )
            self._windows[length, latest_run, pad] = find_windows(
                self._age[:, rows], self._done[:, rows], length, since, pad
            )
        return self._windows[length, latest_run, pad]

    def _require_windows(self, length: int, latest_run: bool = False) -> Windows:
        """The windows there are; ConfigError if there are none."""
        found = self._find(length, latest_run)
        if not len(found.start):
            raise ConfigError(
                f"memory has no stretch of {length} steps within one episode"
                f"{' of its latest life' if latest_run else ''}; a length of {self.max_window()} would do"
            )
        return found

    def _locate(
        self, start: Tensor, length: int, padded: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """`start` [N] as in Windows -> their environments `[N]`, the numbers of their observations
        `[N, T + 1]`, the last one again where an episode is over, and which steps were taken."""
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
        """`start` [N] as in Windows -> the N windows of `length` steps which begin there."""
        env, steps, valid = self._locate(start, length, padded)
        obs = self._read_obs(env, steps, parts.obs)
        index = (steps[:, :-1] % self._rows) * len(self._last_done) + env[:, None]
        wanted_parts = (parts.actions, parts.interoception, True)
        actions, interoception, terminated = (
            gather_rows(self._store[name], index if read else index[:, :0])
            for name, read in zip(STEP_PARTS, wanted_parts, strict=True)
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
        """What was seen at the numbers `[N, T]` of observations of environments `[N]`, all of it or
        what has these names."""
        obs_parts = {
            name: part
            for name, part in self._store.items()
            if name.startswith("obs") and (only is None or name.removeprefix("obs.") in only)
        }
        env = env[:, None]
        if self._stack == 1:
            index = (steps % self._rows) * len(self._last_done) + env
            return from_obs_parts(
                {name: gather_rows(part, index) for name, part in obs_parts.items()}
            )
        back = torch.arange(self._stack - 1, -1, -1, device=self._device)
        older = (steps[..., None] - back).clamp_min(max(0, self._steps - self._rows + 1))
        same_episode = self._episode[env[..., None], older % self._rows]
        same_episode = (
            same_episode == same_episode[..., -1:]
        )  # no frame is older than the first of its episode
        first = (~same_episode).sum(-1, keepdim=True)
        older = torch.maximum(older, older.gather(-1, first))
        index = (older % self._rows) * len(self._last_done) + env[..., None]
        frames = {name: gather_rows(part, index.flatten(1)) for name, part in obs_parts.items()}
        return from_obs_parts({
            name: part.unflatten(1, index.shape[1:]).flatten(2, 3) for name, part in frames.items()
        })  # fmt: skip

    def _oldest(self) -> int:
        """The oldest step that is kept; its row is that number modulo the rows."""
        return max(0, self._steps - self._capacity)

    def max_window(self) -> int:
        """Steps of the longest stretch within one episode."""
        kept = torch.arange(self._columns, device=self._device)
        return max(0, int(torch.minimum(self._age[:, self._order()], kept).max()))


def _zero_padding(valid: Tensor, part: Tensor) -> Tensor:
    """Numbers of steps `[N, T, ...]`, 0 beyond the end; what was not read has no steps."""
    beyond = ~valid[:, : part.shape[1]]
    return part.masked_fill(beyond.view(*beyond.shape, *[1] * (part.ndim - 2)), 0)
