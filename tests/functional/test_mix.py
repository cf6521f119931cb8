from __future__ import annotations

import math

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.mix import box_masks, distributions, known_mixture, mean_share, mix, spectral_saliency


def drawn(*shape: int, name: str = "") -> torch.Tensor:
    return torch.rand(shape, generator=rng.generator(0, "mix", name, *shape), dtype=torch.float64)


@pytest.mark.parametrize("size", [(), (7,), (4, 5)])
@pytest.mark.parametrize("by_position", [False, True])
def test_a_mixture_is_that_of_a_plain_loop(size, by_position):
    values, order = drawn(3, 2, *size), torch.tensor([2, 0, 1])
    own = drawn(3, *size, name="own") if by_position else drawn(3, name="own")
    found = mix(values, order, own)
    for i in range(3):
        for c in range(2):
            for place in torch.ones(size).nonzero().tolist() or [[]]:
                a = float(own[(i, *place)] if by_position else own[i])
                here, there = float(values[(i, c, *place)]), float(values[(int(order[i]), c, *place)])
                assert float(found[(i, c, *place)]) == pytest.approx(a * here + (1 - a) * there, abs=1e-12)


def test_the_gradient_comes_to_samples_and_shares():
    values, own = drawn(4, 3, 2).requires_grad_(), drawn(4, name="own").requires_grad_()
    assert torch.autograd.gradcheck(lambda v, a: mix(v, torch.tensor([1, 2, 3, 0]), a), (values, own))


def test_a_mixture_keeps_the_type_of_its_samples():
    assert mix(torch.ones(2, 1, dtype=torch.bfloat16), torch.tensor([1, 0]), torch.rand(2)).dtype == torch.bfloat16
    assert mix(torch.ones(0, 3, 4), torch.zeros(0, dtype=torch.long), torch.ones(0)).shape == (0, 3, 4)


def test_shares_of_another_shape_are_one_line():
    with pytest.raises(
        KDBenchError, match=r"found shares \(3,\) of values \(2, 1, 4\), expected one a sample or a pos"
    ):
        mix(torch.ones(2, 1, 4), torch.tensor([1, 0]), torch.ones(3))


@pytest.mark.parametrize("size", [(1, 40), (16, 16), (9, 32), (6, 5, 4)])
def test_boxes_are_those_of_a_plain_loop(size):
    own, centre = drawn(5, name="own"), drawn(5, len(size), name="centre")
    found = box_masks(size, own, centre)
    axes = sum(n > 1 for n in size)
    for i in range(5):
        for place in torch.ones(size).nonzero().tolist():
            inside = True
            for axis, length in enumerate(size):
                if length > 1:
                    side = math.floor((1 - float(own[i])) ** (1 / axes) * length)
                    low = math.floor(float(centre[i, axis]) * length) - side // 2
                    inside &= low <= place[axis] < low + side
            assert float(found[(i, *place)]) == float(not inside)


def test_a_box_in_the_middle_has_its_share_and_none_without_one():
    middle = torch.full((1, 2), 0.5)
    assert float(mean_share(box_masks((64, 64), torch.tensor([0.75]), middle))) == 0.75
    assert float(mean_share(box_masks((1, 64), torch.tensor([0.75]), middle))) == 0.75
    assert float(mean_share(box_masks((8, 8), torch.tensor([1.0]), middle))) == 1.0
    assert float(mean_share(box_masks((8, 8), torch.tensor([0.0]), middle))) == 0.0


def test_targets_as_distributions():
    classes = torch.tensor([[0, 2], [255, -1]])
    found, known = distributions(classes, 3)
    assert known.tolist() == [[True, True], [False, False]]
    assert found.shape == (2, 3, 2)
    assert found[0].T.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert not found[1].any()
    again, still = distributions(found, 3)
    assert again is found
    assert torch.equal(still, known)


def test_a_mixture_is_known_where_its_parts_are():
    known, order = torch.tensor([True, False, True]), torch.tensor([1, 2, 0])
    assert known_mixture(known, order, torch.tensor([0.5, 0.5, 0.5])).tolist() == [False, False, True]
    assert known_mixture(known, order, torch.tensor([1.0, 0.0, 0.5])).tolist() == [True, True, True]


def test_saliency_is_that_of_a_plain_transform_and_finds_what_stands_out():
    images = 0.01 * drawn(2, 3, 24, 32)
    images[0, :, 5, 20] = 1
    images[1, :, 17, 8] = 1
    found = spectral_saliency(images, blur=1.0)
    assert found.shape == (2, 24, 32)
    assert [divmod(int(i), 32) for i in found.flatten(1).argmax(1)] == [(5, 20), (17, 8)]
    numpy = pytest.importorskip("numpy")
    ndimage = pytest.importorskip("scipy.ndimage")
    for image, one in zip(images, found, strict=True):
        spectrum = numpy.fft.fft2(image.mean(0).float().numpy())
        log = numpy.log(numpy.abs(spectrum))
        residual = log - ndimage.uniform_filter(log, 3, mode="nearest")
        raw = numpy.abs(numpy.fft.ifft2(numpy.exp(residual + 1j * numpy.angle(spectrum)))) ** 2
        expected = ndimage.gaussian_filter(raw, 1.0, mode="nearest", radius=3)
        numpy.testing.assert_allclose(one.numpy(), expected / expected.max(), atol=2e-4)


def test_a_constant_image_has_a_finite_saliency():
    assert spectral_saliency(torch.zeros(1, 1, 8, 8)).isfinite().all()
    assert spectral_saliency(torch.ones(1, 1, 1, 8)).isfinite().all()
