"""What methods and losses there are, from their classes, docstrings and YAML: for the pages of ``docs/``.

``python -m kdbench.reference`` writes those pages anew.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any

from omegaconf import OmegaConf
from pydantic import ConfigDict, TypeAdapter

from kdbench import functional
from kdbench.configuration import config
from kdbench.configuration.compat import no_replay
from kdbench.configuration.resolved import ENGINE_KEYS, PluginSpec
from kdbench.errors import KDBenchError
from kdbench.needs import STUDENT, TEACHER, Need, Role, Stage, kind_names
from kdbench.plugin import Method

#: ``Paper: Authors, "Title", Venue Year``; in a module of several, one a line under ``Papers:`` with the class's name.
_PAPER = re.compile(r'^ *(\w+): ([^":]+), "([^"]+)",\s+(.*?\b(?:19|20)\d\d\b)', re.MULTILINE | re.DOTALL)
_BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
#: In a docstring: ``(B, C, *space)``, or in words.
_SHAPE = re.compile(r"(?<!\w)\((?:[A-Z2]|<=)[^()]*,[^()]*\)|(?i:same|any) shape|\b(?i:scalar)")
_MARK = re.compile(r"(<!-- functions -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Paper:
    """Where a method is from."""

    authors: str
    title: str
    venue: str

    def __str__(self) -> str:
        return f"{self.authors}, *{self.title}*, {self.venue}"


@dataclass(frozen=True)
class Option:
    """An option of a method: its default is that of the YAML; ``by_pair`` where a pair may have one of its own."""

    name: str
    type: str
    default: str
    by_pair: bool
    meaning: str


def papers(module: str) -> dict[str, Paper]:
    """Returns the papers that a module's docstring names, by class, or by ``Paper`` where it is of one alone."""
    doc = inspect.getdoc(sys.modules[module]) or ""
    return {name: Paper(*(" ".join(part.split()) for part in rest)) for name, *rest in _PAPER.findall(doc)}


def paper(plugin: type) -> Paper:
    """Returns the paper of a method.

    Raises:
        KDBenchError: The docstring of its module does not name one.
    """
    found = papers(plugin.__module__)
    if plugin.__name__ not in found and "Paper" not in found:
        raise KDBenchError(
            f"{plugin.__module__}: its docstring names no paper of {plugin.__name__}: expected a line 'Paper: Authors, "
            f"\"Title\", Venue Year', or under 'Papers:' one that begins with '{plugin.__name__}:'"
        )
    return found.get(plugin.__name__) or found["Paper"]


def notes(plugin: type) -> str:
    """Returns what the docstring of a method's module says beyond the paper: equations, constants, deviations."""
    doc = inspect.getdoc(sys.modules[plugin.__module__]) or ""
    _, several, listed = doc.partition("Papers:\n")
    if several:
        return re.split(r"\n(?=\S)", listed, maxsplit=1)[1]
    (only,) = _PAPER.finditer(doc)
    rest = doc[only.end() :].lstrip(" ,.:;\n")
    return rest[:1].upper() + rest[1:]


def arguments(plugin: type) -> dict[str, str]:
    """Returns what each argument means, from the ``Args:`` of the class and of those that it is derived from."""
    found: dict[str, str] = {}
    for base in reversed(plugin.__mro__):
        found |= _args(inspect.cleandoc(base.__dict__.get("__doc__") or ""))
    return found


def _args(doc: str) -> dict[str, str]:
    """Returns what a docstring says of each argument."""
    entries = re.findall(r"^    (\w+): (.*(?:\n     +.*)*)", _part(doc, "Args"), re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _part(doc: str, name: str) -> str:
    """Returns the section ``name:`` of a docstring, indented as it is."""
    return re.split(r"\n(?=\S)", doc.partition(f"\n{name}:\n")[2])[0]


def specs() -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any], PluginSpec]]:
    """Yields name, YAML as written, YAML without a pair's own values, and class of every method."""
    for path in sorted((config.folder() / "method").glob("*.yaml")):
        node: Any = OmegaConf.create({"method": OmegaConf.load(path), "pair": {}}).method
        written: Any = OmegaConf.to_container(node)
        plain: Any = OmegaConf.to_container(node, resolve=True)
        if "_target_" in plain:
            yield path.stem, written, plain, PluginSpec.of("method", plain)


def options(spec: PluginSpec, written: Mapping[str, Any]) -> list[Option]:
    """Returns the options of a method."""
    meanings, found = arguments(spec.plugin), []
    for name, parameter in inspect.signature(spec.plugin, eval_str=True).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = spec.given.get(name, parameter.default)
        by_pair = "pair." in str(written.get(name))
        found.append(Option(name, type_name(parameter.annotation), value(default), by_pair, meanings.get(name, "")))
    return found


