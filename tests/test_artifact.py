"""Saving and loading: every bit comes back, no pickle, no code, no half-written file, clear refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from anytimeify import AnytimeModel, ArtifactError, JointLoss, NestedChannels, load, transform
from anytimeify.ir import Program
from anytimeify.runtime.load import save
from anytimeify.storage.graphs import encode_program
from anytimeify.storage.models import seal
from tests.backbones import Clashing, Keywords, Nested, images, residual_net
from tests.rounding import close


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a file with its description and tensors changed, and checksums that fit."""
    with safetensors.safe_open(source, framework="pt") as file:
        document = json.loads(file.metadata()["anytimeify"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    change(document, tensors)
    target.write_bytes(seal(document, tensors))
    return target


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.anytime"
    residual_net().save(path)
    return path


def test_a_round_trip_keeps_every_bit_and_so_the_outputs(tmp_path: Path) -> None:
    net, x = residual_net(), images()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))  # trained: private norms are no prefixes any more
    save(net, tmp_path / "net")
    loaded = load(tmp_path / "net")
    assert not loaded.training
    assert str(loaded.scheme) == str(net.scheme)
    assert loaded.levels == net.levels
    assert loaded.state_dict().keys() == net.state_dict().keys()
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in net.parameters()]
    for index, expected in enumerate(net(x).levels):
        assert close(loaded(x).levels[index], expected)
        assert close(loaded.extract(index)(x), net.extract(index)(x))
    loaded.save(tmp_path / "again")
    assert close(load(tmp_path / "again")(x, level=0), net(x, level=0))


def test_tensors_are_aligned_as_torch_aligns_them(tmp_path: Path) -> None:
    """Wherever the file has them; on the alignment depends which kernel runs, and so the rounding."""
    residual_net().save(tmp_path / "net")
    header = 8 + int.from_bytes((tmp_path / "net").read_bytes()[:8], "little")
    with safetensors.safe_open(tmp_path / "net", framework="pt") as file:
        sizes = [file.get_tensor(name).nbytes for name in file.keys()]  # noqa: SIM118  # not a dict
    assert any(size % 64 for size in [header, *sizes]), "all would be aligned in the file too"
    storages = [tensor.untyped_storage() for tensor in load(tmp_path / "net").tensors().values()]
    assert not [storage.data_ptr() for storage in storages if storage.data_ptr() % 64]
    assert len({storage.data_ptr() for storage in storages}) == len(storages)


@pytest.mark.parametrize(
    "scheme", ["nested-channels{widths=0.5,1 norms=shared heads=shared}", "nested-channels{order=l1}"]
)
def test_round_trips_of_other_schemes(tmp_path: Path, scheme: str) -> None:
    from anytimeify import parse_scheme

    net, x = residual_net(parse_scheme(scheme)), images()
    net.save(tmp_path / "net")
    loaded = load(tmp_path / "net")
    for index, expected in enumerate(net(x).levels):
        assert close(loaded(x).levels[index], expected)


def test_calls_with_keywords_constants_and_nested_inputs_come_back(tmp_path: Path) -> None:
    x, scale = torch.randn(4, 4), torch.randn(4, 1)
    net = transform(Keywords(), NestedChannels((0.5, 1.0)), {"x": x, "scale": scale, "double": True})
    net.save(tmp_path / "net")
    assert close(load(tmp_path / "net")(x, scale=scale, level=0), net(x, scale, True, level=0))
    pair, extra = [torch.randn(4, 4), torch.randn(4, 4)], {"bias": torch.randn(4, 3)}
    net = transform(Nested(), NestedChannels((0.5, 1.0)), (pair, extra))
    net.save(tmp_path / "net")
    assert close(load(tmp_path / "net")(pair, extra=extra, level=0), net(pair, extra, level=0))


