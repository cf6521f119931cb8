from __future__ import annotations

import itertools
import weakref
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from kdbench.base import rng
from kdbench.base.weights import save_weights
from kdbench.data import SeededLoader
from kdbench.errors import KDBenchError
from kdbench.features import Logits
from kdbench.optim import cosine
from kdbench.roles.sources import Table
from kdbench.training.distiller import follow
from kdbench.training.fit import Training
from kdbench.training.layout import channels_last
from tests.plugins import kl
from tests.toy import Data, Net, Patterns, Toy, collate, recipe, same, training, weights


class Each(Callback):
    """Calls a function after each step, before the engine's own work at its end."""

    def __init__(self, step=lambda distiller, index: None, start=lambda distiller, index: None) -> None:
        self.step, self.start = step, start

    def on_train_batch_start(self, trainer, module, batch, index):
        self.start(module, index)

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.step(module, index)


def run(folder, method=None, callbacks=(), **keys):
    """Trains and returns the training, its manifest and the student's final weights."""
    trained = training(folder, method, **keys)
    manifest = trained.run(folder, callbacks)
    return trained, manifest, weights(trained.cast.model("student"))


def by_hand(trained, epochs=2, mutual=False):
    """The same training written as a plain loop: KD, or DML when ``mutual``; returns the networks."""
    student = trained.cast.model("student")
    other = trained.cast.model("peer" if mutual else "teacher")
    for net in (student, other):
        channels_last(net)
    student.train()
    other.train(mutual)
    other.requires_grad_(mutual)
    loader = trained.data.train_dataloader()
    pairs = []
    for net in (student, other) if mutual else (student,):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        pairs.append((net, optimizer, cosine(optimizer, epochs * len(loader), warmup=0.2)))
    step = 0

    def answer(net, batch):
        name = "student" if net is student else "peer"
        if net.training:
            torch.manual_seed(rng.derive(0, "forward", name, "main", step))
        return net(batch.inputs)

    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            for net, optimizer, scheduler in pairs:
                mine = answer(net, batch)
                theirs = answer(other if net is student else student, batch).detach()
                loss = nn.functional.cross_entropy(mine, batch.targets) + kl(mine, theirs)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 0.5)
                optimizer.step()
                scheduler.step()
            step += 1
    return student, other


