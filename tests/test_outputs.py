"""`Outputs`: a named tuple like any other, that says what to do where it is taken for a tensor."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import _pytree as pytree

from anytimeify import AnytimeError, Outputs

TARGET = torch.tensor([0, 2])


def outputs() -> Outputs:
    return Outputs((torch.randn(2, 3), torch.randn(2, 3)), (torch.randn(2, 3),))


@pytest.mark.parametrize(
    "call",
    [
        lambda out: nn.CrossEntropyLoss(label_smoothing=0.1)(out, TARGET),
        lambda out: nn.BCEWithLogitsLoss()(out, torch.zeros(2, 3)),
        lambda out: nn.MSELoss()(out, torch.zeros(2, 3)),
        lambda out: F.nll_loss(out, TARGET),
        lambda out: F.log_softmax(out, dim=1),
        lambda out: torch.argmax(out, 1),
        lambda out: nn.Linear(3, 2)(out),
    ],
)
def test_functions_of_torch_say_what_to_do(call: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"criterion\(out.levels\[-1\], target\).*net.loss\(out, target\)") as found:
        call(outputs())
    assert isinstance(found.value, AnytimeError)


@pytest.mark.parametrize("name", ["argmax", "softmax", "shape", "logits", "backward", "detach", "no_such_thing"])
def test_attributes_of_tensors_say_what_to_do(name: str) -> None:
    out: Any = outputs()
    assert not hasattr(out, name)
    with pytest.raises(AttributeError, match=rf"'{name}': it holds one prediction per level.*level=k") as found:
        getattr(out, name)
    assert isinstance(found.value, AnytimeError)


def test_special_names_are_just_absent() -> None:
    with pytest.raises(AttributeError, match=r"^__array__$"):
        getattr(outputs(), "__array__")  # noqa: B009  # as numpy asks


def test_a_tuple_like_any_other() -> None:
    out = outputs()
    levels, (member,) = out
    assert out.results == ()
    assert levels is out.levels
    assert out._replace(members=()).members == ()
    for other in (pickle.loads(pickle.dumps(out)), copy.deepcopy(out), pytree.tree_map(torch.clone, out)):
        assert type(other) is Outputs
        assert torch.equal(other.levels[1], out.levels[1])
        assert torch.equal(other.members[0], member)
    assert len(pytree.tree_leaves(out)) == 3
    assert torch.utils.data.default_collate([out, out]).levels[0].shape == (2, 2, 3)


def test_in_compiled_code() -> None:
    @torch.compile(backend="eager", fullgraph=True)
    def double(given: Outputs) -> tuple[Outputs, torch.Tensor]:
        return Outputs(tuple(2 * one for one in given.levels)), F.cross_entropy(given.levels[-1], TARGET)

    out = outputs()
    doubled, loss = double(out)
    assert type(doubled) is Outputs
    assert torch.equal(doubled.levels[0], 2 * out.levels[0])
    torch.testing.assert_close(loss, F.cross_entropy(out.levels[-1], TARGET))
