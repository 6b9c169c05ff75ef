"""One ONNX file for all levels: each of them as its extract, weights once, and only the chosen one computed."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import anytimeify
from anytimeify import (
    AnytimeModel,
    ArgumentError,
    ArtifactError,
    AuxiliaryBranches,
    Branch,
    BudgetError,
    NestedChannels,
    Taxonomy,
    transform,
)
from anytimeify.storage.export import export_onnx
from anytimeify.storage.flat_outputs import tensors_of
from tests.backbones import images, residual_net
from tests.deploy.nets import SCHEMES, described, levels_of, run, trained
from tests.results import MultiTask

# What levels do not share costs what it costs: private heads and norms, and the bits of masks.
MOST = dict(zip(SCHEMES, (1.08, 1.05, 1.08, 1.15, 1.08, 1.08, 1.05, 1.6), strict=True))


@pytest.fixture(
    scope="module",
    params=[
        one if place in (0, 2, 4, 6, 7) else pytest.param(one, marks=pytest.mark.slow)
        for place, one in enumerate(SCHEMES)
    ],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[AnytimeModel, Path]:
    """A model of some scheme, and its file."""
    return exported(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def widths(tmp_path_factory: pytest.TempPathFactory) -> tuple[AnytimeModel, Path]:
    return exported(SCHEMES[0], tmp_path_factory)


def exported(scheme: str, folders: pytest.TempPathFactory) -> tuple[AnytimeModel, Path]:
    net, folder = trained(scheme), folders.mktemp("net")
    net.export(folder / "net.onnx")
    assert [path.name for path in folder.iterdir()] == ["net.onnx"]
    return net, folder / "net.onnx"


def test_levels_are_their_extracts(case: tuple[AnytimeModel, Path]) -> None:
    net, file = case
    for place, index in enumerate(levels_of(net)):
        extract = net.extract(index)
        for batch in (1, 7):
            (result,) = run(file, place, images(batch))
            torch.testing.assert_close(result, extract(images(batch)), rtol=1e-4, atol=1e-5)


def test_weights_are_stored_once(case: tuple[AnytimeModel, Path]) -> None:
    net, file = case
    weights = max(sum(tensor.nbytes for tensor in net.extract(index).state_dict().values()) for index in levels_of(net))

    def stored(graph: onnx.GraphProto) -> int:
        own = sum(len(one.raw_data) for one in graph.initializer)
        inside = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
        return own + sum(map(stored, inside))

    share = stored(onnx.load(file).graph) / weights
    assert 0.99 < share < MOST[str(net.scheme)]


def test_it_says_nothing_of_where_nodes_are_from(case: tuple[AnytimeModel, Path]) -> None:
    _, file = case
    model = onnx.load(file)
    assert [entry.key for entry in model.metadata_props] == ["anytimeify"]
    assert all(word not in file.read_bytes() for word in (b"pkg.torch", b"stack_trace", b"torch.nn.modules"))


def test_one_branch_is_computed(case: tuple[AnytimeModel, Path]) -> None:
    graph = onnx.load(case[1]).graph
    assert {node.op_type for node in graph.node} <= {"Gather", "Equal", "If"}
    onnx.checker.check_model(case[1], full_check=True)


def test_names_are_stable(widths: tuple[AnytimeModel, Path], tmp_path: Path) -> None:
    net, file = widths
    session = onnxruntime.InferenceSession(str(file))
    assert [(one.name, one.shape, one.type) for one in session.get_inputs()] == [
        ("x", ["batch", 3, 6, 6], "tensor(float)"),
        ("level", [], "tensor(int64)"),
    ]
    assert [(one.name, one.shape) for one in session.get_outputs()] == [("output", ["batch", 5])]
    export_onnx(net.extract(0), images(), tmp_path / "small.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"))
    assert [(one.name, one.shape) for one in session.get_inputs()] == [("x", ["batch", 3, 6, 6])]
    assert [(one.name, one.shape) for one in session.get_outputs()] == [("output", ["batch", 5])]


def test_it_says_what_it_holds(widths: tuple[AnytimeModel, Path]) -> None:
    net, file = widths
    text = described(file)
    assert text["format"] == 1
    assert text["scheme"] == str(net.scheme)
    assert text["batch"] == [1, None]
    assert text["versions"] == {"anytimeify": anytimeify.__version__, "torch": torch.__version__}
    assert [(row["name"], row["number"], row["macs"], row["params"]) for row in text["levels"]] == [
        (level.name, level.number, level.cost.macs, level.cost.params) for level in net.levels
    ]
    assert len({row["sha256"] for row in text["levels"]}) == 3


def test_some_levels(widths: tuple[AnytimeModel, Path], tmp_path: Path) -> None:
    net, _ = widths
    net.export(tmp_path / "net.onnx", levels=["width 0.5", 2])
    assert [row["name"] for row in described(tmp_path / "net.onnx")["levels"]] == ["width 0.5", "width 1"]
    torch.testing.assert_close(
        run(tmp_path / "net.onnx", 0, images())[0], net.extract(1)(images()), rtol=1e-4, atol=1e-5
    )
    net.export(tmp_path / "one.onnx", levels=[1])
    torch.testing.assert_close(
        run(tmp_path / "one.onnx", 0, images())[0], net.extract(1)(images()), rtol=1e-4, atol=1e-5
    )


def test_a_level_that_is_not_there(widths: tuple[AnytimeModel, Path]) -> None:
    with pytest.raises(Exception, match="out of data bounds"):
        run(widths[1], 3, images())


def test_levels_for_training_stay_out(tmp_path: Path) -> None:
    layers = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Linear(32, 5)
    net = transform(nn.Sequential(*layers), AuxiliaryBranches((Branch("0", widths={"1": 8.0}),)), (images(),))
    assert [level.training_only for level in net.levels] == [True, False]
    net.export(tmp_path / "net.onnx")
    assert [row["name"] for row in described(tmp_path / "net.onnx")["levels"]] == [net.levels[1].name]


def test_results_of_several_tensors(tmp_path: Path) -> None:
    net = transform(MultiTask(), NestedChannels((0.5, 1.0)), (images(),), output="all").eval()
    net.export(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    export_onnx(net.extract(0), (images(),), tmp_path / "small.onnx")
    small = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"))
    assert [one.name for one in session.get_outputs()] == [one.name for one in small.get_outputs()]
    for index in range(2):
        expected = tensors_of(net.extract(index)(images()))
        found = run(tmp_path / "net.onnx", index, images())
        assert len(found) == len(expected) > 1
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_an_input_that_is_called_level(tmp_path: Path) -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, level: Tensor) -> Tensor:
            result: Tensor = self.second(self.first(level).relu())
            return result

    net = transform(Clash(), NestedChannels((0.5, 1.0)), (torch.randn(4, 8),))
    net.export(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    assert [one.name for one in session.get_inputs()] == ["level", "level_"]


def test_taxonomies(tmp_path: Path) -> None:
    net = trained("nested-channels{widths=0.5,1}", taxonomy=Taxonomy(((0, 0, 1, 1, 1),)))
    net.export(tmp_path / "net.onnx")
    for index in range(2):
        expected = net.extract(index)(images())
        torch.testing.assert_close(run(tmp_path / "net.onnx", index, images())[0], expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_replaced_unless_asked(tmp_path: Path) -> None:
    net = residual_net(verify=False)
    (tmp_path / "net.onnx").write_text("before")
    with pytest.raises(ArtifactError, match="exists already"):
        net.export(tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_text() == "before"
    net.export(tmp_path / "net.onnx", force=True)
    assert len(described(tmp_path / "net.onnx")["levels"]) == len(net.levels)


def test_wrong_arguments(tmp_path: Path) -> None:
    net = residual_net(verify=False)
    with pytest.raises(ArgumentError, match=r"format='tflite': expected one of onnx, pt2, executorch"):
        net.export(tmp_path / "net", "tflite")
    with pytest.raises(ArgumentError, match="expected 'all', or a sequence of levels"):
        net.export(tmp_path / "net", levels=1)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match=r"levels=\[\]: expected some of 0, 1"):
        net.export(tmp_path / "net", levels=[])
    assert not list(tmp_path.iterdir())
