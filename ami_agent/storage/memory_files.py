"""Files of lasting memory: a folder as a checkpoint is, which belongs to one run. The states in it
mean something to the encoder alone that made them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ami_agent.storage import checkpoint, files
from modules.memory.lasting import Memories
from modules.types import ConfigError

KIND = "lasting memory"


def fingerprint(names: Sequence[str], *parts: nn.Module) -> str:
    """SHA-256 of these names and of the weights and statistics of these parts: runs have the same
    only if their states mean the same."""
    digest = hashlib.sha256(repr(tuple(names)).encode())
    for part in parts:
        for name, tensor in part.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(
                tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()


def save(folder: Path, memories: Memories, encoder: str) -> None:
    """Writes the folder, whole or not at all. `encoder`: the fingerprint of what makes states."""
    checkpoint.save(folder, memories._asdict(), {"kind": KIND, "encoder": encoder})


def load(folder: Path, blank: Memories, encoder: str, any_batch: bool) -> Memories:
    """The memories of a folder, on the device of `blank`, whose shapes they must have; of any
    number of environments if `any_batch`. ConfigError unless they are whole and of this run."""
    metadata, shapes = checkpoint.contents(folder)
    if metadata.get("kind") != KIND or shapes.keys() != set(Memories._fields):
        raise ConfigError(f"{folder} is no lasting memory, as controller.save_memory writes it")
    if metadata.get("encoder") != encoder:
        raise ConfigError(
            f"{folder} is the lasting memory of another run: its states are another encoder's"
        )
    expected = {name: tuple(part.shape) for name, part in blank._asdict().items()}
    for name, shape in shapes.items():
        if shape[any_batch:] != expected[name][any_batch:]:
            raise ConfigError(
                f"{folder} holds {name} of shape {list(shape)}; this controller needs "
                f"{list(expected[name])}: environments, then slots, then numbers of each"
            )
    if len({shape[0] for shape in shapes.values()}) > 1:
        raise ConfigError(f"{folder} holds parts of different numbers of environments")
    tensors, _ = checkpoint.load(folder, blank.states.device)
    for name, tensor in tensors.items():
        _check_numbers(folder, name, tensor)
    return Memories(**tensors)


def _check_numbers(folder: Path, name: str, tensor: Tensor) -> None:
    if tensor.dtype != torch.float32:
        raise ConfigError(f"{folder} holds {name} as {tensor.dtype}; it must be torch.float32")
    files.check_finite(folder, name, tensor)
    if name in ("uses", "counts") and (tensor < 0).any():
        raise ConfigError(f"{folder} holds negative {name}; they must be 0 or more")
