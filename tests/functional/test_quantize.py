"""The quantiser against a plain float64 one, and what must hold of any."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench import functional as K
from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.quantize import Scaling

BITS = (1, 2, 3, 4, 8)
SHAPES = [(5,), (7, 3), (4, 3, 3, 3), (1,), (300,)]


def weights(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=rng.generator(0, "quantize", *shape), dtype=torch.float64).to(dtype)


def quantized(values: Tensor, points: Tensor, bucket: int | None, scaling: Scaling = "linear") -> tuple[Tensor, Tensor]:
    """Values and indices, by all steps of the library."""
    ranges = K.bucket_ranges(values, bucket, scaling)
    codes = K.nearest_points(K.scale_to_unit(values, ranges, bucket), points)
    return K.from_points(codes, points, ranges, bucket).view(values.shape), codes


def reference(values: Tensor, points: list[float], bucket: int | None, scaling: Scaling) -> np.ndarray:
    """One weight after another, in Python's floats, from the equations: sc(v), the nearest point, sc^-1."""
    flat = [float(v) for v in values.reshape(-1)]
    size = bucket or len(flat)
    found = []
    for start in range(0, len(flat), size):
        part = flat[start : start + size]
        if scaling == "linear":
            beta, alpha = min(part), max(part) - min(part)
        else:
            beta, alpha = -max(map(abs, part)), 2 * max(map(abs, part))
        if alpha < 1e-10:
            beta, alpha = beta if scaling == "linear" else 0.0, 1.0
        for v in part:
            _, nearest = min((abs(p - (v - beta) / alpha), p) for p in points)
            found.append(beta + alpha * nearest)
    return np.array(found).reshape(tuple(values.shape))


@pytest.mark.parametrize("scaling", ["linear", "absmax"])
@pytest.mark.parametrize("bucket", [None, 4, 256])
@pytest.mark.parametrize("bits", BITS)
def test_it_is_the_reference(bits, bucket, scaling):
    for shape in SHAPES:
        values = weights(*shape)
        uniform = [j / (2**bits - 1) for j in range(2**bits)]
        found, _ = quantized(values, K.uniform_points(2**bits).double(), bucket, scaling)
        expected = reference(values, uniform, bucket, scaling)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)  # uniform_points is float32


def test_given_points_are_the_reference_too():
    points = torch.tensor([0.0, 0.05, 0.3, 0.31, 0.9], dtype=torch.float64)
    for bucket in (None, 3):
        values = weights(5, 8)
        found, _ = quantized(values, points, bucket)
        np.testing.assert_allclose(found, reference(values, points.tolist(), bucket, "linear"), rtol=0, atol=1e-12)


def test_quantiles_are_numpys():
    unit = weights(101).sigmoid()
    for levels in (2, 4, 7, 256):
        expected = np.quantile(unit.numpy(), np.arange(levels) / (levels - 1))
        np.testing.assert_allclose(K.quantile_points(unit, levels), expected, rtol=0, atol=1e-6)
    assert K.quantile_points(torch.tensor([0.25]), 4).tolist() == [0.25] * 4


# ---- invariants --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", ["linear", "absmax"])
@pytest.mark.parametrize("bits", BITS)
def test_a_bucket_has_few_values_and_quantising_again_changes_no_bit(bits, scaling):
    for shape, bucket in itertools.product(SHAPES, (None, 7, 256)):
        values = weights(*shape, dtype=torch.float32) * 10
        points = K.uniform_points(2**bits)
        once, _ = quantized(values, points, bucket, scaling)
        for part in once.reshape(-1).split(bucket or values.numel()):
            assert len(part.unique()) <= 2**bits
        twice, _ = quantized(once, points, bucket, scaling)
        assert torch.equal(once, twice)
        assert once.abs().max() <= values.abs().max()


def test_quantising_again_within_the_same_ranges_changes_no_bit_for_any_points():
    values, points = weights(3, 50, dtype=torch.float32), torch.tensor([0.1, 0.2, 0.55, 0.8])
    ranges = K.bucket_ranges(values, 16)
    once = K.from_points(K.nearest_points(K.scale_to_unit(values, ranges, 16), points), points, ranges, 16)
    again = K.from_points(K.nearest_points(K.scale_to_unit(once, ranges, 16), points), points, ranges, 16)
    assert torch.equal(once, again)


