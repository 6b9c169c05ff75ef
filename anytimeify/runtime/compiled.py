"""What runs: a rewritten network as modules, one graph for all of its levels and one for each, and their costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

from torch import Tensor, fx, nn

from anytimeify._torch import copy_node
from anytimeify.analysis.axes import Axes
from anytimeify.analysis.cost import cost, sizes
from anytimeify.analysis.mask_density import recount
from anytimeify.codegen.call_signature import CallSignature
from anytimeify.codegen.deferred import Deferred
from anytimeify.codegen.prefix_slices import take_prefixes_together
from anytimeify.codegen.recompute import recomputing, share
from anytimeify.codegen.to_modules import backbone_name, to_modules
from anytimeify.early_exit.running import Link, links, run
from anytimeify.graph.traversal import ancestors
from anytimeify.ir import AllOutputs, Captured, Level, Program, Structure, names
from anytimeify.ir.node_meta import renamed_of
from anytimeify.ir.rewritten import Output, Rewritten
from anytimeify.kernels.layers import TriangularLayer
from anytimeify.passes.options import Options
from anytimeify.passes.rewrites.evaluate import evaluate
from anytimeify.passes.rewrites.resume import steps
from anytimeify.passes.scheme import Scheme
from anytimeify.runtime.definition import Definition

__all__ = ["Compiled", "Form", "Layout", "compiled", "freeze_unread", "levels_of", "sharing", "tensors_of"]

Place: TypeAlias = int | tuple[int, ...]
Layout: TypeAlias = tuple[tuple[Place, ...], tuple[Place, ...]]
"""Where, in what the joint graph gives, the levels are and the members: of a taxonomy, every granularity of each."""


@dataclass(frozen=True)
class Form:
    """What a model returns in one mode, where that is more than predictions."""

    structure: Structure  # of one level
    graphs: tuple[fx.GraphModule, ...]  # the joint one, then that of each level alone; each gives all that it returns
    prediction: int  # among what a level gives
    members: tuple[int, ...]  # among what the joint graph gives

    def outputs(self, inputs: Sequence[Tensor]) -> AllOutputs:
        """All levels."""
        given = self.graphs[0](*inputs)
        count = len(self.structure.outputs)
        own = [given[first : first + count] for first in range(0, count * (len(self.graphs) - 1), count)]
        levels = tuple(values[self.prediction] for values in own)
        members = tuple(given[place] for place in self.members)
        return AllOutputs(levels, members, tuple(map(self.structure.filled, own)))

    def result(self, level: int, inputs: Sequence[Tensor]) -> Any:
        """One level, at its own cost."""
        return self.structure.filled(self.graphs[1 + level](*inputs))


@dataclass(frozen=True)
class Compiled:
    """A network that is ready to run.

    The views are `fx.GraphModule`s that share the three dictionaries of `network` (`_parameters`, `_buffers`,
    `_modules`): whatever happens to those (`.to()`, `load_state_dict`, a child replaced by a wrapper) happens to all
    graphs at once, and nothing is registered twice. Each is made when it is first run or looked at.
    """

    definition: Definition
    levels: tuple[Level, ...]
    call_signature: CallSignature
    network: fx.GraphModule  # gives every output of the rewritten program
    graphs: tuple[fx.GraphModule, ...]  # the joint one, then that of each level alone
    layout: Layout
    forms: Mapping[bool, Form] | None  # whether it trains: what it returns then; None where that is predictions alone
    renamed: Mapping[str, str]  # attributes that could not have the backbone's names, with these

    @staticmethod
    def of(
        definition: Definition, network: fx.GraphModule, renamed: Mapping[str, str], levels: tuple[Level, ...]
    ) -> Compiled:
        """The views of a network."""
        rewritten = definition.rewritten
        nodes = dict(zip(rewritten.names, _outputs(network.graph), strict=True))
        views: list[fx.Node | list[fx.Node]] = [
            [nodes[output] for output in rewritten.joint],
            *(nodes[rewritten.form("alone", level)] for level in range(len(levels))),
        ]
        graphs = tuple(_view(definition, network, view) for view in views)
        call_signature, layout = CallSignature.of(definition.captured), _layout(rewritten)
        forms = _forms(definition, network, nodes) if rewritten.results is not None else None
        return Compiled(definition, levels, call_signature, network, graphs, layout, forms, renamed)

    def graph(self, level: int, granularity: int | None = None) -> fx.GraphModule:
        """A level alone: the granularity that it serves, or another that it has."""
        rewritten = self.definition.rewritten
        place = rewritten.position(level, granularity)
        if place == rewritten.position(level):
            return self.graphs[1 + level]
        if place not in self._others:
            output = _outputs(self.network.graph)[place]
            self._others[place] = _view(self.definition, self.network, output)
        return self._others[place]

    def stream(self, inputs: Sequence[Tensor]) -> Iterator[tuple[Level, Tensor]]:
        """Level after level, each step computing what those before it did not; of networks that are resumable."""
        known: dict[str, Any] = dict(zip(_inputs(self.network.graph), inputs, strict=True))
        levels = [level for level in self.levels if not level.training_only]
        yield from zip(levels, run(*self._steps, known), strict=True)

    @cached_property
    def triangular(self) -> tuple[tuple[str, ...], ...]:
        """The paths of triangular layers, in order; none where layers run again in the backward pass."""
        if self.definition.options.checkpoint:
            return ()
        called = [str(node.target) for node in self.network.graph.find_nodes(op="call_module")]
        layers = [path for path in called if isinstance(self.network.get_submodule(path), TriangularLayer)]
        return tuple(tuple(path.split(".")) for path in dict.fromkeys(layers))

    @cached_property
    def _others(self) -> dict[int, fx.GraphModule]:
        """Levels at other granularities than they serve, by their place; made when they are asked for."""
        return {}

    @cached_property
    def _steps(self) -> tuple[list[fx.GraphModule], tuple[Link, ...]]:
        graph, rewritten = self.network.graph, self.definition.rewritten
        outputs = _outputs(graph)
        places = [rewritten.position(level.index, role="step") for level in self.levels if not level.training_only]
        chain = steps(graph, [outputs[place] for place in places])
        graphs = [_as_it_runs(self.definition, self.network, step.graph) for step in chain]
        return graphs, links(_inputs(graph), [(step.reads, step.gives) for step in chain])

    def recounted(self, tensors: Mapping[str, Tensor]) -> Compiled:
        """The same with the costs that levels have by the masks among `tensors`."""
        definition = self.definition
        program = recount(definition.rewritten.program, tensors)
        if program is definition.rewritten.program:
            return self
        rewritten = replace(definition.rewritten, program=program)
        levels = levels_of(definition.captured, rewritten)
        return replace(self, definition=replace(definition, rewritten=rewritten), levels=levels)

    def replaced(self, owner: nn.Module, definition: Definition, graph: fx.Graph) -> Compiled:
        """Another network as modules over the dictionaries of `owner`."""
        levels = levels_of(definition.captured, definition.rewritten)
        return Compiled.of(definition, sharing(owner, graph), self.renamed, levels)

    def copied(self, owner: nn.Module) -> Compiled:
        """The same over the dictionaries of `owner`, a copy of the model."""
        return Compiled.of(self.definition, sharing(owner, self.network.graph), self.renamed, self.levels)


def compiled(captured: Captured, axes: Axes, scheme: Scheme, rewritten: Rewritten, options: Options) -> Compiled:
    """A rewritten network as modules, with its views and costs. The modules hold the program's own tensors."""
    network = to_modules(rewritten.program)
    _register_missing(network, captured.program)
    freeze_unread(rewritten.program)
    renamed = dict(renamed_of(network))
    owned = tensors_of(network, renamed)
    definition = Definition.of(captured, axes, scheme, rewritten, options, owned=owned)
    return Compiled.of(definition, network, renamed, levels_of(captured, rewritten))


