"""The one exception that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KDBenchError(Exception):
    """Bad input or a run that cannot go on.

    The message is one line: what was found, what was expected, and the nearest fix. The command line prints it
    without a traceback and exits with a code other than 0.
    """


def nearest(name: str, options: Iterable[str]) -> str:
    """Says which of ``options`` a mistyped ``name`` probably meant, for the end of an error line."""
    options = sorted(set(options))
    if not options:
        return "nothing is available"
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(options[:12]) + (", …" if len(options) > 12 else "")
    return f"available: {shown}"
