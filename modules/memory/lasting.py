"""Lasting memory: what outlives an episode, in each environment (LeCun 2022, 3: the module that
stores past states and their intrinsic cost).

The episodic part holds states as keys and the intrinsic cost that followed as values (model-free
episodic control, Blundell et al. 2016; neural episodic control, Pritzel et al. 2017). It is
bounded: a new state takes the place of the one that is used least. The semantic part holds
prototypes: means of states that were forgotten. Nothing here is a parameter, and nothing is
trained; the replay buffer, from which modules are trained, is another thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from modules.types import COUNT, EXACT, FRACTION, WEIGHT, RememberedStates, Settings

MAX_STEPS = 1000
"""Most steps of an episode that are recorded; of a longer one the last."""


@dataclass(frozen=True, kw_only=True)
class LastingMemoryConfig(Settings):
    num_slots: Annotated[int, COUNT] = 64
    """Remembered states of each environment, M."""
    num_prototypes: Annotated[int, (0, 100_000)] = 8
    """Means of forgotten states; 0: they are lost."""
    discount: Annotated[float, FRACTION] = 0.97
    """gamma of the cost that followed a state."""
    rate: Annotated[float, FRACTION] = 0.02
    """How far remembered costs move to those of a worse visit; a better one takes their place."""
    same_within: Annotated[float, WEIGHT] = 0.25
    """Steps within which two states share a slot."""
    use_decay: Annotated[float, FRACTION] = 0.99
    """Factor on how much a state was used, in each step of the environment."""
    step_cost: Annotated[float, WEIGHT] = 0.02
    """Cost of a step of the way to a remembered state."""
    beta: Annotated[float, (1e-3, 1e6)] = 50.0
    """Inverse temperature of the attention over remembered states."""
    weight: Annotated[float, WEIGHT] = 1.0
    """Weight of the cost `remembered` in every task that names none."""


class Memories(NamedTuple):
    """What B environments remember, of W drives. A slot is empty where its use is 0, a prototype
    where its count is."""

    states: Tensor  # [B, M, D]
    costs: Tensor  # [B, M, W]
    uses: Tensor  # [B, M]
    prototypes: Tensor  # [B, P, D]
    prototype_costs: Tensor  # [B, P, W]
    counts: Tensor  # [B, P]: forgotten states in each mean

    @classmethod
    def blank(cls, config: LastingMemoryConfig, state: Tensor, num_drives: int) -> Memories:
        """Nothing is remembered yet; states `[B, D]`."""
        (batch, dim), slots, kept = state.shape, config.num_slots, config.num_prototypes
        sizes = [(slots, dim), (slots, num_drives), (slots,), (kept, dim), (kept, num_drives)]
        return cls(*(state.new_zeros(batch, *size) for size in (*sizes, (kept,))))

    def select(self, env_ids: Tensor) -> Memories:
        """Those of some of the environments, `[N]` indices or a mask."""
        return Memories(*(part[env_ids] for part in self))

    def replaced(self, new: Memories, mask: Tensor) -> Memories:
        """The new ones where `mask` `[B]`."""

        def choose(old: Tensor, new: Tensor) -> Tensor:
            return torch.where(mask.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        return Memories(*map(choose, self, new))


def write(
    memories: Memories, config: LastingMemoryConfig, state: Tensor, costs: Tensor, scale: Tensor
) -> Memories:
    """The memories of B environments with one more state `[B, D]` each, and the costs `[B, W]` that
    followed it. `scale` `[B]`: the distance that a full action covers.

    A visit near a remembered state takes its place, if the sum of its costs is no higher (Blundell
    et al. 2016, equation 1); else the remembered costs move to the new ones by `rate` (Pritzel et
    al. 2017, equation 4). A state that is not remembered takes an empty slot or that of least use,
    of equal ones that of the highest costs, and what was there becomes part of a prototype."""
    rows = torch.arange(len(state), device=state.device)
    distance = torch.cdist(state[:, None], memories.states, compute_mode=EXACT)[:, 0]  # [B, M]
    near, slot = distance.masked_fill(memories.uses == 0, torch.inf).min(1)
    is_known = near <= config.same_within * scale
    is_least = memories.uses == memories.uses.amin(1, keepdim=True)
    worst = memories.costs.sum(-1).masked_fill(~is_least, -torch.inf).argmax(1)
    slot = torch.where(is_known, slot, worst)
    memories = _consolidate(memories, slot, ~is_known & (memories.uses[rows, slot] > 0))
    old_state, old_costs = memories.states[rows, slot], memories.costs[rows, slot]
    is_worse = is_known & (costs.sum(-1) > old_costs.sum(-1))
    rate = torch.where(is_worse, config.rate, 1.0)[:, None]
    new = {
        "states": torch.where(is_worse[:, None], old_state, state),
        "costs": torch.lerp(old_costs, costs, rate),
        "uses": torch.where(is_known, memories.uses[rows, slot] + 1, 1.0),
    }
    parts = memories._asdict()
    return memories._replace(
        **{name: parts[name].index_put((rows, slot), value) for name, value in new.items()}
    )


def _consolidate(memories: Memories, slot: Tensor, is_forgotten: Tensor) -> Memories:
    """The states in these slots `[B]`, where they are forgotten `[B]`, become part of an empty
    prototype, or of the nearest: a running mean."""
    if not memories.counts.shape[1]:
        return memories
    rows = torch.arange(len(slot), device=slot.device)
    state, costs = memories.states[rows, slot], memories.costs[rows, slot]
    distance = torch.cdist(state[:, None], memories.prototypes, compute_mode=EXACT)[:, 0]
    index = distance.masked_fill(memories.counts == 0, -1.0).argmin(1)  # an empty one first
    count = memories.counts[rows, index] + is_forgotten
    rate = (is_forgotten / count.clamp_min(1))[:, None]
    old_state, old_costs = memories.prototypes[rows, index], memories.prototype_costs[rows, index]
    place = rows, index
    return memories._replace(
        prototypes=memories.prototypes.index_put(place, torch.lerp(old_state, state, rate)),
        prototype_costs=memories.prototype_costs.index_put(
            place, torch.lerp(old_costs, costs, rate)
        ),
        counts=memories.counts.index_put(place, count),
    )


def discounted_costs(costs: Tensor, discount: float) -> Tensor:
    """Costs of T steps `[B, T, W]` -> sum_k gamma^k c_(t + k) for each step t, `[B, T, W]`."""
    step = torch.arange(costs.shape[1], device=costs.device)
    lag = step - step[:, None]  # [T, T]
    factors = torch.where(lag < 0, 0.0, discount ** lag.clamp_min(0).to(costs))
    return torch.einsum("tk,bkw->btw", factors, costs)


class LastingMemory(NamedTuple):
    """Memories, and the present episodes in B environments, which are remembered when they end."""

    memories: Memories | None = None
    states: tuple[Tensor, ...] = ()  # each [B, D], the present one last
    costs: tuple[Tensor, ...] = ()  # each [B, W]: the costs of the drives that came with the state
    length: Tensor | None = None  # [B]: how many of these are of the present episode
    scale: Tensor | None = None  # [B]: the distance that a full action covers

    def record(
        self, config: LastingMemoryConfig, state: Tensor, costs: Tensor, scale: Tensor
    ) -> LastingMemory:
        """The next states `[B, D]` of the episodes, and the costs `[B, W]` of the signals that came
        with them. Where B is another than before, nothing is remembered."""
        memories, length = self.memories, self.length
        states, earlier_costs = self.states, self.costs
        if memories is None or len(memories.uses) != len(state):
            memories, states, earlier_costs, length = (
                Memories.blank(config, state, costs.shape[1]), (), (), None,
            )  # fmt: skip
        if length is None:
            length = torch.zeros(len(state), dtype=torch.long, device=state.device)
        return LastingMemory(
            memories=memories,
            states=(*states, state)[-MAX_STEPS:],
            costs=(*earlier_costs, costs)[-MAX_STEPS:],
            length=(length + 1).clamp_max(MAX_STEPS),
            scale=scale,
        )

    def read(
        self, config: LastingMemoryConfig, drive_weights: Tensor
    ) -> tuple[RememberedStates, LastingMemory]:
        """What is remembered, for a task with these weights of the drives `[W]`; and the memory
        after that, in which the states have been used as much as the present one attends to them:
        softmax(-beta (c_j + u d(s, k_j)))."""
        assert self.memories is not None
        assert self.scale is not None
        memories = self.memories
        costs = torch.cat([memories.costs, memories.prototype_costs], 1) @ drive_weights
        is_empty = torch.cat([memories.uses, memories.counts], 1) == 0
        # a state after which nothing good came is no better than one that is not remembered
        is_empty = is_empty | (costs >= 0)
        remembered = RememberedStates(
            states=torch.cat([memories.states, memories.prototypes], 1),
            costs=costs.masked_fill(is_empty, torch.inf),
            # a world model may predict that no action moves the state
            distance_cost=config.step_cost / self.scale.clamp_min(1e-3),
            beta=config.beta,
        )
        energies = remembered.energies(self.states[-1][:, None])[:, 0]
        attention = torch.softmax(-config.beta * energies, -1)[:, : config.num_slots]
        decayed = (config.use_decay * memories.uses).clamp_min(torch.finfo(attention.dtype).tiny)
        uses = torch.where(memories.uses > 0, decayed + attention, 0.0)
        return remembered, self._replace(memories=memories._replace(uses=uses))

    def end_episodes(
        self, config: LastingMemoryConfig, done: Tensor | None = None
    ) -> LastingMemory:
        """The episodes end, in all environments or where `done` `[B]`: their states are remembered,
        each with the discounted costs from there on."""
        if self.memories is None or self.length is None or not self.states:
            return self
        assert self.scale is not None
        done = torch.ones_like(self.length, dtype=torch.bool) if done is None else done
        done = done.to(self.length.device)
        rows = (done & (self.length > 0)).nonzero().flatten()
        left = self._replace(length=self.length.masked_fill(done, 0))
        steps = int(self.length[rows].max()) if len(rows) else 0
        if not steps:
            return left
        states = torch.stack(self.states[-steps:], 1)[rows]  # [N, T, D]
        costs = torch.stack(self.costs[-steps:], 1)[rows]
        is_present = torch.arange(steps, device=rows.device) >= steps - self.length[rows, None]
        values = discounted_costs(costs, config.discount)
        memories, scale = self.memories.select(rows), self.scale[rows]
        for step in range(steps):
            written = write(memories, config, states[:, step], values[:, step], scale)
            memories = memories.replaced(written, is_present[:, step])
        memories = Memories(
            *(
                old.index_copy(0, rows, new)
                for old, new in zip(self.memories, memories, strict=True)
            )
        )
        assert left.length is not None
        longest = max(1, int(left.length.max()))  # the present state is kept
        return left._replace(
            memories=memories,
            states=self.states[len(self.states) - longest :],
            costs=self.costs[len(self.costs) - longest :],
        )

    def forget(self, mask: Tensor | None = None) -> LastingMemory:
        """Nothing is remembered in any environment, or in those of `mask` `[B]`; what the present
        episodes added so far is dropped too."""
        if mask is None or self.memories is None or self.length is None:
            return LastingMemory()
        mask = mask.to(self.length.device)
        memories = self.memories.replaced(Memories(*map(torch.zeros_like, self.memories)), mask)
        return self._replace(memories=memories, length=self.length.masked_fill(mask, 0))
