"""Words as integers: of texts that are read whole, and bytes for language models."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

#: Behind the end of a text that is read whole, in front of it, and a word that is not in the vocabulary.
PAD, START, UNKNOWN = 0, 1, 2
#: What these are called; made-up texts have no unknown word.
MARKS = ("", "^")
NEVER_SEEN = "?"
#: What a text is cut into.
Unit = Literal["words", "characters"]
_WORDS = re.compile(r"\w+|[^\w\s]")


def pieces(text: str, unit: Unit) -> list[str]:
    """Returns the words of a text in lower case, signs as words of their own; or its characters as they are."""
    # Lower case may be longer than what it is of (the Turkish I with a dot), so what is cut off is cut off after it.
    return _WORDS.findall(text.lower()) if unit == "words" else list(text)


def vocabulary(texts: Iterable[Sequence[str]], most: int) -> tuple[str, ...]:
    """Returns the marks, the unknown word, and the most frequent pieces of texts, ties in their order.

    Args:
        texts: In pieces.
        most: Of them.
    """
    counts = Counter(piece for text in texts for piece in text)
    order = sorted(counts, key=lambda piece: (-counts[piece], piece))
    return (*MARKS, NEVER_SEEN, *order[:most])


def numbers(text: Sequence[str], places: dict[str, int]) -> list[int]:
    """Returns the numbers of pieces; one that is not in the vocabulary is :data:`UNKNOWN`."""
    return [places.get(piece, UNKNOWN) for piece in text]


@dataclass(frozen=True)
class Bytes:
    """A text as its UTF-8 bytes, each one more than its value; 0 stands in front of a text and ends it."""

    mark: int = 0

    @property
    def words(self) -> tuple[str, ...]:
        """What the numbers are called."""
        return ("<end>", *(chr(byte) if 32 <= byte < 127 else f"<{byte:02x}>" for byte in range(256)))

    def encode(self, text: str) -> list[int]:
        """Returns the numbers of a text."""
        return [byte + 1 for byte in text.encode("utf-8", "surrogatepass")]

    def decode(self, found: Iterable[int]) -> str:
        """Returns the text of numbers; what is no UTF-8 is shown as such."""
        return bytes(number - 1 for number in found if number > 0).decode("utf-8", "replace")
