"""The document of an exported program, as tables: for every field that is read, of which kind its value must be.

The rows are those of torch's own schema (`torch/_export/serde/schema.py`), major version 8. What is in no row is
refused, among it everything that torch unpickles or compiles: custom objects, opaque values, tokens of
side effects. A test holds the tables against the schema of the torch that is installed.
"""

from __future__ import annotations

import json
from typing import Any

from anytimeify.capture.pt2.checks import (
    COUNT,
    INT64,
    Maybe,
    Record,
    RefusedError,
    Table,
    Union,
    boolean,
    check,
    dotted,
    integer,
    matching,
    name,
    number,
    one_of,
    prose,
    quoteless,
)
from anytimeify.capture.pt2.expressions import guard, symbolic
from anytimeify.capture.pt2.operators import target
from anytimeify.capture.pt2.tensors import DTYPES
from anytimeify.capture.pt2.trees import input_tree, tree

__all__ = ["DEVICES", "UNREAD", "check_payloads", "check_program", "without_provenance"]

DEVICES = ("cpu", "cuda", "meta", "mps", "xpu")
_SMALL = integer(0, 1_000_000)
_STRIDED = 7  # torch's number for the layout that all tensors but sparse ones have


def _name_or_nothing(value: Any, where: str) -> None:
    if value != "":
        name(value, where)


def _json(value: Any, where: str) -> None:
    """Text that torch reads as JSON again: data, whatever it is."""
    prose(value, where)
    try:
        json.loads(value)
    except ValueError as error:
        raise RefusedError(where, "is no JSON") from error


def _not_pickled(value: Any, where: str) -> None:
    boolean(value, where)
    if value:
        raise RefusedError(where, "the value is a pickled Python object")


_ARGUMENT = {
    "as_none": boolean,
    "as_tensor": "TensorArgument",
    "as_tensors": ["TensorArgument"],
    "as_int": INT64,
    "as_ints": [INT64],
    "as_float": number,
    "as_floats": [number],
    "as_string": prose,  # reaches code through `repr`
    "as_strings": [prose],
    "as_sym_int": "SymIntArgument",
    "as_sym_ints": ["SymIntArgument"],
    "as_scalar_type": one_of(DTYPES, "type of elements"),
    "as_memory_format": integer(1, 4),
    "as_layout": one_of((_STRIDED,), "layout"),
    "as_device": "Device",
    "as_bool": boolean,
    "as_bools": [boolean],
    "as_sym_bool": "SymBoolArgument",
    "as_sym_bools": ["SymBoolArgument"],
    "as_graph": "GraphArgument",
    "as_optional_tensors": ["OptionalTensorArgument"],
    "as_operator": target,
    "as_sym_float": "SymFloatArgument",
    "as_sym_floats": ["SymFloatArgument"],
    "as_optional_tensor": "OptionalTensorArgument",
    "as_complex": "ComplexValue",
    "as_nested_tensors": [["TensorArgument"]],
    "as_int_lists": [[INT64]],
    "as_string_to_argument": {quoteless: "Argument"},
    "as_float_lists": [[number]],
}
# An input that is a constant becomes a line of a guard, its text between quotes as it is.
_INPUT = _ARGUMENT | {"as_string": quoteless, "as_strings": [quoteless]}

