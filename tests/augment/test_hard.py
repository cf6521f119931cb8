"""On the toy's networks: who is trained by what, whose turn it is, and what a training leaves."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from kdbench.augment.hard import STILL, VIEW
from kdbench.configuration import config
from kdbench.functional.kd import kd_loss
from kdbench.needs import State
from kdbench.records.schema import warnings_of
from kdbench.training.fit import Training
from kdbench.training.history import Diverged
from kdbench.training.recipe import Recipe
from tasks import warping
from tests.plugins import WEIGHTS
from tests.toy import Toy, recipe, same, specs, teacher_file, weights

NAMES = ("hard_affine", "hard_color", "hard_free", "hard_mix", "hard_thinplate")


class Grey:
    """The toy's patterns are normal numbers, which a factor brings to 0 to 1 but for a few."""

    def unit(self, inputs: Tensor) -> Tensor:
        return (inputs / 24 + 0.5).clamp(0, 1)

    def normalise(self, pixels: Tensor) -> Tensor:
        return 24 * (pixels - 0.5)


class Movable(Toy):
    """The toy with what learned augmentations of images ask of a task."""

    capabilities: ClassVar[frozenset[str]] = Toy.capabilities | warping.IMAGES

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return warping.image_ops(Grey(), warping.deform_images)

    def side_by_side(self, views: Any, models: Any) -> Any:
        from PIL import Image

        assert list(views) == ["original", VIEW]
        assert list(models) == ["teacher", "student"]
        return Image.new("RGB", (4, 4))


def spec(name: str, **options: Any) -> dict[str, Any]:
    found: Any = {}
    for file in ("_hard", name):
        found = OmegaConf.merge(found, OmegaConf.load(config.folder() / "augment" / f"{file}.yaml"))
    content: Any = OmegaConf.to_container(OmegaConf.merge(found, options))
    return {key: value for key, value in content.items() if key != "defaults"}


def hard_recipe(name: str, method: str | None = "KD", options: Mapping[str, Any] | None = None, **keys: Any) -> Recipe:
    plugins = {"augment": spec(name, **(options or {}))}
    if method is not None:
        plugins["method"] = {"_target_": f"tests.plugins.{method}", "weights": dict(WEIGHTS[method])}
    return replace(recipe("KD", **keys), plugins=specs(**plugins))