def test_precision_names_and_losses(tmp_path: Path) -> None:
    net = transform(Clashing(), NestedChannels((0.5, 1.0)), torch.randn(4, 4)).eval().double()
    net.save(tmp_path / "net")
    loss = JointLoss(reduction="mean")
    loaded = load(tmp_path / "net", loss=loss)
    assert loaded.loss is loss
    x = torch.randn(4, 4, dtype=torch.float64)
    assert close(loaded(x, level=0), net(x, level=0))


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11, bias=False)
            self.mid = nn.Linear(8, 8)
            self.head.weight = self.embed.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.mid(self.embed(tokens)).relu()).mean(1)
            return result

    tokens = torch.randint(11, (4, 6))
    net = transform(Tied(), NestedChannels((0.5, 1.0)), tokens).eval()
    net.save(tmp_path / "net")
    loaded = load(tmp_path / "net")
    assert close(loaded(tokens, level=0), net(tokens, level=0))
    assert loaded.captured.example_inputs[0].max() <= 10
    assert len(list(loaded.parameters())) == len(list(net.parameters()))
    with safetensors.safe_open(tmp_path / "net", framework="pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118  # not a dict
    assert stored == sum(tensor.numel() for tensor in {id(t): t for t in net.tensors().values()}.values())


def test_a_fresh_process_needs_neither_the_backbone_nor_pickle(tmp_path: Path) -> None:
    net, x = residual_net(), images()
    net.save(tmp_path / "net.anytime")
    safetensors.torch.save_file({"x": x, "expected": net(x, level=0).detach()}, tmp_path / "data.safetensors")
    script = textwrap.dedent(
        """
        import pickle, sys
        import torch, safetensors.torch, anytimeify
        import torch._dynamo  # kernels without data import it, and it derives a class from the Unpickler
        def refuse(*args, **kwargs):
            raise AssertionError("something was unpickled")
        pickle.load = pickle.loads = pickle.Unpickler = refuse
        data = safetensors.torch.load_file("data.safetensors")
        torch.set_num_threads(1)
        torch.testing.assert_close(anytimeify.load("net.anytime")(data["x"], level=0), data["expected"])
        assert "tests.backbones" not in sys.modules
        """
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr


def test_saving_is_all_or_nothing(tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(ArtifactError, match="No space left"):
            residual_net().save(saved)
    assert saved.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [saved.name]
    residual_net().save(saved)
    assert saved.read_bytes() != before
    load(saved)


def test_where_a_file_cannot_be_written(tmp_path: Path) -> None:
    net = residual_net()
    with pytest.raises(ArtifactError, match="is a folder"):
        net.save(tmp_path)
    with pytest.raises(ArtifactError, match=r"There is no folder '.*missing'"):
        net.save(tmp_path / "missing" / "net")


def test_files_that_are_no_models(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        load(tmp_path / "missing")
    with pytest.raises(ArtifactError, match="is a folder"):
        load(tmp_path)
    for name, content in {"empty": b"", "text": b"not a model at all", "zeros": bytes(64)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match="not a saved anytime model, or is damaged"):
            load(tmp_path / name)
    torch.save({"x": torch.ones(1)}, tmp_path / "pickle")
    with pytest.raises(ArtifactError, match="not a saved anytime model"):
        load(tmp_path / "pickle")
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "foreign")
    with pytest.raises(ArtifactError, match="holds tensors but no anytime model"):
        load(tmp_path / "foreign")


def test_truncated_files(tmp_path: Path, saved: Path) -> None:
    data = saved.read_bytes()
    for size in (4, 8, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "short").write_bytes(data[:size])
        with pytest.raises(ArtifactError, match="damaged"):
            load(tmp_path / "short")


def test_flipped_bits_anywhere(tmp_path: Path, saved: Path) -> None:
    data = saved.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    generator = torch.Generator().manual_seed(0)
    places = [
        *torch.randint(header, (60,), generator=generator),
        *torch.randint(header, len(data), (20,), generator=generator),
    ]
    for place in map(int, places):
        damaged = bytearray(data)
        damaged[place] ^= 0x15
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(ArtifactError):
            load(tmp_path / "damaged")


HOSTILE: list[tuple[str, Callable[[dict[str, Any], dict[str, torch.Tensor]], None]]] = []


def hostile(match: str) -> Callable[..., Any]:
    def register(change: Any) -> Any:
        HOSTILE.append((match, change))
        return change

    return register


def call(document: dict[str, Any]) -> Any:
    return next(node for node in document["graph"]["nodes"] if node["op"] == "call_function")


for target in (
    *("os.system", "builtins.eval", "operator.attrgetter", "operator.methodcaller", "aten.from_file.default"),
    *(
        "aten.relu_.default",
        "aten.__class__.default",
        "aten.relu.__init__",
        "aten.set_.source_Storage",
        "aten.relu.out",
    ),
    *(
        "aten._print.default",
        "aten.as_strided.default",
        "aten.no_such_operation.default",
        "aten",
        "",
        "prims.add.default",
    ),
):

    @hostile("not allowed|no functional operation")
    def forbidden_target(document: dict[str, Any], tensors: object, target: str = target) -> None:
        call(document)["target"] = target


@hostile("not a canonical kind of node")
def call_method(document: dict[str, Any], tensors: object) -> None:
    call(document)["op"] = "call_method"


@hostile("is not a name")
def code_in_a_placeholder(document: dict[str, Any], tensors: object) -> None:
    document["graph"]["nodes"][0]["target"] = "x=__import__('os').system('true')"


@hostile("is not a name")
def code_in_a_keyword(document: dict[str, Any], tensors: object) -> None:
    call(document)["kwargs"] = {"x=print()": 1}


@hostile("is not a name of a tensor")
def code_in_the_name_of_a_tensor(document: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    name = 'a"), print("x'
    tensors[name] = torch.ones(1)
    document["tensors"].append(name)


@hostile("is missing")
def a_tensor_that_is_not_there(document: dict[str, Any], tensors: object) -> None:
    next(node for node in document["graph"]["nodes"] if node["op"] == "get_attr")["target"] = "elsewhere.weight"


@hostile("before it exists")
def a_cycle(document: dict[str, Any], tensors: object) -> None:
    call(document)["args"][0] = {"node": "fc"}


@hostile("unknown argument")
def an_unknown_argument(document: dict[str, Any], tensors: object) -> None:
    call(document)["args"][0] = {"pickle": "gASV"}


@hostile("no output")
def no_output(document: dict[str, Any], tensors: object) -> None:
    document["graph"]["nodes"].pop()


@hostile("reads format 4")
def a_newer_format(document: dict[str, Any], tensors: object) -> None:
    document["format"] = 5


@hostile("'pickle' is not a scheme")
def an_unknown_scheme(document: dict[str, Any], tensors: object) -> None:
    document["scheme"]["spec"] = "pickle"


@hostile("widths=")
def a_graph_that_does_not_compute(document: dict[str, Any], tensors: object) -> None:
    document["scheme"]["spec"] = "nested-channels{widths=0.9999,1}"


@hostile("is missing or of another shape")
def a_scheme_that_makes_other_tensors(document: dict[str, Any], tensors: object) -> None:
    document["scheme"]["spec"] = "nested-channels{widths=0.125,0.25,0.375,0.5,1}"


@hostile("damaged")
def without_a_signature(document: dict[str, Any], tensors: object) -> None:
    del document["signature"]


@hostile("damaged")
def deep(document: dict[str, Any], tensors: object) -> None:
    nested: list[Any] = []
    for _ in range(500):
        nested = [nested]
    document["signature"]["inputs"] = nested


@pytest.mark.parametrize(("match", "change"), HOSTILE, ids=lambda value: getattr(value, "__name__", None))
def test_hostile_files_run_nothing(tmp_path: Path, saved: Path, match: str, change: Callable[..., None]) -> None:
    with pytest.raises(ArtifactError, match=match) as caught:
        load(rewritten(saved, tmp_path / "hostile", change))
    assert str(tmp_path / "hostile") in str(caught.value)


def test_every_kind_of_argument_survives() -> None:
    from anytimeify.storage.graphs import _decode, _encode

    values: list[Any] = [None, True, 3, 2.5, float("inf"), "tanh", (1, [2, (3,)]), {"a": 1}, slice(1, None, 2)]
    values += [torch.bfloat16, torch.device("cpu"), torch.strided, torch.channels_last]
    for value in values:
        assert _decode(json.loads(json.dumps(_encode(value))), {}) == value
    with pytest.raises(ArtifactError, match="cannot be saved"):
        _encode(object())


def test_it_is_a_module_again(saved: Path) -> None:
    loaded = load(saved)
    assert isinstance(loaded, AnytimeModel)
    loaded.train()
    loaded.loss(loaded(images()), torch.tensor([0, 1, 2, 3])).backward()


def test_weight_norm_comes_back(tmp_path: Path) -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    net, x = transform(model, NestedChannels((0.5, 1.0)), torch.randn(2, 6)).eval(), torch.randn(3, 6)
    net.save(tmp_path / "net")
    assert all(map(close, load(tmp_path / "net")(x).levels, net(x).levels))


def test_what_cannot_be_read_back_is_not_written() -> None:
    graph = torch.fx.Graph()
    graph.call_function(torch.ops.aten._cdist_forward.default, (graph.placeholder("x"), graph.placeholder("y"), 2.0, 0))
    with pytest.raises(ArtifactError, match=r"_cdist_forward.default, which cannot be saved"):
        encode_program(Program(graph, {}))
