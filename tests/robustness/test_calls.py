"""What goes in and what comes out: several inputs, structures, constants, calls of another form than the example."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeError, CaptureError, load, transform
from anytimeify.capture.inputs import CallInputs
from anytimeify.errors import ArgumentError
from tests.robustness.helpers import SCHEME, check, close

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = self.head((self.first(x) + self.second(y)).relu())
        return result


class Positional(Two):
    def forward(
        self, x: Tensor, y: Tensor | None = None, *, mask: Tensor | None = None, scale: float = 1.0, mode: str = "mean"
    ) -> Tensor:
        y = x if y is None else y
        if mask is not None:
            x = x.masked_fill(mask[:, None], 0.0)
        return self.join(x, y) * (scale if mode == "mean" else -scale)


MASK = torch.tensor([True, False, True])


@pytest.mark.parametrize(
    "inputs",
    [
        X,
        (X,),
        (X, None),
        (X, Y),
        {"x": X, "y": Y},
        {"x": X, "y": None, "scale": 2.0, "mode": "sum"},
        {"x": X, "mask": MASK},
        CallInputs((X, Y), {"mask": MASK, "mode": "sum"}),
    ],
)
def test_optional_inputs_masks_and_constants(inputs: Any) -> None:
    check(Positional(), inputs)


def test_inputs_may_be_given_in_any_form_afterwards() -> None:
    net = transform(Positional().eval(), SCHEME, {"y": Y, "x": X, "mask": MASK})
    want = net(x=X, y=Y, mask=MASK, level=0)
    for result in (net(X, Y, mask=MASK, level=0), net(X, mask=MASK, y=Y, level=0)):
        close(result, want)
    for result in (net.extract(0)(X, Y, mask=MASK), net.extract(0)(X, mask=MASK, y=Y)):
        close(result, want)
    with pytest.raises(ArgumentError, match="input 'mask' is missing"):
        net(X, Y)
    with pytest.raises(ArgumentError, match="of which 'mask' cannot be: give it by name"):
        net(X, Y, MASK)
    with pytest.raises(TypeError, match="input 'm' is unknown"):
        net(X, Y, m=MASK)


def test_what_follows_an_input_that_was_left_out_is_given_by_name() -> None:
    net = transform(Positional().eval(), SCHEME, {"mask": MASK, "x": X})
    assert [parameter.name for parameter in net.call_signature.parameters] == ["x", "mask"]
    with pytest.raises(ArgumentError, match="of which 'mask' cannot be: give it by name"):
        net(X, MASK)
    close(net(X, mask=MASK, level=0), net(mask=MASK, x=X, level=0))


def test_constants_given_by_position_have_names(tmp_path: Path) -> None:
    net = transform(Positional().eval(), SCHEME, (X, None))
    net.save(tmp_path / "net.safetensors")
    for same in (net, load(tmp_path / "net.safetensors").eval()):
        close(same(X, y=None, level=0), same(X, level=0))
        with pytest.raises(ArgumentError, match="'y' was None"):
            same(X, y=Y)


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclasses.dataclass
class Record:
    x: Tensor
    y: Tensor
    note: Tensor | None = None


torch.export.register_dataclass(Record)


class OfPair(Two):
    def forward(self, pair: Pair) -> Tensor:
        return self.join(pair.x, pair.y)


class OfDict(Two):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.join(batch["x"], batch["rest"]["list"][0])


class OfMany(Two):
    def forward(self, *parts: Tensor) -> Tensor:
        return self.join(parts[0], parts[1])


@pytest.mark.parametrize(
    ("make", "value"), [(OfPair, Pair(X, Y)), (OfPair, Record(X, Y)), (OfDict, {"x": X, "rest": {"list": [Y]}})]
)
def test_structures_as_inputs(make: Callable[[], nn.Module], value: Any) -> None:
    check(make(), (value,))
    net = check(make(), {"pair" if make is OfPair else "batch": value})
    close(net(copy.deepcopy(value), level=0), net.extract(0)(value))


def test_any_number_of_inputs() -> None:
    check(OfMany(), (X, Y))


def test_dicts_in_another_order_are_the_same_dict() -> None:
    net = transform(OfDict().eval(), SCHEME, ({"x": X, "rest": {"list": [Y]}},))
    other = OrderedDict(rest={"list": (Y,)}, x=X)
    close(net(other, level=0), net({"x": X, "rest": {"list": [Y]}}, level=0))
    close(net.extract(0)(other), net(other, level=0))


@pytest.mark.parametrize(
    "value", [X, [X], {"x": X}, {"x": X, "rest": {"list": [Y, Y]}}, {"x": X, "rest": {"list": Y}, "more": Y}, None]
)
def test_other_structures_are_refused(value: Any) -> None:
    net = transform(OfDict(), SCHEME, ({"x": X, "rest": {"list": [Y]}},), verify=False)
    with pytest.raises(ArgumentError, match="input 'batch' has another structure"):
        net(value)


def test_a_tensor_where_a_constant_was_is_refused() -> None:
    net = transform(Positional(), SCHEME, (X, None), verify=False)
    with pytest.raises(ArgumentError, match=r"'y' was None .* cannot be a tensor of shape \(3, 4\) now"):
        net(X, Y)


class Unnamed(Two):
    def forward(self, **inputs: Tensor) -> Tensor:
        return self.join(inputs["x"], inputs["y"])


def test_unnamed_keywords_have_a_batch_too() -> None:
    net = transform(Unnamed().eval(), SCHEME, {"x": X, "y": Y})
    assert len(net(x=X[:1], y=Y[:1], level=0)) == 1


@dataclasses.dataclass
class Unknown:
    x: Tensor
    y: Tensor


def test_dataclasses_that_torch_does_not_know() -> None:
    with pytest.raises(CaptureError, match=r"OfPair takes or returns a Unknown.*register_dataclass"):
        transform(OfPair(), SCHEME, (Unknown(X, Y),))
    with pytest.raises(CaptureError, match=r"returns a Unknown, a dataclass.*register_dataclass\(Unknown\)"):
        transform(Returning(Unknown), SCHEME, X)


class Returning(nn.Module):
    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.body, self.head, self.make = nn.Linear(4, 8), nn.Linear(8, 3), make

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x).relu()
        return self.make(hidden, self.head(hidden))


@pytest.mark.parametrize(
    ("make", "output", "find"),
    [
        (lambda hidden, result: Pair(hidden, result), "y", lambda out: out.y),
        (lambda hidden, result: Record(hidden, result), "y", lambda out: out.y),
        (lambda hidden, result: [hidden, [result]], "1.0", lambda out: out[1][0]),
        (lambda hidden, result: [hidden, [result]], -1, lambda out: out[1][0]),
        (lambda hidden, result: {"a": hidden, "b": (hidden, {"c": result})}, "b.1.c", lambda out: out["b"][1]["c"]),
        (lambda hidden, result: {"hidden": hidden, "logits": result}, None, lambda out: out["logits"]),
        (lambda hidden, result: result.argmax(-1), None, lambda out: out),
    ],
)
def test_structures_as_results(make: Any, output: Any, find: Callable[[Any], Tensor]) -> None:
    check(Returning(make), X, output=output, prediction=find)


def test_results_of_transformers() -> None:
    modeling = pytest.importorskip("transformers.modeling_outputs")
    check(
        Returning(lambda hidden, result: modeling.SequenceClassifierOutput(logits=result, hidden_states=(hidden,))),
        X,
        prediction=lambda result: result.logits,
    )


class OfModelOutput(Two):
    def forward(self, given: Any) -> Tensor:
        return self.join(given.logits, given["hidden_states"][0])


def test_model_outputs_of_transformers_as_inputs() -> None:
    modeling = pytest.importorskip("transformers.modeling_outputs")
    given = modeling.SequenceClassifierOutput(logits=X, hidden_states=(Y,))
    net = check(OfModelOutput(), (given,))
    with pytest.raises(ArgumentError, match="another structure"):
        net(modeling.SequenceClassifierOutput(logits=X))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((X[:0], Y[:0]), "hold no sample"),
        ("text", "example_inputs is a str"),
        ((), "no tensor among them"),
        ((X.numpy(),), "no tensor among them.*ndarray"),
        ((X, Y, X), "takes from 2 to 3 positional arguments but 4 were given"),
    ],
)
def test_examples_that_are_none(inputs: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        transform(Positional(), SCHEME, inputs)


def test_argument_errors_are_both_kinds() -> None:
    assert issubclass(ArgumentError, AnytimeError)
    assert issubclass(ArgumentError, TypeError)
