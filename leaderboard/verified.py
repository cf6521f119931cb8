"""What records gave when they were run again, one JSON line each, beside the records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic_core import from_json, to_json

from leaderboard.row import CONTROL

VERIFIED = "verified.jsonl"

Verdict = Literal["bitwise", "within tolerance", "differs", "failed"]


@dataclass(frozen=True, slots=True)
class Verification:
    """What running a record again gave.

    Attributes:
        content_hash: Of the record.
        largest: The difference of the primary metric of the role that is furthest off, measured by its tolerance; None
            where nothing came out.
        tolerance: What that may be on another kind of machine.
        alike: Machine and torch are those of the record.
        commit: That was run now.
        said: What differs, in words.
    """

    content_hash: str
    run_id: str
    verdict: Verdict
    largest: float | None
    tolerance: float
    alike: bool
    machine: str
    torch: str
    commit: str | None
    date: str
    said: str = ""

    @property
    def ok(self) -> bool:
        """Whether the record holds."""
        return self.verdict in ("bitwise", "within tolerance")


def note(verification: Verification, folder: Path) -> Path:
    """Appends what was found to the list beside the records; a line that is there already stays."""
    path = folder / VERIFIED
    with path.open("ab") as stream:
        stream.write(to_json(asdict(verification)) + b"\n")
    return path


def verified(roots: Iterable[Path]) -> dict[str, Verification]:
    """Reads the newest verification of each record, by its content hash; a line that is none is passed over."""
    found: dict[str, Verification] = {}
    for root in roots:
        path = root / VERIFIED
        lines = path.read_bytes().splitlines() if path.is_file() else []
        for line in lines:
            try:
                made = Verification(**from_json(line))
            except (ValueError, TypeError):
                continue
            texts = (made.content_hash, made.run_id, made.machine, made.torch, made.date, made.said)
            if made.verdict in get_args(Verdict) and not any(map(CONTROL.search, texts)):
                known = found.get(made.content_hash)
                found[made.content_hash] = made if known is None or known.date <= made.date else known
    return found
