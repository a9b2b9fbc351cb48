"""The OpenGL backend with which MuJoCo renders, chosen before any environment is imported."""

from __future__ import annotations

import ctypes
import os
import re
import sys

BACKENDS = {
    "egl": ("libEGL.so.1", "libEGL.so"),
    "osmesa": ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"),
}
"""The backends that need no display, each with the names of the library that it needs."""


def choose_gl_backend() -> None:
    """Sets MUJOCO_GL to a backend that needs no display, where there is none and the user has not
    set the variable: MuJoCo would open a window. MuJoCo and Gymnasium read the variable when they
    are imported or when the first environment renders."""
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
    """How to repair an OpenGL backend that doesn't work; empty for errors of another kind."""
    if not re.search(
        r"\b(EGL|egl[A-Z]\w*|OSMesa|GLFW\w*|OpenGL|MUJOCO_GL|framebuffer)", str(error)
    ):
        return ""
    chosen = os.environ.get("MUJOCO_GL") or "not set"
    return (
        f" (MuJoCo could not render, MUJOCO_GL is {chosen}: set it to egl, where libEGL is "
        "installed, to osmesa, where libOSMesa is, or to glfw, where there is a display)"
    )
