"""ONNX files: their bytes, fields of their messages, and tensors in files beside them changed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import torch
from onnx import helper, numpy_helper
from torch import nn

from anytimeify.capture import Source, resolve
from anytimeify.errors import AnytimeError
from tests.fuzz.loader import Case, Loader, Results
from tests.fuzz.mutations import CANARY, NUMBERS, TEXTS, mutate_bytes, mutate_text

__all__ = ["LOADER"]

Message = Any  # of protobuf


def _branch(name: str) -> onnx.GraphProto:
    nodes = [helper.make_node("Relu" if name == "yes" else "Neg", ["h"], [name])]
    return helper.make_graph(nodes, name, [], [helper.make_empty_tensor_value_info(name)])


def _model() -> onnx.ModelProto:
    """Layers, sizes that are computed, a branch, a recurrent layer, and a tensor that lies beside the file."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Shape", ["c"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["c", "target"], ["h"]),
        helper.make_node("Size", ["n"], ["count"]),
        helper.make_node("Cast", ["count"], ["is"], to=onnx.TensorProto.BOOL),
        helper.make_node("If", ["is"], ["i"], then_branch=_branch("yes"), else_branch=_branch("no")),
        helper.make_node("GRU", ["i", "W", "R"], ["", "g"], hidden_size=2, linear_before_reset=1),
        helper.make_node("Resize", ["c", "", "scales"], ["r"], mode="linear"),
        helper.make_node("ReduceMean", ["r"], ["m"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["m", "beside"], ["y"]),
    ]
    tensors = {
        "w": rng.random((4, 2, 3, 3), np.float32),
        "b": rng.random(4, np.float32),
        "zero": np.array([0]),
        "one": np.array([1]),
        "rest": np.array([4, 16]),
        "W": rng.random((1, 6, 16), np.float32),
        "R": rng.random((1, 6, 2), np.float32),
        "scales": np.array([1, 1, 2, 1.5], np.float32),
    }
    own = [numpy_helper.from_array(value, name) for name, value in tensors.items()]
    beside = onnx.TensorProto(
        name="beside", data_type=onnx.TensorProto.FLOAT, dims=[4, 3], data_location=onnx.TensorProto.EXTERNAL
    )
    for key, value in (("location", "weights.bin"), ("offset", "8"), ("length", "48")):
        beside.external_data.add(key=key, value=value)
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("y", "g")]
    given = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2, 4, 4])]
    made = helper.make_graph(nodes, "graph", given, outputs, [*own, beside])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _make(folder: Path) -> None:
    original = folder / "original"
    original.mkdir()
    (original / "model.onnx").write_bytes(_model().SerializeToString(deterministic=True))
    np.arange(20, dtype=np.float32).tofile(original / "weights.bin")


def _mutate(random: Random, originals: Path, folder: Path) -> Case:
    original = originals / "original"
    data, beside = (original / "model.onnx").read_bytes(), (original / "weights.bin").read_bytes()
    way = random.choice(("bytes", "message", "message", "message", "beside"))
    if way == "bytes":
        data, what = mutate_bytes(random, data)
    elif way == "beside":
        beside, what = mutate_bytes(random, beside)
    else:
        model = onnx.ModelProto.FromString(data)
        what = "; ".join(_in_message(random, model) for _ in range(random.choice((1, 1, 2))))
        data = model.SerializeToString(deterministic=True)
    (folder / "model.onnx").write_bytes(data)
    (folder / "weights.bin").write_bytes(beside)
    return Case(folder / "model.onnx", "original", f"{way}: {what}", sealed=True)  # a protobuf has no checksums


def _in_message(random: Random, message: Message) -> str:
    """A field, found by going down from the model."""
    path = []
    while True:
        field = random.choice([one for one, _ in message.ListFields()] or list(message.DESCRIPTOR.fields))
        path.append(field.name)
        value = getattr(message, field.name)
        repeated = not isinstance(value, str | bytes | int | float) and not hasattr(value, "ListFields")
        inner: Message = random.choice(value) if repeated and len(value) else None if repeated else value
        if hasattr(inner, "ListFields") and (random.random() < 0.9 or not repeated):
            message = inner
            if not inner.ListFields():
                return ".".join(path)
            continue
        with contextlib.suppress(ValueError, TypeError, UnicodeEncodeError):  # what the field cannot hold
            if repeated:
                _in_list(random, value)
            else:
                setattr(message, field.name, _other(random, value))
        return ".".join(path)


