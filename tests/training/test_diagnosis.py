from __future__ import annotations

from kdbench.training.diagnosis import precisions
from tests.toy import same, training, weights


def test_precisions_are_timed_and_nothing_moves(tmp_path):
    made = training(tmp_path, "KD")
    distiller = made.distiller()
    batch = made.first_batch()
    distiller.rehearse(batch)
    before = weights(distiller)
    times = precisions(distiller, batch, seconds=0.0)
    assert times.keys() == {"32-true", "bf16-mixed"}
    assert all(value > 0 for value in times.values())
    assert same(weights(distiller), before)
    assert all(parameter.grad is None for _, parameter in distiller.trainable())
