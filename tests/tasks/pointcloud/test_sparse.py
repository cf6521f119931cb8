from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from kdbench.base import rng
from tasks.pointcloud import sparse
from tasks.pointcloud.sparse import SparseConv, SparseEncoder, Triple

SHAPE = (7, 6, 9)
STRIDED = [((3, 3, 3), (2, 2, 2), (1, 1, 1)), ((3, 3, 3), (2, 2, 2), (0, 1, 1)), ((3, 1, 1), (2, 1, 1), (0, 0, 0))]


def grid(share: float = 0.15, channels: int = 3, samples: int = 2, shape: Triple = SHAPE) -> tuple[Tensor, Tensor]:
    """Sorted keys of random sites, the corners of the grid among them, and float64 features."""
    g = rng.generator(0, "sparse")
    taken = torch.rand(samples, *shape, generator=g) < share
    taken[:, 0, 0, 0] = taken[:, -1, -1, -1] = True
    keys = taken.flatten().nonzero()[:, 0]
    return keys, torch.randn(len(keys), channels, generator=g, dtype=torch.float64)


def dense(values: Tensor, keys: Tensor, shape: Triple, samples: int = 2) -> Tensor:
    cells = values.new_zeros(samples * shape[0] * shape[1] * shape[2], values.shape[1]).index_copy(0, keys, values)
    return cells.view(samples, *shape, -1).movedim(-1, 1)


def weight(kernel: Triple, inputs: int = 3, outputs: int = 4) -> Tensor:
    return torch.randn(outputs, *kernel, inputs, generator=rng.generator(0, "weight"), dtype=torch.float64)


def check(kernel: Triple, stride: Triple, padding: Triple, subm: bool) -> None:
    keys, values = grid()
    kernels = weight(kernel)
    made = sparse.submanifold(keys, SHAPE, kernel) if subm else sparse.strided(keys, SHAPE, kernel, stride, padding)
    values.requires_grad_()
    kernels.requires_grad_()
    whole = functional.conv3d(dense(values, keys, SHAPE), kernels.movedim(-1, 1), None, stride, padding)
    assert tuple(whole.shape[2:]) == made.shape
    rows = whole.movedim(1, -1).flatten(0, 3)
    found = sparse.convolve(values, made, kernels)
    torch.testing.assert_close(found, rows[made.keys])
    if subm:
        assert made.keys.equal(keys)
    else:  # every site that is reached, and none besides
        ones = functional.conv3d(
            dense(torch.ones_like(values[:, :1]), keys, SHAPE),
            torch.ones(1, 1, *kernel).double(),
            None,
            stride,
            padding,
        )
        assert made.keys.equal(ones.flatten().nonzero()[:, 0])
    pull = torch.randn(found.shape, generator=rng.generator(0, "pull"), dtype=torch.float64)
    ours = torch.autograd.grad((found * pull).sum(), (values, kernels))
    theirs = torch.autograd.grad((rows[made.keys] * pull).sum(), (values, kernels))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (3, 1, 5)])
def test_submanifold_equals_a_dense_convolution_on_its_sites(kernel):
    check(kernel, (1, 1, 1), tuple(n // 2 for n in kernel), True)


@pytest.mark.parametrize(("kernel", "stride", "padding"), STRIDED)
def test_strided_equals_a_dense_convolution_and_has_its_sites(kernel, stride, padding):
    check(kernel, stride, padding, False)


def test_second_derivatives():
    keys, values = grid(0.05)
    rules, kernels = sparse.submanifold(keys, SHAPE), weight((3, 3, 3))
    assert torch.autograd.gradgradcheck(
        lambda v, w: sparse.convolve(v, rules, w), (values.requires_grad_(), kernels.requires_grad_())
    )


def test_keys_and_sites_are_inverse_and_sorted_by_sample_z_y_x():
    keys, _ = grid()
    cells = sparse.sites(keys, SHAPE)
    assert sparse.keys_of(cells, SHAPE).equal(keys)
    assert cells.tolist() == sorted(cells.tolist())


def test_the_birds_eye_view_stacks_z_within_channels():
    keys, values = grid()
    canvas = sparse.flatten(values, keys, SHAPE, 2)
    assert canvas.is_contiguous(memory_format=torch.channels_last)
    assert canvas.equal(dense(values, keys, SHAPE).flatten(1, 2))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("sites", [0, 1, 40])
def test_encoder_on_few_sites(sites, training):
    shape = (41, 32, 16)
    with rng.scope(0, "encoder"):
        encoder = SparseEncoder(4, (2, 4, 8, 8), 16).train(training)
    keys = torch.randint(2 * 41 * 32 * 16, (sites,), generator=rng.generator(0, "few")).sort().values.unique()
    stages = encoder(torch.ones(len(keys), 4), keys, shape)
    assert [s for _, _, s in stages] == [(41, 32, 16), (21, 16, 8), (11, 8, 4), (5, 4, 2), (2, 4, 2)]
    assert [v.shape for v, _, _ in stages] == [
        (len(k), c) for (_, k, _), c in zip(stages, (2, 4, 8, 8, 16), strict=True)
    ]
    sum(v.square().sum() for v, _, _ in stages).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert all(buffer.isfinite().all() for buffer in encoder.buffers())


def test_low_precision():
    keys, values = grid()
    layer, rules = SparseConv(3, 4), sparse.submanifold(keys, SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(values.float(), rules)
    torch.testing.assert_close(low.float(), layer(values.float(), rules), atol=0.1, rtol=0.1)


def test_weights_of_spconv_load_as_they_are():
    spconv = pytest.importorskip("spconv.pytorch", reason="an oracle that needs a package of its own")
    keys, values = grid()
    theirs = spconv.SparseConvTensor(values.float(), sparse.sites(keys, SHAPE).int(), SHAPE, 2)
    for module, rules in (
        (spconv.SubMConv3d(3, 4, 3, bias=False), sparse.submanifold(keys, SHAPE)),
        (spconv.SparseConv3d(3, 4, 3, 2, 1, bias=False), sparse.strided(keys, SHAPE, (3, 3, 3), (2, 2, 2), (1, 1, 1))),
    ):
        with torch.no_grad():
            found = module(theirs)
        order = sparse.keys_of(found.indices.long(), rules.shape).argsort()
        torch.testing.assert_close(
            sparse.convolve(values.float(), rules, module.weight).detach(), found.features[order], atol=1e-4, rtol=1e-4
        )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same():
    keys, values = grid()
    rules = sparse.strided(keys, SHAPE, (3, 3, 3), (2, 2, 2), (1, 1, 1))
    there = sparse.strided(keys.cuda(), SHAPE, (3, 3, 3), (2, 2, 2), (1, 1, 1))
    kernels = weight((3, 3, 3))
    found = sparse.convolve(values.cuda(), there, kernels.cuda())
    torch.testing.assert_close(found.cpu(), sparse.convolve(values, rules, kernels))
