"""Films and pictures as files."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from ami_agent.atomic import replacing
from modules.types import UnusableInput

PACE, REST = 110, 1800  # milliseconds a frame is shown, and the last


def gif(frames: Sequence[Image.Image]) -> bytes:
    """Plays for ever, and rests on the last frame."""
    pace, kept = [PACE] * (len(frames) - 1) + [REST], io.BytesIO()
    frames[0].save(
        kept, "GIF", save_all=True, append_images=frames[1:], duration=pace, loop=0
    )  # fmt: skip
    return kept.getvalue()


def write_png(path: Path, image: np.ndarray) -> None:
    """`image`: uint8 [h, w, 3]"""
    with replacing(path) as draft:
        Image.fromarray(image).save(draft, "PNG")


def ffmpeg() -> str:
    """The program that makes mp4; UnusableInput where there is none."""
    if found := shutil.which("ffmpeg"):
        return found
    if find_spec("imageio_ffmpeg") is None:
        raise UnusableInput(
            "--mp4 needs ffmpeg: install it, or pip install 'ami-agent[film]'; without --mp4 films "
            "are GIFs"
        )
    import imageio_ffmpeg  # an extra

    return str(imageio_ffmpeg.get_ffmpeg_exe())


def write_mp4(path: Path, frames: Sequence[Image.Image], program: str) -> None:
    """H.264 as every browser and slide shows it; rests on the last frame as the GIF does."""
    wide, high = frames[0].size
    moving = [*frames, *[frames[-1]] * (REST // PACE)]
    pixels = b"".join(frame.convert("RGB").tobytes() for frame in moving)
    argv = [
        program, "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24",
        "-s", f"{wide}x{high}", "-framerate", f"{1000 / PACE:.3f}", "-i", "-",
        "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", "-f", "mp4",
    ]  # fmt: skip
    with replacing(path) as draft:
        film = [*argv, f"file:{draft}"]  # or a path with a colon would be a protocol
        done = subprocess.run(film, input=pixels, capture_output=True, check=False)
        if done.returncode:
            told = " ".join(done.stderr.decode(errors="replace").split()) or "ffmpeg said nothing"
            raise UnusableInput(f"{path} can't be written: {told}")
