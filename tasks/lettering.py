"""Letters of the pictures that records come with."""

from __future__ import annotations

import functools

from PIL import ImageFont


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """Returns the face that Pillow brings along, of a height in pixels."""
    found = ImageFont.load_default(size)
    assert isinstance(found, ImageFont.FreeTypeFont)  # with a size, Pillow has no other
    return found