def training(folder: Path, name: str = "hard_affine", method: str | None = "KD", **keys: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    return Training(hard_recipe(name, method, **keys), Movable(), {"teacher": teacher_file(folder)})


#: The toy's networks agree from the start, and differ by far less than images do.
EAGER = {"turns": {"above": 10.0, "below": 10.0, "most": 3}}


def rehearsed(folder: Path, name: str = "hard_affine", **keys: Any) -> tuple[Any, Any]:
    made = training(folder, name, **keys)
    distiller = made.distiller(made.stages[0])
    batch = made.first_batch()
    with torch.random.fork_rng():
        distiller.rehearse(batch)
    return distiller, batch


# ---- what is learned of what -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_terms_and_gradients(tmp_path, name):
    distiller, batch = rehearsed(tmp_path, name)
    plugin = distiller.plugins["augment"]
    own = [p for p in plugin.parameters() if p.requires_grad]
    student, teacher = (list(distiller.cast.model(role).parameters()) for role in ("student", "teacher"))
    state = State(0, 5, 0.1)
    ascent = distiller._context(state, "seek", "keep")
    with distiller.at_rest(), torch.enable_grad():
        views = plugin.views({role: {"main": batch} for role in distiller.cast.roles}, ascent)
        signals = type(distiller.probe(batch))(distiller.cast, views)
        terms = plugin.terms(signals, ascent)
        assert set(terms) == {"seek", "keep"}
        x, moved = views["teacher"]["main"].inputs, views["student"][VIEW].inputs
        assert views["student"][VIEW] is views["teacher"][VIEW]
        t, t_moved, s_moved = (
            distiller.cast.model(role)(inputs)
            for role, inputs in (("teacher", x), ("teacher", moved), ("student", moved))
        )
        torch.testing.assert_close(terms["seek"], kd_loss(s_moved, t_moved, 1.0))
        torch.testing.assert_close(terms["keep"], kd_loss(t_moved, t, 1.0))
        for value in terms.values():
            grads = torch.autograd.grad(value, own, retain_graph=True, allow_unused=True)
            assert all(g is not None and g.isfinite().all() for g in grads)
            assert any(g.abs().sum() > 0 for g in grads if g is not None)
        assert not any(p.requires_grad for p in teacher)
        descent = distiller._context(state, "hard")
        views = plugin.views({role: {"main": batch} for role in distiller.cast.roles}, descent)
        assert not views["student"][VIEW].inputs.requires_grad
        assert torch.equal(views["student"][VIEW].inputs, moved)  # drawn by the step, not by who asks
        (value,) = plugin.terms(type(signals)(distiller.cast, views), descent).values()
        torch.testing.assert_close(value, terms["seek"])
        assert all(g is not None for g in torch.autograd.grad(value, student, allow_unused=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_identity_as_what_is_learned_vanishes(tmp_path, name):
    distiller, batch = rehearsed(tmp_path, name)
    plugin, context = distiller.plugins["augment"], distiller._context(State(0, 3, 0.0), "hard")
    distances = []
    for size in (-2.0, -4.0, -40.0):
        with torch.no_grad():
            if name == "hard_free":
                plugin.change.copy_(math.exp(size) * torch.sign(plugin.change))
            else:
                plugin.log_std.fill_(size)
            moved, _ = plugin.augment(batch, context)
        distances.append((moved.inputs - batch.inputs).abs().mean().item())
        assert torch.equal(moved.targets, batch.targets)
    assert distances[0] > distances[1] > 0
    # What is beyond 0 to 1 is cut off by whatever goes through pixels.
    beyond = (Grey().normalise(Grey().unit(batch.inputs)) - batch.inputs).abs().mean().item()
    assert distances[2] <= beyond + 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one(tmp_path, name):
    distiller, batch = rehearsed(tmp_path, name)
    one = replace(batch, inputs=batch.inputs[:1], targets=batch.targets[:1], ids=batch.ids[:1])
    moved, _ = distiller.plugins["augment"].augment(one, distiller._context(State(0, 0, 0.0), "hard"))
    assert moved.inputs.shape == one.inputs.shape
    if name == "hard_mix":  # there is none to mix with
        assert torch.equal(moved.inputs, one.inputs)


def test_only_the_student_or_the_augmentor_moves_in_its_own_update(tmp_path):
    trained = training(tmp_path / "run", epochs=1, options=EAGER)
    teacher = weights(trained.cast.model("teacher"))
    seen: list[tuple[frozenset[int], bool, bool]] = []
    stepped = trained.distiller

    def watched(stage: Any) -> Any:
        distiller = stepped(stage)
        step = distiller._step

        def watch(indices: list[int], losses: list[Tensor], batch_idx: int) -> None:
            plugin, student = distiller.plugins["augment"], distiller.cast.model("student")
            before = weights(student), plugin.log_std.detach().clone()
            step(indices, losses, batch_idx)
            now = weights(student)
            moved = any(not torch.equal(before[0][n], now[n]) for n in dict(student.named_parameters()))
            seen.append((frozenset(indices), moved, not torch.equal(before[1], plugin.log_std)))

        distiller._step = watch
        return distiller

    trained.distiller = watched
    (tmp_path / "run" / "work").mkdir()
    trained.run(tmp_path / "run" / "work")
    assert {(moved, learned) for _, moved, learned in seen} == {(True, False), (False, True)}
    assert same(teacher, weights(trained.cast.model("teacher")))


def test_the_student_is_in_eval_mode_while_the_augmentor_learns(tmp_path):
    distiller, _ = rehearsed(tmp_path)
    ascent, *others = distiller.plan.updates
    assert (ascent.terms, ascent.modes) == ({"seek": -1.0, "keep": 1.0}, {"student": "eval"})
    assert ascent.params == ("augment.log_std",)
    assert not any("augment.log_std" in (update.params or ()) for update in others)


# ---- turns, passes, resuming -----------------------------------------------------------------------------------------


def passes(trained: Any, folder: Path) -> tuple[float, float]:
    folder.mkdir(parents=True)
    cost = trained.run(folder)["cost"]
    return cost["student_passes"], cost["teacher_passes"]


def test_the_clean_answer_of_the_teacher_serves_both_updates(tmp_path):
    never = {"turns": {"below": 0.0}}
    always = {"turns": {"above": 1e9, "below": 1e9, "most": 10**6}}
    # Of the student the clean and the augmented view; likewise of the teacher.
    assert passes(training(tmp_path / "a", options=never), tmp_path / "a" / "work") == (2, 2)
    student, teacher = passes(training(tmp_path / "b", options=always), tmp_path / "b" / "work")
    assert 2.8 < student < 3
    assert 2.8 < teacher < 3  # all but the first step have the augmentor's pass too, and none a second clean one


def test_phases_follow_the_thresholds(tmp_path):
    trained = training(tmp_path / "run", epochs=4, options=EAGER)
    explored: list[bool] = []
    plugin = trained.plugins["augment"]
    after = plugin.after_step

    def watch(signals: Any, state: State) -> None:
        explored.append(plugin._due[1])
        after(signals, state)

    object.__setattr__(plugin, "after_step", watch)
    (tmp_path / "run" / "work").mkdir()
    manifest = trained.run(tmp_path / "run" / "work")
    assert explored == [False, True, True, True] * 4
    assert set(manifest["terms"]) == {"task", "kd", "hard", "seek", "keep"}


def test_an_augmentor_that_never_steps_is_said(tmp_path):
    said = {}
    for name, options in (("never", {"turns": {"below": 0.0}}), ("eager", EAGER)):
        trained = training(tmp_path / name, options=options)
        (tmp_path / name / "work").mkdir()
        first = trained.plugins["augment"]
        flags = trained.run(tmp_path / name / "work")["flags"]
        said[name] = [flag for flag in flags if flag.startswith(STILL)]
        start = math.exp(first.start)
        assert all((value == pytest.approx(start)) == (name == "never") for value in first.readings().values())
    assert said["eager"] == []
    (flag,) = said["never"]
    assert re.fullmatch(r"augmentor_never_stepped: disagreement \S+ at the least, .* augment.turns.below=0", flag)
    assert warnings_of([flag]) == ["augmentor never stepped, so that it taught nothing"]


def test_a_resumed_training_is_the_same(tmp_path):
    whole = training(tmp_path / "whole", epochs=4, options=EAGER)
    (tmp_path / "whole" / "work").mkdir()
    whole.run(tmp_path / "whole" / "work")

    class Stopped(Exception):
        pass

    from lightning.pytorch.callbacks import Callback

    class Stop(Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            if trainer.current_epoch == 2:
                raise Stopped

    work = tmp_path / "part" / "work"
    first = training(tmp_path / "part", epochs=4, options=EAGER)
    work.mkdir()
    with pytest.raises(Stopped):
        first.run(work, [Stop()])
    second = training(tmp_path / "part", epochs=4, options=EAGER)
    second.run(work)
    for role in ("student",):
        assert same(weights(whole.cast.model(role)), weights(second.cast.model(role)))
    assert same(weights(whole.plugins["augment"]), weights(second.plugins["augment"]))
    assert (work / "metrics.csv").read_text() == (tmp_path / "whole" / "work" / "metrics.csv").read_text()


# ---- what is left ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_is_learned_is_in_the_metrics_and_drawn(tmp_path, name):
    trained = training(tmp_path / "run", name, options=EAGER)
    work = tmp_path / "run" / "work"
    work.mkdir()
    manifest = trained.run(work)
    assert manifest["pictures"] == ["augment_views.png", "augment_growth.png"]
    assert all((work / picture).is_file() for picture in manifest["pictures"])
    readings = trained.plugins["augment"].readings()
    header, *rows = (work / "metrics.csv").read_text().splitlines()
    last = dict(zip(header.split(","), rows[-1].split(","), strict=True))
    parameters = sum(p.numel() for p in trained.plugins["augment"].parameters())
    assert len(readings) == (8 if name == "hard_free" else parameters)
    for key, value in readings.items():
        assert float(last[f"augment/{key}"]) == pytest.approx(value)
    assert manifest["cost"]["added_params"] == parameters


def test_an_augmentor_that_runs_off_diverges(tmp_path):
    trained = training(tmp_path / "run", options={"start": 90.0, **EAGER})
    (tmp_path / "run" / "work").mkdir()
    with pytest.raises(Diverged, match="is not finite in epoch 0"):
        trained.run(tmp_path / "run" / "work")


def test_the_augmentor_keeps_its_own_rate(tmp_path):
    distiller, _ = rehearsed(tmp_path)
    configured = distiller._optimizers(100)
    rates: dict[str, list[float]] = {c["optimizer"].param_groups[0]["name"]: [] for c in configured}
    for _ in range(3):
        for c in configured:
            rates[c["optimizer"].param_groups[0]["name"]].append(c["optimizer"].param_groups[0]["lr"])
            c["optimizer"].step()
            c["lr_scheduler"]["scheduler"].step()
    assert rates["augment"] == [0.05] * 3
    assert len(set(rates["student"])) == 3


def test_the_regulariser_of_teachaugment_holds_colours_back(tmp_path):
    found = {}
    for weight in (0.0, 1e4):
        options = copy.deepcopy(EAGER) | {"weights": {"colours": weight}}
        trained = training(tmp_path / f"{weight:g}", "hard_color", epochs=8, options=options)
        (tmp_path / f"{weight:g}" / "work").mkdir()
        manifest = trained.run(tmp_path / f"{weight:g}" / "work")
        assert ("colours" in manifest["terms"]) == (weight > 0)
        found[weight] = sum(trained.plugins["augment"].readings().values())
    assert found[1e4] < 0.8 * found[0.0]


@pytest.mark.parametrize("method", ["Mutual", "MeanTeacher", "Hint", "Bilevel", "Staged", None])
def test_it_stands_beside_any_method(tmp_path, method):
    trained = training(tmp_path / "run", method=method, options=EAGER)
    (tmp_path / "run" / "work").mkdir()
    manifest = trained.run(tmp_path / "run" / "work")
    assert {"hard", "seek", "keep"} <= manifest["terms"].keys()
    assert all(math.isfinite(term["last"]) for term in manifest["terms"].values())
