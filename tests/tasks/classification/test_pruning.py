from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tasks.classification import pruning
from tasks.classification.pruning import Forgetting, error_norms, importance, proxy
from tests.tasks.classification.layouts import open_with


def test_forgetting_counts_what_was_right_when_it_was_last_seen():
    """Toneva et al., definition 1, by hand: rows are samples, columns the times that they are seen."""
    seen = torch.tensor(
        [
            [0, 0, 0, 0, 0],  # never learnt
            [1, 1, 1, 1, 1],  # never forgotten
            [0, 1, 0, 1, 0],  # forgotten twice
            [1, 0, 0, 0, 0],  # once, and not learnt again
            [0, 0, 0, 0, 1],
        ],
        dtype=torch.bool,
    )
    forgetting = Forgetting(6)
    stream = np.random.default_rng(0)
    for column in seen.T:
        order = torch.from_numpy(stream.permutation(5))
        for rows in order.split(2):
            forgetting.see(rows, column[rows])
    assert forgetting.scores(40).tolist() == [40, 0, 2, 1, 0, 40]


def test_el2n_is_the_norm_of_the_error_vector():
    """Paul et al., definition 2.2, sample by sample."""
    torch.manual_seed(0)
    model, images, labels = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), torch.randn(7, 3, 2, 2), torch.arange(7) % 5
    made = error_norms(model, images, labels)
    for i in range(7):
        logits = model(images[i : i + 1])[0].detach().double().numpy()
        error = np.exp(logits) / np.exp(logits).sum() - np.eye(5)[int(labels[i])]
        assert made[i] == pytest.approx(np.sqrt((error**2).sum()), rel=1e-6)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 1, 40), (1, 28, 28)])
def test_proxies_fit_every_shape(shape):
    model = proxy(shape[0], max(shape[1:]), 7)
    assert model(torch.randn(2, *shape)).shape == (2, 7)


def blobs(count: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes that are told apart by their brightness; the last ten samples carry the wrong label."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    images = torch.randn(count, 1, 6, 6, generator=generator) * 0.5 + (2.0 * labels - 1)[:, None, None, None]
    labels[-10:] = 1 - labels[-10:]
    return images, labels


@pytest.mark.parametrize("by", ["el2n", "forgetting"])
def test_wrong_labels_are_the_hardest_and_scores_are_made_alike_again(by, monkeypatch):
    monkeypatch.setitem(pruning.EPOCHS, by, 6)
    images, labels = blobs()
    before = torch.get_rng_state()
    scores = importance(images, labels, 2, by)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    np.testing.assert_array_equal(importance(images, labels, 2, by), scores)
    assert scores.shape == (120,)
    assert set(np.argsort(-scores)[:10]) == set(range(110, 120))
    if by == "el2n":
        assert 0 <= scores.min() < scores.max() <= np.sqrt(2)


def test_scores_are_made_once_and_pick_the_hardest(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setitem(pruning.EPOCHS, "el2n", 2)
    from tasks.classification import data

    def counted(*arguments, **options):
        calls.append(importance(*arguments, **options))
        return calls[-1]

    monkeypatch.setattr(data, "importance", counted)
    whole = open_with(tmp_path, source="digits", labels=300)
    half = open_with(tmp_path, source="digits", labels=300, keep={"fraction": 0.5, "by": "el2n"})
    fifth = open_with(tmp_path, source="digits", labels=300, keep={"fraction": 0.2, "by": "el2n"})
    assert len(calls) == 1
    assert half.sizes["train"] == 150
    assert set(fifth.train.rows) < set(half.train.rows) < set(whole.train.rows)
    kept = np.isin(whole.train.rows, half.train.rows)
    assert calls[0][kept].min() >= calls[0][~kept].max()
    other = open_with(tmp_path, source="digits", labels=200, keep={"fraction": 0.5, "by": "el2n"})
    assert len(calls) == 2
    assert len({whole.digest, half.digest, fifth.digest, other.digest}) == 4
    np.testing.assert_array_equal(half.val.rows, whole.val.rows)


def test_random_pruning_needs_no_proxy_and_is_nested(tmp_path):
    whole, half, fifth = (
        open_with(tmp_path, source="digits", labels=300, keep={"fraction": fraction}) for fraction in (1.0, 0.5, 0.2)
    )
    assert [i.sizes["train"] for i in (whole, half, fifth)] == [300, 150, 60]
    assert set(fifth.train.rows) < set(half.train.rows) < set(whole.train.rows)
    assert not list(tmp_path.iterdir())
    few = open_with(tmp_path, source="digits", labels=300, keep={"fraction": 0.04})
    assert few.sizes["train"] == 12
