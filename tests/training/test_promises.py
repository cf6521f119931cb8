"""What a task declares and does not keep is one line before anything trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning import LightningDataModule
from PIL import Image
from torch import Tensor, nn

from kdbench.errors import KDBenchError
from kdbench.features import Feature, Grid, Values, Vector
from kdbench.task import Batch, DatasetInfo, Task
from kdbench.training.fit import Training
from kdbench.training.promises import check_promises
from tests.cli import CliToy, CommandLine
from tests.dense import Dense
from tests.dense import Net as DenseNet
from tests.plugins import Hint
from tests.toy import Data, Toy, recipe, same, teacher_file, weights


class Kept(Toy):
    """Keeps what it declares."""

    capabilities = Toy.capabilities | {"rotate", "strong_view"}

    def picture(self, *_: Any) -> Image.Image:
        return Image.new("RGB", (8, 8))

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return {
            "rotate": lambda x, k: x.rot90(k, (2, 3)),
            "strong": lambda x, generator: x + torch.rand(x.shape, generator=generator),
        }


def training(folder: Any, method: str | None = "Hint", **changes: Any) -> Training:
    task = type("Changed", (Kept,), changes)()
    return Training(recipe(method), task, {"teacher": teacher_file(folder)})


def check(made: Training, **changes: Any) -> None:
    batch = made.first_batch()
    check_promises(made, replace(batch, **{name: change(batch) for name, change in changes.items()}))


@pytest.mark.parametrize("method", [None, "KD", "Hint", "Mutual", "Bilevel", "MeanTeacher"])
def test_a_task_that_keeps_them_is_left_as_it_was(tmp_path, method):
    made = training(tmp_path, method)
    models = {name: weights(made.cast.model(name)) for name in made.cast.roles}
    stream = torch.get_rng_state()
    check(made)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(same(weights(made.cast.model(name)), before) for name, before in models.items())
    assert made.cast.passes == {}


def described(of: type[Task] = Toy, **changes: Callable[[Any], Feature]) -> dict[str, Any]:
    """A task whose features are other than it says."""

    def describe(self: Any, outputs: Tensor, taps: Mapping[str, Tensor], batch: Batch) -> dict[str, Feature]:
        features = of.describe(self, outputs, taps, batch)
        return features | {name: change(features[name]) for name, change in changes.items()}

    return {"describe": describe}


def logits(of: type[Task] = Toy, **changes: Callable[[Any], Any]) -> dict[str, Any]:
    return described(of, logits=lambda f: replace(f, **{name: change(f) for name, change in changes.items()}))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (described(body=lambda f: Vector(f.values.mean((2, 3)))), "'body' of the student is Grid, but .* gives Vector"),
        (described(body=lambda f: Grid(f.values.flatten(1))), r"'body' of the student is Grid.*, expected \(B, C, \*s"),
        (described(body=lambda f: Grid(f.values[:5])), "expected .* of a batch of 16"),
        (logits(target=lambda f: f.target.float()), "the target of 'logits' of the student is torch.float32"),
        (logits(target=lambda f: f.target + 1), "the target of 'logits' of the student holds 1 to 5, expected 0 to 4"),
        (logits(target=lambda f: f.target[:3]), r"the target of 'logits' of the student is \(3,\) .* shape \(16,\)"),
        (logits(weight=lambda f: f.values), "the weight of 'logits' of the student is"),
        ({"picture": Toy.picture}, "it does not implement picture"),
        (
            {"dataset": lambda self: DatasetInfo("toy", True, "toy", {"training": 64})},
            "dataset.. gives the sizes of training, expected those of train, val and test",
        ),
        ({"loss": lambda self, model, outputs, batch: {"ce": outputs}}, r"loss\(\) gives 'ce' as \(16, 5\)"),
    ],
)
def test_features_and_methods(tmp_path, changes, line):
    with pytest.raises(KDBenchError, match=f"^task toy: .*{line}") as error:
        check(training(tmp_path, "KD" if "'logits'" in line else "Hint", **changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "changes"),
    [("KD", described(body=lambda f: Vector(f.values.mean((2, 3))))), ("Hint", logits(target=lambda f: f.target + 1))],
)
def test_what_nobody_reads_may_be_of_any_kind(tmp_path, method, changes):
    check(training(tmp_path, method, capabilities=frozenset(), **changes))


def without_meta(self: Any, seed: int) -> LightningDataModule:
    return type("Data", (Data,), {"train_dataloader": lambda self: Data.train_dataloader(self)})(seed)


@pytest.mark.parametrize(
    ("capability", "changes", "line"),
    [
        ("single_label", logits(target=lambda f: None), "'logits' comes without the target of each row"),
        ("single_label", logits(law=lambda f: "bernoulli"), "has the law bernoulli, expected the softmax"),
        ("differentiable_input", {"forward": lambda self, model, x: model(x.detach())}, "no gradient of a feature rea"),
        ("meta", {"data": without_meta}, r"its train_dataloader\(\) has no argument without_meta"),
        ("meta", {"data": lambda self, seed: Plain(seed)}, r"its data module has no meta_dataloader\(\)"),
        ("rotate", {"ops": lambda self: {}}, r"ops\(\) has no 'rotate'"),
        ("rotate", {"ops": lambda self: {"rotate": lambda x, k: x + k}}, "does not give the inputs back"),
        ("strong_view", {"ops": lambda self: {}}, r"ops\(\) has no 'strong'"),
        ("strong_view", {"ops": lambda self: {"strong": lambda x, _: x[:3]}}, r"makes \(3, .* of \(16, "),
        ("strong_view", {"ops": lambda self: {"strong": lambda x, _: torch.rand(x.shape)}}, "gives two views for one"),
    ],
)
def test_capabilities(tmp_path, monkeypatch, capability, changes, line):
    made = training(tmp_path, "Hint", **changes)
    check(made)  # nobody relies on it
    monkeypatch.setattr(Hint, "requires", frozenset({capability}))
    with pytest.raises(KDBenchError, match=f"^task toy: it declares the capability '{capability}', but .*{line}"):
        check(made)


class Painted(Dense):
    """The dense toy, with what a promise asks of any task."""

    def __init__(self) -> None:
        pass

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        return DenseNet(architecture["width"], architecture.get("label_channel", False))


def ops(**changes: Any) -> dict[str, Any]:
    return {"ops": lambda self: {**Dense.ops(self), **changes}}


class Deaf(DenseNet):
    """Without the label channel it reads the first one twice."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if images.shape[1] == self.channels else torch.cat([images, images[:, :1]], 1))


