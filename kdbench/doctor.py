"""What is wrong, or that nothing is: ``python -m kdbench.doctor [task=… method=… key=value …]``.

Checks the environment and what the data holds by split and class, then on one real batch: taps and shapes, size of
each term, which parameters each term reaches, and whether the student can overfit that batch. ``--probe`` adds what
there is to transfer: how much of the teacher's features the student's explain, which terms can fall without it.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdbench.base.terminal import terminal
from kdbench.errors import KDBenchError
from kdbench.records.provenance import OPTIONAL, PACKAGES, version
from kdbench.training.recipe import MODEL

if TYPE_CHECKING:
    from torch import Tensor

    from kdbench.runs.trainings import Trainings
    from kdbench.task import Batch
    from kdbench.training.distiller import Distiller

#: What Open3D loads from the system, by Debian package.
LIBRARIES = {
    "libusb-1.0.so.0": "libusb-1.0-0",
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libX11.so.6": "libx11-6",
    "libgomp.so.1": "libgomp1",
}

Check = tuple[str, bool, str]


def environment() -> list[Check]:
    """Checks interpreter, packages, system libraries and disk."""
    checks: list[Check] = [("python", sys.version_info >= (3, 11), platform.python_version())]
    for name in PACKAGES:
        found = version(name)
        checks.append((name, found is not None, found or "not installed: make setup"))
    checks += [(name, True, version(name) or "not installed; not every run needs it") for name in OPTIONAL]
    checks.append(_try("torch and torchvision match", _torchvision))
    missing = [package for library, package in LIBRARIES.items() if not _loads(library)]
    checks.append(("system libraries", not missing, "apt-get install " + " ".join(missing) if missing else "all there"))
    checks.append(_try("accelerator", _accelerator))
    from kdbench.base.store import default_root

    root = default_root()
    existing = next(p for p in (root, *root.parents) if p.exists())
    free = shutil.disk_usage(existing).free / 2**30
    checks.append(("cache folder", os.access(existing, os.W_OK) and free > 2, f"{root}, {free:.0f} GiB free"))
    return checks


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _try(name: str, probe: Callable[[], str]) -> Check:
    try:
        return name, True, probe()
    except Exception as error:
        return name, False, str(error).splitlines()[0]


def _torchvision() -> str:
    import torch
    from torchvision.ops import nms

    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    return "torchvision's operators load"


def _accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"none; {torch.get_num_threads()} CPU threads"


def run(overrides: list[str], console: Console, steps: int, probe: bool = False) -> bool:
    """Checks one configuration on one real batch.

    Args:
        overrides: As on the command line of kdbench.
        console: Where findings are printed.
        steps: Of the overfit.
        probe: Whether to print what there is to transfer, too.

    Returns:
        Whether all is well.
    """
    from kdbench.base.onednn import Watch
    from kdbench.configuration import config as configuration
    from kdbench.configuration.resolved import resolve
    from kdbench.runs.counts import table as counts_table
    from kdbench.runs.trainings import Trainings
    from kdbench.training.diagnosis import overfit, precisions, reach
    from kdbench.training.fit import Training
    from kdbench.training.promises import check_promises
    from kdbench.training.recipe import CORPUS, trained

    resolved = resolve(configuration.load(overrides))
    resolved.task.prepare()
    if counts := resolved.task.counts():
        console.print(counts_table(counts))
    trainings = Trainings(resolved)
    trainings.check_data()
    recipe = trainings.student_recipe()
    given = {role: source for role, source in recipe.inputs.items() if role != CORPUS}
    sources = {role: source for role, found in given.items() if (source := trained(found))}
    found = {role: resolved.store.find("model", source.key) for role, source in sources.items()}
    for role, product in found.items():
        console.print(
            f"{role}: " + ("trained, from the cache" if product else "not trained yet: fresh weights stand in")
        )
    products = {role: product.path / MODEL for role, product in found.items() if product}
    training = Training(recipe, resolved.task, products, untrained=True, foreign=trainings.foreign_to(recipe))
    distiller = training.distiller(training.stages[0])
    batch = training.first_batch()
    check_promises(training, batch)
    terms = distiller.rehearse(batch)
    with distiller.at_rest():
        signals = distiller.probe(batch)
        features = Table("role", "feature", "kind and shape", title="features")
        for role in training.cast.roles:
            for name, feature in signals.answer(role).features.items():
                features.add_row(role, name, feature.signature())
    console.print(features)
    for owner, bindings in training.bindings.items():
        read = ", ".join(f"{need} = {name}" for need, name in bindings.items())
        console.print(f"{owner} reads: {read}")
    with Watch() as watch:
        reached = reach(distiller, batch)
    if watch.layers:
        console.print(
            f"1x1 convolutions, {'; '.join(watch.layers)}: their weight gradients run in the plain layout, because "
            "oneDNN's for channels_last writes out of bounds (https://github.com/uxlfoundation/oneDNN/issues/6035)",
            highlight=False,
        )
    console.print(faster(precisions(distiller, batch), recipe.trainer["precision"]), highlight=False)
    if probe:
        _show_probe(console, trainings, distiller, batch, steps)
    before, after = overfit(distiller, batch, steps)
    later = reach(distiller, batch)
    console.print(terms_table(distiller, terms, reached, later))
    console.print(f"overfitting one batch for {steps} steps: loss {before:.4g} -> {after:.4g}")
    return after < before and all(_norms(reached, n) or _norms(later, n) for n in _active(distiller))


def _show_probe(console: Console, trainings: Trainings, distiller: Distiller, batch: Batch, steps: int) -> None:
    from kdbench.base.weights import load_weights
    from kdbench.training.probe import reached, shares, without_student

    if "teacher" not in distiller.cast.roles:
        raise KDBenchError(
            "--probe compares a student with its teacher, and this run has none: choose a method that has"
        )
    model = distiller.cast.model("student")
    states = {"untrained": copy.deepcopy(model.state_dict())}
    recipes = {"distilled": trainings.student_recipe()}
    if not trainings.no_twin:
        recipes = {"scratch": trainings.scratch_recipe, **recipes}
    for name, recipe in recipes.items():
        if product := trainings.store.find("model", recipe.key):
            load_weights(model, product.path / MODEL)
            states[name] = copy.deepcopy(model.state_dict())
    model.load_state_dict(states["untrained"])
    found = shares(distiller, batch, states)
    table = Table("feature", *states, title="R² of a linear map from student to teacher")
    for tap in [name for name in found if name != "logits"] + ["logits"] * ("logits" in found):
        table.add_row(tap, *("–" if value is None else f"{value:.2f}" for value in found[tap].values()))
    console.print(table)
    total = sum(p.numel() for p in model.parameters())
    fixed = without_student(distiller, batch, steps)
    terms = Table("term", "reaches of the student", "with a frozen student", title="what a term needs the student for")
    for term, count in reached(distiller, batch).items():
        falls = (
            f"{fixed[term][0]:.4g} -> {fixed[term][1]:.4g} in {steps} steps" if term in fixed else "nothing else learns"
        )
        terms.add_row(term, f"{count:,} of {total:,} parameters", falls)
    console.print(terms)


def faster(times: Mapping[str, float], chosen: str) -> str:
    """Says which precision is the faster one here, by the milliseconds of a step in each.

    Example:
        >>> faster({"32-true": 100.0, "bf16-mixed": 53.0}, "32-true")
        'a step takes 100 ms in float32 and 0.53 x as long in bf16: trainer.precision=bf16-mixed is faster here'
    """
    ratio = times["bf16-mixed"] / times["32-true"]
    said = f"a step takes {times['32-true']:.3g} ms in float32 and {ratio:.2f} x as long in bf16"
    if chosen == "bf16-mixed":
        return f"{said}: " + ("trainer.precision=32-true is faster here" if ratio > 1 else "as it is set")
    return f"{said}: " + ("trainer.precision=bf16-mixed is faster here" if ratio < 0.9 else "float32 stays")


def _active(distiller: Distiller) -> set[str]:
    """Returns the terms that the stage reads."""
    assert distiller.plan is not None
    return {term for update in distiller.plan.updates for term in update.terms or ()}


def _norms(reached: Mapping[str, Mapping[str, float]], term: str) -> str:
    return ", ".join(f"{owner} {norm:.3g}" for owner, norm in reached[term].items() if norm > 0)


def terms_table(
    distiller: Distiller,
    terms: Mapping[str, Tensor],
    reached: Mapping[str, Mapping[str, float]],
    later: Mapping[str, Mapping[str, float]],
) -> Table:
    """Returns the terms with their value, weight and reach.

    Args:
        distiller: Of the stage.
        terms: Their values at the first step.
        reached: Gradient norm by term and owner at the first step.
        later: The same some steps on: an average is the student and a memory is empty where training starts.
    """
    assert distiller.plan is not None
    table = Table("term", "value", "weight", "gradient norm by owner", title="terms")
    for name, value in terms.items():
        norms: str | Text = _norms(reached, name)
        if not norms and _norms(later, name):
            norms = f"nothing at the first step, then {_norms(later, name)}"
        elif not norms:
            norms = Text("nothing", "red") if name in _active(distiller) else "not in this stage"
        table.add_row(name, f"{float(value):.4g}", f"{distiller.plan.schedules[name].at(1.0):g}", norms)
    return table


def main(arguments: list[str] | None = None) -> int:
    """Prints the findings; exits with 1 if something is wrong."""
    parser = argparse.ArgumentParser("python -m kdbench.doctor", description=__doc__)
    parser.add_argument("overrides", nargs="*", help="as on the command line of kdbench; none: the environment alone")
    parser.add_argument("--steps", type=int, default=20, help="of the one-batch overfit (default: %(default)s)")
    parser.add_argument(
        "--probe", action="store_true", help="what there is to transfer, and what falls without the student"
    )
    options = parser.parse_args(arguments)
    console = terminal()
    table = Table("check", "", "found", title="environment")
    checks = environment()
    for name, fine, found in checks:
        table.add_row(name, Text("ok", "green") if fine else Text("!!", "red"), found)
    console.print(table)
    well = all(fine for _, fine, _ in checks)
    if options.overrides:
        try:
            if options.steps < 1:
                raise KDBenchError(f"--steps {options.steps}: expected 1 or more")
            well &= run(options.overrides, console, options.steps, options.probe)
        except KDBenchError as error:
            print(f"kdbench: error: {error}", file=sys.stderr)
            return 1
    console.print(Text("all is well", "green") if well else Text("something is wrong, see above", "red"))
    return 0 if well else 1


if __name__ == "__main__":
    from kdbench.base.startup import lenient_output, own_imports

    lenient_output()
    own_imports()
    sys.exit(main())
