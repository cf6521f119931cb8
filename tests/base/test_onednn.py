"""oneDNN itself says which kernels it ran (``ONEDNN_VERBOSE``); each test asks it in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from kdbench.base.onednn import Watch, faulty, keep_sound
from kdbench.records.record import find_records, read_record
from tests.cli import ROOT
from tests.tasks.classification.test_pairs import pairs

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")

LAST = torch.channels_last
EXECUTED = re.compile(
    r"exec,cpu,(?:de)?convolution,[^,]*,backward_weights,src:\w+:\w*:blocked:(\w+)::f0 .*?"
    r",(?:g(\d+))?mb\d+_ic(\d+)oc(\d+)_ih\d+oh\d+kh(\d+)sh(\d+)dh\d+ph\d+_iw\d+ow\d+kw(\d+)sw(\d+)"
)


def gradients(code: str, *arguments: str, isa: str = "ALL") -> list[dict[str, int | str]]:
    """Runs Python code and returns the weight gradients that oneDNN computed in it."""
    environment = {**os.environ, "ONEDNN_VERBOSE": "1", "ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    names = ("layout", "groups", "ic", "oc", "kh", "sh", "kw", "sw")
    rows = [m.groups(default="1") for m in map(EXECUTED.search, done.stdout.splitlines()) if m]
    return [{n: v if n == "layout" else int(v) for n, v in zip(names, row, strict=True)} for row in rows]


def strided(row: dict) -> bool:
    """Whether it is a 1x1 convolution with a stride and few channels: in the layout acdb it is what must not run."""
    return row["kh"] == row["kw"] == row["groups"] == 1 and max(row["sh"], row["sw"]) > 1 and 1 < row["ic"] < 16


STEPS = """
import sys
from kdbench.configuration import config
from kdbench.training.distiller import Distiller, Optimization
from kdbench.plugin import STUDENT, Stage
from kdbench.signals import Cast
from kdbench.roles.sources import Network
from tests.tasks.classification import tiny

steps = Optimization({"_target_": "torch.optim.SGD", "lr": 0.1}, {"_target_": "kdbench.optim.constant"})
sizes, names = (argument.split(",") for argument in sys.argv[1:])
for name in names:
    pair = config.load(["task=classification", f"pair={name}"])["pair"]
    for size in sizes:
        task = tiny.shaped((int(size), int(size)), 3, 10)
        for side in ("teacher", "student"):
            cast = Cast(task, {"student": STUDENT}, {"student": Network(task, task.build(pair[side]["architecture"]))})
            made = Distiller(cast, {}, {}, {"task": {"task": 1.0}}, steps, 0, Stage("fit"))
            made.rehearse(tiny.batch(task))
"""


def test_no_gradient_of_the_narrowest_pair_reaches_the_kernel():
    found = gradients(STEPS, "8,32,64,224", "resnet8_w16_w4")
    assert not [row for row in found if strided(row) and row["layout"] == "acdb"]
    assert [(row["ic"], row["oc"]) for row in found if strided(row)] == 4 * [(8, 16), (4, 8)]  # the student's shortcuts
    assert {row["layout"] for row in found if not strided(row)} == {"acdb"}  # all others keep the fast layout


@pytest.mark.slow
def test_no_gradient_of_any_pair_reaches_the_kernel():
    names = [name for name in pairs() if not name.startswith("cnn_vit")]
    found = gradients(STEPS, "32,64", ",".join(names)) + gradients(STEPS, "224", "resnet34_resnet18")
    assert not [row for row in found if strided(row) and row["layout"] == "acdb"]
    assert len(found) > 1000


OTHERS = """
import torch
from torch import nn
from torch.nn import functional as F
from kdbench.base.onednn import keep_sound

keep_sound([torch.empty(8, 6)])
images = torch.randn(2, 6, 16, 16).contiguous(memory_format=torch.channels_last)
last = torch.empty(8, 6, 1, 1, memory_format=torch.channels_last).normal_()
plain = last.clone(memory_format=torch.contiguous_format)
for x, w in ((images, plain), (images, last), (images.contiguous(), last)):
    (x, w) = x.detach().requires_grad_(), w.detach().requires_grad_()
    F.conv2d(x, w, stride=2).sum().backward()            # no module at all
    F.conv2d(x, w, stride=(2, 1)).sum().backward()