_TABLE: Table = {
    "ExportedProgram": Record(
        {
            "graph_module": "GraphModule",
            "opset_version": {name: _SMALL},
            "range_constraints": {symbolic: "RangeConstraint"},
            "schema_version": "SchemaVersion",
            "verifiers": [one_of(("TRAINING", "ATEN", "EDGE"), "verifier")],
            "torch_version": matching(r"[\w.+<=-]{1,60}", "a version of torch"),
            "guards_code": [guard],
        }
    ),
    "SchemaVersion": Record({"major": _SMALL, "minor": _SMALL}),
    "RangeConstraint": Record({"min_val": Maybe(INT64), "max_val": Maybe(INT64)}),
    "GraphModule": Record(
        {
            "graph": "Graph",
            "signature": "GraphSignature",
            "module_call_graph": ["ModuleCallEntry"],
            "metadata": "GraphMetadata",
            "treespec_namedtuple_fields": {dotted: "NamedTupleDef"},
        }
    ),
    "GraphMetadata": Record({"custom": _json}),
    "NamedTupleDef": Record({"field_names": [name]}),
    "ModuleCallEntry": Record({"fqn": dotted, "signature": Maybe("ModuleCallSignature")}),
    "ModuleCallSignature": Record(
        {
            "inputs": ["Input"],
            "outputs": ["Input"],
            "in_spec": input_tree,
            "out_spec": tree,
            "forward_arg_names": Maybe([name]),
        }
    ),
    # The graph
    "Graph": Record(
        {
            "inputs": ["Input"],
            "outputs": ["Input"],
            "nodes": ["Node"],
            "tensor_values": {name: "TensorMeta"},
            "sym_int_values": {name: "SymInt"},
            "sym_bool_values": {name: "SymBool"},
            "is_single_tensor_return": boolean,
            "custom_obj_values": "Nothing",
            "sym_float_values": {name: "SymFloat"},
        }
    ),
    "Nothing": Record({}),
    "Node": Record(
        {
            "target": target,
            "inputs": ["NamedArgument"],
            "outputs": ["Argument"],
            "metadata": "NodeMetadata",
            "is_hop_single_tensor_return": Maybe(boolean),
            "name": Maybe(name),
        }
    ),
    "NodeMetadata": Record(
        {
            "stack_trace": prose,
            "nn_module_stack": prose,
            "torch_fn": prose,
            "custom": _json,
            "source_fn_stack": prose,
            "from_node": prose,
        }
    ),
    "NamedArgument": Record({"name": _name_or_nothing, "arg": "Argument", "kind": Maybe(integer(0, 2))}),
    "Argument": Union(_ARGUMENT),
    "Input": Union(_INPUT),
    "TensorArgument": Record({"name": name}),
    "OptionalTensorArgument": Union({"as_tensor": "TensorArgument", "as_none": boolean}),
    "GraphArgument": Record({"name": name, "graph": "Graph"}),
    "SymIntArgument": Union({"as_name": name, "as_int": INT64}),
    "SymFloatArgument": Union({"as_name": name, "as_float": number}),
    "SymBoolArgument": Union({"as_name": name, "as_bool": boolean}),
    "ComplexValue": Record({"real": number, "imag": number}),
    # Types of values
    "TensorMeta": Record(
        {
            "dtype": one_of(DTYPES, "type of elements"),
            "sizes": ["SymInt"],
            "requires_grad": boolean,
            "device": "Device",
            "strides": ["SymInt"],
            "storage_offset": "SymInt",
            "layout": one_of((_STRIDED,), "layout"),
        }
    ),
    "Device": Record({"type": one_of(DEVICES, "device"), "index": Maybe(integer(-1, 127))}),
    "SymInt": Union({"as_expr": "SymExpr", "as_int": COUNT}),
    "SymFloat": Union({"as_expr": "SymExpr", "as_float": number}),
    "SymBool": Union({"as_expr": "SymExpr", "as_bool": boolean}),
    "SymExpr": Record({"expr_str": symbolic, "hint": Maybe("SymExprHint")}),
    "SymExprHint": Union({"as_int": INT64, "as_bool": boolean, "as_float": number}),
    # The signature
    "GraphSignature": Record({"input_specs": ["InputSpec"], "output_specs": ["OutputSpec"]}),
    "InputSpec": Union(
        {
            "user_input": "UserInputSpec",
            "parameter": "InputToParameterSpec",
            "buffer": "InputToBufferSpec",
            "tensor_constant": "InputToTensorConstantSpec",
            "constant_input": "InputToConstantInputSpec",
        }
    ),
    "UserInputSpec": Record({"arg": "Input"}),
    "InputToParameterSpec": Record({"arg": "TensorArgument", "parameter_name": dotted}),
    "InputToBufferSpec": Record({"arg": "TensorArgument", "buffer_name": dotted, "persistent": boolean}),
    "InputToTensorConstantSpec": Record({"arg": "TensorArgument", "tensor_constant_name": dotted}),
    "InputToConstantInputSpec": Record({"name": name, "value": "ConstantValue"}),
    "ConstantValue": Union(
        {"as_none": boolean, "as_int": INT64, "as_float": number, "as_string": quoteless, "as_bool": boolean}
    ),
    "OutputSpec": Union(
        {
            "user_output": "UserOutputSpec",
            "loss_output": "LossOutputSpec",
            "buffer_mutation": "BufferMutationSpec",
            "gradient_to_parameter": "GradientToParameterSpec",
            "gradient_to_user_input": "GradientToUserInputSpec",
            "user_input_mutation": "UserInputMutationSpec",
            "parameter_mutation": "ParameterMutationSpec",
        }
    ),
    "UserOutputSpec": Record({"arg": "Input"}),
    "LossOutputSpec": Record({"arg": "TensorArgument"}),
    "BufferMutationSpec": Record({"arg": "TensorArgument", "buffer_name": dotted}),
    "ParameterMutationSpec": Record({"arg": "TensorArgument", "parameter_name": dotted}),
    "GradientToParameterSpec": Record({"arg": "TensorArgument", "parameter_name": dotted}),
    "GradientToUserInputSpec": Record({"arg": "TensorArgument", "user_input_name": name}),
    "UserInputMutationSpec": Record({"arg": "TensorArgument", "user_input_name": name}),
    # Where weights and constants lie
    "PayloadConfig": Record({"config": {dotted: "PayloadMeta"}}),
    "PayloadMeta": Record(
        {
            "path_name": matching(r"(weight|tensor)_[0-9]{1,9}", "the name of a tensor in the archive"),
            "is_param": boolean,
            "use_pickle": _not_pickled,
            "tensor_meta": "PayloadTensor",
        }
    ),
    "PayloadTensor": Record(
        {
            "dtype": one_of(DTYPES, "type of elements"),
            "sizes": ["Number"],
            "requires_grad": boolean,
            "device": "Device",
            "strides": ["Number"],
            "storage_offset": "Number",
            "layout": one_of((_STRIDED,), "layout"),
        }
    ),
    "Number": Union({"as_int": COUNT}),
}

# Of torch's schema and read by nobody here: what would be unpickled, and what names a side effect.
UNREAD = {
    "Argument": {"as_custom_obj"},
    "InputSpec": {"custom_obj", "token"},
    "OutputSpec": {"token"},
}


def check_program(document: Any) -> None:
    """Raises `RefusedError` for the first field of a program that is of no kind in the tables."""
    check(_TABLE, "ExportedProgram", document, "")


def check_payloads(document: Any) -> None:
    """The same for the table of weights or constants."""
    check(_TABLE, "PayloadConfig", document, "")


def without_provenance(graph: dict[str, Any]) -> None:
    """Drops, in place and in subgraphs too, what says from which functions nodes came: torch looks those up."""
    for node in graph.get("nodes", ()):
        for key in ("source_fn_stack", "from_node"):
            node.get("metadata", {}).pop(key, None)
        for one in node.get("inputs", ()):
            _argument_without_provenance(one.get("arg", {}))


def _argument_without_provenance(argument: dict[str, Any]) -> None:
    if "as_graph" in argument:
        without_provenance(argument["as_graph"].get("graph", {}))
    for one in argument.get("as_string_to_argument", {}).values():
        _argument_without_provenance(one)
