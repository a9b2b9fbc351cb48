"""What is seen on the workbench as a file: a page that needs no server, and a film."""

from __future__ import annotations

import base64
import binascii
import html
import io
import json
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image

from ami_agent.viewer.drawing import ffmpeg, write_mp4
from ami_agent.viewer.page import Json, read_asset
from modules.types import ConfigError

MAX_FILM_BYTES = 64 << 20
MAX_FRAMES, MAX_PIXELS = 400, 4_000_000  # of a film, and of one of its frames
PREFIX = "data:image/jpeg;base64,"


def page(start: Json, frames: Sequence[Json]) -> bytes:
    """A page with these moments that a browser opens from a file, without a network."""
    script = read_asset("workbench/plane.js") + read_asset("workbench/exported.js")
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    # no text of the data can end the script
    data = json.dumps({**start, "frames": frames}, allow_nan=False).replace("<", "\\u003c")
    text = Template(read_asset("workbench/exported.html")).substitute(
        title=html.escape(str(start["title"])), digest=digest, data=data,
        style=read_asset("workbench/workbench.css"), script=script,
    )  # fmt: skip
    return text.encode()


def film(frames: Any) -> bytes:
    """JPEG frames as `data:` addresses, all of one size -> an mp4. ConfigError for anything else,
    and where ffmpeg is missing."""
    program = ffmpeg()
    if not isinstance(frames, list) or not 0 < len(frames) <= MAX_FRAMES:
        raise ConfigError(f"a film has from 1 to {MAX_FRAMES} frames")
    images = [_decode(frame) for frame in frames]
    if len({image.size for image in images}) > 1:
        raise ConfigError("the frames of a film are of one size")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        write_mp4(path, images, program)
        return path.read_bytes()


def _decode(frame: Any) -> Image.Image:
    if not isinstance(frame, str) or not frame.startswith(PREFIX):
        raise ConfigError("a frame of a film is a JPEG")
    try:
        data = base64.b64decode(frame[len(PREFIX) :], validate=True)
        image = Image.open(io.BytesIO(data), formats=["JPEG"])
        if image.width * image.height > MAX_PIXELS:
            raise ConfigError(f"a frame of a film has at most {MAX_PIXELS} pixels")
        return image.convert("RGB")
    except (binascii.Error, OSError, SyntaxError):
        raise ConfigError("a frame of a film is a JPEG") from None
