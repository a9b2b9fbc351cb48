"""With which OpenGL backend MuJoCo renders; chosen before any environment is imported or made."""

from __future__ import annotations

import ctypes
import os
import re
import sys

BACKENDS = {
    "egl": ("libEGL.so.1", "libEGL.so"),
    "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"),
}
"""Those that need no display, and the libraries that they need, by what they are called."""


def choose_gl_backend() -> None:
    """MuJoCo would open a window unless MUJOCO_GL says otherwise: where there is no display, and
    the user has not chosen, a backend without one is chosen. Both MuJoCo and Gymnasium read the
    variable when they are imported or when the first environment renders."""
    if sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY"))):
        return
    if not os.environ.get("MUJOCO_GL"):
        found = (name for name, files in BACKENDS.items() if any(map(_loads, files)))
        os.environ["MUJOCO_GL"] = next(found, "egl")


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def gl_hint(error: BaseException) -> str:
    """What to do about an OpenGL backend that doesn't work; empty for errors of another kind."""
    if not re.search(
        r"\b(EGL|egl[A-Z]\w*|OSMesa|GLFW\w*|OpenGL|MUJOCO_GL|framebuffer)", str(error)
    ):
        return ""
    chosen = os.environ.get("MUJOCO_GL") or "not set"
    return (
        f" (MuJoCo could not render, MUJOCO_GL is {chosen}: it must be egl, where libEGL is "
        "installed, osmesa, where libOSMesa is, or glfw, where there is a display)"
    )
