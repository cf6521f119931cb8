"""``CriterionMiniBatchCrossImagePair`` and ``StudentSegContrast`` of winycg/CIRKD (the authors'), run outside of this
repository on features of (2, 8, 12, 24), (3, 16 and 32, 12, 12) and (1, 4 and 9, 7, 5), gave the same, in one chunk and
in many: of a batch to 8e-8 (theirs is summed in float32; gradients 8e-9) in float64, 1e-7 (8e-7) in float32, of a
memory of 300 to 2e-16 (6e-16) and 9e-8 (4e-7); of a batch of three their rings hold the same regions and start as
ours."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional import cirkd as module
from kdbench.functional.cirkd import cross_image_loss, draw_places, memory_loss, ring_places
from kdbench.functional.numerics import unit
from tests.functional.checks import check_autocast, check_empty, check_low_precision


def noise(*shape: int, name: str = "") -> torch.Tensor:
    return torch.randn(shape, generator=rng.generator(0, "cirkd", name, *shape), dtype=torch.float64)


def divergence(student: np.ndarray, teacher: np.ndarray, t: float) -> float:
    """KL of one row of similarities."""
    p_s, p_t = (np.exp(x / t) / np.exp(x / t).sum() for x in (student, teacher))
    return float(sum(p * np.log(p / q) for p, q in zip(p_t, p_s, strict=True)))


@pytest.mark.parametrize("shape", [(1, 2, 3, 4), (3, 4, 2, 3, 2), (2, 3, 3, 2, 1, 3)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("chunk", [1, 10**6])
def test_of_a_batch_it_matches_the_equations(shape, temperature, chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    b, c_s, c_t, *space = shape
    student, teacher = noise(b, c_s, *space, name="s"), noise(b, c_t, *space, name="t")
    rows = [[f / np.linalg.norm(f, axis=0) for f in x.flatten(2).numpy()] for x in (student, teacher)]
    losses = []
    for i, j in np.ndindex(b, b):
        s, t = (side[i].T @ side[j] for side in rows)
        losses += [divergence(a, c, temperature) for a, c in zip(s, t, strict=True)]
    assert cross_image_loss(student, teacher, temperature).item() == pytest.approx(float(np.mean(losses)), rel=1e-9)


@pytest.mark.parametrize("chunk", [1, 12, 10**6])
def test_of_a_memory_it_matches_the_equations(chunk, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    student, teacher, memory = (unit(noise(n, 4, name=name)) for n, name in ((7, "s"), (7, "t"), (5, "m")))
    s, t = ((x @ memory.T).numpy() for x in (student, teacher))
    expected = np.mean([divergence(a, b, 0.1) for a, b in zip(s, t, strict=True)])
    assert memory_loss(student, teacher, memory).item() == pytest.approx(float(expected), rel=1e-9)


def test_chunks_change_no_gradient(monkeypatch):
    student, teacher = noise(2, 3, 4, 2, name="s").requires_grad_(), noise(2, 5, 4, 2, name="t")
    rows = (unit(noise(6, 3, name=n)) for n in ("a", "b", "c"))
    leaf, taught, memory = next(rows).requires_grad_(), *rows

    def gradients() -> list[torch.Tensor]:
        of_batch = torch.autograd.grad(cross_image_loss(student, teacher), student)
        return [*of_batch, *torch.autograd.grad(memory_loss(leaf, taught, memory), leaf)]

    whole = gradients()
    monkeypatch.setattr(module, "_CHUNK", 40)
    torch.testing.assert_close(gradients(), whole)
    assert torch.autograd.gradcheck(lambda s: cross_image_loss(s, teacher, 0.5), (student,))
    assert torch.autograd.gradcheck(lambda s: memory_loss(s, taught, memory, 0.5), (leaf,))


def test_invariants():
    student, teacher = noise(3, 2, 3, 3, name="s"), noise(3, 4, 3, 3, name="t")
    value = cross_image_loss(student, teacher)
    torch.testing.assert_close(cross_image_loss(student[[2, 0, 1]], teacher[[2, 0, 1]]), value)
    torch.testing.assert_close(cross_image_loss(5 * student, teacher.flip(1)), value)
    assert cross_image_loss(student, 2 * student) == pytest.approx(0, abs=1e-12)
    rows, memory = unit(noise(4, 3)), unit(noise(6, 3, name="m"))
    assert memory_loss(rows, rows, memory) == pytest.approx(0, abs=1e-12)
    other = unit(noise(4, 3, name="other"))
    torch.testing.assert_close(memory_loss(rows, other, memory.flip(0)), memory_loss(rows, other, memory))


def test_places_are_drawn_among_the_allowed_once_each():
    allowed = torch.tensor([[True] * 6, [False, True, False, True, False, True], [False] * 6])
    counts: list[Counter[int]] = [Counter() for _ in allowed]
    for draw in range(600):
        places, there = draw_places(allowed, 4, rng.generator(0, "choose", draw))
        assert places.shape == there.shape == (3, 4)
        assert there.sum(1).tolist() == [4, 3, 0]
        for row, (p, t) in enumerate(zip(places, there, strict=True)):
            chosen = p[t].tolist()
            assert len(set(chosen)) == len(chosen)
            counts[row].update(chosen)
    assert set(counts[1]) == {1, 3, 5}
    assert all(abs(n - 400) < 60 for n in counts[0].values())
    assert not counts[2]
    assert draw_places(allowed, 99, rng.generator(0, "draw_places"))[0].shape == (3, 6)


def test_rings_are_those_of_a_plain_loop():
    size, classes = 5, 3
    rings = [[-1] * size for _ in range(classes)]
    starts, queue, start = [0] * classes, torch.full((classes, size), -1), torch.zeros(classes, dtype=torch.long)
    for step in range(12):
        draw = rng.generator(0, "ring", step)
        there = torch.rand(classes, 8, generator=draw) < 0.5
        entries = torch.randint(100, (classes, 8), generator=draw)
        for k in range(classes):
            for value, present in zip(entries[k].tolist(), there[k].tolist(), strict=True):
                if present:
                    rings[k][starts[k]] = value
                    starts[k] = (starts[k] + 1) % size
        places, kept, start = ring_places(start, there, size)
        rows = torch.arange(classes)[:, None].expand_as(places)
        assert len({*zip(rows[kept].tolist(), places[kept].tolist(), strict=True)}) == int(kept.sum())
        queue[rows[kept], places[kept]] = entries[kept]
        assert queue.tolist() == rings
        assert start.tolist() == starts


def test_low_precision_and_no_rows():
    student, teacher = noise(2, 6, 4, 4, name="s").float(), noise(2, 6, 4, 4, name="t").float()
    check_low_precision(cross_image_loss, student, teacher, rel=0.05)
    check_autocast(cross_image_loss, student, teacher)
    check_empty(cross_image_loss, (0, 3, 4, 4), (0, 5, 4, 4))
    rows = [unit(noise(9, 6, name=n)).float() for n in ("s", "t", "m")]
    check_low_precision(memory_loss, *rows, rel=0.05)
    check_empty(memory_loss, (0, 6), (0, 6), rows[2])
    with pytest.raises(KDBenchError, match="cross_image_loss: the student has shape"):
        cross_image_loss(student, teacher[..., 1:])