def test_eight_bits_are_near():
    values = weights(1000)
    found, _ = quantized(values, K.uniform_points(256), 256)
    assert (found - values).abs().max() <= (values.max() - values.min()) / 255 / 2 + 1e-6


@pytest.mark.parametrize("points", [torch.tensor([0.0, 0.2, 0.7, 1.0]), torch.arange(4) / 3])
def test_random_rounding_is_unbiased_and_goes_to_neighbours(points):
    unit = torch.tensor([0.0, 0.1, 0.2, 0.45, 0.95, 1.0])
    draws = 40_000
    generator = rng.generator(0, "rounding")
    codes = K.random_points(unit.repeat(draws), points, generator).view(draws, -1)
    mean = points[codes].double().mean(0)
    error = 4 * points[codes].double().std(0) / math.sqrt(draws)
    assert ((mean - unit).abs() <= error + 1e-6).all()
    for value, drawn in zip(unit, codes.T, strict=True):
        near = points[drawn.unique()]
        assert ((near - value).abs() <= points.diff().max()).all()
        assert not [p for p in points if min(near) < p < max(near)]


def test_random_rounding_is_the_generators_and_stays_within_the_points():
    points, unit = K.uniform_points(4), weights(500).float()
    first, again = (K.random_points(unit, points, rng.generator(3, "rounding")) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, K.random_points(unit, points, rng.generator(4, "rounding")))
    assert first.min() == 0
    assert first.max() == 3
    assert (first[unit < 0] == 0).all()
    assert (first[unit > 1] == 3).all()
    same = torch.tensor([0.5, 0.5])  # points that have met
    assert torch.equal(K.random_points(torch.tensor([0.5]), same, rng.generator(0, "rounding")), torch.tensor([0]))


def test_the_straight_through_gradient_is_that_of_the_quantised_weights():
    values = weights(4, 9).requires_grad_()
    before = values.detach().clone()
    found, _ = quantized(values, K.uniform_points(4), 5)
    through = K.straight_through(values, found)
    assert torch.equal(through, found)
    at_quantised = found.detach().requires_grad_()
    (expected,) = torch.autograd.grad(at_quantised.pow(3).sum(), at_quantised)
    (got,) = torch.autograd.grad(through.pow(3).sum(), values)
    assert torch.equal(got, expected)
    assert torch.equal(values, before)


def test_the_gradient_of_the_points_is_that_of_finite_differences():
    values, factor = weights(6, 11), weights(66)
    points = torch.tensor([0.05, 0.3, 0.62, 0.97], dtype=torch.float64)
    ranges = K.bucket_ranges(values, 8)
    codes = K.nearest_points(K.scale_to_unit(values, ranges, 8), points)

    def loss(p: Tensor) -> Tensor:
        return (factor * K.from_points(codes, p, ranges, 8)).square().sum()

    assert torch.autograd.gradcheck(loss, points.clone().requires_grad_())
    leaf = points.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(leaf), leaf)
    low, high = ranges
    width = (high - low).repeat_interleave(8)[:66]
    outer = 2 * factor.square() * K.from_points(codes, points, ranges, 8)
    expected = torch.stack([(outer * width)[codes == j].sum() for j in range(4)])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scaling", ["linear", "absmax"])
@pytest.mark.parametrize("value", [0.0, 1.0, -3.25, 1e9, -1e-12])
def test_constant_weights_stay_what_they_are(value, scaling):
    for dtype in (torch.float32, torch.float64):
        values = torch.full((3, 5), value, dtype=dtype)
        found, _ = quantized(values, K.uniform_points(2), 4, scaling)
        assert ((found - values).abs() <= (1e-10 if abs(value) < 1e-10 else 0.0)).all()
        assert torch.equal(quantized(found, K.uniform_points(2), 4, scaling)[0], found)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_does_not_become_one(bad):
    values = weights(10)
    values[3] = bad
    found, _ = quantized(values, K.uniform_points(4), 5)
    assert not found[:5].isfinite().all()
    assert found[5:].isfinite().all()


