from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import load_file

from kdbench.distiller import channels_last
from kdbench.errors import KDBenchError
from kdbench.weights import load_weights, read_weights, save_weights
from tests.toy import Net, same


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


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"epoch": 3, "model": s}])
def test_torch_files_that_hold_tensors_are_read(tmp_path, wrap):
    state = Net(4).state_dict()
    torch.save(wrap(state), tmp_path / "net.pt")
    assert same(read_weights(tmp_path / "net.pt"), state)


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
    with pytest.raises(KDBenchError, match=r"lacks 'weight' of Linear \(2 missing\)"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "net.safetensors")
    more = Net(4)
    more.body = torch.nn.Identity()  # type: ignore[assignment]
    with pytest.raises(KDBenchError, match=r"holds 'body.0.weight', which Net does not have \(6 such\)"):
        load_weights(more, tmp_path / "net.safetensors")
    with pytest.raises(KDBenchError, match="does not exist"):
        read_weights(tmp_path / "nothing.pt")
    torch.save({"epoch": 1}, tmp_path / "empty.pt")
    with pytest.raises(KDBenchError, match="holds no state dict"):
        read_weights(tmp_path / "empty.pt")
