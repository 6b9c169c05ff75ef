"""Graphs whose code is made when it is first run."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, fx, nn

from anytimeify import NestedChannels, transform
from anytimeify.codegen.deferred import Deferred
from anytimeify.runtime.model import AnytimeModel
from tests.backbones import Residual, images


def net() -> AnytimeModel:
    return transform(Residual(), NestedChannels((0.25, 0.5, 1.0)), images(), verify=False).eval()


def has_code(graph: fx.GraphModule) -> bool:
    return type(graph).forward is not Deferred._first_forward


def test_only_what_is_run_is_made() -> None:
    model = net()
    assert not any(map(has_code, model.graphs))
    model(images(), level=1)
    assert list(map(has_code, model.graphs)) == [False, False, True, False]
    assert not has_code(model._compiled.network)


@pytest.mark.parametrize("level", [None, 0])
def test_a_compiler_sees_the_code_of_a_graph_that_was_never_run(level: int | None) -> None:
    model = net()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    found, expected = compiled(images(), level=level), copy.deepcopy(model)(images(), level=level)
    torch.testing.assert_close(found, expected)


def test_parameters_may_stand_in_for_others_at_the_first_run() -> None:
    model = net()
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {name: tensor.detach().clone() for name, tensor in state.items()}
    found = torch.func.functional_call(model, state, (images(),), {"level": 0})
    assert any(node.name.startswith("prefix_slices") for node in model.graphs[1].graph.nodes)
    torch.testing.assert_close(found, model(images(), level=0))


def test_copies_and_code() -> None:
    graph = net().graphs[1]
    expected: Tensor = copy.deepcopy(graph)(images())
    torch.testing.assert_close(graph(images()), expected)
    assert "def forward" in net().graphs[1].code
    assert "def forward" in str(net().graphs[1])


def test_a_pickled_graph_needs_no_module_of_ours() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.ops.aten.relu.default, (x,)))
    loaded = pickle.loads(pickle.dumps(Deferred.of(lambda: graph)))  # our own
    assert not isinstance(loaded, Deferred)
    assert loaded(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]


def test_a_child_may_be_called_like_a_member_of_a_lazy_module() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.initialize_parameters, self.fc = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.initialize_parameters(x).relu())  # type: ignore[no-any-return]  # a tensor

    model, x = Named(), torch.randn(2, 4)
    assert set(transform(model, NestedChannels((0.5, 1.0)), x).state_dict()) >= set(model.state_dict())
