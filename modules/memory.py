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

from modules.rows import (
    ALL,
    DEEDS,
    SEEN,
    Parts,
    Windows,
    ahead,
    check_finite,
    check_like,
    check_stacks,
    deeds,
    draw,
    newest,
    observation,
    senses,
    take,
    windows,
)
from modules.types import Observation, Trajectory, Transition, UnusableInput, each

__all__ = ["ALL", "BY_ENV", "SEEN", "Memory", "Parts"]

BY_ENV = ("age", "episode", "done")
"""Parts of a state whose rows are the second dimension; of all others they are the first."""


class Memory:
    """The last `capacity` steps of each of B worlds, kept on one device."""

    def __init__(
        self, capacity: int, example: Transition, device: torch.device | str, stack: int = 1
    ) -> None:
        """`capacity` counts resets too; `example` `[B, ...]` lends shapes and types, no values.
        `stack`: an observation is so many frames along its first axis, the latest last, and every
        episode begins with its first frame repeated."""
        if capacity < 1:
            raise UnusableInput(f"a memory needs a capacity of at least 1 step, not {capacity}")
        worlds, self._capacity, self._stack = len(example.action), capacity, stack
        self._rows = capacity + stack
        self._device = torch.device(device)
        self._like = {
            name: torch.empty_like(part, device="meta")
            for name, part in {**senses(example.obs), **deeds(example)}.items()
        }
        self._store = {
            name: torch.zeros((self._rows, *part.shape), dtype=part.dtype, device=device)
            for name, part in self._frames(self._like).items()
        }  # each [rows, B, ...]
        self._age = torch.zeros((worlds, self._rows), dtype=torch.int32, device=device)
        self._episode = torch.zeros((worlds, self._rows), dtype=torch.int64, device=device)
        self._episode[:, 0] = torch.arange(worlds, device=device)
        self._done = torch.zeros((worlds, self._rows), dtype=torch.bool, device=device)
        self._ended = torch.zeros(worlds, dtype=torch.bool, device=device)
        self._steps = 0
        self._begun = 0  # the step with which the latest life began
        self._windows: dict[tuple[int, bool, bool], Windows] = {}

    @classmethod
    def size(cls, capacity: int, example: Transition, stack: int = 1) -> int:
        """Bytes that such a memory takes; `example` is of one environment or of all."""
        kept = {**senses(example.obs), **deeds(example)}
        frames = {
            n: part.nbytes // (stack if n.startswith("obs") else 1) for n, part in kept.items()
        }
        places = len(example.action) * (4 + 8 + 1)  # age, number of the episode, whether it is done
        return (capacity + stack) * (sum(frames.values()) + places)

    @property
    def worlds(self) -> int:
        """B, the number of lives that are kept."""
        return len(self._ended)

    def __len__(self) -> int:
        """Transitions that can be recalled, over all worlds; steps that only reset don't count."""
        return len(self._find(1).start)

    def remember(self, lived: Transition) -> None:
        """Add one step of all B worlds; UnusableInput if a number is not finite or a shape wrong.

        The check makes the host wait for the device `lived` is on. Worlds take their actions from
        the host, so it waits at every step anyway.
        """
        now, following = {**senses(lived.obs), **deeds(lived)}, senses(lived.next_obs)
        check_finite({**now, **{f"next {k}": v for k, v in following.items()}})
        for name, part in (*now.items(), *following.items()):
            check_like(name, self._like[name], part)
        self._check_stacks(now, following)
        self._write(self._steps, now)
        self._write(self._steps + 1, following)
        self._advance(self._ended)
        self._ended.copy_(lived.terminated | lived.truncated)
        self._done[:, self._steps % self._rows] = self._ended

    def recollect(self, lived: Trajectory) -> None:
        """Add a whole episode that each of the B worlds lived elsewhere, obs `[B, T + 1, *O]`. It
        costs one step more, unless it is the first; UnusableInput as for `remember`."""
        parts = {
            **senses(lived.obs), "action": lived.actions, "interoception": lived.interoception,
            "terminated": lived.terminated,
        }  # fmt: skip
        check_finite(parts)
        steps = lived.actions.shape[1]
        if steps > self._capacity:
            raise UnusableInput(f"memory keeps {self._capacity} steps, the episode has {steps}")
        self.interrupt()
        parts, before = self._unstacked(parts)
        age = torch.arange(-before, steps + 1, dtype=torch.int32, device=self._device)
        rows = (age + (before + self._steps)) % self._rows
        for name, part in parts.items():
            told = part.transpose(0, 1).to(self._device)  # [T, B, ...]
            check_like(name, self._store[name][0], told[0])
            first = 0 if name.startswith("obs") else before
            self._store[name][rows[first : first + len(told)]] = told.to(self._store[name].dtype)
        self._age[:, rows] = age
        self._episode[:, rows] = self._episode[:, rows[:1]]
        self._done[:, rows] = age == steps
        self._steps += before + steps
        self._ended.fill_(True)
        self._windows.clear()

    def interrupt(self) -> None:
        """Another life begins, with all that `cut` does."""
        self.cut()
        self._begun = self._steps

    def cut(self) -> None:
        """What comes next does not follow from what came before. It costs one step of the capacity,
        unless nothing was lived yet."""
        if self._steps:
            self._advance(torch.ones_like(self._ended))
        self._ended.zero_()
        self._windows.clear()

    def sample(
        self, count: int, length: int, generator: torch.Generator, together: int = 1,
        latest: bool = False, parts: Parts = ALL,
    ) -> Trajectory:  # fmt: skip
        """`count` windows of `length` steps, uniform over all kept: obs [count, length + 1].

        They come in runs of `together` from the same episode, each drawn anew from it; if `latest`,
        only from the life that began with the last interruption. Those of episodes that are done
        and shorter are padded (`Trajectory.valid`). Only the `parts` asked for are read.
        UnusableInput if there is no window.
        """
        found = self._some(length, latest)
        start = found.start[draw(found, count, together, generator)]
        return self._read(start, length, found.padded, parts)

    def sample_ahead(
        self, count: int, length: int, generator: torch.Generator, together: int = 1,
        parts: Parts = ALL,
    ) -> tuple[Trajectory, Observation]:  # fmt: skip
        """The same, and for each window what was seen `[count, *O]` at a moment drawn uniformly
        from its last to the last that is kept of its episode."""
        found = self._some(length)
        drawn = draw(found, count, together, generator)
        later = found.start[ahead(found, drawn, generator)]
        world, steps, _ = self._place(later, length, found.padded)
        then = each(lambda part: part[:, 0], self._observed(world, steps[:, -1:], parts.obs))
        return self._read(found.start[drawn], length, found.padded, parts), then

    def fraction(self, length: int, latest: bool = False) -> Tensor:
        """The fraction of the steps kept that lie in some window of that length; scalar. What lies
        in none: episodes that go on, or were broken off, or of which so few steps are left."""
        return self._find(length, latest).fraction

    def has_ended(self) -> bool:
        """Whether any episode that is kept has ended, or was cut."""
        kept = self._age[:, self._order()][:, : self._steps - self._oldest() + 1]
        return bool((kept[:, 1:] == 0).any() or self._ended.any())

    def values(self, name: str, latest: int = 0) -> Tensor:
        """What is kept under that name, of every transition, oldest first in each environment, or
        of those in the `latest` steps: `[N, ...]`. The observations are those that actions were
        taken on."""
        world, steps, _ = self._place(self._find(1).start, 1, padded=False)
        if latest:
            recent = steps[:, 1] > self._steps - latest
            world, steps = world[recent], steps[recent]
        if name.startswith("obs"):
            seen = senses(self._observed(world, steps[:, :1], (name.removeprefix("obs."),)))
            return seen[name][:, 0]
        index = (steps[:, :1] % self._rows) * len(self._ended) + world[:, None]
        return take(self._store[name], index)[:, 0]

    @property
    def lived(self) -> int:
        """Steps that were ever remembered, in all worlds."""
        return self._steps * len(self._ended)

    def deeds(self, steps: int) -> Tensor:
        """`[T, B, A]`: what was done in the latest so many steps; fewer where fewer are kept."""
        rows = torch.arange(max(self._oldest(), self._steps - steps), self._steps)
        return self._store["action"][(rows % self._rows).to(self._device)]

    def follows(self, obs: Observation) -> bool:
        """Whether the newest observation `[B, *O]` is this one."""
        row, here = self._steps % self._rows, self._device
        return all(torch.equal(self._store[n][row], p.to(here)) for n, p in senses(obs).items())

    def episodes(self, length: int = 1) -> Tensor:
        """[E] int64: the numbers of the episodes of which at least `length` steps are kept."""
        windows = self._find(length, pad=False)
        first = windows.start[windows.runs[:-1]]
        world, since = first // self._columns, first % self._columns
        return self._episode[world, (since + self._oldest()) % self._rows]

    def recall(self, episode: int | Tensor) -> Trajectory:
        """All that is kept of one episode, obs [1, T + 1, ...]; UnusableInput if nothing is."""
        order = self._order()
        mine = (self._episode[:, order] == episode) & (self._age[:, order] >= 0)
        if self._steps < self._capacity:
            mine[:, self._steps + 1 :] = False
        length = int(mine.sum()) - 1
        if length < 1:
            raise UnusableInput(f"memory keeps no step of episode {int(episode)}")
        return self._read(mine.flatten().int().argmax()[None], length, padded=False)

    def translated(self, perceive: Callable[[Observation, Tensor], Tensor]) -> Memory:
        """The same lives, read-only, with states in the place of observations: `perceive` is shown
        `[B, *O]` of every step in the order they were lived, and which of B begin an episode."""
        other, seen = copy(self), torch.empty(0)
        every = torch.arange(self.worlds, device=self._device)
        with torch.no_grad():
            for step in range(self._oldest(), self._steps + 1):
                row = step % self._rows
                now = self._observed(every, torch.full_like(every, step)[:, None])
                state = perceive(each(lambda part: part[:, 0], now), self._age[:, row] == 0)
                if not len(seen):
                    seen = state.new_zeros(min(self._rows, self._steps + 1), *state.shape)
                seen[row] = state
        other._store = {"obs": seen, **{name: self._store[name] for name in DEEDS}}
        other._stack = 1
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """The filled part, as views that the next `remember` may change."""
        filled = min(self._steps + 1, self._rows)
        return {
            **{name: part[:filled] for name, part in self._store.items()},
            "age": self._age[:, :filled],
            "episode": self._episode[:, :filled],
            "done": self._done[:, :filled],
            "ended": self._ended,
            "steps": torch.tensor([self._steps, self._rows - 1, self._begun]),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Become the memory `state` was taken from; UnusableInput if it was built otherwise."""
        expected = {*self._store, "age", "episode", "ended", "steps"}
        if set(state) - {"done"} != expected:  # memories of older versions don't have it
            raise UnusableInput(f"memory needs {sorted(expected)}, was given {sorted(state)}")
        steps, kept, begun = state["steps"].tolist()
        if kept != self._rows - 1:
            raise UnusableInput(f"memory keeps {self._rows - 1} steps, the saved one {kept}")
        for name, part in self._store.items():
            check_like(name, part[0], state[name][0])
            part[: len(state[name])] = state[name].to(self._device)
        self._age.zero_()[:, : state["age"].shape[1]] = state["age"].to(self._device)
        self._episode[:, : state["age"].shape[1]] = state["episode"].to(self._device)
        done = state.get("done", state["terminated"].T.roll(1, 1) & (state["age"] > 0))
        self._done.zero_()[:, : done.shape[1]] = done.to(self._device)
        self._ended.copy_(state["ended"])
        self._steps, self._begun = steps, begun
        self._windows.clear()

    def _write(self, step: int, parts: Mapping[str, Tensor]) -> None:
        for name, part in self._frames(parts).items():
            self._store[name][step % self._rows].copy_(part)

    def _advance(self, fresh: Tensor) -> None:
        """`fresh` [B]: the worlds in which the step from this row to the next only resets."""
        row, following = self._steps % self._rows, (self._steps + 1) % self._rows
        self._age[:, following] = (self._age[:, row] + 1).masked_fill(fresh, 0)
        self._episode[:, following] = self._episode[:, row] + fresh * len(fresh)
        self._done[:, following] = False
        self._steps += 1
        self._windows.clear()

    def _frames(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The newest frame of what is seen `[B, ...]`, and the rest as it is."""
        return {
            name: newest(name, part, self._stack) if name.startswith("obs") else part
            for name, part in parts.items()
        }

    def _check_stacks(self, obs: Mapping[str, Tensor], next_obs: Mapping[str, Tensor]) -> None:
        if self._stack == 1:
            return
        first = self._age[:, self._steps % self._rows] == 0
        for name, part in next_obs.items():
            now, here = obs[name], part.device
            check_stacks(name, now, part, first.to(here), self._ended.to(here), self._stack)

    def _unstacked(self, parts: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
        """Parts of an episode `[B, T, ...]` as they are kept, and the number of frames before its
        first observation that are kept as well: those of an episode that begins in its middle."""
        stack, found, before = self._stack, dict(parts), 0
        seen = {name: part for name, part in parts.items() if name.startswith("obs")}
        if stack == 1 or not seen:
            return found, before
        frames = {}
        for name, part in seen.items():
            check_like(name, self._like[name], part[:, 0])
            pieces = part.unflatten(2, (stack, -1))  # [B, T + 1, N, F, ...]
            if not pieces[:, 1:, :-1].equal(pieces[:, :-1, 1:]):
                raise UnusableInput(f"{name} is not a stack of {stack} frames, the latest last")
            frames[name] = pieces
        if not all(p[:, 0, 1:].equal(p[:, 0, :-1]) for p in frames.values()):
            before = stack - 1
        for name, pieces in frames.items():
            older = pieces[:, 0, stack - 1 - before : stack - 1]
            found[name] = torch.cat([older, pieces[:, :, -1]], 1)
        return found, before

    @property
    def _columns(self) -> int:
        """Rows from which windows are drawn, in the order of time."""
        return self._capacity + 1

    def _order(self) -> Tensor:
        """Which rows these are, oldest first."""
        columns = torch.arange(self._columns, device=self._device)
        return (columns + self._oldest()) % self._rows

    def _find(self, length: int, latest: bool = False, pad: bool = True) -> Windows:
        if length < 1:
            raise UnusableInput(f"a stretch has at least 1 step, not {length}")
        if (length, latest, pad) not in self._windows:
            order, since = self._order(), max(0, self._begun - self._oldest()) if latest else 0
            self._windows[length, latest, pad] = windows(
                self._age[:, order], self._done[:, order], length, since, pad
            )
        return self._windows[length, latest, pad]

    def _some(self, length: int, latest: bool = False) -> Windows:
        """The windows there are; UnusableInput if there are none."""
        found = self._find(length, latest)
        if not len(found.start):
            raise UnusableInput(
                f"memory has no stretch of {length} steps within one episode"
                f"{' of its latest life' if latest else ''}; a length of {self.longest()} would do"
            )
        return found

    def _place(
        self, start: Tensor, length: int, padded: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """`start` [N] as in Windows -> their environments `[N]`, the numbers of their observations
        `[N, T + 1]`, the last one again where an episode is over, and which steps were taken."""
        world, first = start // self._columns, start % self._columns + self._oldest()
        steps = first[:, None] + torch.arange(length + 1, device=self._device)
        if not padded:
            return world, steps, None
        episode = self._episode[world[:, None], steps % self._rows]
        valid = (episode == episode[:, :1])[:, 1:] & (steps[:, 1:] <= self._steps)
        return world, torch.minimum(steps, (first + valid.sum(1))[:, None]), valid

    def _read(self, start: Tensor, length: int, padded: bool, parts: Parts = ALL) -> Trajectory:
        """`start` [N] as in Windows -> the N windows of `length` steps which begin there."""
        world, steps, valid = self._place(start, length, padded)
        obs = self._observed(world, steps, parts.obs)
        acted = (steps[:, :-1] % self._rows) * len(self._ended) + world[:, None]
        wanted = (parts.actions, parts.interoception, True)
        done, felt, over = (
            take(self._store[name], acted if read else acted[:, :0])
            for name, read in zip(DEEDS, wanted, strict=True)
        )
        if valid is not None:
            done, felt, over = (_where(valid, part) for part in (done, felt, over))
        episode = self._episode[world, steps[:, 0] % self._rows]
        return Trajectory(obs, done, felt, over, episode, valid)

    def _observed(
        self, world: Tensor, steps: Tensor, only: Collection[str] | None = None
    ) -> Observation:
        """What was seen at the numbers `[N, T]` of observations of environments `[N]`, all of it or
        what has these names."""
        seen = {
            name: part
            for name, part in self._store.items()
            if name.startswith("obs") and (only is None or name.removeprefix("obs.") in only)
        }
        world = world[:, None]
        if self._stack == 1:
            index = (steps % self._rows) * len(self._ended) + world
            return observation({name: take(part, index) for name, part in seen.items()})
        back = torch.arange(self._stack - 1, -1, -1, device=self._device)
        older = (steps[..., None] - back).clamp_min(max(0, self._steps - self._rows + 1))
        mine = self._episode[world[..., None], older % self._rows]
        mine = mine == mine[..., -1:]  # no frame is older than the first of its episode
        first = (~mine).sum(-1, keepdim=True)
        older = torch.maximum(older, older.gather(-1, first))
        index = (older % self._rows) * len(self._ended) + world[..., None]
        frames = {name: take(part, index.flatten(1)) for name, part in seen.items()}
        return observation({
            name: part.unflatten(1, index.shape[1:]).flatten(2, 3) for name, part in frames.items()
        })  # fmt: skip

    def _oldest(self) -> int:
        """The oldest step that is kept; its row is that number modulo the rows."""
        return max(0, self._steps - self._capacity)

    def longest(self) -> int:
        """Steps of the longest stretch within one episode."""
        kept = torch.arange(self._columns, device=self._device)
        return max(0, int(torch.minimum(self._age[:, self._order()], kept).max()))


def _where(valid: Tensor, part: Tensor) -> Tensor:
    """Numbers of steps `[N, T, ...]`, 0 beyond the end; what was not read has no steps."""
    beyond = ~valid[:, : part.shape[1]]
    return part.masked_fill(beyond.view(*beyond.shape, *[1] * (part.ndim - 2)), 0)
