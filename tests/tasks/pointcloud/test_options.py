from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.base.instantiate import check
from kdbench.base.store import Store
from kdbench.base.weights import save_weights
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.errors import KDBenchError
from kdbench.runs.trainings import Trainings
from kdbench.signals import total
from kdbench.training.fit import Training
from kdbench.training.reach import gradients
from tasks.pointcloud.task import PointCloud
from tasks.pointcloud.transforms import Transforms
from tests.tasks.pointcloud import tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("kitti") / "tiny")


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"batch_size": 0}, r"data.batch_size: found 0; input should be greater than 0"),
        ({"train": 0}, r"data.train: found 0; input should be greater than 0"),
        ({"test": "all"}, r"data.test: found 'all'; input should be a valid integer"),
        ({"workers": -1}, r"data.workers: found -1; input should be greater than or equal to 0"),
        ({"batchsize": 2}, r"data.batchsize: unknown key: did you mean 'batch_size'"),
    ],
)
def test_bad_data_options_are_one_line(data, line, tmp_path):
    with pytest.raises(KDBenchError, match=line):
        tiny.task(None, tmp_path, data)


def test_bad_task_options_are_one_line(root, tmp_path):
    with pytest.raises(KDBenchError, match=r"task.thresholds.Cra: there is no such class: did you mean 'Car'"):
        tiny.task(root, tmp_path, thresholds={"Cra": (0.5, 0.3)})
    with pytest.raises(KDBenchError, match="class 'Bus' has no anchor"):
        tiny.task(root, tmp_path, classes=["Bus"])
    with pytest.raises(KDBenchError, match="expected a multiple of 8"):
        tiny.task(root, tmp_path, pillar=[0.3, 0.3])
    lower = tiny.task(root, tmp_path, {"transforms": {"sample": {"car": 15}}})
    with pytest.raises(KDBenchError, match=r"data.transforms.sample.car: there is no such class: did you mean 'Car'"):
        lower.data(0)
    wrong = tiny.task(root, tmp_path, {"transforms": {"flipp": 0.5}})
    with pytest.raises(KDBenchError, match=r"data.transforms.flipp: unknown key: did you mean 'flip'"):
        wrong.data(0)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"point_range": [0, 1]}, r"task.point_range is \[0, 1\]; expected x, y, z minimum, then the greater x"),
        ({"point_range": [20.48, -10.24, -3, 0, 10.24, 1]}, r"task.point_range is .*; expected x, y, z minimum"),
        ({"point_range": [0, -10.24, 1, 20.48, 10.24, 1]}, r"task.point_range is .*; expected x, y, z minimum"),
        ({"point_range": [0, -10.24, -3, float("inf"), 10.24, 1]}, r"task.point_range is .* finite and in metres"),
        ({"point_range": [0, -10.24, float("nan"), 20.48, 10.24, 1]}, r"task.point_range is .* finite and in metres"),
        ({"pillar": [0, 0]}, r"task.pillar is \[0, 0\]; expected two sizes above 0"),
        ({"pillar": [0.32]}, r"task.pillar is \[0.32\]; expected two sizes above 0"),
        ({"classes": []}, r"task.classes is \[\]; expected at least one class"),
        ({"classes": ["Car", "Car"]}, r"task.classes is \['Car', 'Car'\]; expected at least one class, each once"),
        ({"thresholds": {"Car": (0.4, 0.6)}}, r"task.thresholds.Car is \[0.4, 0.6\]; expected the positive one first"),
        ({"thresholds": {"Car": (0.4, -0.1)}}, r"task.thresholds.Car is .*: 1 >= positive >= negative >= 0"),
        ({"thresholds": {"Car": (1.4, 0.1)}}, r"task.thresholds.Car is .*: 1 >= positive >= negative >= 0"),
    ],
)
def test_bad_geometry_and_thresholds_are_one_line(options, line, tmp_path):
    with pytest.raises(KDBenchError, match=line) as error:
        tiny.task(None, tmp_path, **options)
    assert "\n" not in str(error.value)


def test_every_preset_lets_thresholds_and_augmentation_be_set():
    for preset in ("quick", "smoke", "paper"):
        overrides = ["task.thresholds.Car=[0.5,0.3]", "data.transforms.flip=0.1", "data.transforms.ground=false"]
        composed = config.load(["task=pointcloud", f"preset={preset}", "data.root=/data", *overrides])
        assert composed["task"]["thresholds"]["Car"] == [0.5, 0.3]
        assert composed["data"]["transforms"]["flip"] == 0.1


def test_the_options_of_the_presets_are_those_that_the_code_has(root, tmp_path):
    """Stating Car's thresholds and the augmentation in YAML trains nothing else."""
    absent = tiny.task(root, tmp_path, thresholds={"Pedestrian": (0.35, 0.2), "Cyclist": (0.35, 0.2)})
    assert torch.equal(tiny.task(root, tmp_path).anchors.thresholds, absent.anchors.thresholds)
    options = config.load(["task=pointcloud", "preset=paper", "data.root=/data"])["data"]["transforms"]
    assert Transforms(**check("", Transforms, options)) == Transforms(ground=False)


