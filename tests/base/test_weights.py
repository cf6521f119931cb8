from __future__ import annotations

import argparse
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdbench.base.weights import load_weights, read_weights, save_weights
from kdbench.errors import KDBenchError
from kdbench.training.layout import channels_last
from tests.toy import Net, same, weights


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_round_trip_under_plain_names(tmp_path):
    net = Net(4)
    channels_last(net)
    save_weights(net, tmp_path / "net.safetensors")
    assert same(load_file(tmp_path / "net.safetensors"), net.state_dict())
    other = Net(4)
    load_weights(other, tmp_path / "net.safetensors")
    assert same(other.state_dict(), net.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def prefixed(prefix: str, **others: torch.Tensor):
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()} | others


def others(state):
    return {name: tensor + 1 for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: s, ""),
        (lambda s: {"state_dict": s}, "entry 'state_dict'"),
        (lambda s: {"epoch": 240, "model": s, "best_acc": torch.tensor(72.5)}, "entry 'model'"),
        (lambda s: {"net": s}, "entry 'net'"),
        (lambda s: {"model_state_dict": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, "entry 'model_st"),
        (lambda s: {"checkpoint": {"ema": s}}, "entry 'checkpoint.ema'"),
        (lambda s: {"model": s, "ema": dict(s)}, "entry 'model'"),
        (prefixed("module."), "names without 'module.'"),
        (prefixed("model._orig_mod."), "names without '_orig_mod.', 'model.'"),
        (prefixed("module.", n_averaged=torch.tensor(3)), "names without 'module.', left out n_averaged"),
        (lambda s: {"state_dict": prefixed("student.")(s) | others(prefixed("loss.")(s))}, None),
        (lambda s: {n.replace("body.", "body.module."): t for n, t in s.items()}, "names without 'module.'"),
        (lambda s: {n: t for n, t in s.items() if "num_batches" not in n}, "num_batches_tracked from 0"),
        (lambda s: {"state_dict": s, "best": np.float64(72.5), "mean": np.ones(3)}, "entry 'state_dict'"),
        (lambda s: {"model": s, "args": argparse.Namespace(lr=0.1), "out": Path("out")}, "entry 'model'"),
        (lambda s: {n: t.half() if t.is_floating_point() else t for n, t in s.items()}, ""),
    ],
)
def test_what_trainings_put_around_weights_is_seen_through_and_said(tmp_path, wrap, said):
    net = Net(4)
    state = {n: t.half().float() if t.is_floating_point() else t for n, t in net.state_dict().items()}
    torch.save(wrap(state), tmp_path / "net.pt")
    if said is None:  # two fit
        with pytest.raises(KDBenchError, match=r"that fit Net: state_dict.loss, state_dict.student: choose one") as two:
            load_weights(net, tmp_path / "net.pt")
        assert f"init_from={tmp_path / 'net.pt'}::state_dict.student" in str(two.value)
        said = "entry 'state_dict', names without 'student.'"
        assert load_weights(net, tmp_path / "net.pt", "student").startswith(said)
    else:
        assert load_weights(net, tmp_path / "net.pt").startswith(said)
    assert same(net.state_dict(), state)


def test_of_several_state_dicts_that_fit_the_user_chooses(tmp_path):
    net, path = Net(4), tmp_path / "net.pt"
    state = weights(net)
    torch.save({"model": state, "ema": others(state), "teacher": Net(8).state_dict()}, path)
    with pytest.raises(KDBenchError, match=r"several state dicts that fit Net: model, ema: choose one"):
        load_weights(net, path)
    assert load_weights(net, path, "ema") == "entry 'ema'"
    assert same(net.state_dict(), others(state))
    with pytest.raises(KDBenchError, match=r"has no entry 'emma': did you mean 'ema'"):
        load_weights(net, path, "emma")
    with pytest.raises(KDBenchError, match=r"::teacher: 'stem.0.weight' has shape \(8, 3, 3, 3\)"):
        load_weights(net, path, "teacher")


def test_of_parts_that_wrap_a_prefix_of_the_models_own_names_nothing_is_taken_away(tmp_path):
    net = torch.nn.ModuleDict({"module": torch.nn.Linear(2, 2)})
    state = weights(net)
    save_weights(net, tmp_path / "net.safetensors")
    load_weights(net, tmp_path / "net.safetensors")
    assert same(net.state_dict(), state)