def tensors_of(module: nn.Module, renamed: Mapping[str, str]) -> dict[str, Tensor]:
    """Parameters and buffers by the backbone's names, those of the loss left out; tied ones under each name."""
    live: dict[str, Tensor] = dict(module.named_buffers(remove_duplicate=False))
    live.update(module.named_parameters(remove_duplicate=False))
    return {backbone_name(name, renamed): tensor for name, tensor in live.items() if not name.startswith(names.LOSS)}


def freeze_unread(program: Program) -> None:
    """Parameters that no level reads (an auxiliary head that was dropped) are kept for checkpoints. Nothing ever gives
    them a gradient, which DistributedDataParallel refuses, so they ask for none."""
    read = {id(program.tensors[str(node.target)]) for node in program.graph.find_nodes(op="get_attr") if node.users}
    for tensor in program.tensors.values():
        if isinstance(tensor, nn.Parameter) and id(tensor) not in read:
            tensor.requires_grad_(False)


def sharing(owner: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A graph of modules that runs over the dictionaries of `owner`."""
    module: fx.GraphModule = share(owner, Deferred.of(lambda: graph))
    return module


def _register_missing(network: fx.GraphModule, program: Program) -> None:
    """Registers tensors of the backbone that the rewritten program lost, so that state dicts stay whole."""
    renamed = renamed_of(network)
    known = {backbone_name(name, renamed) for name, _ in network.named_parameters(remove_duplicate=False)}
    known |= {backbone_name(name, renamed) for name, _ in network.named_buffers(remove_duplicate=False)}
    for name, tensor in program.tensors.items():
        if name in known:
            continue
        *path, last = name.split(".")
        owner: nn.Module = network
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]  # a module, never None
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(False)
            owner.register_parameter(last, tensor)
        else:
            owner.register_buffer(last, tensor, persistent=name not in program.transient)


def levels_of(captured: Captured, rewritten: Rewritten) -> tuple[Level, ...]:
    """The levels with what each of them costs for one sample."""
    batch_size, symbols = sizes(captured)
    program = evaluate(rewritten.program)
    alone = [[program.outputs[place] for place in rewritten.positions(at)] for at in range(len(rewritten.levels))]
    costs = [cost(program, captured.batch, batch_size, symbols, outputs=outputs) for outputs in alone]
    return tuple(
        Level(index, level.name, costs[index], level.training_only, level.number)
        for index, level in enumerate(rewritten.levels)
    )


def _forms(definition: Definition, network: fx.GraphModule, nodes: Mapping[Output, fx.Node]) -> Mapping[bool, Form]:
    rewritten = definition.rewritten
    results, levels = rewritten.results, range(len(rewritten.levels))
    assert results is not None

    def form(structure: Structure) -> Form:
        joint = [output for level in levels for output in rewritten.forms("level", level, structure)]
        members = [replace(rewritten.of(*one)[0], leaf=structure.prediction) for one in rewritten.members]
        views = [[*joint, *members], *(rewritten.forms("alone", level, structure) for level in levels)]
        graphs = [_view(definition, network, [nodes[one] for one in view]) for view in views]
        prediction = structure.outputs.index(structure.prediction)
        return Form(structure, tuple(graphs), prediction, tuple(range(len(joint), len(joint) + len(members))))

    evaluation = form(results.evaluation)
    return {False: evaluation, True: evaluation if results.alike else form(results.training)}


def _layout(rewritten: Rewritten) -> Layout:
    at = {output: place for place, output in enumerate(rewritten.joint)}
    results = rewritten.results

    def place(outputs: Sequence[Output]) -> Place:
        if results is not None:
            return at[replace(outputs[0], leaf=results.evaluation.prediction)]
        parted = outputs[0].granularity is not None
        return tuple(at[output] for output in outputs) if parted else at[outputs[0]]

    levels = tuple(place(rewritten.of("level", index)) for index in range(len(rewritten.levels)))
    return levels, tuple(place(rewritten.of(*member)) for member in rewritten.members)


def _view(definition: Definition, network: fx.GraphModule, output: fx.Node | Sequence[fx.Node]) -> fx.GraphModule:
    """A graph that returns one tensor of the whole one, or a tuple of some; made when it is needed."""
    if definition.options.checkpoint:
        return _as_it_runs(definition, network, _only(network.graph, output))
    parameters = _parameters(network)

    def make() -> fx.Graph:
        graph = _only(network.graph, output)
        take_prefixes_together(graph, parameters)
        return graph

    module: fx.GraphModule = share(network, Deferred.of(make))
    return module


def _as_it_runs(definition: Definition, network: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    """A graph of nodes that call modules, over the dictionaries of a network."""
    take_prefixes_together(graph, _parameters(network))
    return recomputing(graph, network) if definition.options.checkpoint else sharing(network, graph)


def _parameters(network: fx.GraphModule) -> Set[str]:
    """The paths of its parameters, whatever stands in for these when a graph is made."""
    return {str(node.target) for node in network.graph.find_nodes(op="get_attr") if _is_parameter(network, node)}


def _is_parameter(network: nn.Module, node: fx.Node) -> bool:
    path, _, name = str(node.target).rpartition(".")
    return name in network.get_submodule(path)._parameters


def _inputs(graph: fx.Graph) -> list[str]:
    return [node.name for node in graph.find_nodes(op="placeholder")]


def _outputs(graph: fx.Graph) -> tuple[fx.Node, ...]:
    return graph.output_node().args[0]  # type: ignore[return-value]  # canonical: a flat tuple


def _only(graph: fx.Graph, output: fx.Node | Sequence[fx.Node]) -> fx.Graph:
    """A graph of modules that returns one tensor of the whole one, or a tuple of some; placeholders all stay."""
    needed = ancestors([output] if isinstance(output, fx.Node) else output)
    result = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = copy_node(result, node, copies.__getitem__)
    result.output(copies[output] if isinstance(output, fx.Node) else tuple(copies[node] for node in output))
    return result
