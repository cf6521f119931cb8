from __future__ import annotations

import pytest

from kdbench.splits import SHARE, cut, limited

NAMES = [f"{i:06d}" for i in range(500)]


def test_a_tenth_in_ascending_order_and_always_the_same():
    chosen = cut(NAMES)
    assert len(chosen) == round(SHARE * len(NAMES)) == 50
    assert chosen == sorted(set(chosen))
    assert chosen == cut(list(NAMES))
    # Pinned: another hash would move every validation set that was ever published.
    assert [NAMES[i] for i in chosen[:5]] == ["000006", "000016", "000029", "000036", "000039"]


def test_belongs_to_the_ids_and_not_to_their_order():
    backwards = NAMES[::-1]
    assert {backwards[i] for i in cut(backwards)} == {NAMES[i] for i in cut(NAMES)}


def test_hardly_moves_when_samples_are_added():
    before = {NAMES[i] for i in cut(NAMES[:400])}
    after = {NAMES[i] for i in cut(NAMES)}
    # A sample that is chosen among more stays chosen among fewer, but for the rounding at the edge.
    assert len(before & after) >= 30
    assert {n for n in after if n < NAMES[400]} <= {NAMES[i] for i in cut(NAMES[:400], share=0.15)}


def test_purposes_are_independent():
    both = set(cut(NAMES)) & set(cut(NAMES, purpose="meta"))
    assert 0 < len(both) < 20  # 5 are expected by chance


@pytest.mark.parametrize(("size", "count"), [(0, 0), (1, 0), (2, 1), (5, 1), (9, 1), (14, 1), (16, 2), (100, 10)])
def test_at_least_one_is_chosen_and_one_is_left(size, count):
    assert len(cut(NAMES[:size])) == count


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share(share):
    assert len(cut(NAMES[:10], share)) == {0.0: 1, 0.5: 5, 1.0: 9}[share]


def test_every_class_that_has_two_samples_is_on_both_sides():
    labels: list[object] = [i % 7 if i < 400 else i // 2 for i in range(499)]
    chosen = cut(NAMES, labels=[*labels, "alone"])
    labels.append("alone")
    several = {label for label in labels if labels.count(label) > 1}
    assert {labels[i] for i in chosen} == several
    assert {labels[i] for i in range(500) if i not in set(chosen)} == set(labels)
    # The share first; then one more for each class that it missed.
    assert len(chosen) <= 50 + len(several)


def test_labels_that_are_plentiful_change_nothing():
    assert cut(NAMES, labels=[i % 2 for i in range(500)]) == cut(NAMES)


def test_fewer_samples_are_among_more_and_keep_their_order():
    few, more = limited(NAMES, 20, "train"), limited(NAMES, 60, "train")
    assert few == sorted(few)
    assert len(few) == 20
    assert set(few) < set(more)
    assert few != limited(NAMES, 20, "test")
    assert limited(NAMES, None, "train") == limited(NAMES, 500, "train") == list(range(500))