def _in_list(random: Random, values: Any) -> None:
    place = random.randrange(len(values)) if len(values) else 0
    way = random.choice(("drop", "double", "swap", "value"))
    if not len(values) or way == "drop":
        del values[place : place + 1]
    elif way == "double":
        values.append(values[place])
    elif hasattr(values[place], "ListFields"):
        values[place].CopyFrom(random.choice(values))
    else:
        values[place] = _other(random, values[place])


def _other(random: Random, value: Any) -> Any:
    if isinstance(value, str):
        return random.choice((mutate_text(random, value), random.choice(TEXTS), "../weights.bin", "/etc/passwd", "9"))
    if isinstance(value, bytes):
        return mutate_bytes(random, value)[0]
    small = random.choice((value + 1, value - 1, random.randrange(32), value ^ 1 if isinstance(value, int) else 0.5))
    return random.choice((small, random.choice(NUMBERS)))


def _load(path: Path) -> Source:
    source = resolve(path / "model.onnx" if path.is_dir() else path)
    with contextlib.suppress(AnytimeError):
        _run(source)
    return source


def _run(source: Source) -> Any:
    assert isinstance(source.model, nn.Module)
    with torch.no_grad(), contextlib.suppress(RuntimeError, ValueError, TypeError, IndexError, ArithmeticError):
        return source.model.eval()(*source.example_inputs.args) if source.example_inputs is not None else None


def _results(source: Source) -> Results:
    assert isinstance(source.model, nn.Module)
    found = _run(source)
    outputs = found if isinstance(found, dict) else {}
    return {**outputs, **{name: tensor.detach() for name, tensor in source.model.state_dict().items()}}


def _crafted(what: str) -> Any:
    def craft(originals: Path, folder: Path) -> Case:
        model = _model()
        CRAFTED[what](model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        (folder / "weights.bin").write_bytes((originals / "original" / "weights.bin").read_bytes())
        return Case(folder / "model.onnx", "original", "made by hand", sealed=True)

    return craft


def _outside(model: Message) -> None:
    model.graph.initializer[-1].external_data[0].value = "../original/weights.bin"


def _names(model: Message) -> None:
    """Names that would be code, were they ever more than names."""
    for node in model.graph.node:
        node.name = CANARY
    model.graph.input[0].name = model.graph.node[0].input[0] = CANARY
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "__class__"
    model.graph.initializer[1].name = model.graph.node[0].input[2] = "forward.__globals__"


def _enormous(model: Message) -> None:
    """A tensor of sizes alone, larger than any memory."""
    sizes = numpy_helper.from_array(np.array([1 << 20, 1 << 20, 1 << 10]), "sizes")
    model.graph.initializer.append(sizes)
    model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["sizes"], ["large"]))
    model.graph.output.append(helper.make_tensor_value_info("large", onnx.TensorProto.FLOAT, None))


def _enormous_input(model: Message) -> None:
    """An input of which an example would be larger than any memory."""
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 1 << 40


def _endless(model: Message) -> None:
    """A loop that runs as often as a number can say."""
    body = helper.make_graph(
        [helper.make_node("Neg", ["s"], ["t"]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [helper.make_empty_tensor_value_info(name) for name in ("turn", "go", "s")],
        [helper.make_empty_tensor_value_info(name) for name in ("on", "t")],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "often"))
    model.graph.node.append(helper.make_node("Loop", ["often", "", "x"], ["l"], body=body))
    model.graph.output.append(helper.make_tensor_value_info("l", onnx.TensorProto.FLOAT, None))


def _recursive(model: Message) -> None:
    """Functions that call each other."""
    for name, other in (("F", "G"), ("G", "F")):
        calls = [helper.make_node(other, ["a"], ["b"], domain="own")]
        model.functions.append(helper.make_function("own", name, ["a"], ["b"], calls, [helper.make_opsetid("own", 1)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node.append(helper.make_node("F", ["x"], ["f"], domain="own"))
    model.graph.output.append(helper.make_tensor_value_info("f", onnx.TensorProto.FLOAT, None))


CRAFTED = {
    "outside": _outside,
    "names": _names,
    "enormous": _enormous,
    "enormous input": _enormous_input,
    "endless": _endless,
    "recursive": _recursive,
}

LOADER = Loader(
    "onnx",
    _make,
    _mutate,
    _load,
    _results,
    {name: _crafted(name) for name in CRAFTED},
    growth=1 << 30,  # a network for batches of 65,536 takes that
)