def test_no_weights_are_one_line():
    with pytest.raises(KDBenchError, match="no weight to quantise: the tensor is empty"):
        K.bucket_ranges(torch.zeros(0, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    values = weights(40).to(dtype)
    found, _ = quantized(values, K.uniform_points(4), 16)
    assert found.isfinite().all()
    assert (found - values).abs().max() <= (values.max() - values.min()) / 3


# ---- points of tensors -------------------------------------------------------------------------------------------


def test_points_go_by_the_norms():
    assert K.share_points([3.0, 1.0, 0.0], 8) == [4 + 9, 4 + 3, 4]
    assert K.share_points([1.0, 1.0, 1.0], 16) == [16] * 3
    assert K.share_points([0.0, 0.0], 4) == [4, 4]
    assert K.share_points([], 4) == []
    assert K.share_points([1.0, 0.0], 2) == [2, 2]  # there is nothing to share


def test_no_tensor_gets_more_than_an_index_can_tell_and_none_is_lost():
    generator = np.random.default_rng(rng.derive(0, "share"))
    for levels, count in itertools.product((2, 4, 8, 16, 256), (1, 2, 7, 60)):
        norms = generator.lognormal(0, 3, count).tolist()
        found = K.share_points(norms, levels)
        assert sum(found) == levels * count
        assert max(found) <= 256
        assert min(found) >= max(2, levels // 2)
        ordered = [points for _, points in sorted(zip(norms, found, strict=True))]
        assert ordered == sorted(ordered)
    assert K.share_points([1.0, 1e-9, 1e-9], 200) == [256, 172, 172]


# ---- size --------------------------------------------------------------------------------------------------------


def cost(counts: list[int]) -> int:
    """Bits of a whole text under its Huffman code: the sum of all sums that are merged."""
    heap, total = [c for c in counts if c], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


@pytest.mark.parametrize("bits", BITS)
def test_the_huffman_code_is_between_entropy_and_bits_and_can_be_read(bits):
    values = weights(4000)
    _, codes = quantized(values, K.uniform_points(2**bits), 256)
    counts = torch.bincount(codes, minlength=2**bits).tolist()
    mean = K.mean_code_length(counts)
    entropy = -sum(n / 4000 * math.log2(n / 4000) for n in counts if n)
    assert entropy - 1e-12 <= mean <= min(bits, entropy + 1)
    assert mean == pytest.approx(cost(counts) / 4000)
    lengths = K.huffman_lengths(counts)
    assert sum(2.0**-length for length, n in zip(lengths, counts, strict=True) if n) == 1  # Kraft: a full prefix code
    assert [length for length, n in zip(lengths, counts, strict=True) if not n] == [0] * counts.count(0)


def test_a_text_of_one_symbol_takes_no_bits():
    assert K.mean_code_length([0, 7]) == 0
    assert K.mean_code_length([]) == 0


def test_bytes_are_the_papers():
    """Its compression ratio, 32 k / (k b + 64) of full buckets of k weights."""
    for bits, bucket in itertools.product((2, 4, 8), (64, 256)):
        weights = 100 * bucket
        ratio = 32 * bucket / (bucket * bits + 64)
        assert 4 * weights / K.quantized_bytes(bits, weights, 100) == pytest.approx(ratio)
    assert K.quantized_bytes(2, 8, 1, apart=3) == 2 + 8 + 12


@pytest.mark.parametrize("bits", range(1, 9))
def test_packed_indices_are_read_back(bits):
    for count in (0, 1, 7, 8, 1001):
        codes = torch.randint(0, 2**bits, (count,), generator=rng.generator(0, "pack", bits, count))
        packed = K.pack_bits(codes, bits)
        assert packed.dtype == torch.uint8
        assert len(packed) == math.ceil(count * bits / 8)
        assert torch.equal(K.unpack_bits(packed, bits, count), codes)
        text = "".join(f"{byte:08b}" for byte in packed.tolist())
        assert [int(text[i * bits : (i + 1) * bits], 2) for i in range(count)] == codes.tolist()


def test_codes_count_as_they_occur():
    _, codes = quantized(weights(50), K.uniform_points(4), None)
    assert Counter(codes.tolist()) == Counter({i: n for i, n in enumerate(torch.bincount(codes).tolist()) if n})
