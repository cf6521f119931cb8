from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kdbench.errors import KDBenchError
from kdbench.roles.sources import Network, Table, Tap, Tapped, find_module
from kdbench.task import Batch
from tests.toy import TAPS, Net, Toy


class Twin(nn.Module):
    """Calls one layer twice and gives a tuple to another."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(3, 3)
        self.join = Join()
        self.spare = nn.Linear(3, 3)

    def forward(self, x):
        return self.join(self.shared(self.shared(x)), x)[0]


class Join(nn.Module):
    def forward(self, a, b):
        return a + b, a - b


@pytest.fixture
def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("text", "tap"),
    [
        ("layer3", Tap("layer3")),
        ("backbone.blocks[-1]:input", Tap("backbone.blocks[-1]", "input")),
        ("neck:output#2", Tap("neck", "output", 2)),
        ("neck#0", Tap("neck", "output", 0)),
        ("head.cls@2:input#1", Tap("head.cls", "input", 1, 2)),
    ],
)
def test_tap_grammar(text, tap):
    assert Tap.parse(text) == tap


@pytest.mark.parametrize("text", ["", "a:outputs", "a#x", "a b", "a:input:output", "a@", "a@x"])
def test_a_malformed_tap_is_one_line(text):
    with pytest.raises(KDBenchError, match="is not of the form path") as error:
        Tap.parse(text)
    assert "\n" not in str(error.value)


def test_paths_index_into_sequences():
    net = Net(4)
    assert find_module(net, "stem[-1]") is net.stem[2]
    assert find_module(net, "stem[0]") is find_module(net, "stem.0") is net.stem[0]


@pytest.mark.parametrize("path", ["boby", r"stem\[7\]", "stem.9", r"head\[0\]"])
def test_a_wrong_path_names_the_nearest(path):
    with pytest.raises(KDBenchError, match=f"Net has no module '{path}' for a tap or part: (did you mean|available)"):
        find_module(Net(4), path.replace("\\", ""))


def test_a_typo_is_mended():
    with pytest.raises(KDBenchError, match="did you mean 'body'"):
        Network(Toy(), Net(4), {"deep": "boby"})


def test_taps_give_inputs_and_outputs_and_hooks_are_gone_afterwards(images):
    net = Net(4).eval()
    outputs, taps = Network(Toy(), net, TAPS)(images)
    assert torch.equal(taps["body"], net.body(taps["stem"]))
    assert torch.equal(outputs, net.head(taps["pooled"]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_hooks_are_gone_after_an_error():
    net = Net(4)
    with pytest.raises(RuntimeError):
        Network(Toy(), net, TAPS)(torch.zeros(2, 5, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_tap_that_is_reached_twice_or_never_is_an_error():
    with pytest.raises(KDBenchError, match="tap 'a' .* reached twice"):
        Network(Toy(), Twin(), {"a": "shared"})(torch.zeros(1, 3))
    with pytest.raises(KDBenchError, match="tap 'b' was not reached in the forward of Twin"):
        Network(Toy(), Twin(), {"b": "spare"})(torch.zeros(1, 3))


def test_a_call_picks_from_several_of_one_module():
    """A head that is shared over the levels of a pyramid."""
    x = torch.randn(1, 3, generator=torch.Generator().manual_seed(0))
    net = Twin()
    _, taps = Network(Toy(), net, {"first": "shared@1", "second": "shared@2", "read": "shared@2:input"})(x)
    assert torch.equal(taps["second"], net.shared(taps["read"]))
    assert torch.equal(taps["first"], net.shared(x))
    with pytest.raises(KDBenchError, match="tap 'third' was not reached"):
        Network(Toy(), net, {"third": "shared@3"})(x)


class Named(nn.Module):
    """Calls a module with its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = Double()

    def forward(self, x):
        return self.twice(hidden=x)


class Double(nn.Module):
    def forward(self, hidden):
        return 2 * hidden


