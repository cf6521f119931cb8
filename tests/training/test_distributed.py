"""What the processes of a training exchange, tried with two of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kdbench.base import rng
from kdbench.base.collectives import average, normalizer, share
from kdbench.errors import KDBenchError
from kdbench.features import Activated, Feature, Logits, Nodes, Points, Values, Vector
from kdbench.roles.gathering import whole_batch, whole_feature
from kdbench.task import Batch
from kdbench.training.distributed import check_same, share_buffers
from kdbench.training.processes import Place, group, helped

CPU = torch.device("cpu")


def together(job: Callable[[], None]) -> None:
    """Runs a function of this module in a group of two processes."""
    with helped(2, functools.partial(grouped, job)) as place:
        grouped(job, place)


def grouped(job: Callable[[], None], place: Place) -> None:
    with group(place, job.__name__, CPU):
        job()


def mine(value: Tensor) -> Tensor:
    rank, size = share()
    return value[rank::size]


def a_gathered_gradient() -> None:
    """First and second derivative of a loss over the batch, against the same loss of a single process."""
    samples = torch.randn(6, 3, generator=rng.generator(0, "ddp"), dtype=torch.float64)

    def loss(weight: Tensor, rows: Tensor) -> Tensor:
        features = Vector(rows @ weight.tanh())
        values = whole_feature(features).values if len(rows) < 6 else features.values
        return (values @ values.T).softmax(1).square().sum() + values[:-1].mul(values[1:]).sum().sin()

    weights = [torch.full((3, 2), 0.3, dtype=torch.float64).requires_grad_() for _ in range(2)]
    found = []
    for weight, rows, shared in zip(weights, (samples, mine(samples)), (False, True), strict=True):
        value = loss(weight, rows)
        (first,) = torch.autograd.grad(value, weight, create_graph=True)
        if shared:
            (first,) = average([first])
        # The outer loss reads the stepped weight on this process's own rows.
        outer = (rows @ (weight - first)).square().mean()
        (second,) = torch.autograd.grad(outer, weight)
        found.append((value, first, average([second])[0] if shared else second))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-12, atol=1e-12)


def test_gradients_pass_through_what_is_gathered():
    together(a_gathered_gradient)


def whole_features() -> None:
    torch.manual_seed(0)
    values = torch.randn(6, 4, 3)
    mask, weight = values[:, 0] > 0, values[:, 1].abs().bfloat16()
    assert_same(whole_feature(Logits(mine(values), 1, mine(mask), mine(weight))), Logits(values, 1, mask, weight))
    predicted = Values(values, 1, mask, weight, "gaussian")
    assert_same(whole_feature(Values(mine(values), 1, mine(mask), mine(weight), "gaussian")), predicted)
    activated = Activated(values.relu(), (2.0,), pre=values)
    assert_same(whole_feature(Activated(mine(values.relu()), (2.0,), pre=mine(values))), activated)
    batch = Batch(values, torch.arange(6) % 3, torch.arange(6), torch.arange(6) > 2)
    names = ("targets", "ids", "supervised")
    part = batch.with_inputs(mine(values), **{name: mine(getattr(batch, name)) for name in names})
    whole = whole_batch(part)
    assert whole.inputs is whole.distilled is None
    for name in names:
        assert torch.equal(getattr(whole, name), getattr(batch, name))
    listed = ["a", {"boxes": torch.zeros(0, 4)}, "c", "d", "e", "f"]
    whole = whole_batch(replace(part, targets=listed[share()[0] :: 2]))
    assert [type(x) for x in whole.targets] == [type(x) for x in listed]
    assert whole.targets[2:] == listed[2:]
    assert whole_batch(replace(part, targets={"of": "another kind"})).targets is None
    # Three quarters of a turn of every sample, one after another, as SSKD makes them.
    thrice = Vector(torch.cat([values[:, 0], 2 * values[:, 0], 3 * values[:, 0]]))
    own = mine(values[:, 0])
    assert_same(whole_feature(Vector(torch.cat([own, 2 * own, 3 * own]))), thrice)


def padded_features() -> None:
    """Sequences that each process has padded to the longest of its own."""
    rank = share()[0]
    lengths = torch.tensor([3, 5, 2, 4])
    mask = torch.arange(5) < lengths[:, None]
    values = torch.arange(60.0).view(4, 5, 3) * mask[..., None]
    mine = slice(rank, None, 2)
    longest = int(lengths[mine].max())
    assert longest == (3, 5)[rank]
    own = Logits(values[mine, :longest], -1, mask[mine, :longest])
    whole = whole_feature(own)
    assert torch.equal(whole.values, values)
    assert torch.equal(whole.mask, mask)  # type: ignore[attr-defined]
    with pytest.raises(KDBenchError, match=r"features of the shapes \(2, 3\), \(2, 5\), expected one shape"):
        whole_feature(Vector(own.values[..., 0]))


def test_samples_may_be_padded_in_each_process():
    together(padded_features)


def assert_same(found: Feature, expected: Feature) -> None:
    assert type(found) is type(expected)
    for name, value in vars(expected).items():
        other = getattr(found, name)
        assert torch.equal(other, value) if isinstance(value, Tensor) else other == value, name


def test_a_whole_batch_is_in_the_order_of_a_single_process():
    together(whole_features)


def ragged_features() -> None:
    torch.manual_seed(0)
    rank = share()[0]
    sample = torch.tensor([0, 0, 0, 1, 3, 3])  # none of sample 2: the second process has fewer rows
    own = sample % 2 == rank
    points = Points(torch.randn(6, 2).requires_grad_(), torch.randn(6, 3), sample, torch.arange(6))
    part = Points(points.values[own], points.coords[own], sample[own] // 2, torch.arange(6)[own])
    whole = whole_feature(part)
    assert_same(whole, points)
    whole.values[4].sum().backward()
    expected = torch.zeros(6, 2)
    expected[4] = 2.0 * (rank == 1)  # both processes have a loss
    assert torch.equal(points.values.grad, expected)  # type: ignore[arg-type]

    edges = torch.tensor([[0, 1, 2, 4, 5], [1, 2, 0, 5, 4]])
    nodes = Nodes(points.values.detach(), edges, sample, torch.arange(5), sample > 0)
    number = own.cumsum(0) - 1
    kept = own[edges[0]]
    local = Nodes(nodes.values[own], number[edges[:, kept]], sample[own] // 2, torch.arange(5)[kept], (sample > 0)[own])
    assert_same(whole_feature(local), nodes)
    assert whole_feature(replace(local, edges=None, edge_values=None)).edges is None  # type: ignore[attr-defined]


def test_rows_that_know_their_sample_are_merged():
    together(ragged_features)


def small_exchanges() -> None:
    rank = share()[0]
    assert normalizer(torch.tensor(3 - 3 * rank)) == 1.5
    assert normalizer(torch.tensor(0)) == 0.5
    none, vector, scalar = average([None, torch.tensor([1.0, 2.0]) + rank, torch.tensor(4.0 * rank)])
    assert (none, vector.tolist(), scalar.item()) == (None, [1.5, 2.5], 2.0)
    module = nn.BatchNorm1d(2)
    module.get_buffer("running_mean").add_(rank + 1)
    bank = torch.full((2, 2, 2, 2), rank, dtype=torch.bfloat16)
    module.register_buffer("bank", bank.contiguous(memory_format=torch.channels_last))
    share_buffers(module)
    assert module.get_buffer("running_mean").tolist() == [1, 1]
    assert not module.get_buffer("bank").any()
    check_same(module.named_parameters())
    module.bias.data += rank
    with pytest.raises(KDBenchError, match="bias starts from other values in each process"):
        check_same(module.named_parameters())


def test_normalisers_means_and_buffers():
    together(small_exchanges)
