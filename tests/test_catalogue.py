from __future__ import annotations

import inspect
import re

import pytest

from kdbench import catalogue, functional
from kdbench.errors import KDBenchError
from kdbench.plugin import Method
from kdbench.reference import header
from tests.cli import ROOT

METHODS = [*catalogue.specs()]
DOCS = ROOT / "docs"


def test_the_pages_are_what_classes_and_docstrings_say():
    """Stale? ``python -m kdbench.reference`` writes them anew."""
    assert (DOCS / "methods.md").read_text() == catalogue.methods_page()
    written = (DOCS / "functional.md").read_text()
    assert written == catalogue.functional_page(written)
    for page in ("methods", "functional"):
        assert f"(docs/{page}.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(("name", "written", "plain", "spec"), METHODS, ids=[m[0] for m in METHODS])
def test_a_method_names_its_paper_and_explains_every_option(name, written, plain, spec):
    paper, said = catalogue.paper(spec.plugin), header(ROOT / "conf" / "method" / f"{name}.yaml")
    first, year = re.split(r",| et al", paper.authors)[0], paper.venue[-4:]
    assert said.startswith(first)  # the YAML means the same paper
    assert year in said
    assert [o.name for o in catalogue.options(spec, written) if not o.meaning or not o.type] == []
    known = {o.name for o in catalogue.options(spec, written)}
    assert set(plain) <= known | catalogue.ENGINE_KEYS | {"_target_"}


def test_every_method_has_its_section_and_row():
    page = (DOCS / "methods.md").read_text()
    files = {p.stem for p in (ROOT / "conf" / "method").glob("*.yaml")} - {"none"}
    assert set(re.findall(r"^## (\w+)$", page, re.MULTILINE)) == files
    assert set(re.findall(r"^\| \[`(\w+)`\]\(#\1\) \|", page, re.MULTILINE)) == files


def test_a_section_says_what_the_class_does():
    sections = dict(section.split("\n", 1) for section in (DOCS / "methods.md").read_text().split("\n## ")[1:])
    dml, crd, ctkd = sections["dml"], sections["crd"], sections["ctkd"]
    assert "has the role `peer`: a teacher's network, trains, starts anew" in dml
    assert "takes 2 updates a step" in dml
    assert "requires of the task: `sample_id`" in crd
    assert "| `method.momentum` | number ≥ 0, < 1 | `0.5` | Share of the old entry when a bank is updated. |" in crd
    assert "| `method.bank_dtype` | `float32` or `bfloat16` | `float32` |" in crd
    # An option that the class inherits, with the value of its own YAML.
    assert "| `method.temperature` | number > 0 or `adversarial` | `adversarial` | Divides both logits" in ctkd
    assert "Li, Li, Yang" in ctkd
    assert "| `method.weights.nckd` | weight | `{value: 8.0, ramp: 0.0833}`, by pair |" in sections["dkd"]
    assert "`init` (0.125 of the epochs)" in sections["ab"]


def test_every_function_has_one_row():
    rows = re.findall(r"^\| `(\w+)\((.*?)\)` \| (.+?) \| (.*?) \| (.*) \|$", catalogue.functions_table(), re.MULTILINE)
    assert [row[0] for row in rows] == functional.__all__
    papers = {name: paper for name, *_, paper in rows}
    assert papers["z_score"].startswith("Sun, Ren")  # of the three papers in one module
    assert papers["kd_loss"].startswith("Hinton")
    assert papers["average_pool"] == ""  # nobody's
    assert {name: names for name, names, *_ in rows}["tckd_loss"] == "student, teacher, target, temperature, weight"


@pytest.mark.parametrize("name", functional.__all__)
def test_a_function_says_the_shape_of_every_tensor(name):
    function = getattr(functional, name)
    doc, signature = inspect.getdoc(function) or "", inspect.signature(function)
    annotated = {n: p.annotation for n, p in signature.parameters.items()}
    tensors = {n for n, a in annotated.items() if "Tensor" in a and not re.search("float|Callable", a)}
    if "\nArgs:\n" in doc:
        found = catalogue.shapes(function)
        assert [n for n in (tensors | {"return"} if tensors else ()) if not found.get(n)] == []
    elif tensors:
        assert catalogue._SHAPE.search(doc.partition("\n\n")[0])  # one line says all


def test_shapes_are_those_of_the_docstring():
    assert catalogue.shapes(functional.nckd_loss) == {
        "student": "(N, C)",
        "teacher": "(N, C)",
        "target": "(N,)",
        "weight": "(N,)",
        "return": "scalar",
    }
    assert catalogue.shapes(functional.class_activation_maps)["weight"] == "(K, C) or (K, C, 1, …)"
    assert "| student, teacher `(N, C)`; target, weight `(N,)` → scalar |" in catalogue.functions_table()


def test_a_stale_page_is_noticed(monkeypatch):
    monkeypatch.setattr(next(spec for name, *_, spec in METHODS if name == "kd").plugin, "__doc__", "Something else.")
    assert catalogue.methods_page() != (DOCS / "methods.md").read_text()


def test_what_names_no_paper_is_one_line():
    class Mine(Method):
        pass

    with pytest.raises(KDBenchError, match=r"names no paper of Mine: expected a line 'Paper: Authors"):
        catalogue.paper(Mine)


def test_types_are_said_in_words():
    spec = next(spec for name, *_, spec in METHODS if name == "mlkd")
    types = {o.name: o.type for o in catalogue.options(spec, {})}
    assert types["temperatures"] == "list of number > 0"
    assert types["share"] == "number > 0, ≤ 1"
    assert catalogue.value([1.0, None, {"a": True}]) == "[1.0, null, {a: true}]"