@pytest.mark.parametrize("name", ["head.weight", "stem.1.running_mean"])
def test_weights_that_are_no_numbers_are_refused(tmp_path, name):
    net = Net(4)
    state = weights(net)
    state[name].view(-1)[:3] = float("nan")
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(KDBenchError, match=f"{name!r} holds 3 values that are no numbers .* diverged"):
        load_weights(net, tmp_path / "net.pt")


def test_other_classes_are_called_so_and_integers_are_no_weights(tmp_path):
    net, state = Net(4), Net(4).state_dict()
    torch.save(state | {"head.weight": torch.ones(100, 4), "head.bias": torch.ones(100)}, tmp_path / "net.pt")
    with pytest.raises(KDBenchError, match=r"'head' has 100 outputs, Net here has 5: it was trained on other classes"):
        load_weights(net, tmp_path / "net.pt")
    torch.save(state | {"head.weight": torch.ones(5, 4, dtype=torch.int8)}, tmp_path / "net.pt")
    with pytest.raises(KDBenchError, match=r"'head.weight' is of torch.int8, Net expects torch.float32"):
        load_weights(net, tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1104\n", "is a pointer of git-lfs"),
        (b"\n<!DOCTYPE html><html>sign in</html>", "is a web page"),
        (struct.pack("<Q", 1 << 40) + b"{}", "is no whole safetensors file .*header too large"),
        (None, "is no whole safetensors file .*incomplete metadata"),
    ],
)
def test_what_is_no_whole_weights_file_is_said(tmp_path, content, said):
    save_weights(Net(2), tmp_path / "whole.safetensors")
    cut = (tmp_path / "whole.safetensors").read_bytes()[:-100]
    for name in ("net.safetensors", "net.pth"):
        (tmp_path / name).write_bytes(content or cut)
        with pytest.raises(KDBenchError, match=said):
            read_weights(tmp_path / name)


def test_a_whole_pickled_model_is_refused_by_the_name_of_its_class(tmp_path):
    torch.save(Net(2), tmp_path / "net.pt")
    with pytest.raises(KDBenchError, match=r"without pickle \(it holds tests.toy.Net\): save the model's state_dict"):
        read_weights(tmp_path / "net.pt")


@pytest.mark.parametrize("name", ["net.pt", "net.pkl", "net.ckpt", "net.safetensors"])
@pytest.mark.parametrize("how", ["pickle", "torch", "legacy"])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, name, how):
    flag, path = tmp_path / "executed", tmp_path / name
    if how == "pickle":
        path.write_bytes(pickle.dumps({"w": Bomb(flag)}))
    else:
        torch.save({"w": Bomb(flag)}, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(KDBenchError, match="is not a weights file that can be read without pickle") as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert not flag.exists()


@pytest.mark.parametrize("content", [b"", b"\x80", b"not weights", b"PK\x03\x04garbage", bytes(range(256)) * 8])
def test_damaged_files_are_one_line(tmp_path, content):
    for name in ("net.pt", "net.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(KDBenchError, match=name):
            read_weights(tmp_path / name)


def test_every_truncation_is_one_line(tmp_path):
    torch.save(Net(2).state_dict(), tmp_path / "whole.pt")
    torch.save(Net(2).state_dict(), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    for name in ("whole.pt", "legacy.pt"):
        data = (tmp_path / name).read_bytes()
        for share in range(1, 40):
            (tmp_path / "cut.pt").write_bytes(data[: len(data) * share // 40])
            with pytest.raises(KDBenchError, match="cut.pt"):
                read_weights(tmp_path / "cut.pt")


def test_what_does_not_fit_names_the_first_difference(tmp_path):
    save_weights(Net(4), tmp_path / "net.safetensors")
    with pytest.raises(KDBenchError, match=r"'stem.0.weight' has shape \(4, 3, 3, 3\), Net expects \(8, 3, 3, 3\)"):
        load_weights(Net(8), tmp_path / "net.safetensors")
    with pytest.raises(KDBenchError, match=r"lacks 'scale' of ParameterDict \(1 missing; it holds body"):
        load_weights(torch.nn.ParameterDict({"scale": torch.ones(1)}), tmp_path / "net.safetensors")
    more = Net(4)
    more.body = torch.nn.Identity()  # type: ignore[assignment]
    with pytest.raises(KDBenchError, match=r"holds 'body.0.weight', which Net does not have \(5 such\)"):
        load_weights(more, tmp_path / "net.safetensors")
    with pytest.raises(KDBenchError, match="does not exist"):
        read_weights(tmp_path / "nothing.pt")
    torch.save({"epoch": 1}, tmp_path / "empty.pt")
    with pytest.raises(KDBenchError, match="holds no state dict"):
        read_weights(tmp_path / "empty.pt")