def warned(caplog: pytest.LogCaptureFixture, task: PointCloud) -> list[str]:
    caplog.clear()
    task.prepare()
    task.dataset()
    return [record.getMessage() for record in caplog.records]


def test_a_part_of_a_published_split_and_a_short_range_are_said_once(root, tmp_path, caplog):
    wide = {"point_range": [0.0, -10.24, -3.0, 20.48, 10.24, 1.0]}
    assert warned(caplog, tiny.task(root, tmp_path, {"train": 200, "test": 80}, **wide)) == []
    (line,) = warned(caplog, tiny.task(root, tmp_path, {"train": 4, "test": None}, **wide))
    assert line.endswith("ImageSets: data.train=4 takes 4 of 6 frames of train.txt; preset=paper, or null, takes all")
    (line,) = warned(caplog, tiny.task(root, tmp_path, {"train": 4, "test": 2}, **wide))
    assert ": data.train=4 takes 4 of 6 frames of train.txt, data.test=2 takes 2 of 3 frames of val.txt; " in line
    (line,) = warned(caplog, tiny.task(root, tmp_path, point_range=[0.0, -5.12, -3.0, 10.24, 5.12, 1.0]))
    assert line.startswith("3 of 9 objects of test frames lie outside task.point_range")


# ---- presets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["smoke", "quick", "paper"])
@pytest.mark.parametrize("method", ["none", "kd", "pointdistiller"])
def test_presets_compose(preset, method):
    composed = config.load(["task=pointcloud", f"method={method}", f"preset={preset}", "data.root=/data"])
    assert composed["task"]["name"] == "pointcloud"
    published = composed["task"]["pillar"] == [0.16, 0.16]
    assert published is (preset == "paper")


def test_pointdistiller_reaches_the_pillar_encoder_alone(root, tmp_path):
    """192 of the default student's 308,680 parameters: a linear layer of 10 x 16, and scale and shift of its norm."""
    composed = config.load(["task=pointcloud", "method=pointdistiller", "preset=smoke", f"data.root={root}"])
    composed["pair"]["teacher"]["architecture"]["width"] = 0.25
    recipe = Trainings(resolve(composed, Store(tmp_path / "cache"))).student_recipe()
    training = Training(recipe, tiny.task(root, tmp_path), untrained=True)
    distiller = training.distiller()
    batch = training.first_batch()
    distiller.rehearse(batch)
    own = {name: p for name, p in distiller.trainable() if name.startswith("student.")}
    with distiller.at_rest(), torch.enable_grad():
        terms = {n: v for found in distiller.every_term(batch).values() for n, v in found.items()}
        reached = gradients(terms, own)["local_graph"]
    assert {name.split(".")[1] for name, norm in reached.items() if norm > 0} == {"encoder"}
    assert sum(own[name].numel() for name, norm in reached.items() if norm > 0) == 192
    assert sum(p.numel() for p in own.values()) == 308_680


def test_the_released_run_of_pointdistiller_composes():
    text = (Path(__file__).parents[3] / "README.md").read_text()
    assert "method=pointdistiller_released preset=paper" in text
    composed = config.load(["task=pointcloud", "method=pointdistiller_released", "preset=paper", "data.root=/x"])
    assert composed["task"]["max_points"] == 32


@pytest.mark.slow
def test_paper_preset_takes_two_steps(tmp_path):
    """The published grid and both widths; the batch and its augmentation are read as configured."""
    root = tiny.write(tmp_path / "kitti", 8, 1)
    composed = config.load(
        ["task=pointcloud", "method=pointdistiller", "preset=paper", f"data.root={root}", "data.workers=0"]
        + ["data.batch_size=2", "trainer.epochs=1", "method.points=200", "method.neighbours=16"]
    )
    run = resolve(composed, Store(tmp_path / "cache"))
    task: Any = run.task
    assert task.anchors.grid == (248, 216)
    teacher = task.build(composed["pair"]["teacher"]["architecture"])
    assert sum(p.numel() for p in teacher.parameters()) == pytest.approx(4.835e6, rel=1e-3)
    save_weights(teacher, tmp_path / "teacher.safetensors")
    training = Training(Trainings(run).student_recipe(), task, {"teacher": tmp_path / "teacher.safetensors"})
    distiller = training.distiller()
    batches = [training.first_batch(), training.first_batch()]
    distiller.rehearse(batches[0])
    distiller.train()
    before = {n: p.detach().clone() for n, p in distiller.trainable()}
    optimizer = torch.optim.AdamW([p for _, p in distiller.trainable()], 1e-3)
    for batch in batches:
        terms = {n: v for found in distiller.every_term(batch).values() for n, v in found.items()}
        assert set(terms) == {"task", "local_graph"}
        optimizer.zero_grad()
        total(terms.values()).backward()
        optimizer.step()
    assert all(p.isfinite().all() for _, p in distiller.trainable())
    moved = [n for n, p in distiller.trainable() if not torch.equal(p, before[n])]
    assert len(moved) == len(before)