def type_name(annotation: Any) -> str:
    """Says in words what a checked option takes, e.g. ``number > 0``."""
    adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    return _type_name(adapter.json_schema())


def _type_name(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_type_name, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{choice}`" for choice in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_type_name(schema.get('items', {}))}"
    names = {"number": "number", "integer": "whole number", "boolean": "true or false", "null": "null"}
    name = names.get(str(schema.get("type")), str(schema.get("type", "anything")))
    bounds = [f"{sign} {schema[key]:g}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([name, ", ".join(bounds)]).strip()


def value(given: Any) -> str:
    """Writes a value as YAML does."""
    if isinstance(given, list | tuple):
        return f"[{', '.join(map(value, given))}]"
    if isinstance(given, Mapping):
        return f"{{{', '.join(f'{key}: {value(v)}' for key, v in given.items())}}}"
    return "null" if given is None else str(given).lower() if isinstance(given, bool) else str(given)


# ---- pages ------------------------------------------------------------------------------------------------------


def methods_page() -> str:
    """Returns the page of all methods."""
    found = [*specs()]
    parts = [
        "# Every method",
        "",
        "Made from the classes in `kdbench/methods/` and their YAML by `python -m kdbench.reference`. A default marked "
        "*by pair* is that of a pair without published settings of its own; `python -m kdbench.matrix` says which task "
        "and pair each method serves.",
        "",
        "| method | paper | reads | options |",
        "|---|---|---|---|",
    ]
    for name, written, _, spec in found:
        reads = ", ".join(dict.fromkeys(kind_names(need) for need in spec.plugin.needs)) or "–"
        own = ", ".join(f"`{option.name}`" for option in options(spec, written)) or "–"
        parts.append(f"| [`{name}`](#{name}) | {paper(spec.plugin)} | {reads} | {own} |")
    for name, written, plain, spec in found:
        parts += ["", *_section(name, written, plain, spec)]
    return "\n".join(parts) + "\n"


def _section(name: str, written: Mapping[str, Any], plain: Mapping[str, Any], spec: PluginSpec) -> list[str]:
    plugin = spec.plugin
    said = _markdown(inspect.cleandoc(plugin.__doc__ or "").partition("\nArgs:")[0].strip())
    lines = [f"## {name}", "", said, "", f"Paper: {paper(plugin)}.", "", *_facts(spec), ""]
    rows = []
    for option in options(spec, written):
        default = f"`{option.default}`" + (", by pair" if option.by_pair else "")
        rows.append([f"`method.{option.name}`", option.type, default, _markdown(option.meaning)])
    for term, weight in plain["weights"].items():
        given = f"`{value(weight)}`" + (", by pair" if "pair." in str(written["weights"][term]) else "")
        rows.append([f"`method.weights.{term}`", "weight", given, f"of the term `{term}`"])
    lines += ["| option | type | default | meaning |", "|---|---|---|---|", *map(_row, rows)]
    left = sorted(set(plain) - ENGINE_KEYS - {"_target_", *(o.name for o in options(spec, written))})
    assert not left, f"method.{left} is no option of {plugin.__name__}"
    for key in sorted(set(plain) & ENGINE_KEYS - {"name", "weights"}):
        lines += ["", f"`method.{key}` is `{value(plain[key])}`."]
    text = _markdown(notes(plugin))
    return [*lines, "", text] if text else lines


def _facts(spec: PluginSpec) -> Iterator[str]:
    """Yields what a method says of itself, one item a line."""
    plugin = spec.plugin
    for need in plugin.needs:
        yield f"- reads `{need.name}`, {_need(need)}, of {' and '.join(need.roles)}"
    for part in plugin.parts:
        yield f"- calls the part `{part.name}` of {' and '.join(part.roles)}"
    for name, role in plugin.roles.items():
        if role not in (STUDENT, TEACHER):
            yield f"- has the role `{name}`: {_role(role)}"
    if "teacher" not in plugin.roles:
        yield "- has no teacher"
    if plugin.requires:
        yield f"- requires of the task: {', '.join(f'`{name}`' for name in sorted(plugin.requires))}"
    yield from _training(spec)
    yield f"- fidelity: {plugin.fidelity}"


def _training(spec: PluginSpec) -> Iterator[str]:
    """Yields how a method trains."""
    plugin = spec.plugin
    made = spec.make()
    stages = made.stages()
    if stages != (Stage(),):
        yield f"- trains in stages: {', '.join(f'`{stage.name}` ({stage.epochs:g} of the epochs)' for stage in stages)}"
    updates = made.updates()
    if plugin.views is not Method.views:
        yield "- makes further views of a batch, each with passes of its own"
    if len(updates) > 1:
        yield f"- takes {len(updates)} updates a step"
    if reason := no_replay(plugin):
        yield f"- cannot replay a teacher: {reason}"
    if plugin.renames:
        yield "- holds where teacher and student call classes otherwise, as models of other vocabularies do"
    if plugin.corpus:
        yield "- learns from what the teacher writes first (`teacher.corpus`)"
    if plugin.over_batch:
        yield "- relates the samples of a batch to each other"
    for side in sorted(plugin.takes_part - {"student"}):
        yield f"- takes part in the training of the {side} too"
    for asked in plugin.trainings:
        yield f"- asks for a training of its own, `{asked.name}`"


def _need(need: Need) -> str:
    how = ", every one that the pair names, shallow to deep" if need.many else ", once for each head" * need.each
    how += ", every level of a detector's pyramid" * need.pyramid
    how += "".join(f", `{kind.__name__}` only with `{asked}`" for kind, asked in need.given.items())
    return f"`{kind_names(need).replace(' or ', '` or `')}`{how}"


def _role(role: Role) -> str:
    mode = {"train": "trains", "frozen": "is fixed", "ema": f"is a moving average (decay {role.decay:g})"}[role.mode]
    start = {"fresh": "starts anew", "trained": "was trained before", "student": "starts as a copy of the student"}
    through = ", passes gradients to its input" if role.grad == "input" else ""
    return f"a {role.side}'s network, {mode}, {start[role.init]}{through}"


def shapes(function: Callable[..., Any]) -> dict[str, str]:
    """Returns the shapes of the tensors that a function takes, by argument, and of what it gives, as ``return``.

    An argument that the docstring's first paragraph explains is left out.
    """
    doc, signature = inspect.getdoc(function) or "", inspect.signature(function)
    said = _args(doc)
    taken = [
        name
        for name, parameter in signature.parameters.items()
        if name in said and not re.search("float|Callable", parameter.annotation) and "Tensor" in parameter.annotation
    ]
    found = {name: _shape(said[name], " or ") for name in taken}
    returns = _part(doc, "Returns")
    return {**found, "return": _shape(returns, ", " if "tuple" in signature.return_annotation else " or ")}


def _shape(text: str, between: str) -> str:
    return between.join(dict.fromkeys(shape if "(" in shape else shape.lower() for shape in _SHAPE.findall(text)))


def _shapes(function: Callable[..., Any]) -> str:
    """Writes the shapes of a function; arguments of one shape that follow each other share it."""
    found = {name: re.sub(r"\(.*?\)", r"`\g<0>`", shape) for name, shape in shapes(function).items()}
    given = found.pop("return")
    taken = "; ".join(f"{', '.join(names)} {shape}" for shape, names in groupby(found, key=found.__getitem__))
    return f"{taken} → {given}".strip() if given else taken


def functions_table() -> str:
    """Returns the table of all that ``kdbench.functional`` exports."""
    lines = ["| function | what it is | shapes | paper |", "|---|---|---|---|"]
    for name in functional.__all__:
        function = getattr(functional, name)
        home = function.__module__.rpartition(".")[2]
        first = " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())
        names = ", ".join(inspect.signature(function).parameters)
        source = _source(home, inspect.getdoc(function) or "")
        lines.append(_row([f"`{name}({names})`", _markdown(first), _shapes(function), source]))
    return "\n".join(lines) + "\n"


def _source(home: str, doc: str) -> str:
    """Returns the paper of a function: that of the method whose file has the name of the function's."""
    _load()
    found = papers(f"kdbench.methods.{home}") if f"kdbench.methods.{home}" in sys.modules else {}
    named = [p for p in found.values() if p.authors.split(",")[0].split(" et al")[0] in doc]
    return "; ".join(map(str, named or (found.values() if len(found) == 1 else ())))


@cache
def _load() -> None:
    """Imports every method, so that its docstring can be read."""
    for _ in specs():
        pass


def functional_page(text: str) -> str:
    """Returns ``docs/functional.md`` with the table of today between its two marks."""
    return _MARK.sub(lambda marks: f"{marks[1]}{functions_table()}{marks[2]}", text)


def _markdown(text: str) -> str:
    """Turns docstring markup into Markdown."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`")


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
