from __future__ import annotations

import pytest
import torch

from kdbench.base import rng
from kdbench.errors import KDBenchError
from kdbench.functional.symbolic import accepted


def by_search(scores: list[float], checked: list[int], right: list[bool], recall: float) -> list[bool]:
    """The highest of all thresholds that reaches the recall."""
    own = [scores[place] for place, good in zip(checked, right, strict=True) if good]
    for threshold in sorted(scores, reverse=True):
        if own and sum(score >= threshold for score in own) >= recall * len(own):
            return [score >= threshold for score in scores]
    return [False] * len(scores)


@pytest.mark.parametrize("recall", [0.1, 0.5, 0.8, 1.0])
def test_it_is_the_threshold_of_a_search(recall):
    g = rng.generator(0, "accepted")
    for _ in range(5):
        scores = torch.randn(30, generator=g, dtype=torch.float64)
        checked = torch.randperm(30, generator=g)[:12]
        right = torch.rand(12, generator=g) < 0.5
        expected = by_search(scores.tolist(), checked.tolist(), right.tolist(), recall)
        # The threshold of the search may be the score of a text that was not checked; both part the checked ones alike.
        found = accepted(scores, checked, right, recall)
        assert found[checked].tolist() == [expected[place] for place in checked]
        assert not (torch.tensor(expected) & ~found).any()
        assert scores[found].min() == scores[checked][right][found[checked][right]].min()


def test_scores_count_by_their_order_alone():
    g = rng.generator(1, "accepted")
    scores = torch.randn(20, generator=g)
    given = torch.arange(8), torch.rand(8, generator=g) < 0.6, 0.5
    assert torch.equal(accepted(scores, *given), accepted(scores.exp(), *given))
    low = scores.bfloat16()
    assert accepted(low, *given).dtype == torch.bool
    strict, loose = (accepted(scores, *given[:2], recall) for recall in (0.3, 0.9))
    assert not (strict & ~loose).any()


def test_what_has_nothing_right_and_what_is_empty():
    none = torch.zeros(2, dtype=torch.bool)
    assert not accepted(torch.ones(3), torch.tensor([0, 1]), none, 0.5).any()
    assert accepted(torch.ones(0), torch.zeros(0, dtype=torch.long), none[:0], 0.5).shape == (0,)
    assert accepted(torch.ones(1), torch.tensor([0]), ~none[:1], 0.5).tolist() == [True]
    for recall in (0.0, 1.1):
        with pytest.raises(KDBenchError, match="expected above 0 and at most 1"):
            accepted(torch.ones(3), torch.tensor([0]), ~none[:1], recall)
