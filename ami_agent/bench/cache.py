"""Measurements that take long, kept in files: a benchmark that is run again goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ami_agent import config_io
from ami_agent.storage import run_dir
from modules.types import ConfigError


def measured_once(
    path: Path, settings: Any, name: str, measure: Callable[[], Any],
    is_valid: Callable[[Any], bool] = lambda found: isinstance(found, dict),
) -> Any:  # fmt: skip
    """What `measure` returns, which is kept; ConfigError where the kept file holds nothing valid of
    this name, or was measured with other settings than these."""
    if not path.exists():
        found = measure()
        path.parent.mkdir(parents=True, exist_ok=True)
        run_dir.write_json(path, {"settings": settings, name: found})
    stored = run_dir.read_json(path)
    found = stored.get(name) if isinstance(stored, dict) else None
    if not is_valid(found):
        raise ConfigError(f"{path} holds no {name}: remove it, and it is measured again")
    if differing := config_io.differences(stored.get("settings", settings), settings):
        raise ConfigError(
            f"{path} was measured with other settings, {differing[0]}: choose another --out"
        )
    return found
