from __future__ import annotations

import pytest

from kdbench.functional.hard import next_turn


def test_a_phase_goes_on_until_it_has_found_enough():
    turn, seen = (True, 0), []
    for apart in (0.1, 0.3, 0.5, 0.7, 0.7, 0.4, 0.31, 0.29, 0.1):
        exploring, taken = turn
        seen.append(exploring)
        turn = next_turn(exploring, taken + exploring, apart)
    assert seen == [True] * 4 + [False] * 4 + [True]


def test_a_teacher_that_changes_its_mind_ends_it():
    assert next_turn(True, 1, 0.1, stray=0.61) == (False, 0)
    assert next_turn(False, 0, 0.1, stray=0.61) == (True, 0)  # which is of an earlier phase


@pytest.mark.parametrize("most", [1, 3, 20])
def test_a_phase_has_a_number_of_steps(most):
    turn, steps = (True, 0), 0
    while turn[0]:
        steps += 1
        turn = next_turn(True, turn[1] + 1, 0.0, most=most)
    assert steps == most


def test_a_loss_that_is_not_finite_begins_nothing():
    assert next_turn(False, 0, float("nan")) == (False, 0)
