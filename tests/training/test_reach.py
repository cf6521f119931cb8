from __future__ import annotations

import pytest
import torch

from kdbench.errors import KDBenchError
from kdbench.training.diagnosis import reach
from tests.plugins import WEIGHTS
from tests.toy import same, training, weights

SINGLE_STAGE = sorted(set(WEIGHTS) - {"Faulty", "Rounded"})


def rehearsed(folder, method, **keys):
    trained = training(folder, method, **keys)
    distiller = trained.distiller(trained.stages[0])
    return trained, distiller, distiller.rehearse(trained.first_batch())


@pytest.mark.parametrize("method", SINGLE_STAGE)
def test_rehearsal_and_reach_change_nothing_that_trains(tmp_path, method):
    trained = training(tmp_path, method)
    networks = {name: weights(trained.cast.model(name)) for name in trained.cast.roles}
    distiller = trained.distiller(trained.stages[0])
    modes = [module.training for module in distiller.modules()]
    batch = trained.first_batch()
    stream = torch.get_rng_state()
    distiller.rehearse(batch)
    plugin = weights(distiller.plugins)
    distiller.rehearse(batch)
    reach(distiller, batch)
    assert torch.equal(torch.get_rng_state(), stream)
    for name, before in networks.items():
        assert same(weights(trained.cast.model(name)), before)
    assert same(weights(distiller.plugins), plugin)
    assert all(p.grad is None for _, p in distiller.trainable())
    assert trained.cast.passes == {}
    assert [m.training for m in distiller.modules()][: len(modes)] == modes or method in ("Hint", "Silent", "Bystander")
    assert distiller.cast.sources["student"].training
    assert distiller.plugins.training


def test_terms_come_back_with_their_values(tmp_path):
    _, _, terms = rehearsed(tmp_path, "Hint")
    assert list(terms) == ["task", "hint"]
    assert not any(value.requires_grad for value in terms.values())


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("KD", {"task": {"student"}, "kd": {"student"}}),
        ("Hint", {"task": {"student"}, "hint": {"student", "method"}}),
        (
            "Mutual",
            {"task": {"student"}, "task.peer": {"peer"}, "mutual": {"student"}, "mutual.peer": {"peer"}},
        ),
        ("Adversary", {"task": {"student"}, "hard": {"student", "method"}, "easy": {"student", "method"}}),
        ("Bilevel", {"task": {"student"}, "meta": {"student", "method"}, "inner": {"student", "method"}}),
        ("Reuse", {"task": {"student"}, "reuse": {"student", "method"}}),
        ("Bystander", {"task": {"student"}, "own": {"method"}}),
    ],
)
def test_reach_says_which_term_reaches_whom(tmp_path, method, expected):
    trained, distiller, _ = rehearsed(tmp_path, method)
    found = reach(distiller, trained.first_batch())
    assert {term: set(owners) for term, owners in found.items()} == expected
    assert found["task"]["student"] > 0


def test_reach_is_the_norm_of_the_gradient(tmp_path):
    trained, distiller, _ = rehearsed(tmp_path, "KD")
    batch = trained.first_batch()
    norm = reach(distiller, batch)["task"]["student"]
    model = trained.cast.model("student").eval()
    torch.nn.functional.cross_entropy(model(batch.inputs), batch.targets).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert norm == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("method", ["KD", "Hint"])
def test_rehearsal_costs_one_more_forward_of_each_network(tmp_path, method):
    trained = training(tmp_path, method)
    calls: list[str] = []
    for name in trained.cast.roles:
        trained.cast.model(name).register_forward_hook(lambda *_, n=name: calls.append(n))
    trained.distiller(trained.stages[0]).rehearse(trained.first_batch())
    build = 1 if method == "Hint" else 0
    assert calls.count("student") == calls.count("teacher") == 1 + build


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("idle", "no term reaches the trainable parameter method.unused"),
        ("detached", "term 'kd' reaches no trainable parameter of its update"),
        ("two owners", "method.stolen.weight and student.head.weight are one parameter"),
        ("duplicate", "two owners give a term of the same name: task"),
        ("orphan", "no update trains student.stem.0.weight"),
        ("unknown term", "an update names term 'dk': did you mean 'kd'"),
    ],
)
def test_what_cannot_train_is_one_line(tmp_path, fault, line):
    with pytest.raises(KDBenchError, match=line) as error:
        rehearsed(tmp_path, "Faulty", fault=fault)
    assert "\n" not in str(error.value)


def test_every_trainable_parameter_has_one_owner(tmp_path):
    trained, distiller, _ = rehearsed(tmp_path, "Adversary")
    named = dict(distiller.trainable())
    owners = {name.split(".")[0] for name in named}
    assert owners == {"student", "method"}
    assert len({id(p) for p in named.values()}) == len(named)
    assert sum(p.numel() for p in named.values()) == sum(
        p.numel() for p in [*trained.cast.model("student").parameters(), *trained.plugins["method"].parameters()]
    )
