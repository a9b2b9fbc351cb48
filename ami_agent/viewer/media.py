"""PNG, GIF and mp4 files."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ami_agent.storage.files import replacing
from modules.types import ConfigError

FRAME_MS, LAST_FRAME_MS = 110, 1800  # milliseconds for which a frame is shown, and the last one


def encode_gif(frames: Sequence[Image.Image]) -> bytes:
    """A GIF that plays in a loop and pauses on the last frame."""
    durations, buffer = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS], io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
    )
    return buffer.getvalue()


def write_png(path: Path, image: np.ndarray) -> None:
    """`image`: uint8 [h, w, 3]"""
    with replacing(path) as tmp:
        Image.fromarray(image).save(tmp, "PNG")


def ffmpeg() -> str:
    """The path of the ffmpeg program. Raises ConfigError where it is missing."""
    if found := shutil.which("ffmpeg"):
        return found
    if find_spec("imageio_ffmpeg") is None:
        raise ConfigError(
            "--mp4 needs ffmpeg: install it, or pip install 'ami-agent[film]'; without --mp4 only "
            "GIFs are written"
        )
    import imageio_ffmpeg  # an extra

    return str(imageio_ffmpeg.get_ffmpeg_exe())


def write_mp4(path: Path, frames: Sequence[Image.Image], program: str) -> None:
    """Writes H.264 that browsers and slides play; pauses on the last frame as the GIF does."""
    width, height = frames[0].size
    padded_frames = [*frames, *[frames[-1]] * (LAST_FRAME_MS // FRAME_MS)]
    pixels = b"".join(frame.convert("RGB").tobytes() for frame in padded_frames)
    argv = [
        program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24",
        "-s", f"{width}x{height}", "-framerate", f"{1000 / FRAME_MS:.3f}", "-i", "-",
        "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", "-f", "mp4",
    ]  # fmt: skip
    with replacing(path) as tmp:
        command = [*argv, f"file:{tmp}"]  # else ffmpeg takes a path with a colon for a protocol
        process = subprocess.run(command, input=pixels, capture_output=True, check=False)
        if process.returncode:
            message = " ".join(process.stderr.decode(errors="replace").split())
            raise ConfigError(f"{path} can't be written: {message or 'ffmpeg failed'}")
