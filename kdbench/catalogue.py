"""What there is, from the classes and functions themselves: for ``docs/methods.md`` and ``docs/functional.md``.

``python -m kdbench.reference`` writes these pages anew.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from kdbench.base.instantiate import locate
from kdbench.configuration import config
from kdbench.configuration.resolved import ENGINE_KEYS

_SECTION = re.compile(r"^(Papers?|Deviations?|Args|Attributes): *", re.MULTILINE)


def sections(text: str) -> dict[str, str]:
    r"""Splits a docstring at its headings; what stands before the first one is called ``""``.

    Example:
        >>> sections("What it does.\n\nPaper: Somebody, 2024.")
        {'': 'What it does.', 'Paper': 'Somebody, 2024.'}
    """
    head, *rest = _SECTION.split(text)
    return {"": head.strip()} | {name: part.strip() for name, part in zip(rest[::2], rest[1::2], strict=True)}


def paper_of(method: type) -> str:
    """Returns what the module of a method names as its paper or papers."""
    found = sections(inspect.getdoc(inspect.getmodule(method)) or "")
    text = found.get("Paper") or found.get("Papers") or ""
    return re.sub(r"\s+", " ", text.partition("\n\n")[0])


def arguments(cls: type) -> dict[str, str]:
    """Returns what the docstring of a class, or of the one that it extends, says of each option."""
    for owner in cls.__mro__:
        text = sections(inspect.cleandoc(owner.__dict__.get("__doc__") or "")).get("Args")
        if text:
            found = re.findall(r"^ *(\w+): (.*(?:\n {8,}.*|\n(?! *\w+: ).+)*)", text, re.MULTILINE)
            return {name: re.sub(r"\s+", " ", meaning) for name, meaning in found}
    return {}


def methods() -> dict[str, tuple[Path, dict[str, Any], Any]]:
    """Returns file, keys and class of every method of the package, by name."""
    found = {}
    for path in sorted((config.folder() / "method").glob("*.yaml")):
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "_target_" in given:
            found[path.stem] = path, given, locate(given["_target_"])
    return found


def methods_page() -> str:
    """Returns the page of all methods."""
    known = methods()
    parts = [
        "# Every method",
        "",
        "Made from the classes under `kdbench/methods/` by `python -m kdbench.reference`. What the configuration says "
        "of each key is in [the reference](reference.md), what fits which task in `python -m kdbench.matrix`.",
        "",
        ", ".join(f"[`{name}`](#{name})" for name in known),
    ]
    for name, (_, given, cls) in known.items():
        parts += ["", f"## `{name}`", "", *_method(given, cls)]
    return "\n".join(parts) + "\n"


def _method(given: dict[str, Any], cls: Any) -> Iterator[str]:
    module = inspect.getmodule(cls)
    assert module is not None
    about = inspect.getdoc(cls) or ""
    yield f"{_line(sections(about)[''])} (`{module.__name__}.{cls.__name__}`)"
    yield ""
    yield f"- Paper: {_line(paper_of(cls))}"
    yield f"- Reads: {'; '.join(map(_need, cls.needs)) or 'nothing but the supervised loss'}"
    if cls.parts:
        yield "- Calls: " + "; ".join(f"`{part.name}` of the {' and the '.join(part.roles)}" for part in cls.parts)
    if cls.requires:
        yield f"- Requires: {', '.join(f'`{name}`' for name in sorted(cls.requires))}"
    yield "- Roles: " + ", ".join(f"{name} ({role.mode})" for name, role in cls.roles.items())
    weights = given.get("weights") or {}
    yield "- Weights: " + ", ".join(f"`{term}` {_line(str(weight))}" for term, weight in weights.items())
    yield f"- Fidelity: {cls.fidelity}"
    options = {k: v for k, v in given.items() if k not in ENGINE_KEYS and k != "_target_"}
    if options:
        yield from ("", "| option | default | type | meaning |", "|---|---|---|---|")
    said, signature = arguments(cls), inspect.signature(cls)
    for key, value in options.items():
        kind = str(signature.parameters[key].annotation).strip("\"'")
        shown = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
        yield "| " + " | ".join(_cell(c) for c in (f"`{key}`", f"`{shown}`", f"`{kind}`", said.get(key, ""))) + " |"


def _need(need: Any) -> str:
    kinds = need.kind if isinstance(need.kind, tuple) else (need.kind,)
    several = ", all of them" if need.many else ", of every head" if need.each else ""
    return f"`{need.name}` ({' or '.join(k.__name__ for k in kinds)}{several}) of {' and '.join(need.roles)}"


def functions_table() -> str:
    """Returns the table of all functions of ``kdbench.functional``."""
    library = importlib.import_module("kdbench.functional")
    lines = ["| function | module | what it is |", "|---|---|---|"]
    for name in sorted(library.__all__):
        function = getattr(library, name)
        first = (inspect.getdoc(function) or "").partition("\n\n")[0]
        lines.append(f"| `{name}` | `{function.__module__.rpartition('.')[2]}` | {_cell(_line(first))} |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """Returns ``docs/functional.md`` with its table made anew: all that follows its last heading."""
    head, heading, _ = text.rpartition("\n## All of them\n")
    return f"{head}{heading}\n{functions_table()}"


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("``", "`")).strip()


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
