"""ONNX files as sources: what becomes of tensors, sizes, batches and branches, and what is refused."""

from __future__ import annotations

import io
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from anytimeify import transform
from anytimeify.capture import capture, resolve
from anytimeify.errors import ArgumentValueError, ArtifactError, CaptureError, MissingExtraError
from tests.capture.helpers import text
from tests.capture.onnx.models import graph, made, network, node, same_as_onnxruntime, written


class Small(nn.Module):
    """A convolution with a norm, a residual, attention over places, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.inner, self.token = nn.Conv2d(8, 8, 1), nn.Parameter(torch.randn(1, 1, 8))
        self.attention, self.after = nn.Linear(8, 24), nn.LayerNorm(8)
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        x = x + self.inner(x)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        n, length, width = x.shape
        q, k, v = self.attention(x).reshape(n, length, 3, 2, width // 2).permute(2, 0, 3, 1, 4).unbind(0)
        x = self.after(x + ((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).reshape(n, length, width))
        return self.head(torch.nn.functional.gelu(self.hidden(x[:, 0])))  # type: ignore[no-any-return]


X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def exported(model: nn.Module, file: Path, *, dynamo: bool = False, opset: int = 17, batch: bool = True) -> None:
    options: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "opset_version": opset}
    if batch:
        options |= {"dynamic_shapes": ({0: "batch"},)} if dynamo else {"dynamic_axes": {"x": {0: "batch"}}}
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (X if batch else X[:1],), str(file), dynamo=dynamo, **options)


@pytest.mark.parametrize(("dynamo", "opset"), [(False, 11), (False, 17), (True, 18)])
def test_a_network_through_both_exporters(tmp_path: Path, dynamo: bool, opset: int) -> None:
    model = Small().eval()
    file = tmp_path / "small.onnx"
    exported(model, file, dynamo=dynamo, opset=opset)
    source = resolve(file, inputs={"x": (2, 3, 4, 4)})
    assert source.name == "small"
    torch.testing.assert_close(network(source)(X), model(X))
    native = transform(model, "nested-channels{widths=0.25,0.5,1}", X)
    net = transform(source, "nested-channels{widths=0.25,0.5,1}")
    assert net.captured.batch is not None
    assert net.levels[0].cost.macs <= 1.02 * native.levels[0].cost.macs
    transform(source, "hierarchical-ensemble{depth=1}")
    names = dict(network(source).named_parameters())
    assert {"token", "inner.weight", "inner.bias", "attention.bias", "head.weight", "head.bias"} <= names.keys()
    assert names["head.weight"].shape == (5, 16)
    assert any("one convolution has a bias" in n or "2 convolutions have a bias" in n for n in net.captured.notes)


def test_a_batch_that_is_written_into_a_file_is_generalised(tmp_path: Path) -> None:
    model = Small().eval()
    exported(model, tmp_path / "one.onnx", batch=False)
    source = resolve(tmp_path / "one.onnx")
    many = torch.randn(5, 3, 4, 4)
    torch.testing.assert_close(network(source)(many), model(many))
    captured = capture(source.model, source.example_inputs)
    assert captured.batch is not None
    assert "the file is for batches of 1; the batch was made dynamic, and another size agrees" in captured.notes


def test_a_batch_that_samples_share_stays(tmp_path: Path) -> None:
    model = made(
        [node("ReduceSum", ["x", "axes"], ["s"]), node("Add", ["x", "s"], ["y"])], {"x": (2, 3)}, ["y"], {"axes": [0]}
    )
    source = written(model, tmp_path)
    assert network(source).batch == 2
    captured = capture(source.model, source.example_inputs)
    assert captured.limit is not None
    assert "batches of 2" in captured.limit
    assert "no other agrees with it" in captured.limit


def test_sizes_are_folded_or_follow_the_batch(tmp_path: Path) -> None:
    """Shape, Gather, Unsqueeze, Concat, Reshape."""
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["n"]),
        node("Unsqueeze", ["n", "axis"], ["n1"]),
        node("Mul", ["n1", "three"], ["n2"]),
        node("Concat", ["n2", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["r"]),
        node("MatMul", ["r", "w"], ["m"]),
        node("Reshape", ["m", "back"], ["y"]),
    ]
    tensors = {"zero": 0, "axis": [0], "three": [3], "rest": [4], "back": [-1, 12], "w": np.ones((4, 4), np.float32)}
    model = made(nodes, {"x": ("n", 3, 4)}, ["y"], tensors)
    source = same_as_onnxruntime(model, tmp_path)
    captured = capture(source.model, source.example_inputs)
    assert captured.batch is not None
    assert captured.notes == ()
    listed = text(captured.program)
    assert "gather" not in listed
    assert "cat(" not in listed
    assert "linear" in listed


@pytest.mark.parametrize(
    ("starts", "ends", "size"),
    [
        ([-(2**63)], [-2], 4),
        ([-(2**63)], [2**63 - 1], 6),
        ([-(2**63) + 1], [3], 3),
        ([1], [-(2**63)], 0),
        ([2**63 - 1], [2**63 - 1], 0),
    ],
)
def test_slices_from_the_smallest_integer(tmp_path: Path, starts: list[int], ends: list[int], size: int) -> None:
    nodes = [node("Slice", ["x", "starts", "ends", "axes"], ["y"])]
    model = made(nodes, {"x": ["n", 6]}, ["y"], {"starts": starts, "ends": ends, "axes": [1]})
    source = written(model, tmp_path)
    x = torch.arange(12.0).reshape(2, 6)
    first = max(starts[0], 0)
    assert torch.equal(network(source)(x), x[:, first : first + size])


def test_what_tensors_become(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mask = np.where(np.eye(4, dtype=bool), 0, -100).astype(np.float32)

    def values(*shape: int) -> Any:
        return rng.random(shape, np.float32)

    nodes = [
        node("Gather", ["words.weight", "x"], ["e"]),
        node("Transpose", ["words.weight"], ["turned"]),
        node("Add", ["e", "mask"], ["a"]),
        node("Mul", ["a", "scale"], ["b"]),
        node("Add", ["b", "epsilon"], ["c"]),
        node("BatchNormalization", ["c", "norm/scale", "norm/bias", "norm/mean", "norm/var"], ["d"]),
        node("MatMul", ["d", "turned"], ["y"]),
    ]
    tensors = {
        "words.weight": values(9, 4),
        "mask": mask,
        "scale": values(4),
        "epsilon": np.float32(0.1),
        **{f"norm/{name}": values(4) for name in ("scale", "bias", "mean", "var")},
    }
    model = made(nodes, {"x": ("n", 4)}, ["y"], tensors, types={"x": onnx.TensorProto.INT64})
    source = same_as_onnxruntime(model, tmp_path)
    assert source.example_inputs.args[0].max() < 9
    module = network(source)
    assert set(dict(module.named_parameters())) == {"words.weight", "scale", "norm_scale", "norm_bias"}
    assert set(dict(module.named_buffers())) == {"mask", "norm_mean", "norm_var"}
    source.model.train()  # type: ignore[union-attr]  # a module
    listed = text(capture(source.model, source.example_inputs).program)
    assert "embedding" in listed  # tied to the last layer
    assert listed.count("words_weight") == 2
    assert "batch_norm" in listed


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(
    ("kind", "gates", "options"),
    [
        ("LSTM", 4, {}),
        ("GRU", 3, {"linear_before_reset": 1}),
        ("GRU", 3, {}),
        ("RNN", 1, {}),
    ],
)
def test_recurrent_layers(tmp_path: Path, kind: str, gates: int, options: dict[str, Any], direction: str) -> None:
    rng, count = np.random.default_rng(0), 2 if direction == "bidirectional" else 1
    shapes = {"W": (count, gates * 5, 3), "R": (count, gates * 5, 5), "B": (count, 2 * gates * 5)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    outputs = ["y", "h", "c"] if kind == "LSTM" else ["y", "h"]
    layer = node(kind, ["x", "W", "R", "B"], outputs, hidden_size=5, direction=direction, **options)
    source = same_as_onnxruntime(made([layer], {"x": (7, "n", 3)}, outputs, tensors), tmp_path, torch.randn(7, 2, 3))
    assert {"W.weight_ih", "R.weight_hh", "B.bias_ih"} <= set(dict(network(source).named_parameters()))


RESIZES = [
    ("nearest", coordinates, rounding)
    for coordinates in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")
    for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
] + [
    (mode, coordinates, "floor")
    for mode in ("linear", "cubic")
    for coordinates in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")
]


@pytest.mark.parametrize("scale", [2.0, 1.5, 0.6])
def test_resizing(tmp_path: Path, scale: float) -> None:
    for mode, coordinates, rounding in RESIZES:
        options = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
        scales = np.array([1, 1, scale, scale], np.float32)
        resize = node("Resize", ["x", "", "scales"], ["y"], **options)
        same_as_onnxruntime(made([resize], {"x": (2, 3, 6, 10)}, ["y"], {"scales": scales}), tmp_path)


def test_branches_and_loops_are_unrolled(tmp_path: Path) -> None:
    types = onnx.TensorProto
    double = graph([node("Add", ["x", "x"], ["twice"])], {}, ["twice"])
    plain = graph([node("Identity", ["x"], ["same"])], {}, ["same"])
    body = graph(
        [
            node("Add", ["state", "one"], ["next"]),
            node("Identity", ["going"], ["on"]),
            node("Mul", ["next", "next"], ["square"]),
        ],
        {"turn": types.INT64, "going": types.BOOL, "state": types.FLOAT},
        ["on", "next", "square"],
    )
    each = graph(
        [node("Add", ["sum", "row"], ["more"]), node("Neg", ["more"], ["less"])],
        {"sum": types.FLOAT, "row": types.FLOAT},
        ["more", "less"],
        ["n"],
    )
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Size", ["shape"], ["rank"]),
        node("Equal", ["rank", "two"], ["is"]),
        node("If", ["is"], ["a"], then_branch=double, else_branch=plain),
        node("Loop", ["three", "", "a"], ["b", "all"], body=body),
        node("Transpose", ["b"], ["turned"]),
        node("ReduceSum", ["b", "axis"], ["start"], keepdims=0),
        node("Scan", ["start", "turned"], ["end", "steps"], body=each, num_scan_inputs=1),
    ]
    tensors = {"two": np.int64(2), "three": np.int64(3), "one": np.float32(1), "axis": [1]}
    outputs = ["b", "all", "end", "steps"]
    source = same_as_onnxruntime(made(nodes, {"x": ("n", 4)}, outputs, tensors), tmp_path)
    captured = capture(source.model, source.example_inputs, output="all")
    assert captured.batch is not None
    assert text(captured.program).count("add(") == 4 + 4


def test_what_depends_on_values_is_refused_by_name(tmp_path: Path) -> None:
    plain = graph([node("Identity", ["x"], ["same"])], {}, ["same"])
    choice = node("If", ["flag"], ["y"], name="choice", then_branch=plain, else_branch=plain)
    model = made([choice], {"x": ("n", 4), "flag": ()}, ["y"], types={"flag": onnx.TensorProto.BOOL})
    source = written(model, tmp_path)
    with pytest.raises(
        CaptureError, match=r"If 'choice' of .* depends on the values of the inputs.*--input NAME=VALUE"
    ):
        capture(source.model, source.example_inputs)
    given = resolve(tmp_path / "model.onnx", inputs={"flag": 1})
    assert [tuple(one.shape) for one in given.example_inputs.args] == [(2, 4)]
    assert capture(given.model, given.example_inputs).batch is not None


def test_operators_without_a_row_are_listed_at_once(tmp_path: Path) -> None:
    nodes = [
        node("NonZero", ["x"], ["a"], name="places"),
        node("QLinearConv", ["x"] * 8, ["b"], name="small"),
        node("FusedGelu", ["x"], ["c"], name="fused", domain="com.microsoft"),
        node("NonZero", ["x"], ["y"]),
        node("Relu", ["x"], ["z"], name="odd", slope=0.1),
    ]
    with pytest.raises(
        CaptureError,
        match=r"NonZero 'places', QLinearConv 'small' \(quantised: .*com\.microsoft\."
        r"FusedGelu 'fused', Relu 'odd' \(slope\).*docs/onnx.md",
    ) as raised:
        written(made(nodes, {"x": (2, 3)}, ["a", "b", "c", "y", "z"]), tmp_path)
    assert str(raised.value).count("NonZero") == 1


def test_sizes_that_are_open_are_asked_for(tmp_path: Path) -> None:
    conv = node("Conv", ["x", "w"], ["y"])
    model = made([conv], {"x": ("n", 3, "height", None)}, ["y"], {"w": np.ones((2, 3, 1, 1), np.float32)})  # type: ignore[dict-item]
    source = written(model, tmp_path)
    assert source.example_inputs is None
    with pytest.raises(CaptureError, match=r"x \[n, 3, height, \?\].*--input x=2x3x\?x\?"):
        capture(source.model)
    assert capture(source.model, torch.ones(2, 3, 5, 5)).batch is not None
    given = resolve(tmp_path / "model.onnx", inputs={"x": (4, 3, 6, 7)})
    assert given.example_inputs.args[0].shape == (4, 3, 6, 7)
    refused: list[tuple[str, tuple[int, ...], str]] = [
        ("z", (2, 3), "no input 'z'"),
        ("x", (2, 3), "the file says"),
        ("x", (2, 0, 3, 4), "expected"),
    ]
    for name, sizes, message in refused:
        with pytest.raises(ArgumentValueError, match=message):
            resolve(tmp_path / "model.onnx", inputs={name: sizes})


def test_sizes_that_no_memory_has_are_asked_for(tmp_path: Path) -> None:
    mean = node("ReduceMean", ["x"], ["y"], axes=[1])
    source = written(made([mean], {"x": ["n", 1 << 33]}, ["y"]), tmp_path)
    with pytest.raises(CaptureError, match=r"more than 67,108,864 elements: x \[n, 8589934592\].*x=2x8589934592 "):
        transform(source, "nested-channels")
    batch = made([node("Relu", ["x"], ["y"])], {"x": [1 << 33, 2]}, ["y"])
    with pytest.raises(CaptureError, match=r"elements: x \[8589934592, 2\].*give them: --input x=8589934592x2"):
        written(batch, tmp_path, x=(2, 2))
    given = written(made([mean], {"x": ["n", (1 << 26) + 1]}, ["y"]), tmp_path, x=(1, (1 << 26) + 1))
    assert given.example_inputs.args[0].shape == (1, (1 << 26) + 1)


def test_the_command_line_takes_sizes_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from anytimeify.cli import main

    conv = [node("Conv", ["x", "w"], ["h"]), node("Conv", ["h", "v"], ["y"])]
    tensors = {"w": np.ones((8, 3, 1, 1), np.float32), "v": np.ones((2, 8, 1, 1), np.float32)}
    written(made(conv, {"x": ("n", 3, "height", "width")}, ["y"], tensors), tmp_path)
    file = str(tmp_path / "model.onnx")
    for arguments, status, message in [
        (["inspect", file], 1, "--input x=2x3x?x?"),
        (["inspect", file, "--input", "x=2,3"], 2, "x=2x3x224x224"),
        (["inspect", file, "--input", "x=2x3x4x4"], 0, "w"),
        (
            [
                "convert",
                file,
                "--input",
                "x=2x3x4x4",
                "--scheme",
                "nested-channels{widths=0.5,1}",
                "--out",
                str(tmp_path / "net"),
            ],
            0,
            "written to",
        ),
    ]:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        output = capsys.readouterr()
        assert (left.value.code or 0) == status, output
        assert message in output.out + output.err


def test_several_outputs_have_their_names(tmp_path: Path) -> None:
    nodes = [node("Relu", ["input.1"], ["out:0"]), node("Neg", ["input.1"], ["logits"])]
    source = written(made(nodes, {"input.1": ("n", 3)}, ["out:0", "logits"]), tmp_path)
    assert list(network(source)(input_1=torch.ones(2, 3))) == ["out_0", "logits"]
    captured = capture(source.model, {"input_1": torch.ones(2, 3)})
    assert "neg" in text(captured.program)


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "cycle"])
def test_damaged_files(tmp_path: Path, damage: str) -> None:
    model = made([node("Relu", ["x"], ["y"])], {"x": (2, 3)}, ["y"])
    whole = model.SerializeToString()
    if damage == "cycle":
        model.graph.node[0].input[0] = "z"
        whole = model.SerializeToString()
    file = tmp_path / "model.onnx"
    file.write_bytes(
        {"empty": b"", "text": b"not a model at all", "truncated": whole[: len(whole) // 2]}.get(damage, whole)
    )
    with pytest.raises((ArtifactError, CaptureError), match="damaged"):
        resolve(file)


def external(folder: Path, **entries: Any) -> Path:
    """A model whose one weight lies in another file."""
    model = made([node("Add", ["x", "w"], ["y"])], {"x": ("n", 4)}, ["y"])
    tensor = model.graph.initializer.add()
    tensor.CopyFrom(numpy_helper.from_array(np.arange(4, dtype=np.float32), "w"))
    tensor.ClearField("raw_data")
    tensor.data_location = tensor.EXTERNAL
    for key, value in {"location": "weights.bin", **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    file = folder / "model.onnx"
    file.write_bytes(model.SerializeToString())
    return file


def test_tensors_beside_a_file(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    (inside / "below").mkdir(parents=True)
    for place in (inside / "weights.bin", inside / "below" / "weights.bin", tmp_path / "weights.bin"):
        np.arange(6, dtype=np.float32).tofile(place)
    (inside / "link.bin").symlink_to(tmp_path / "weights.bin")
    source = resolve(external(inside, offset=8, length=16))
    assert network(source).get_parameter("w").tolist() == [2, 3, 4, 5]
    below = resolve(external(inside, location="below/weights.bin"))
    assert network(below).get_parameter("w").tolist() == [0, 1, 2, 3]
    refused: list[tuple[dict[str, Any], str]] = [
        ({"location": "../weights.bin"}, "outside of the folder"),
        ({"location": str(tmp_path / "weights.bin")}, "outside of the folder"),
        ({"location": "link.bin"}, "outside of the folder"),
        ({"location": ""}, "outside of the folder"),
        ({"location": "missing.bin"}, "is not beside the file"),
        ({"offset": 12}, "does not fit"),
        ({"offset": -4}, "does not fit"),
        ({"length": 12}, "does not fit"),
        ({"length": "many"}, "no number"),
    ]
    for entries, message in refused:
        with pytest.raises(ArtifactError, match=message):
            resolve(external(inside, **entries))


def test_versions_that_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"version 9 of ONNX's operators; 11 to 20 are read"):
        written(made([node("Relu", ["x"], ["y"])], {"x": (2, 3)}, ["y"], opset=9), tmp_path)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(made([node("Relu", ["x"], ["y"])], {"x": (2, 3)}, ["y"]), tmp_path)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'anytimeify\[onnx\]'"):
        resolve(tmp_path / "model.onnx")


def test_the_other_rows(tmp_path: Path) -> None:
    """Those that the reference tests leave out."""
    x = torch.randn(2, 3, 4, 5)
    for nodes in (
        [node("Cast", ["x"], ["a"], to=7), node("CastLike", ["a", "x"], ["y"])],
        [node("GlobalLpPool", ["x"], ["y"], p=3)],
    ):
        same_as_onnxruntime(made(nodes, {"x": (2, 3, 4, 5)}, ["y"]), tmp_path, x)
