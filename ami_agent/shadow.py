"""A check that no other packages named `modules` or `envs` shadow those of this project."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent


def check_shadows(names: tuple[str, ...] = ("modules", "envs"), home: Path = HOME) -> None:
    """Raises ImportError, in one line, if a name is not imported from the folder `home`."""
    for name in names:
        spec = find_spec(name)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != home / name:
            raise ImportError(
                f"ami_agent needs its own package {name!r} in {home / name}, but Python finds "
                f"{found or 'none'}: rename that one, or put {home} first on sys.path"
            )
