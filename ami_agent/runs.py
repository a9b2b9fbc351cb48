"""Run folders: what a run leaves behind, and how an agent comes back from it.

config.json     the complete settings
manifest.json   seed, device, versions, commit, seconds per lesson
metrics.jsonl   every logged figure; TensorBoard's events beside it
checkpoints/    weights (safetensors and JSON, checksummed)
memory/         what was lived, while there are lessons that still need it
eval.json       the last evaluation
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ami_agent import checkpoint, settings
from ami_agent.agent import Agent
from ami_agent.build import Config, build
from modules.types import UnusableInput

PARTS = ("torch", "numpy", "gymnasium")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Whole or not at all; into what is no file, as a pipe, as it comes."""
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    path = path.resolve()  # a link stays one
    if path.exists() and not path.is_file():
        path.write_text(text)
        return
    draft = path.with_name(f".{path.name}.unfinished")
    draft.write_text(text)
    draft.replace(path)


def read_json(path: Path) -> Any:
    """Raises UnusableInput if the file is missing or no JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UnusableInput(f"{path.parent} is no run folder: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise UnusableInput(f"{path} is not readable as JSON: {error}") from None


def check_folder(folder: Path) -> None:
    """Raises UnusableInput where there can be no such folder."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UnusableInput(f"--out {folder}: {there} is no folder")


def check_free(run: Path) -> None:
    """Raises UnusableInput if there is a run in this folder already, or a file in its place."""
    check_folder(run)
    if (run / "config.json").exists() or checkpoint.checkpoints(run):
        raise UnusableInput(f"{run} holds a run already: --resume it, or choose another --out")


def start(run: Path, config: Config, seed: int, device: str) -> None:
    """A new run folder."""
    run.mkdir(parents=True, exist_ok=True)
    write_json(run / "manifest.json", manifest(seed, device))
    write_json(run / "config.json", settings.to_json(config))  # last: it makes the folder a run


def check_same(run: Path, config: Config, seed: int) -> None:
    """Raises UnusableInput unless the run was started with the same settings and seed."""
    before = settings.to_json(config_of(run))
    differing = settings.differences(before, settings.to_json(config))
    differing += settings.differences({"seed": manifest_of(run)["seed"]}, {"seed": seed})
    if differing:
        raise UnusableInput(f"{run} can't be resumed with other settings: {differing[0]}")


def config_of(run: Path) -> Config:
    """The settings a run was started with."""
    return settings.from_json(read_json(run / "config.json"), str(run / "config.json"))


def manifest_of(run: Path) -> dict[str, Any]:
    """Seed, device and versions of a run; raises UnusableInput if they are not there."""
    known = read_json(run / "manifest.json")
    if not isinstance(known, dict) or not isinstance(known.get("seed"), int):
        raise UnusableInput(f"{run / 'manifest.json'} names no seed")
    return known


def seconds_of(run: Path) -> float:
    """That its lessons took; raises UnusableInput if nobody knows."""
    each = manifest_of(run).get("seconds")
    if not isinstance(each, dict) or not all(isinstance(s, int | float) for s in each.values()):
        raise UnusableInput(f"{run / 'manifest.json'} tells no seconds of its lessons")
    return float(sum(each.values()))


def last(run: Path, stage: str) -> dict[str, Any]:
    """The figures of that stage that were logged last; none where there are none."""
    found: dict[str, Any] = {}
    with suppress(OSError), (run / "metrics.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            with suppress(ValueError, AttributeError):  # a torn line, or another's
                told = json.loads(line)
                found = told if told.get("stage") == stage else found
    return found


def manifest(seed: int, device: str) -> dict[str, Any]:
    """What one has to know to get the same numbers again."""
    return {
        "seed": seed,
        "device": device,
        "threads": torch.get_num_threads(),
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in PARTS},
        "seconds": {},
    }


def _commit() -> str | None:
    """The commit of the source, where it is a checkout."""
    here = Path(__file__).parent
    try:
        told = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip()


def weights(agent: Agent) -> dict[str, Tensor]:
    """The agent's weights as a checkpoint names them."""
    return {f"agent.{name}": value for name, value in agent.state_dict().items()}


def put_weights(agent: Agent, tensors: Mapping[str, Tensor], source: Path) -> None:
    """The reverse of `weights`; raises UnusableInput if they are of another agent."""
    mine = {k.removeprefix("agent."): v for k, v in tensors.items() if k.startswith("agent.")}
    try:
        agent.load_state_dict(mine)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UnusableInput(f"{source} does not fit the settings of its run: {reason}") from None


def load(
    run: Path | str, device: torch.device | str = "cpu", config: Config | None = None
) -> Agent:
    """The agent of a run, ready to act; `config` where it is to act in another way than it was
    trained, with another planner for instance."""
    run = Path(run)
    config = config or config_of(run)
    world = config.world.build(1)
    agent = build(config, world.spec, device=device)
    world.close()
    newest = checkpoint.latest(run)
    tensors, _ = checkpoint.load(newest, device)
    put_weights(agent, tensors, newest)
    return agent.eval()
