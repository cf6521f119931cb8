"""What every key and option means, from the comments of the YAML files: for ``--help`` and ``docs/reference.md``.

``python -m kdbench.reference`` writes that page anew, and those of :mod:`kdbench.catalogue`.
"""

from __future__ import annotations

import argparse
import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from kdbench.configuration import config
from kdbench.configuration.packages import file_of

#: Groups in the order of the page; what is beside them is composed by those.
GROUPS = (*config.GROUPS, "preset/task", "preset/data", "recipe", "recipe/preset")
_COMMENT = re.compile(r"\s*#+ ?(.*)")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Entry:
    """A key of a file.

    Attributes:
        key: Dotted, below the file's own group.
        value: As it is written; empty for a mapping whose keys follow.
        meaning: Its comment, which stands behind or above it.
    """

    key: str
    value: str
    meaning: str


def header(path: Path) -> str:
    """Returns the comment that begins a file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.lstrip("# "))
    return " ".join(lines)


def entries(path: Path) -> list[Entry]:
    """Returns the keys of a file in their order."""
    text = path.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=_LOADER)
    return list(_entries(root, text, "")) if isinstance(root, yaml.MappingNode) else []


def _entries(node: yaml.MappingNode, text: str, prefix: str) -> Iterator[Entry]:
    lines = text.splitlines()
    for key, value in node.value:
        name = prefix + str(key.value)
        if name in ("defaults", "hydra"):
            continue
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style and value.value
        mark = key.end_mark if nested else value.end_mark
        behind = lines[mark.line][mark.column :].removeprefix(":") if mark.line < len(lines) else ""
        found = _COMMENT.match(behind)
        meaning = [found[1]] if found else _above(lines, key.start_mark)
        if nested:
            if found:
                yield Entry(name, "", meaning[0])
            yield from _entries(value, text, f"{name}.")
        else:
            yield Entry(name, text[value.start_mark.index : value.end_mark.index].strip(), " ".join(meaning))


def _above(lines: Sequence[str], mark: Any) -> list[str]:
    """Returns the comment on lines of their own above a key, unless it begins the file."""
    found: list[str] = []
    line = mark.line - 1
    while line >= 0 and lines[line].startswith(" " * mark.column + "#"):
        found.insert(0, lines[line].strip("# "))
        line -= 1
    return found if line >= 0 else []


def meanings(choices: dict[str, str]) -> dict[str, str]:
    """Returns what is said of each key under the options that were chosen."""
    found = {e.key: e.meaning for e in entries(config.folder() / "config.yaml") if e.meaning}
    for group, option in choices.items():
        for path, package in _included(group, option):
            found |= {f"{package}{e.key}": e.meaning for e in entries(path) if e.meaning}
    return found


def _included(group: str, option: str, package: str | None = None) -> Iterator[tuple[Path, str]]:
    """Yields the files that an option is made of, those that it builds on first, with the key that each is under."""
    path = file_of(group, option)
    if path is None:
        return
    text = path.read_text(encoding="utf-8")
    if package is None:
        package = "" if "@package _global_" in text else group.replace("/", ".") + "."
    for default in (yaml.load(text, _LOADER) or {}).get("defaults", ()):
        name, _, place = str(default).partition("@")
        if isinstance(default, str) and name != "_self_":
            below = package if place in ("", "_here_") else f"{package}{place}."
            top, _, last = name.rpartition("/")
            yield from _included(f"{group}/{top}" if top else group, last, below)
    yield path, package


def help_text(overrides: Sequence[str] = ()) -> str:
    """Returns what ``--help`` says: choices, and every key under those chosen with its value and meaning.

    Raises:
        KDBenchError: An override is wrong.
    """
    composed = config._composed(overrides, hydra=True)
    chosen = {str(k): str(v) for k, v in composed.hydra.runtime.choices.items()}
    said = meanings({group: option for group, option in chosen.items() if not group.startswith("hydra")})
    groups = "\n".join(f"{group}: {', '.join(config.options(group))}" for group in config.GROUPS)
    OmegaConf.set_struct(composed, False)
    template, fill = composed.hydra.help.template, composed.hydra.help
    del composed["hydra"]
    OmegaConf.resolve(composed)
    keys = "\n".join(_lines(composed, "", said))
    text = template.replace("${hydra.help.header}", fill.header).replace("${hydra.help.footer}", fill.footer)
    return string.Template(text).safe_substitute(APP_CONFIG_GROUPS=groups, CONFIG=keys)


def _lines(node: DictConfig, prefix: str, said: dict[str, str]) -> Iterator[str]:
    for name in map(str, node):
        key = f"{prefix}{name}"
        value = node._get_node(name)
        if isinstance(value, DictConfig) and len(value):
            if key in said:
                yield f"{key}.*".ljust(40) + f"  # {said[key]}"
            yield from _lines(value, f"{key}.", said)
        else:
            plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else node[name]
            shown = yaml.safe_dump(plain, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
            yield (f"{key}={shown}".ljust(40) + f"  # {said[key]}") if key in said else f"{key}={shown}"


def page() -> str:
    """Returns the reference page."""
    top = [
        "# Every key and option",
        "",
        "Made from the comments of `conf/` by `python -m kdbench.reference`. `python -m kdbench [key=value …] --help` "
        "says the same of what is chosen.",
    ]
    parts = [*top, "", "## Keys of every run", "", *_table(entries(config.folder() / "config.yaml"), "")]
    for group in GROUPS:
        files = sorted(p for p in (config.folder() / group).glob("*.yaml") if not p.stem.startswith("_"))
        parts += ["", f"## `{group}`", ""]
        parts += [", ".join(f"[`{p.stem}`](#{group.replace('/', '')}{p.stem})" for p in files)]
        for path in files:
            whole = "@package _global_" in path.read_text(encoding="utf-8")
            prefix = "" if whole else group.replace("/", ".") + "."
            parts += ["", f"### `{group}={path.stem}`", "", *([header(path), ""] if header(path) else [])]
            parts += _table([e for e in _with_shared(path) if e.key not in ("name", "_target_")], prefix)
    return "\n".join(parts).rstrip() + "\n"


def _with_shared(path: Path) -> list[Entry]:
    """Returns the keys of a file and of those that it builds on in its own place (``NAME@_here_``), and overrides."""
    found: dict[str, Entry] = {}
    for default in (yaml.load(path.read_text(encoding="utf-8"), _LOADER) or {}).get("defaults", ()):
        name, _, place = str(default).partition("@")
        if place == "_here_":
            found |= {entry.key: entry for entry in _with_shared(path.with_name(f"{name}.yaml"))}
    own = {entry.key: entry for entry in entries(path)}
    own = {key: replace(e, meaning=e.meaning or found[key].meaning) if key in found else e for key, e in own.items()}
    return list((found | own).values())


def _table(rows: Sequence[Entry], prefix: str) -> list[str]:
    if not rows:
        return []
    cells = [(f"`{prefix}{e.key}`", f"`{' '.join(e.value.split())}`" if e.value else "", e.meaning) for e in rows]
    escaped = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in cells]
    return ["| key | value | meaning |", "|---|---|---|", *(f"| {row} |" for row in escaped)]


def write(docs: Path) -> None:
    """Writes the generated pages: of keys and options, of methods, of the library of losses."""
    from kdbench.catalogue import functional_page, methods_page

    losses = docs / "functional.md"
    for path, text in (
        (docs / "reference.md", page()),
        (docs / "methods.md", methods_page()),
        (losses, functional_page(losses.read_text(encoding="utf-8"))),
    ):
        path.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the pages of this checkout."""
    argparse.ArgumentParser(
        "python -m kdbench.reference", description="Writes the generated pages of docs/ anew."
    ).parse_args(arguments)
    write(config.folder().parent / "docs")


if __name__ == "__main__":
    main()