def test_an_input_may_be_given_by_name():
    x = torch.ones(1, 3)
    _, taps = Network(Toy(), Named(), {"read": "twice:input"})(x)
    assert taps["read"] is x


def test_an_index_picks_from_several_inputs_and_outputs():
    x = torch.randn(1, 3, generator=torch.Generator().manual_seed(0))
    outputs, taps = Network(Toy(), Twin(), {"second": "join:input#1", "sum": "join#0"})(x)
    assert taps["second"] is x
    assert taps["sum"] is outputs


def test_other_parameters_take_the_place_of_the_own_ones(images):
    net = Net(4).eval()
    network, batch = Network(Toy(), net, TAPS), Batch(images, torch.zeros(2, dtype=torch.long), torch.arange(2))
    zero = network.answer(batch, {"head.weight": torch.zeros_like(net.head.weight)})
    assert torch.equal(zero.outputs, net.head.bias.expand(2, -1))
    assert torch.equal(zero.features["pooled"].values, network.answer(batch).features["pooled"].values)


def test_taps_survive_export(images):
    net = Net(4).eval()
    network = Network(Toy(), net, TAPS)
    program = torch.export.export(network, (images,))
    outputs, taps = program.module()(images)
    expected, tapped = network(images)
    torch.testing.assert_close(outputs, expected)
    for name, value in tapped.items():
        torch.testing.assert_close(taps[name], value)


def test_a_network_is_not_copied_with_its_taps():
    with pytest.raises(TypeError, match="copy the model"):
        copy.deepcopy(Network(Toy(), Net(4), TAPS))


def test_a_table_looks_up_by_sample_id():
    table = Table(torch.tensor([7, 3, 5]), torch.tensor([[7.0], [3.0], [5.0]]), Toy().describe)
    batch = Batch(None, torch.zeros(2, dtype=torch.long), torch.tensor([5, 7]))
    assert table.answer(batch).features["logits"].values.flatten().tolist() == [5.0, 7.0]
    with pytest.raises(KDBenchError, match="no sample 9"):
        table.answer(Batch(None, torch.zeros(1, dtype=torch.long), torch.tensor([9])))


@pytest.mark.parametrize("tap", ["body", "head:input", "body[0]:output"])
def test_a_tapped_model_answers_with_the_tapped_tensor(images, tap):
    net = Net(4).eval()
    tapped = copy.deepcopy(Tapped(net, tap))
    torch.testing.assert_close(tapped(images), Network(Toy(), net, {"x": tap})(images)[1]["x"])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tapped.modules())
    with pytest.raises(KDBenchError, match="no module 'bdy'"):
        Tapped(net, "bdy")


def test_a_compiled_network_gives_its_taps_and_gradients_as_before():
    net, images = Net(4, dropout=0.0).eval(), torch.randn(6, 3, 8, 8)
    batch = Batch(images, torch.zeros(6, dtype=torch.long), torch.arange(6))
    network, plain = Network(Toy(), net, TAPS), Network(Toy(), net, TAPS)
    network.compiles(backend="eager", fullgraph=True)
    network.compiles(backend="eager")  # once is enough
    for part in (batch, batch.with_inputs(images + 1)):
        found, expected = network.answer(part), plain.answer(part)
        assert found.features.keys() == expected.features.keys()
        for name, feature in expected.features.items():
            torch.testing.assert_close(found.features[name].values, feature.values)
        net(images)  # a validation: what its hooks caught is not the next answer
        grads = [
            torch.autograd.grad(a.features["stem"].values.square().sum(), [next(net.stem.parameters())])[0]
            for a in (found, expected)
        ]
        torch.testing.assert_close(*grads)
    params = {name: 2 * value for name, value in net.named_parameters()}
    assert torch.equal(network.answer(batch, params).outputs, plain.answer(batch, params).outputs)


def test_a_network_whose_taps_count_calls_is_not_compiled():
    network = Network(Toy(), Twin(), {"second": "shared@2"})
    network.compiles(backend="eager")
    assert network._compiled is None
