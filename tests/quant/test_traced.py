"""Eight-bit students of which a part stays in floating point: recurrent layers, and what a method puts around."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kdbench.base import rng
from kdbench.base.store import Store
from kdbench.configuration import config
from kdbench.configuration.resolved import resolve
from kdbench.methods.simkd import Reused
from kdbench.quant.int8 import QATInt8
from kdbench.quant.pt2e import Converted, roundings
from kdbench.quant.traced import Trained, replaced
from kdbench.runs.trainings import Trainings
from kdbench.task import ExportPlan
from kdbench.training.exported import open_onnx, write_onnx
from kdbench.training.fit import Training
from kdbench.training.trained import load_artifacts
from tests.cli import install
from tests.quant.test_int8 import IMAGES, answers, entered
from tests.toy import CLASSES


class Tracked(nn.Module):
    """Frames one by one, then a recurrent layer over any number of them, then every frame again."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Sequential(nn.Linear(3 * 8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8))
        self.over = nn.ModuleList([nn.GRU(8, 8, batch_first=True)])
        self.heads = nn.ModuleDict({"frame": nn.Linear(8, CLASSES)})

    def forward(self, images: Tensor) -> Tensor:
        seen = self.frames(images.movedim(3, 1).flatten(2))
        for layer in self.over:
            seen = seen + layer(seen)[0]
        return self.heads["frame"](seen).mean(1)


def test_recurrent_layers_stay_in_float_for_any_length_and_are_named(tmp_path):
    with rng.scope(0, "tracked"):
        net = Tracked().eval()
    plugin = QATInt8()
    model, _ = entered(plugin, net, {"frames": "frames", "inner": "frames[1]"})
    assert plugin.notes() == ("int8: 3 of 4 layers; in float 1 GRU (over.0)",)
    assert type(model.over[0]) is nn.GRU
    assert {name for name, module in model.named_modules() if isinstance(module, Trained)} == {"frames", "heads.frame"}
    assert len(roundings(model)) == 6  # what each of three layers reads, and its weight
    for steps in (3, 8, 13):
        images = torch.randn(5, 3, 8, steps, generator=rng.generator(0, "steps", steps))
        own, other = answers(net, images), answers(model, images)
        assert float((own - other).norm() / own.norm()) < 0.1
    model.train()
    model(IMAGES).sum().backward()
    assert all(bool(p.grad.any()) for name, p in model.named_parameters() if name.endswith("weight"))
    found = replaced(model.eval(), Converted)
    torch.testing.assert_close(answers(found), answers(model), rtol=0.02, atol=0.02)
    plan = ExportPlan(found, (IMAGES[:1],), ("images",), ("logits",))
    write_onnx(plan, tmp_path / "tracked.onnx", {})
    (out,) = open_onnx(tmp_path / "tracked.onnx", threads=1).run(None, {"images": IMAGES[:1].numpy()})
    torch.testing.assert_close(torch.from_numpy(out), answers(found, IMAGES[:1]), rtol=0.02, atol=0.02)


def test_what_simkd_deploys_around_the_student_stays_in_float_around_integers(tmp_path):
    words = [
        "task=toy",
        "method=simkd",
        "quant=ptq_int8",
        "preset=smoke",
        "trainer.epochs=1",
        "trainer.accelerator=cpu",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(install(tmp_path / "site"))
        run = resolve(config.load(words), Store(tmp_path / "cache"))
        training = Training(Trainings(run).student_recipe(), run.task, untrained=True)
        manifest = training.run(tmp_path)
    assert {"float", "converted"} <= manifest["beside"].keys()
    batch = next(iter(run.task.data(0).test_dataloader()))
    left = load_artifacts(training.recipe, run.task, tmp_path, batch, names=("student", "float", "converted"))
    own, before, converted = (left[name].module for name in ("student", "float", "converted"))
    assert [type(module) for module in (own, before, converted)] == [Reused] * 3
    assert any(isinstance(module, Converted) for module in converted.modules())
    assert not any(isinstance(module, (Converted, Trained)) for module in before.modules())
    torch.testing.assert_close(answers(converted, batch.inputs), answers(own, batch.inputs), rtol=0.02, atol=0.02)
