"""Files of users: text with or without a byte-order mark, folders, and what the system says in one line."""

from __future__ import annotations

import os
from pathlib import Path

from kdbench.errors import KDBenchError


def read_text(path: Path) -> str:
    """Reads UTF-8 text; a byte-order mark at its head, as Windows writes it, is no part of it.

    Raises:
        OSError: The file cannot be read.
        UnicodeDecodeError: It is not UTF-8.
    """
    return path.read_text(encoding="utf-8-sig")


def listed(folder: Path) -> set[str]:
    """Returns the names in a folder; none where there is no such folder.

    Names that macOS or an editor leaves behind (``._x``, ``.x.swp``) are passed over.

    Raises:
        KDBenchError: It cannot be listed.
    """
    try:
        return {name for name in os.listdir(folder) if not name.startswith(".")}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise KDBenchError(f"{folder}: cannot list this folder ({reason(error)})") from None


def reason(error: OSError | UnicodeDecodeError) -> str:
    """Says in a few words why a file cannot be read; its path is left out."""
    if isinstance(error, UnicodeDecodeError):
        utf16 = error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
        return "UTF-16 text: save it as UTF-8" if utf16 else f"no UTF-8 text, at byte {error.start}"
    return error.strerror or str(error)
