"""Memory: what was lived, step by step, and stretches of it to learn from.

A ring of rows. Row k holds the observation k, the action taken on it and the interoception felt on
arrival at observation k + 1. One row more than there are steps, so that the newest observation, on
which nothing was done yet, can end a stretch.

Worlds restart as Gymnasium's vector worlds do (autoreset mode NEXT_STEP): the step after an end
only resets. Its observation is the last of the old episode, its action is ignored and its next
observation is the first of the new episode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy

import torch
from torch import Tensor

from modules.rows import (
    DEEDS,
    Windows,
    ahead,
    check_finite,
    check_like,
    deeds,
    draw,
    observation,
    senses,
    take,
    windows,
)
from modules.types import Observation, Trajectory, Transition, UnusableInput, each


class Memory:
    """The last `capacity` steps of each of B worlds, kept on one device."""

    def __init__(self, capacity: int, example: Transition, device: torch.device | str) -> None:
        """`capacity` counts resets too; `example` `[B, ...]` lends shapes and types, no values."""
        if capacity < 1:
            raise UnusableInput(f"a memory needs a capacity of at least 1 step, not {capacity}")
        worlds, self._rows = len(example.action), capacity + 1
        self._device = torch.device(device)
        self._store = {
            name: torch.zeros((self._rows, *part.shape), dtype=part.dtype, device=device)
            for name, part in {**senses(example.obs), **deeds(example)}.items()
        }  # each [rows, B, ...]
        self._age = torch.zeros((worlds, self._rows), dtype=torch.int32, device=device)
        self._episode = torch.zeros((worlds, self._rows), dtype=torch.int64, device=device)
        self._episode[:, 0] = torch.arange(worlds, device=device)
        self._ended = torch.zeros(worlds, dtype=torch.bool, device=device)
        self._steps = 0
        self._begun = 0  # the step with which the latest life began
        self._windows: dict[tuple[int, bool], Windows] = {}

    @property
    def worlds(self) -> int:
        """B, the number of lives that are kept."""
        return len(self._ended)

    def __len__(self) -> int:
        """Transitions that can be recalled, over all worlds; steps that only reset don't count."""
        return len(self._find(1).end)

    def remember(self, lived: Transition) -> None:
        """Add one step of all B worlds; UnusableInput if a number is not finite or a shape wrong.

        The check makes the host wait for the device `lived` is on. Worlds take their actions from
        the host, so it waits at every step anyway.
        """
        now = {**senses(lived.obs), **deeds(lived)}
        check_finite({**now, **{f"next {k}": v for k, v in senses(lived.next_obs).items()}})
        self._write(self._steps, now)
        self._write(self._steps + 1, senses(lived.next_obs))
        self._advance(self._ended)
        self._ended.copy_(lived.terminated | lived.truncated)

    def recollect(self, lived: Trajectory) -> None:
        """Add a whole episode that each of the B worlds lived elsewhere, obs `[B, T + 1, *O]`. It
        costs one step more, unless it is the first; UnusableInput as for `remember`."""
        parts = {
            **senses(lived.obs), "action": lived.actions, "interoception": lived.interoception,
            "terminated": lived.terminated,
        }  # fmt: skip
        check_finite(parts)
        steps = lived.actions.shape[1]
        if steps >= self._rows:
            raise UnusableInput(f"memory keeps {self._rows - 1} steps, the episode has {steps}")
        self.interrupt()
        age = torch.arange(steps + 1, dtype=torch.int32, device=self._device)
        rows = (age + self._steps) % self._rows
        for name, part in parts.items():
            told = part.transpose(0, 1).to(self._device)  # [T, B, ...]
            check_like(name, self._store[name][0], told[0])
            self._store[name][rows[: len(told)]] = told.to(self._store[name].dtype)
        self._age[:, rows] = age
        self._episode[:, rows] = self._episode[:, rows[:1]]
        self._steps += steps
        self._ended.fill_(True)

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
        latest: bool = False,
    ) -> Trajectory:  # fmt: skip
        """`count` stretches of `length` steps, uniform over all kept: obs [count, length + 1].

        They come in runs of `together` from the same episode, each drawn anew from it; if `latest`,
        only from the life that began with the last interruption.
        UnusableInput if no episode has that many steps.
        """
        found = self._some(length, latest)
        return self._read(found.end[draw(found, count, together, generator)], length)

    def sample_ahead(
        self, count: int, length: int, generator: torch.Generator, together: int = 1
    ) -> tuple[Trajectory, Observation]:
        """The same, and for each stretch what was seen `[count, *O]` at a moment drawn uniformly
        from its last to the last that is kept of its episode."""
        found = self._some(length)
        drawn = draw(found, count, together, generator)
        then = self._read(found.end[ahead(found, drawn, generator)], 1).obs
        return self._read(found.end[drawn], length), each(lambda part: part[:, 1], then)

    def has_ended(self) -> bool:
        """Whether any episode that is kept has ended, or was cut."""
        kept = self._age.roll(-self._oldest(), dims=1)[:, : self._steps - self._oldest() + 1]
        return bool((kept[:, 1:] == 0).any() or self._ended.any())

    def values(self, name: str, latest: int = 0) -> Tensor:
        """What is kept under that name, of every transition, oldest first in each world, or of
        those in the `latest` steps: `[N, ...]`. The observations are those that were acted on."""
        end = self._find(1).end
        if latest:
            end = end[end % self._rows > self._steps - self._oldest() - latest]
        rows = (end % self._rows - 1 + self._oldest()) % self._rows
        return take(self._store[name], (rows * len(self._ended) + end // self._rows)[:, None])[:, 0]

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
        windows = self._find(length)
        last = windows.end[windows.runs[1:] - 1]
        return self._episode[last // self._rows, (last + self._oldest()) % self._rows]

    def recall(self, episode: int | Tensor) -> Trajectory:
        """All that is kept of one episode, obs [1, T + 1, ...]; UnusableInput if nothing is."""
        age = self._age.masked_fill(self._episode != episode, -1)
        age = age.roll(-self._oldest(), dims=1).flatten()
        length = min(int((age >= 0).sum()) - 1, int(age.max()))
        if length < 1:
            raise UnusableInput(f"memory keeps no step of episode {int(episode)}")
        return self._read(age.argmax()[None], length)

    def translated(self, perceive: Callable[[Observation, Tensor], Tensor]) -> Memory:
        """The same lives, read-only, with states in the place of observations: `perceive` is shown
        `[B, *O]` of every step in the order they were lived, and which of B begin an episode."""
        rows = range(self._oldest(), self._steps + 1)
        senses = {name: part for name, part in self._store.items() if name not in DEEDS}
        states: dict[int, Tensor] = {}
        with torch.no_grad():
            for row in (step % self._rows for step in rows):
                now = observation({name: part[row] for name, part in senses.items()})
                states[row] = perceive(now, self._age[:, row] == 0)
        other, seen = copy(self), torch.stack([states[row] for row in sorted(states)])
        other._store = {"obs": seen, **{name: self._store[name] for name in DEEDS}}
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """The filled part, as views that the next `remember` may change."""
        filled = min(self._steps + 1, self._rows)
        return {
            **{name: part[:filled] for name, part in self._store.items()},
            "age": self._age[:, :filled],
            "episode": self._episode[:, :filled],
            "ended": self._ended,
            "steps": torch.tensor([self._steps, self._rows - 1, self._begun]),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Become the memory `state` was taken from; UnusableInput if it was built otherwise."""
        expected = {*self._store, "age", "episode", "ended", "steps"}
        if set(state) != expected:
            raise UnusableInput(f"memory needs {sorted(expected)}, was given {sorted(state)}")
        steps, capacity, begun = state["steps"].tolist()
        if capacity != self._rows - 1:
            raise UnusableInput(f"memory keeps {self._rows - 1} steps, the saved one {capacity}")
        for name, part in self._store.items():
            check_like(name, part[0], state[name][0])
            part[: len(state[name])] = state[name].to(self._device)
        self._age.zero_()[:, : state["age"].shape[1]] = state["age"].to(self._device)
        self._episode[:, : state["age"].shape[1]] = state["episode"].to(self._device)
        self._ended.copy_(state["ended"])
        self._steps, self._begun = steps, begun
        self._windows.clear()

    def _write(self, step: int, parts: Mapping[str, Tensor]) -> None:
        for name, part in parts.items():
            row = self._store[name][step % self._rows]
            check_like(name, row, part)
            row.copy_(part)

    def _advance(self, fresh: Tensor) -> None:
        """`fresh` [B]: the worlds in which the step from this row to the next only resets."""
        row, following = self._steps % self._rows, (self._steps + 1) % self._rows
        self._age[:, following] = (self._age[:, row] + 1).masked_fill(fresh, 0)
        self._episode[:, following] = self._episode[:, row] + fresh * len(fresh)
        self._steps += 1
        self._windows.clear()

    def _find(self, length: int, latest: bool = False) -> Windows:
        if length < 1:
            raise UnusableInput(f"a stretch has at least 1 step, not {length}")
        if (length, latest) not in self._windows:
            fits = (self._age >= length).roll(-self._oldest(), dims=1)
            fits[:, : max(length, (self._begun if latest else 0) - self._oldest())] = False
            self._windows[length, latest] = windows(fits)
        return self._windows[length, latest]

    def _some(self, length: int, latest: bool = False) -> Windows:
        """The windows there are; UnusableInput if there are none."""
        found = self._find(length, latest)
        if not len(found.end):
            raise UnusableInput(
                f"memory has no stretch of {length} steps within one episode"
                f"{' of its latest life' if latest else ''}; a length of {self.longest()} would do"
            )
        return found

    def _read(self, end: Tensor, length: int) -> Trajectory:
        """`end` [N] as in Windows -> the N stretches of `length` steps which end there."""
        world, since = end // self._rows, end % self._rows
        back = torch.arange(-length, 1, device=self._device)
        rows = (since[:, None] + self._oldest() + back) % self._rows  # [N, T + 1]
        index = rows * len(self._ended) + world[:, None]
        senses = {k: take(v, index) for k, v in self._store.items() if k.startswith("obs")}
        done, felt, over = (take(self._store[name], index[:, :-1]) for name in DEEDS)
        return Trajectory(observation(senses), done, felt, over, self._episode[world, rows[:, -1]])

    def _oldest(self) -> int:
        """The oldest step that is kept; its row is that number modulo the rows."""
        return max(0, self._steps - self._rows + 1)

    def longest(self) -> int:
        """Steps of the longest stretch within one episode."""
        kept = torch.arange(self._rows, device=self._device)
        return int(torch.minimum(self._age.roll(-self._oldest(), dims=1), kept).max())
