"""Files made to run code, or to do other harm, when an exported program is read: one function for each way.

Each changes the parts of a genuine archive. Those in `RUNS` make a file where plain torch reads them; a test tries
that, so that they stay what they claim to be. The others torch refuses itself today, or they do harm of another kind.
"""

from __future__ import annotations

import functools
import io
import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CRAFTED", "EXAMPLES", "RUNS", "Parts", "genuine", "write"]

WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
INPUTS = "data/sample_inputs/model.pt"
EXAMPLES = (torch.ones(2, 3), {"k": torch.ones(2, 4)}, "add", torch.ones(1))


class Network(nn.Module):
    """A network whose program has one of everything: a subgraph, a buffer, a constant, an input that is text."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.shift: Tensor
        self.register_buffer("shift", torch.ones(4))
        self.constant = torch.arange(4.0)

    def forward(self, x: Tensor, y: dict[str, Tensor], mode: str, unused: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            hidden = self.layer(x)
        return {"out": hidden + self.shift * self.constant + y["k"], "size": x.reshape(-1)}


@functools.cache
def _genuine() -> bytes:
    dynamic = torch.export.Dim.DYNAMIC
    shapes = {"x": {0: dynamic}, "y": {"k": {0: dynamic}}, "mode": None, "unused": None}
    torch.manual_seed(0)
    program = torch.export.export(Network(), EXAMPLES, dynamic_shapes=shapes, strict=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        torch.export.save(program, path)
        return path.read_bytes()


@dataclass
class Parts:
    """The members of an archive by name, its documents parsed; `marker` is the file that code of it would make."""

    marker: Path
    members: dict[str, bytes]
    program: dict[str, Any]
    weights: dict[str, Any]
    constants: dict[str, Any]
    root: str = "model/"
    infos: dict[str, int] = field(default_factory=dict)  # compression, by member
    twice: list[str] = field(default_factory=list)  # members that are there two times

    @property
    def graph(self) -> dict[str, Any]:
        graph: dict[str, Any] = self.program["graph_module"]["graph"]
        return graph

    @property
    def entry(self) -> dict[str, Any]:
        """How the program is called."""
        signature: dict[str, Any] = self.program["graph_module"]["module_call_graph"][0]["signature"]
        return signature

    @property
    def code(self) -> str:
        """An expression that makes the marker."""
        return f"__import__('os').system('touch {self.marker}')"

    def rename(self, old: str, new: str) -> None:
        """A name, wherever it is used in the program."""
        text = json.dumps(self.program).replace(json.dumps(old), json.dumps(new))
        self.program = json.loads(text)


def genuine(marker: Path) -> Parts:
    """The parts of a file as torch writes it."""
    with zipfile.ZipFile(io.BytesIO(_genuine())) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    documents = [json.loads(members[name]) for name in ("models/model.json", WEIGHTS, CONSTANTS)]
    return Parts(marker, members, *documents)


def write(parts: Parts, path: Path) -> Path:
    members = parts.members | {
        "models/model.json": json.dumps(parts.program).encode(),
        WEIGHTS: json.dumps(parts.weights).encode(),
        CONSTANTS: json.dumps(parts.constants).encode(),
    }
    members = {name: data for name, data in members.items() if parts.members.get(name) != b"gone"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(parts.root + name, data, parts.infos.get(name, zipfile.ZIP_STORED))
        for name in parts.twice:
            with warnings.catch_warnings(action="ignore"):
                archive.writestr(parts.root + name, members[name])
    return path


class Touch:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


def pickled(marker: Path, wrap: Callable[[Touch], Any] = lambda touch: (touch,)) -> bytes:
    buffer = io.BytesIO()
    torch.save(wrap(Touch(marker)), buffer)
    return buffer.getvalue()


CRAFTED: dict[str, Callable[[Parts], None]] = {}
RUNS: set[str] = set()  # names of those whose code runs when plain torch loads, or then calls, the program


def crafted(*, runs: bool = False) -> Callable[[Callable[[Parts], None]], Callable[[Parts], None]]:
    def register(function: Callable[[Parts], None]) -> Callable[[Parts], None]:
        CRAFTED[function.__name__] = function
        if runs:
            RUNS.add(function.__name__)
        return function

    return register


# Members that are pickles


@crafted(runs=True)
def pickled_inputs(parts: Parts) -> None:
    parts.members[INPUTS] = pickled(parts.marker, lambda touch: ((touch,), {}))


@crafted(runs=True)
def pickled_weight(parts: Parts) -> None:
    parts.members["data/weights/weight_0"] = pickled(parts.marker)
    parts.weights["config"]["layer.weight"]["use_pickle"] = True


@crafted(runs=True)
def pickled_constant(parts: Parts) -> None:
    parts.members["data/constants/tensor_0"] = pickled(parts.marker)
    parts.constants["config"]["constant"]["use_pickle"] = True


@crafted(runs=torch.__version__ >= "2.13")
def pickle_named_as_json(parts: Parts) -> None:
    import pickle

    parts.members["data/constants/opaque_obj_0.json"] = pickle.dumps(Touch(parts.marker))
    parts.constants["config"]["constant"] |= {"path_name": "opaque_obj_0.json", "use_pickle": True}


@crafted()
def custom_object(parts: Parts) -> None:
    parts.members["data/constants/custom_obj_0"] = pickled(parts.marker)
    parts.constants["config"]["constant"] |= {"path_name": "custom_obj_0", "use_pickle": True, "tensor_meta": None}


@crafted(runs=True)
def weights_of_an_older_torch(parts: Parts) -> None:
    parts.members["data/weights/model.pt"] = pickled(parts.marker)


@crafted(runs=True)
def archive_of_an_older_torch(parts: Parts) -> None:
    names = {"serialized_exported_program.json": json.dumps(parts.program).encode(), "version": b"8.20"}
    data = {f"serialized_{kind}.pt": pickled(parts.marker) for kind in ("state_dict", "constants", "example_inputs")}
    parts.members = dict.fromkeys(("models/model.json", WEIGHTS, CONSTANTS), b"gone") | names | data
    parts.root = ""


# Text that becomes code


@crafted(runs=True)
def size_that_is_code(parts: Parts) -> None:
    parts.graph["tensor_values"]["x"]["sizes"][0] = {"as_expr": {"expr_str": parts.code, "hint": None}}


@crafted(runs=True)
def assumption_that_is_code(parts: Parts) -> None:
    text = f"Symbol('s77', positive={parts.code})"
    parts.graph["tensor_values"]["x"]["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}


@crafted(runs=True)
def attribute_of_a_size(parts: Parts) -> None:
    text = f"Integer.__class__.__mro__[-1].__subclasses__() and {parts.code}"
    parts.graph["tensor_values"]["x"]["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}


@crafted(runs=True)
def size_in_a_subgraph(parts: Parts) -> None:
    subgraph = next(
        one["arg"]["as_graph"]["graph"]
        for node in parts.graph["nodes"]
        for one in node["inputs"]
        if "as_graph" in one["arg"]
    )
    meta = next(iter(subgraph["tensor_values"].values()))
    meta["sizes"][0] = {"as_expr": {"expr_str": parts.code, "hint": None}}


@crafted(runs=True)
def input_that_is_code(parts: Parts) -> None:
    parts.rename("unused", f"unused = [{parts.code}][0]")  # a default, which is evaluated where the function is made


@crafted()
def node_that_is_code(parts: Parts) -> None:
    parts.rename("add", f"add = {parts.code}; add")


@crafted(runs=True)
def subgraph_that_is_code(parts: Parts) -> None:
    node = next(node for node in parts.graph["nodes"] if "higher_order" in node["target"])
    node["inputs"].insert(1, {"name": f"enabled={parts.code}, **{{}}, more", "arg": {"as_int": 1}, "kind": 2})


@crafted(runs=True)
def guard_that_is_code(parts: Parts) -> None:
    parts.program["guards_code"] = [f"{parts.code} == 0"]


@crafted(runs=True)
def constant_input_that_ends_its_quotes(parts: Parts) -> None:
    text = f"add' and {parts.code} == 0 and 'add"
    whole = json.dumps(parts.program).replace('{"as_string": "add"}', json.dumps({"as_string": text}))
    parts.program = json.loads(whole)


@crafted(runs=True)
def parameter_that_ends_its_quotes(parts: Parts) -> None:
    code = parts.code.replace("__import__('os').system", "getattr(__import__('os'), 'system')")  # a dot ends a name
    name = f'layer.weight", {code} or "'
    parts.rename("layer.weight", name)
    parts.weights["config"][name] = parts.weights["config"].pop("layer.weight")


@crafted(runs=True)
def key_that_ends_its_quotes(parts: Parts) -> None:
    key = f"+str({parts.code})+"
    inputs: tuple[Any, ...] = ((EXAMPLES[0], {key: torch.ones(2, 4)}, *EXAMPLES[2:]), {})
    buffer = io.BytesIO()
    torch.save(inputs, buffer)
    parts.members[INPUTS] = buffer.getvalue()
    kind, spec = json.loads(parts.entry["in_spec"])
    spec["children_spec"][0]["children_spec"][1]["context"] = json.dumps([key])
    parts.entry["in_spec"] = json.dumps([kind, spec])


@crafted()
def argument_that_is_code(parts: Parts) -> None:
    parts.entry["forward_arg_names"] = ["x", "y", "mode", f"unused={parts.code}"]


@crafted()
def keyword_that_is_code(parts: Parts) -> None:
    kind, spec = json.loads(parts.entry["in_spec"])
    spec["children_spec"][1] |= {"context": json.dumps([f"more={parts.code}"]), "children_spec": []}
    parts.entry["forward_arg_names"] = None
    parts.entry["in_spec"] = json.dumps([kind, spec])


# What nodes call


def call(parts: Parts, target: str, *arguments: Any) -> None:
    """Puts a call in front of the first node."""
    inputs = [{"name": "", "arg": one, "kind": 1} for one in arguments]
    node = {"target": target, "inputs": inputs, "outputs": [{"as_none": True}], "metadata": {}, "name": "call"}
    parts.graph["nodes"].insert(0, node | {"is_hop_single_tensor_return": None})


@crafted()
def call_of_a_module_of_python(parts: Parts) -> None:
    call(parts, "torch.hub.os.system", {"as_string": f"touch {parts.marker}"})


@crafted()
def operator_in_an_argument(parts: Parts) -> None:
    call(
        parts,
        "torch.utils._pytree.tree_map",
        {"as_operator": "torch.hub.os.system"},
        {"as_string": f"touch {parts.marker}"},
    )


@crafted()
def call_that_loads_a_library(parts: Parts) -> None:
    call(parts, "torch.ops.load_library", {"as_string": str(parts.marker)})


@crafted(runs=True)
def operator_that_writes_a_file(parts: Parts) -> None:
    node = parts.graph["nodes"][0]
    node |= {"target": "torch.ops.aten.from_file.default"}
    names = {"filename": {"as_string": str(parts.marker)}, "shared": {"as_bool": True}, "size": {"as_int": 4}}
    node["inputs"] = [{"name": name, "arg": arg, "kind": 1} for name, arg in names.items()]


@crafted()
def function_of_torchscript(parts: Parts) -> None:
    call(parts, "torch.ops.aten.save.default", {"as_tensor": {"name": "x"}}, {"as_string": str(parts.marker)})


@crafted()
def operator_that_prints(parts: Parts) -> None:
    call(parts, "torch.ops.higher_order.print", {"as_string": "{0.__class__}"})


@crafted()
def operator_of_another_library(parts: Parts) -> None:
    call(parts, "torch.ops.mine.run.default")


# Modules that are imported: `probe` stands for any module that can be found


def _probe(parts: Parts) -> None:
    (parts.marker.parent / "probe_of_imports.py").write_text(f"open({str(parts.marker)!r}, 'w').close()\n")


@crafted(runs=True)
def default_that_is_imported(parts: Parts) -> None:
    _probe(parts)
    made = {"default_factory_module": "probe_of_imports", "default_factory_name": "x", "dict_context": []}
    spec = {"type": "collections.defaultdict", "context": made, "children_spec": []}
    parts.entry["out_spec"] = json.dumps([1, spec])


@crafted(runs=True)
def enumeration_that_is_imported(parts: Parts) -> None:
    _probe(parts)
    context = json.dumps({"__enum__": True, "fqn": "probe_of_imports:A", "name": "B"})
    spec = {"type": "builtins.dict", "context": context, "children_spec": []}
    parts.entry["out_spec"] = json.dumps([1, spec])


# Members that nothing here reads


@crafted()
def compiled_library(parts: Parts) -> None:
    parts.members["data/aotinductor/model/model.so"] = b"\x7fELF"


@crafted()
def program_of_another_runtime(parts: Parts) -> None:
    parts.members["data/executorch/model.pte"] = b"ET12"


@crafted()
def second_program(parts: Parts) -> None:
    parts.members["models/other.json"] = b"{}"


@crafted()
def member_outside(parts: Parts) -> None:
    parts.members["extra/../../../outside"] = b""


@crafted()
def member_at_the_root(parts: Parts) -> None:
    parts.root = "/model/"


@crafted()
def member_twice(parts: Parts) -> None:
    parts.twice = ["models/model.json"]


@crafted()
def other_byte_order(parts: Parts) -> None:
    parts.members["byteorder"] = b"big"


# Sizes


@crafted()
def compressed_zeros(parts: Parts) -> None:
    parts.members["data/weights/weight_0"] = bytes(1 << 24)
    parts.infos["data/weights/weight_0"] = zipfile.ZIP_DEFLATED


@crafted()
def view_beyond_its_storage(parts: Parts) -> None:
    parts.weights["config"]["layer.weight"]["tensor_meta"]["sizes"][0] = {"as_int": 4_000}


@crafted()
def view_that_begins_outside(parts: Parts) -> None:
    parts.weights["config"]["layer.weight"]["tensor_meta"]["storage_offset"] = {"as_int": 1 << 40}


@crafted()
def view_that_goes_backwards(parts: Parts) -> None:
    parts.weights["config"]["layer.weight"]["tensor_meta"]["strides"][0] = {"as_int": -1}


@crafted()
def one_number_expanded(parts: Parts) -> None:
    meta = parts.weights["config"]["layer.weight"]["tensor_meta"]
    meta |= {"sizes": [{"as_int": 1 << 40}, {"as_int": 3}], "strides": [{"as_int": 0}, {"as_int": 0}]}


@crafted()
def tensor_without_values(parts: Parts) -> None:
    parts.members["data/weights/weight_0"] = b""
    parts.weights["config"]["layer.weight"]["tensor_meta"]["sizes"][0] = {"as_int": 1 << 40}


@crafted()
def number_that_never_ends(parts: Parts) -> None:
    text = "Pow(Integer(2), Pow(Integer(10), Integer(9)))"
    parts.graph["tensor_values"]["x"]["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}


@crafted()
def polynomial_that_never_ends(parts: Parts) -> None:
    text = "Pow(Add(" + ", ".join(f"Symbol('s{index}')" for index in range(30)) + "), Integer(60))"
    parts.graph["tensor_values"]["x"]["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}


@crafted()
def symbols_without_end(parts: Parts) -> None:
    parts.program["range_constraints"]["u999999999999"] = {"min_val": 0, "max_val": 1}


@crafted()
def nested_without_end(parts: Parts) -> None:
    parts.entry["in_spec"] = '[1, {"children_spec": ' + "[" * 100_000


# Fields that nothing here reads


@crafted()
def unknown_field(parts: Parts) -> None:
    parts.graph["hooks"] = []


@crafted()
def custom_object_as_argument(parts: Parts) -> None:
    parts.graph["custom_obj_values"] = {"x": {"name": "x", "class_fqn": "os.system"}}


@crafted()
def text_that_a_terminal_obeys(parts: Parts) -> None:
    parts.graph["nodes"][0]["metadata"]["stack_trace"] = "\x1b]0;title\x07"


@crafted()
def special_method_as_parameter(parts: Parts) -> None:
    parts.rename("layer.weight", "layer.__class__")
    parts.weights["config"]["layer.__class__"] = parts.weights["config"].pop("layer.weight")