@pytest.mark.parametrize(
    ("capability", "changes", "line"),
    [
        ("dense_label", {}, None),
        ("dense_label", {"ops": lambda self: {}}, r"ops\(\) has no 'dense_label'"),
        (
            "dense_label",
            ops(dense_label=lambda b: b.targets.float()),
            r"gives \(8, 12, 16\) torch.float32, exp",
        ),
        (
            "dense_label",
            ops(dense_label=lambda b: b.ids),
            r"gives \(8,\) torch.int64, expected integer",
        ),
        ("dense_label", ops(dense_label=lambda b: b.targets[:3]), r"gives \(3, 12, 16\) .* for a batch of 8"),
        (
            "dense_label",
            ops(dense_label=lambda b: b.targets),
            "gives 0 to 255, expected -1 to 3 for the 4 clas",
        ),
        ("dense_label", logits(law=lambda f: "bernoulli", of=Dense), "has the law bernoulli, expected the softmax"),
        (
            "dense_label",
            logits(values=lambda f: f.values.flatten(2), of=Dense),
            r"is Logits.*, expected maps \(B",
        ),
        ("label_as_input", {}, None),
        ("label_as_input", {"ops": lambda self: {}}, r"ops\(\) has no 'label_as_input'"),
        (
            "label_as_input",
            ops(label_as_input=lambda a: {**a, "width": a["width"] + 1}),
            "changes an arch",
        ),
        ("label_as_input", ops(label_as_input=lambda a: a), "fails without the channel, or with it: "),
        (
            "label_as_input",
            {"build": lambda self, a: (Deaf if "label_channel" in a else DenseNet)(a["width"], "label_channel" in a)},
            "does not read inputs without the channel as if it were zero",
        ),
    ],
)
def test_capabilities_of_dense_tasks(tmp_path, monkeypatch, capability, changes, line):
    task = type("Changed", (Painted,), changes)()
    given = recipe("Hint")
    sides = {n: {"architecture": {"width": w}, "taps": {"body": "body"}} for n, w in (("student", 4), ("teacher", 8))}
    made = Training(replace(given, config={**given.config, "pair": {"name": "dense", **sides}}), task, untrained=True)
    check(made)  # nobody relies on it
    monkeypatch.setattr(Hint, "requires", frozenset({capability}))
    if line is None:
        check(made)
        return
    with pytest.raises(KDBenchError, match=line) as error:
        check(made)
    assert "\n" not in str(error.value)


