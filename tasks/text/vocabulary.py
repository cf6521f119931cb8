"""Words as integers, for texts that are read whole."""

from __future__ import annotations

#: Behind the end of a text, and in front of it.
PAD, START = 0, 1
#: What these two are called.
MARKS = ("", "^")