F.conv2d(images, last.requires_grad_(), stride=2, dilation=2).sum().backward()
made = nn.ConvTranspose2d(6, 6, 1, 2, output_padding=1).to(memory_format=torch.channels_last)
made(images).sum().backward()
nn.LazyConv2d(8, 1, stride=2)(images).sum().backward()
"""


@pytest.mark.parametrize("isa", ["ALL", "AVX2"])
def test_functions_transposed_and_lazy_modules_do_not_reach_it(isa):
    found = gradients(OTHERS, isa=isa)
    assert len([row for row in found if strided(row)]) == 9
    assert not [row for row in found if strided(row) and row["layout"] == "acdb"]


def test_gradients_are_those_of_double_precision():
    keep_sound(nn.Conv2d(6, 8, 1, 2).parameters())
    torch.manual_seed(0)
    net: Any
    for net in (nn.Conv2d(6, 8, 1, 2), nn.ConvTranspose2d(6, 7, 1, 2, output_padding=1), nn.Conv2d(6, 8, 1, (1, 2))):
        images = torch.randn(3, 6, 8, 8).contiguous(memory_format=LAST).requires_grad_()
        net.to(memory_format=LAST)
        wanted = torch.autograd.grad(net.double()(images.double()).square().sum(), [*net.parameters(), images])
        found = torch.autograd.grad(net.float()(images).square().sum(), [*net.parameters(), images])
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a.double(), b.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "groups", "dtype", "expected"),
    [
        (4, 1, 2, 1, torch.float32, True),
        (15, 1, 3, 1, torch.float32, True),
        (16, 1, 2, 1, torch.float32, False),
        (1, 1, 2, 1, torch.float32, False),
        (4, 1, 1, 1, torch.float32, False),
        (4, 3, 2, 1, torch.float32, False),
        (4, 1, 2, 2, torch.float32, False),
        (4, 1, 2, 1, torch.bfloat16, False),
        (4, 1, 2, 1, torch.float64, False),
    ],
)
def test_what_is_kept_from_it(channels, kernel, stride, groups, dtype, expected):
    images, weight = torch.zeros(1, channels, 8, 8, dtype=dtype), torch.zeros(8, channels, kernel, kernel)
    assert faulty(images, weight, [stride, stride], groups) is expected


COUNTED = """
import sys
import torch
from torch import nn
from kdbench.base import onednn

for made in sys.argv[1:]:
    onednn.keep_sound(eval(made).parameters())
    print(len(onednn._libraries))
"""


def test_other_convolutions_take_no_detour():
    """One detour for each gradient of a convolution costs more than all else that the engine does in a small step."""
    made = ["nn.Conv2d(16, 32, 1, 2)", "nn.Conv2d(3, 8, 3, 2)", "nn.Conv2d(4, 8, 1, 2, groups=4)", "nn.Linear(6, 8)"]
    command = [sys.executable, "-c", COUNTED, *made, "nn.LazyConv2d(8, 1, 2)"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=True)
    assert done.stdout.split() == ["0", "0", "0", "1", "1"]


def test_the_watch_names_layers_once():
    net = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 8, 1, 2), nn.ConvTranspose2d(8, 5, 1, 3))
    with Watch() as watch:
        for _ in range(2):
            net(torch.zeros(1, 3, 16, 16)).sum().backward()
        F.conv2d(torch.zeros(1, 4, 8, 8), torch.zeros(2, 4, 1, 1), stride=2)  # forward alone
    assert list(watch.layers) == ["8 -> 5 channels, stride 3", "6 -> 8 channels, stride 2"]


def test_an_own_folder_at_the_default_size_ends_well(tmp_path):
    """What crashed: the width-4 student on photographs of 224 pixels."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 8), ("val", 4)):
        for name in ("cat", "dog"):
            folder = Path(tmp_path, "photos", split, name)
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    command = [sys.executable, "-m", "kdbench", "task=classification", "data=imagefolder", "method=none"]
    command += [
        "role=student",
        "trainer.epochs=1",
        f"data.root={tmp_path}/photos",
        "data.batch_size=7",
        "data.workers=0",
    ]
    command += ["data.train=null", "data.test=null", f"results={tmp_path}/results", f"cache={tmp_path}/cache"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-2000:]}"
    (run,) = find_records(tmp_path / "results")
    assert read_record(run).status == "ok"