@pytest.mark.parametrize("method", ["KD", "Mutual"])
def test_the_engine_is_a_plain_loop(tmp_path, method):
    trained, _, student = run(tmp_path / "engine", method, clip=0.5)
    plain, other = by_hand(training(tmp_path / "loop", method), mutual=method == "Mutual")
    for name, tensor in weights(plain).items():
        torch.testing.assert_close(student[name], tensor, rtol=1e-5, atol=1e-6)
    if method == "Mutual":
        for name, tensor in weights(other).items():
            torch.testing.assert_close(weights(trained.cast.model("peer"))[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["KD", "Hint"])
@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_automatic_and_manual_path_give_the_same_weights(tmp_path, method, schedule):
    keys = {"clip": 0.3, "scheduler": {"_target_": f"kdbench.optim.{schedule}"}}
    paths = []
    for manual in (False, True):
        trained, _, student = run(tmp_path / str(manual), method, manual=manual, **keys)
        paths.append(student | weights(trained.plugins["method"]))
    assert same(*paths)
    assert not same(paths[0], run(tmp_path / "free", method, scheduler=keys["scheduler"])[2])


def test_both_paths_clip_gradients_that_are_scaled_alike(tmp_path, monkeypatch):
    """16-mixed with its scaler, on the CPU, where Lightning makes the scaler of a GPU."""

    def trainer(*, precision, **keys):
        scaler: Any = torch.amp.GradScaler("cpu")
        return Trainer(plugins=[MixedPrecision(precision, "cpu", scaler=scaler)], **keys)

    monkeypatch.setattr("kdbench.training.fit.Trainer", trainer)
    automatic, manual = (
        run(tmp_path / str(manual), "KD", clip=0.3, manual=manual, precision="16-mixed")[2] for manual in (False, True)
    )
    for name, tensor in automatic.items():
        torch.testing.assert_close(manual[name], tensor, rtol=1e-3, atol=1e-5)


def test_parameters_may_have_an_optimizer_of_their_own_by_glob(tmp_path):
    frozen = {"_target_": "torch.optim.SGD", "lr": 0.0}
    trained = training(tmp_path, "Mutual", optimizers={"student.head": frozen, "peer": frozen})
    student, peer = (trained.cast.model(role) for role in ("student", "peer"))
    before = dict(weights(student)), {name: p.detach().clone() for name, p in peer.named_parameters()}
    trained.run(tmp_path)
    after = weights(student)
    assert all(torch.equal(p, before[1][name]) for name, p in peer.named_parameters())
    assert {name for name, value in after.items() if torch.equal(value, before[0][name])} == {
        "head.weight",
        "head.bias",
    }


class Smooth(Net):
    """Without batch norm and dropout, so that two halves of a batch are the batch."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__(width, 0.0)
        for block in (self.stem, self.body):
            block[1] = nn.Identity()


class SmoothToy(Toy):
    batch = 16

    def build(self, architecture):
        return Smooth(**architecture)

    def data(self, seed):
        loader = SeededLoader(Patterns(64, "train"), self.batch, seed, collate, train=True)
        data = Data(seed)
        data.train_dataloader = lambda without_meta=False: loader  # type: ignore[method-assign]
        return data


class HalfBatches(SmoothToy):
    batch = 8


@pytest.mark.parametrize(("method", "manual"), [(None, False), ("KD", False), ("KD", True), ("Balanced", True)])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, method, manual, clip):
    found = []
    for task, accumulate in ((SmoothToy(), 1), (HalfBatches(), 2)):
        folder = tmp_path / str(accumulate)
        folder.mkdir()
        with rng.scope(7, "teacher"):
            save_weights(Smooth(8), folder / "teacher.safetensors")
        made = recipe(method, accumulate=accumulate, clip=clip, manual=manual, precision="64-true")
        trained = Training(made, task, {"teacher": folder / "teacher.safetensors"})
        trained.run(folder)
        found.append(weights(trained.cast.model("student")))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-5, atol=1e-6)


def test_a_period_and_a_moving_average_count_steps_and_not_batches(tmp_path):
    trained = training(tmp_path, "Adversary", epochs=1, accumulate=2)
    shifts: list[torch.Tensor] = []
    trained.run(tmp_path, [Each(lambda d, i: shifts.append(trained.plugins["method"].shift.detach().clone()))])
    moved = [
        i
        for i, (a, b) in enumerate(itertools.pairwise([torch.full_like(shifts[0], 0.01), *shifts]))
        if not torch.equal(a, b)
    ]
    assert moved == [1]  # of two steps of two batches the first, with its last batch
    averaged = training(tmp_path / "ema", "MeanTeacher", epochs=1, accumulate=2)
    average = averaged.cast.model("ema").head.weight
    seen: list[torch.Tensor] = []
    averaged.run(tmp_path / "ema", [Each(start=lambda d, i: seen.append(average.detach().clone()))])
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_an_owner_may_have_its_own_optimizer(tmp_path):
    frozen = {"_target_": "torch.optim.SGD", "lr": 0.0}
    trained = training(tmp_path, "Hint", optimizer={"_target_": "torch.optim.AdamW", "lr": 1e-2})
    trained.recipe.plugins["method"].given["optimizer"] = frozen
    distiller = trained.distiller()
    distiller.rehearse(trained.first_batch())
    assert not distiller.automatic_optimization
    student, method = weights(trained.cast.model("student")), weights(trained.plugins["method"])
    trained.run(tmp_path)
    assert same(method, weights(trained.plugins["method"]))
    assert not same(student, weights(trained.cast.model("student")))


@pytest.mark.parametrize("method", ["KD", "Hint", "Twice", "Adversary", "Reuse", "Bank", "Bilevel"])
def test_a_frozen_teacher_is_bitwise_unchanged_and_in_eval_mode(tmp_path, method):
    trained = training(tmp_path, method)
    teacher = trained.cast.model("teacher")
    before = weights(teacher)
    modes: set[bool] = set()

    def look(distiller, index):
        modes.update(m.training for m in teacher.modules())
        assert trained.cast.model("student").training

    trained.run(tmp_path, [Each(look, look)])
    assert same(weights(teacher), before)
    assert modes == {False}
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize(("method", "expected"), [("KD", 1), ("Twice", 1), ("Privileged", 1), ("Silent", 0)])
def test_a_frozen_teacher_runs_once_a_step_and_not_for_terms_that_weigh_nothing(tmp_path, method, expected):
    trained = training(tmp_path, method)
    calls = {"teacher": 0, "steps": 0}

    def start(distiller, index):
        if calls["steps"] == 0:
            trained.cast.model("teacher").register_forward_hook(lambda *_: calls.update(teacher=calls["teacher"] + 1))
        calls["steps"] += 1

    manifest = trained.run(tmp_path, [Each(start=start)])
    assert calls == {"teacher": 8 * expected, "steps": 8}
    assert manifest["cost"]["teacher_passes"] == expected
    assert manifest["cost"]["student_passes"] == (2 if method == "Twice" else 1)


def test_a_ramp_costs_no_teacher_before_it_starts(tmp_path):
    trained = training(tmp_path, "KD")
    trained.recipe.plugins["method"].given["weights"] = {"kd": {"value": 1.0, "ramp": 0.5}}
    manifest = trained.run(tmp_path)
    assert manifest["cost"]["teacher_passes"] == 7 / 8
    assert manifest["terms"]["kd"]["weight"] == 1.0


@pytest.mark.parametrize("method", ["Silent", "Bystander"])
def test_student_and_twin_agree_whatever_modules_a_method_adds(tmp_path, method):
    """Same first weights, samples, augmentation and dropout masks: with no term on the student, the same student."""
    seen: dict[str, list[torch.Tensor]] = {}

    def watched(name, method):
        trained = training(tmp_path / name, method)
        student = trained.cast.model("student")
        first = weights(student)
        seen[name] = []

        def start(distiller, index):
            if not seen[name]:
                student.register_forward_hook(lambda m, x, y: seen[name].append(x[0].clone()) if m.training else None)
                student.dropout.register_forward_hook(lambda m, x, y: seen[name].append(y == 0) if m.training else None)

        trained.run(tmp_path / name, [Each(start=start)])
        return first, weights(student)

    (first_a, last_a), (first_b, last_b) = watched("twin", None), watched("student", method)
    assert same(first_a, first_b)
    assert len(seen["twin"]) == len(seen["student"]) == 16
    assert all(torch.equal(a, b) for a, b in zip(seen["twin"], seen["student"], strict=True))
    assert any(bool(mask.any()) for mask in seen["twin"][::2])
    assert same(last_a, last_b)


def test_the_seed_moves_weights_and_order(tmp_path):
    one, other = training(tmp_path, None, seed=0), training(tmp_path, None, seed=1)
    assert not torch.equal(one.cast.model("student").head.weight, other.cast.model("student").head.weight)
    assert not torch.equal(one.first_batch().ids, other.first_batch().ids)


@pytest.mark.parametrize("method", ["Mutual", "Balanced", "Adversary"])
def test_an_update_moves_and_sees_the_gradients_of_its_own_parameters_alone(tmp_path, method, monkeypatch):
    from kdbench.training.distiller import Distiller

    plain, moved = Distiller._step, []

    def checked(self, indices, losses, batch_idx):
        mine = {p for i in indices for p in self.plan.updates[i].params}
        before = {n: (p.detach().clone(), None if p.grad is None else p.grad.clone()) for n, p in self._named.items()}
        plain(self, indices, losses, batch_idx)
        changed = {n for n, p in self._named.items() if not torch.equal(p, before[n][0])}
        assert changed
        assert changed <= mine
        moved.append(frozenset(n.split(".")[0] for n in changed))
        for name, parameter in self._named.items():
            grad = before[name][1]
            now = parameter.grad
            kept = now is grad is None or (now is not None and grad is not None and torch.equal(now, grad))
            assert name in mine or kept

    monkeypatch.setattr(Distiller, "_step", checked)
    run(tmp_path, method, epochs=1)
    s, p, m = frozenset({"student"}), frozenset({"peer"}), frozenset({"method"})
    assert moved == {"Mutual": [s, p] * 4, "Balanced": [s | p] * 4, "Adversary": [m, s, s] * 2}[method]


def test_a_negative_coefficient_ascends(tmp_path):
    """The augmentor's first step is along the gradient of its term, up to the optimizer's rate and decay."""
    trained = training(tmp_path, "Adversary", epochs=1)
    distiller, batch = trained.distiller(), trained.first_batch()
    distiller.rehearse(batch)
    shift = trained.plugins["method"].shift
    with distiller.at_rest():
        (uphill,) = torch.autograd.grad(distiller.every_term(batch)["method"]["hard"], shift)
    first = shift.detach().clone()
    steps: list[torch.Tensor] = []
    trained.run(tmp_path, [Each(lambda d, i: steps.append(shift.detach() - first))])
    rate = 0.1 / 2  # the first of its two steps, in the warm-up
    torch.testing.assert_close(steps[0], rate * (uphill - 1e-3 * first), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize(("method", "due"), [("Adversary", [0, 2]), ("Occasional", [2])])
def test_updates_follow_their_period_or_condition(tmp_path, method, due):
    shifts = []
    trained = training(tmp_path, method, epochs=1)
    trained.run(tmp_path, [Each(lambda d, i: shifts.append(trained.plugins["method"].shift.detach().clone()))])
    first = torch.full_like(shifts[0], 0.01)
    moved = [i for i, (a, b) in enumerate(zip([first, *shifts], shifts, strict=False)) if not torch.equal(a, b)]
    assert moved == due


def test_a_mode_holds_for_one_group(tmp_path):
    modes = []
    trained = training(tmp_path, "Adversary", epochs=1)
    trained.cast.model("student").register_forward_pre_hook(lambda m, _: modes.append(m.training))
    trained.run(tmp_path)
    # Rehearsal; step 0: shifted in eval mode, then plain and shifted in train mode; step 1: the last two; …
    assert modes[: modes.index(False, 10)][-10:] == [False, True, True, True, True] * 2


def test_a_moving_average_follows_the_student(tmp_path):
    trained = training(tmp_path, "MeanTeacher", epochs=1)
    student, average = trained.cast.model("student"), trained.cast.model("ema")
    assert same(weights(student), weights(average))
    expected, seen = weights(student), []

    def step(distiller, index):
        for name, tensor in weights(student).items():
            moves = name in dict(student.named_parameters())
            expected[name] = expected[name].lerp(tensor, 0.1) if moves else tensor
        seen.append(average.training)

    trained.run(tmp_path, [Each(step)])
    for name, tensor in weights(average).items():
        torch.testing.assert_close(tensor, expected[name])
    assert seen == [False] * 4
    assert not same(weights(student), weights(average))


def test_follow_keeps_the_average_without_graph():
    a: Any = nn.BatchNorm1d(2)
    b: Any = nn.BatchNorm1d(2)
    b.weight.data.fill_(3.0)
    b.running_mean.fill_(7.0)
    follow(a, b, 0.75)
    assert a.weight.tolist() == [1.5, 1.5]
    assert a.running_mean.tolist() == [7.0, 7.0]


def test_a_bank_holds_the_features_of_the_samples_it_saw(tmp_path):
    trained, _, _ = run(tmp_path, "Bank", epochs=1)
    bank = trained.plugins["method"].bank
    assert bank.shape[0] == 64
    assert bool((bank.abs().sum(1) > 0).all())
    loader = trained.data.train_dataloader()
    loader.sampler.set_epoch(0)
    batch = next(iter(loader))
    expected = trained.cast.sources["teacher"].answer(batch).features["pooled"].values
    torch.testing.assert_close(bank[batch.ids], expected)


def test_a_table_can_be_the_teacher(tmp_path):
    trained = training(tmp_path, "KD", epochs=1)
    table = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    trained.cast.sources["teacher"] = Table(torch.arange(64), table, Toy().describe)
    distiller = trained.distiller()
    batch = trained.first_batch()
    terms = distiller.rehearse(batch)
    student = trained.cast.model("student").eval()
    torch.testing.assert_close(terms["kd"], kl(student(batch.inputs), table[batch.ids]).detach())
    manifest = trained.run(tmp_path)
    assert manifest["cost"]["teacher_passes"] == 0
    assert manifest["terms"]["kd"]["last"] > 0


def test_a_role_reads_its_own_view(tmp_path):
    trained = training(tmp_path, "Privileged")
    distiller, batch = trained.distiller(), trained.first_batch()
    terms = distiller.rehearse(batch)
    student, teacher = trained.cast.model("student").eval(), trained.cast.model("teacher")
    torch.testing.assert_close(terms["kd"], kl(student(batch.inputs), teacher(2 * batch.inputs)).detach())


def test_bilevel_learns_its_gate_on_the_meta_batch(tmp_path):
    trained, manifest, _ = run(tmp_path, "Bilevel")
    assert trained.plugins["method"].gate.item() != 0.0
    assert set(manifest["terms"]) == {"meta", "inner"}
    # Each step: the student on train and stepped on meta, then on train; the teacher once for both groups.
    assert manifest["cost"]["student_passes"] == 3
    assert manifest["cost"]["teacher_passes"] == 1


def test_no_graph_outlives_its_step(tmp_path):
    refs: list[weakref.ref] = []
    alive: list[bool] = []
    trained = training(tmp_path, "Hint")
    student = trained.cast.model("student")
    student.register_forward_hook(lambda m, x, y: refs.append(weakref.ref(y)))

    def start(distiller, index):
        alive.extend(ref() is not None for ref in refs)

    trained.run(tmp_path, [Each(start=start)])
    assert len(alive) > 8
    assert not any(alive)


@pytest.mark.parametrize("method", ["KD", "Mutual", "Bilevel", "Adversary"])
def test_mixed_precision_trains(tmp_path, method):
    trained = training(tmp_path, method, precision="bf16-mixed")
    dtypes = set()
    student = trained.cast.model("student")
    student.register_forward_hook(lambda m, x, y: dtypes.add(y.dtype) if m.training else None)
    first = weights(student)
    trained.run(tmp_path)
    assert dtypes == {torch.bfloat16}
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in student.parameters())
    assert not any(torch.equal(first[n], p) for n, p in student.named_parameters())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_later_group_sees_the_weights_that_an_earlier_one_stepped(tmp_path, precision):
    """One layer after the images, because batch norm would move what comes out of a stale layer."""
    trained = training(tmp_path, "Twice", precision=precision, epochs=1)
    first, outputs = trained.cast.model("student").stem[0], []
    first.register_forward_hook(lambda m, x, y: outputs.append((x[0], y.detach().clone())) if m.training else None)
    trained.run(tmp_path)
    assert len(outputs) == 8
    for (images, before), (again, after) in zip(outputs[::2], outputs[1::2], strict=True):
        assert torch.equal(images, again)
        assert not torch.equal(before, after)


def test_gradients_do_not_leak_into_features_of_fixed_roles(tmp_path):
    trained = training(tmp_path, "KD")
    distiller = trained.distiller()
    signals = distiller.probe(trained.first_batch())
    logits = signals.feature("logits", "teacher")
    assert isinstance(logits, Logits)
    assert not logits.values.requires_grad
    assert signals.feature("logits", "student").values.requires_grad


def test_channels_last_leaves_volumes_alone():
    net: Any = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv3d(3, 2, 3), nn.Linear(2, 2))
    before = weights(net)
    channels_last(net)
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert net[1].weight.is_contiguous()
    assert same(weights(net), before)


def test_a_distiller_that_nobody_rehearsed_does_so_as_it_begins(tmp_path):
    """It draws nothing and trains nothing: the weights are those of one that was rehearsed before."""
    found = []
    for rehearsed in (True, False):
        trained = training(tmp_path, "Hint")
        distiller = trained.distiller()
        if rehearsed:
            distiller.rehearse(trained.first_batch())
        fit = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
        fit.fit(distiller, trained.data.train_dataloader())
        found.append(weights(distiller))
    assert same(*found)
    assert any(name.startswith("plugins.method.project") for name in found[0])


@pytest.mark.parametrize(("key", "own"), [("gradient_clip_val", "clip"), ("accumulate_grad_batches", "accumulate")])
def test_several_updates_are_not_clipped_or_accumulated_by_the_trainer(tmp_path, key, own):
    trained = training(tmp_path, "Mutual")
    options: dict[str, Any] = {key: 2}
    fit = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    with pytest.raises(KDBenchError, match=rf"Optimization\({own}=…\), not the Trainer's$"):
        fit.fit(trained.distiller(), trained.data.train_dataloader())
