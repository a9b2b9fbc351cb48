"""One run trained by several processes, which torchrun starts: data parallelism.

Every process runs the same stages with the same seeds on the same replay buffer. It acts in its
share of the environments, and computes the networks of a loss on its share of the batch. What is
minimized is the mean of the processes' losses, whose gradient is averaged. So a loss may

- leave everything as it is: then every process computes the same loss of the whole batch,
- evaluate a network by `split`: the loss is still that of the whole batch, in every process,
- begin with `share`, where all of its terms are means over the batch.

In a single process all of these do nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ami_agent.interrupt import SIGNALS
from modules.types import ConfigError

T = TypeVar("T")

TIMEOUT = timedelta(hours=1)
"""For which processes wait for each other: process 0 evaluates and saves alone. The end of a
process is noticed at once."""


class World(NamedTuple):
    """The number of this process and of all processes."""

    rank: int = 0
    size: int = 1


class ProcessLost(OSError):
    """Another process of the run has ended."""


_world = World()


def world() -> World:
    """The processes that train together with this one, at the moment."""
    return _world


def launched() -> World:
    """The processes that torchrun has started."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys():
        return World()
    return World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def own_device(device: torch.device | str) -> torch.device | str:
    """The GPU of this process, where `device` is "cuda"; ConfigError where there are too few."""
    is_any_gpu = torch.device(device).type == "cuda" and torch.device(device).index is None
    if not is_any_gpu or launched().size == 1:
        return device
    count, found = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if count > found:
        raise ConfigError(f"{count} processes need a GPU each, and this machine has {found}")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


def check_divides(setting: str, count: int, group_size: int = 1) -> None:
    """Raises ConfigError where a total can't be divided among the processes in equal shares, of
    whole groups."""
    size = launched().size
    if count % (size * group_size):
        groups = f" in groups of {group_size}" if group_size > 1 else ""
        raise ConfigError(
            f"{setting} is {count}, which {size} processes can't share equally{groups}: make it a "
            f"multiple of {size * group_size}, or start another number of processes"
        )


@contextmanager
def joined(device: torch.device | str, settings: str) -> Iterator[None]:
    """Within the block, the processes that torchrun has started train together. `settings`: what
    must be the same in all; ConfigError where it is not.

    Process 0 handles signals, and the others end when it does."""
    global _world
    if launched().size == 1:
        yield
        return
    is_new = not dist.is_initialized()
    if is_new:
        backend = "cpu:gloo,cuda:nccl" if torch.device(device).type == "cuda" else "gloo"
        with _one_line():
            dist.init_process_group(backend, timeout=TIMEOUT)
    _world = launched()
    try:
        with _quiet(_world.rank > 0):
            checksum = torch.tensor([zlib.crc32(settings.encode())])
            if len(gather(checksum).unique()) > 1:
                raise ConfigError("the processes of a run must have the same settings and seed")
            yield
            barrier()  # none leaves while others still read
    finally:
        _world = World()
        if is_new:
            dist.destroy_process_group()


@contextmanager
def _quiet(is_quiet: bool) -> Iterator[None]:
    """Within the block, this process ignores signals and logs no warnings, if `is_quiet`."""
    if not is_quiet:
        yield
        return
    logger, handlers = logging.getLogger("ami_agent"), {}
    level = logger.level
    logger.setLevel(logging.ERROR)
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}
    try:
        yield
    finally:
        logger.setLevel(level)
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def _one_line() -> Iterator[None]:
    """Within the block, a message that does not arrive raises ProcessLost."""
    try:
        yield
    except RuntimeError as error:
        rank, size = launched()
        raise ProcessLost(
            f"process {rank} of {size} has lost another process of the run; continue with --resume"
        ) from error


def barrier() -> None:
    """Waits for the other processes."""
    gather(torch.zeros(1))


@contextmanager
def main_first() -> Iterator[None]:
    """The block is run by process 0, then by the others."""
    if _world.rank:
        barrier()
    yield
    if not _world.rank:
        barrier()
    barrier()


def share_rows(count: int) -> slice:
    """The share of this process in `count` rows."""
    return slice(_world.rank * share_size(count), (_world.rank + 1) * share_size(count))