class Plain(LightningDataModule):
    """Without a meta loader."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.data = Data(seed)

    def train_dataloader(self) -> Any:
        return self.data.train_dataloader()

    def val_dataloader(self) -> Any:
        return self.data.val_dataloader()


@pytest.mark.parametrize(
    ("ids", "line"),
    [
        (lambda b: b.ids + 60, "holds the ids [0-9]+ to [0-9]+, expected 0 to 63 for the 64 training samples"),
        (lambda b: -1 - b.ids, "holds the ids -"),
        (lambda b: b.ids.float(), "the ids of a training batch are torch.float32, expected integers"),
        (lambda b: torch.zeros_like(b.ids), "a training batch holds one id twice"),
    ],
)
def test_sample_ids(tmp_path, ids, line):
    with pytest.raises(KDBenchError, match=f"the capability 'sample_id', but .*{line}"):
        check(training(tmp_path, "Bank"), ids=ids)
    check(training(tmp_path, "KD"), ids=ids)


def test_inputs_that_are_no_tensor_have_no_gradient(tmp_path):
    task: dict[str, Any] = {"forward": lambda self, model, inputs: model(inputs["x"])}
    with pytest.raises(KDBenchError, match="the inputs of a batch are a dict, expected a floating-point tensor"):
        check(training(tmp_path, "Adversary", **task), inputs=lambda b: {"x": b.inputs})


def test_a_batch_that_is_none_is_one_line(tmp_path):
    made = training(tmp_path, data=lambda self, seed: Tuples(seed))
    with pytest.raises(KDBenchError, match="^task toy: its training loader gives a list, expected a kdbench.task.Bat"):
        made.first_batch()
    with pytest.raises(KDBenchError, match=r"^task toy: a training batch has the ids a list, expected a tensor \(B,\)"):
        check(training(tmp_path), ids=lambda b: b.ids.tolist())


class Tuples(Plain):
    def train_dataloader(self) -> Any:
        return [[1, 2]]


def test_predicted_values_are_looked_at_too(tmp_path):
    kinds = classmethod(lambda cls, side: {"height": Values})
    heights = lambda self, outputs, taps, batch: {"height": Values(outputs, weight=batch.ids[:3])}  # noqa: E731
    with pytest.raises(KDBenchError, match=r"the weight of 'height' of the student is \(3,\)"):
        check(training(tmp_path, None, capabilities=frozenset(), kinds=kinds, describe=heights))


def test_a_plugin_that_reads_the_meta_batch_needs_a_task_that_has_it(tmp_path):
    made = training(tmp_path, "Bilevel")
    made.task.capabilities = Kept.capabilities - {"meta"}  # type: ignore[misc]
    with pytest.raises(KDBenchError, match="^task toy: Bilevel reads a meta batch, a capability that this task does"):
        check(made)


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_a_run_ends_before_it_trains_and_doctor_says_so(tmp_path, monkeypatch, capsys, command):
    kdbench = CommandLine(tmp_path, monkeypatch, capsys)
    sizes = {"train": 8, "val": 40, "test": 40}
    monkeypatch.setattr(CliToy, "dataset", lambda self: DatasetInfo("toy", True, "toy", sizes))
    if command == "run":
        said = kdbench("method=crd").error
        assert not kdbench.manifests()
        assert not kdbench.results.exists()
    else:
        from kdbench import doctor

        monkeypatch.setattr(doctor, "environment", list)
        assert doctor.main(kdbench.arguments("method=crd")) == 1
        said = capsys.readouterr().err
    assert "the capability 'sample_id', but a training batch holds the ids" in said
