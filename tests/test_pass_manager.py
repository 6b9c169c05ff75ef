"""What goes wrong in a pass is stopped by the name of the pass, on a real network."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import fx

import anytimeify.capture.simplify as simplifying
from anytimeify import NestedChannels, transform
from anytimeify.analysis.axes import analyse
from anytimeify.capture import capture
from anytimeify.contract.pass_manager import rewrite, run_pass
from anytimeify.contract.spec import SpecError
from anytimeify.errors import ArtifactError, PassError, SchemeError, refusing
from anytimeify.graph.builder import Builder
from anytimeify.ir import Captured, Program, Size, TensorType
from anytimeify.ir.node_meta import tensor_type, type_of
from anytimeify.passes.rewrites.fold import fold
from anytimeify.passes.rewrites.project import project
from tests.backbones import Residual, images


@cache
def captured() -> Captured:
    return capture(Residual(), images())


def copied(program: Program) -> Program:
    graph = fx.Graph()
    graph.output(graph.graph_copy(program.graph, {}))
    for node, old in zip(graph.nodes, program.graph.nodes, strict=True):
        node.meta = dict(old.meta)
    return replace(program, graph=graph)


def call_of(program: Program) -> fx.Node:
    node: fx.Node = next(node for node in program.graph.nodes if node.target is torch.ops.aten.conv2d.default)
    return node


def wider(program: Program) -> None:
    node = call_of(program)
    kind = tensor_type(node)
    node.meta["type"] = kind.with_shape((kind.shape[0], Size(kind.shape[1].coefficient * 2), *kind.shape[2:]))


def another_dtype(program: Program) -> None:
    node = call_of(program)
    node.meta["type"] = replace(type_of(node), dtype=torch.float64)


def same_name(program: Program) -> None:
    first, second = [node for node in program.graph.nodes if node.op == "call_function"][:2]
    second.name = first.name


def no_flat_output(program: Program) -> None:
    program.graph.output_node().args = (program.outputs[0],)


def unknown_key(program: Program) -> None:
    call_of(program).meta["colour"] = "red"


def wrong_value(program: Program) -> None:
    call_of(program).meta["mask_nonzeros"] = "all of it"


BREAKS: list[tuple[Callable[[Program], None], str]] = [
    (wider, r"node '\w+' \(aten.conv2d.default, .*\) says it is \[s\d+, \d+, .*, and the operation gives \[s"),
    (another_dtype, r"says it is .* float64, and the operation gives \["),
    (same_name, "is used twice"),
    (no_flat_output, "does not return a flat tuple"),
    (unknown_key, r"has a meta\['colour'\], which is none of: type, origin"),
    (wrong_value, r"has a meta\['mask_nonzeros'\] of 'all of it'; it is of a masked weight"),
]


@pytest.mark.parametrize(("break_", "message"), BREAKS, ids=[break_.__name__ for break_, _ in BREAKS])
def test_a_result_that_is_not_canonical_is_stopped_by_name(break_: Callable[[Program], None], message: str) -> None:
    @rewrite("breaks things")
    def broken(program: Program) -> Program:
        result = copied(program)
        break_(result)
        return result

    with pytest.raises(SpecError, match=message) as error:
        broken(project(captured().program, [0]))
    assert str(error.value).startswith("after breaks things: ")
    assert str(error.value).endswith("(passes before it: capture, project)")


def test_a_scheme_that_writes_a_wrong_type_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs of levels, and so budgets, are counted from types; nothing else would notice."""
    apply = NestedChannels.apply

    def wrong(self: NestedChannels, *args: Any) -> Any:
        rewritten = apply(self, *args)
        program = copied(rewritten.program)
        wider(program)
        return replace(rewritten, program=program)

    monkeypatch.setattr(NestedChannels, "apply", wrong)
    with pytest.raises(SpecError, match=r"after nested-channels: node .* and the operation gives"):
        transform(Residual(), NestedChannels(widths=(0.5, 1.0)), images())


def test_a_builder_takes_no_wrong_type() -> None:
    program = captured().program
    builder = Builder.copying(program)
    node = builder.shared[call_of(program)]
    made = builder.call(torch.ops.aten.relu.default, (node,), {}, "again", {"origin": node.meta["origin"]})
    assert type_of(made) == type_of(node)
    meta = {"type": TensorType((Size(3),), torch.float32), "origin": node.meta["origin"]}
    with pytest.raises(ValueError, match=r"gives \[s.*\], and not \[3\]"):
        builder.call(torch.ops.aten.relu.default, (node,), {}, "wrong", meta)


def test_an_exception_names_pass_node_module_source_and_the_passes_before() -> None:
    @rewrite("looks things up")
    def broken(program: Program) -> Program:
        known: dict[fx.Node, int] = {}
        for node in program.graph.nodes:
            if node.target is torch.ops.aten.conv2d.default:
                known[node] += 1
        return program

    program = project(captured().program, [0])
    node = call_of(program)
    with pytest.raises(PassError) as error:
        broken(program)
    text, origin = str(error.value), node.meta["origin"]
    assert text.startswith(f"the pass 'looks things up' failed at node '{node.name}' (aten.conv2d.default, ")
    assert origin.module_path in text
    assert re.search(r"\w+\.py:\d+: ", origin.source)
    assert origin.source in text
    assert "KeyError: " in text
    assert "Passes before it: capture, project." in text
    assert isinstance(error.value.__cause__, KeyError)


def test_a_step_of_capture_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(target: object) -> object:
        raise KeyError("x")

    monkeypatch.setattr(simplifying, "instead_of", broken)
    message = r"the pass 'simplify' failed at node '\w+' \(aten\..*, stem, backbones.py:\d+: .*KeyError: 'x'.*: lower, "
    with pytest.raises(PassError, match=message):
        capture(Residual(), images())


def test_what_is_meant_for_the_user_stays_as_it_is() -> None:
    def refusing_pass(program: Program) -> Program:
        raise SchemeError("widths: no")

    with pytest.raises(SchemeError, match=r"^widths: no$"):
        run_pass("refuses", refusing_pass, captured().program)


def test_a_file_that_makes_a_pass_fail_is_refused_as_a_file() -> None:
    def failing(program: Program) -> Program:
        raise KeyError("x")

    with pytest.raises(ArtifactError, match=r"net.pt cannot be read .*the pass 'fails' failed"):  # noqa: SIM117
        with refusing(ArtifactError, "net.pt"):
            run_pass("fails", failing, captured().program)


def test_programs_say_which_passes_made_them() -> None:
    program = captured().program
    assert program.passes == ("capture",)
    assert fold(project(program, [0])).passes == ("capture", "project", "fold")
    axes = analyse(program)
    assert run_pass("nothing", lambda one, _: one, program, axes) is program
    net = transform(Residual(), NestedChannels(widths=(0.5, 1.0)), images())
    assert net.rewritten.program.passes[:2] == ("capture", "nested-channels")
