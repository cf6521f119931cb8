"""The example of a whole task in a package of its own: ``docs/examples/diabetes``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_diabetes

from kdbench.base.store import Store
from kdbench.features import Values
from kdbench.records.record import find_records
from kdbench.task import Batch
from tests.cli import EXAMPLE, CommandLine, install


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """The package as its own pyproject.toml would install it."""
    (entry,) = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"][
        "kdbench.conf"
    ].items()
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.syspath_prepend(install(tmp_path / "own", *entry))


@pytest.fixture
def kdbench(tmp_path, monkeypatch, capsys) -> CommandLine:
    return CommandLine(tmp_path, monkeypatch, capsys, "diabetes")


def made(tmp_path: Path, **options: Any) -> Any:
    from kdbench_diabetes.task import Diabetes

    return Diabetes({"batch_size": 32}, Store(tmp_path / "cache"), **options)


def test_kd_and_fitnet_leave_records_with_pictures(kdbench, tmp_path, capsys):
    terms = {"kd": "kd", "fitnet": "hint"}
    for method in terms:
        ran = kdbench(f"method={method}", "trainer.accelerator=cpu", "trainer.threads=1")
        assert ran.code == 0, ran.err
    records = {record.method: record for record in kdbench.records()}
    for method, term in terms.items():
        record = records[method]
        assert record.status == "ok"
        assert record.terms[term].first > 0
        assert record.primary is not None
        assert (record.primary.name, record.primary.higher_is_better) == ("mae", False)
        assert record.dataset is not None
        assert dict(record.dataset.sizes) == {"train": 319, "val": 35, "test": 88}
        assert "student" in record.scores
        assert 20 < record.scores["student"].test["mae"] < 80
    for folder in find_records(kdbench.results):
        with Image.open(folder / "preview.png") as picture:
            assert picture.width > 2 * picture.height
            assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 50
    predicts(find_records(kdbench.results)[0], tmp_path, capsys)


def predicts(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kdbench import predict

    patient, out = folder / "patient.txt", folder / "out.png"
    np.savetxt(patient, load_diabetes(return_X_y=True)[0][:1])
    capsys.readouterr()
    assert predict.main([str(run), str(patient), "--out", str(out)]) == 0
    assert '"progression"' in capsys.readouterr().out
    assert out.is_file()
    patient.write_text("1 2 3")
    assert predict.main([str(run), str(patient)]) == 1
    assert capsys.readouterr().err.endswith("found numbers of shape (3,), expected the 10 measurements of a patient\n")


def test_the_three_sets_are_all_patients_once(tmp_path):
    task = made(tmp_path)
    parts = torch.cat([task.splits[name].measurements for name in ("train", "val", "test")])
    whole = torch.from_numpy(load_diabetes(return_X_y=True)[0]).float()
    assert sorted(map(tuple, parts.tolist())) == sorted(map(tuple, whole.tolist()))
    assert task.dataset() == made(tmp_path).dataset()
    seen = torch.cat([batch.ids for batch in task.data(0).train_dataloader()])
    assert len(seen.unique()) == len(seen) == 319 // 32 * 32
    assert 0 <= seen.min() <= seen.max() < 319


@pytest.mark.parametrize("law", ["gaussian", "plain"])
def test_loss_and_metrics_are_those_of_the_definitions(tmp_path, law):
    task = made(tmp_path, law=law)
    model = task.build({"_target_": "kdbench_diabetes.task.Net", "width": 4})
    loader = task.data(0).test_dataloader()
    y, train = task.splits["test"].progression, task.splits["train"].progression
    mean, scale = train.mean(), train.std()
    with torch.no_grad():
        answers = model(task.splits["test"].measurements)
        whole = Batch(task.splits["test"].measurements, y, torch.arange(len(y)))
        (loss,) = task.loss(model, answers, whole).values()
    target = (y - mean) / scale
    if law == "gaussian":
        law_of_each = torch.distributions.Normal(answers[:, 0], (0.5 * answers[:, 1]).exp())
        expected = -law_of_each.log_prob(target).mean() - 0.5 * np.log(2 * np.pi)  # torch leaves the constant out
    else:
        expected = (answers[:, 0] - target).square().mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    predicted = answers[:, 0] * scale + mean
    found = task.evaluate(model, loader, "test", torch.device("cpu"))
    assert found["mae"] == pytest.approx(float((predicted - y).abs().mean()), rel=1e-5)
    left = (predicted - y).square().sum() / (y - y.mean()).square().sum()
    assert found["r2"] == pytest.approx(1 - float(left), rel=1e-4)
    features = task.describe(answers, {}, whole)
    assert isinstance(features["values"], Values)
    assert features["values"].law == law


def test_a_wrong_option_is_one_line(kdbench):
    assert "task.law: found 'normal'" in kdbench("method=kd", "task.law=normal").error