def share_size(count: int) -> int:
    """The number of rows in that share."""
    return count // _world.size


def share(batch: T) -> T:
    """The share of this process in a batch: of each tensor `[B, ...]` in dicts and tuples, `[B / N,
    ...]`. A batch that can't be divided is returned whole, and each process takes all of it."""
    if _world.size == 1:
        return batch
    return _map(
        lambda part: part if len(part) % _world.size else part[share_rows(len(part))], batch
    )


def split(fn: Callable[..., T], *args: Any) -> T:
    """`fn(*args)`, tensors `[B, ...]`, of which each process computes its share and receives the
    rest. The rows must not depend on each other."""
    if _world.size == 1 or len(_leaves(args)[0]) % _world.size:
        return fn(*args)
    return gather(fn(*share(args)))


def split_states(fn: Callable[[Tensor], Tensor], *states: Tensor) -> Sequence[Tensor]:
    """`fn` of each of some states `[..., D]`, split along all dimensions but the last."""
    if _world.size == 1:
        return [fn(part) for part in states]
    flat = split(lambda *parts: tuple(map(fn, parts)), *(part.flatten(0, -2) for part in states))
    return [out.unflatten(0, part.shape[:-1]) for out, part in zip(flat, states, strict=True)]


def gather(batch: T) -> T:
    """The inverse of `share`: the rows of all processes, of each tensor, in one message. Gradients
    flow through it to the processes that the rows come from."""
    if _world.size == 1:
        return batch
    gathered = iter(_Gather.apply(*_leaves(batch)))
    return _map(lambda part: next(gathered), batch)


def _leaves(batch: Any) -> list[Tensor]:
    """The tensors of a batch."""
    leaves: list[Tensor] = []
    _map(leaves.append, batch)
    return leaves


def _map(fn: Callable[[Tensor], Any], batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return fn(batch)
    if isinstance(batch, Mapping):
        return {name: _map(fn, part) for name, part in batch.items()}
    if isinstance(batch, tuple):
        parts = [_map(fn, part) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch


class _Gather(torch.autograd.Function):
    """Each process may use the gathered rows in its own way: the gradient of a row is the sum."""

    @staticmethod
    def forward(ctx: Any, *own: Tensor) -> tuple[Tensor, ...]:
        # bytes, so that one message holds tensors of any type
        flat = [part.detach().reshape(len(part), part[:1].numel()).contiguous() for part in own]
        raw = torch.cat([part.view(torch.uint8) for part in flat], 1)
        whole = raw.new_empty(_world.size, *raw.shape)
        with _one_line():
            dist.all_gather(list(whole), raw)
        widths = [part.element_size() * part.shape[1] for part in flat]
        found = [part.new_empty(_world.size * len(part), *part.shape[1:]) for part in own]
        for part, column in zip(found, whole.flatten(0, 1).split(widths, 1), strict=True):
            if part.numel():
                part.view(len(part), -1).view(torch.uint8).copy_(column)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        sums = _all_reduced(gradients)
        return tuple(part[share_rows(len(part))] for part in sums)


def _all_reduced(parts: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each over the processes, in one message."""
    flat = torch.cat([part.flatten() for part in parts])
    with _one_line():
        dist.all_reduce(flat)
    pieces = flat.split([part.numel() for part in parts])
    return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]


def average_gradients(
    parameters: Sequence[Tensor], metrics: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Averages the gradients of the parameters over the processes, in place, and returns the
    averages of scalars."""
    if _world.size == 1:
        return metrics
    gradients = [p.grad for p in parameters if p.grad is not None]
    sums = _all_reduced([*gradients, *(value.detach() for value in metrics.values())])
    for gradient, total in zip(gradients, sums, strict=False):
        torch.div(total, _world.size, out=gradient)
    return {n: s / _world.size for n, s in zip(metrics, sums[len(gradients) :], strict=True)}


@contextmanager
def draws_again(generator: torch.Generator) -> Iterator[None]:
    """Where a process is lost in the block, the generator is as it was before."""
    state = generator.get_state() if _world.size > 1 else None
    try:
        yield
    except ProcessLost:
        if state is not None:
            generator.set_state(state)
        raise
