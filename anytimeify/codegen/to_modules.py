"""Turns operations back into modules, the last step before a graph is run, trained, shown or exported.

    y = linear(x, fc_weight, fc_bias)       ->      y = fc(x)

1. An operation whose tensors are `<path>.weight`, `<path>.bias`, ... of one path becomes the `torch.nn` module that
   computes it, under that path (`lifted_modules.parametric`). One path used twice is one module called twice.
2. An operation that came out of a `torch.nn` activation, pooling or flattening module becomes that module
   (`lifted_modules.plain`).
3. Operations that training and evaluation compute differently become modules in any case, in training graphs
   (`lift_mode_dependent`): where the backbone has no module of its own for one, below `anytime.calls`. In inference
   graphs they take their evaluation form: dropout and stochastic depth vanish. So do autograd functions: a training
   graph calls them, an inference graph computes what they compute.
4. Everything else stays functional, and reads its tensors by `get_attr`.
5. A module of the user's that is kept whole is, in inference graphs, a module of its own class.
6. Tensors that nothing reads are registered under their names too, so the state dict is the backbone's.

Nothing is copied: the modules hold the program's own tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytimeify._torch import OpOverload, copy_node, new_node
from anytimeify.codegen.deferred import Deferred
from anytimeify.codegen.lifted_modules import Call, Instance, by_mode, parametric, plain
from anytimeify.contract.pass_manager import rewrite
from anytimeify.graph.traversal import reachable
from anytimeify.ir import Program, names
from anytimeify.ir.schema import bound, position, rebind
from anytimeify.operators.kept_modules import Shell, call_of, items, shell_of
from anytimeify.operators.modules import CUMULATIVE, Added, BatchNormCall, Part, TrainingSwitch
from anytimeify.passes.rewrites.as_before import as_before
from anytimeify.passes.rewrites.evaluate import evaluate
from anytimeify.rules import has_kind, traits

__all__ = ["backbone_name", "lifted", "norms_without_count", "to_modules"]


def to_modules(program: Program, *, training: bool = True) -> fx.GraphModule:
    """A module that computes `program`, with its inputs and its flat tuple of outputs.

    `training=True`: follows `train()` and `eval()`; its code is made when it is first run. `training=False`: the
    inference form, in eval mode, made of nothing but `torch`.
    """
    module, graph = lifted(program, training=training)
    if isinstance(module, Deferred):
        module._defer(lambda: graph)
    else:
        module.graph = graph
    return module


@rewrite("to modules")
def lifted(program: Program, *, training: bool) -> tuple[fx.GraphModule, fx.Graph]:
    """The same as a module whose code is yet to be made, and the graph that it shall run."""
    lifter = _Lifter(as_before(program) if training else evaluate(program), training)
    graph = lifter.run()
    return lifter.module.train(training), graph


def norms_without_count(program: Program) -> tuple[str, ...]:
    """In words, batch norms that average over all batches and of which nothing counts the batches."""
    for node in program.graph.nodes:
        values = bound(node) if has_kind(node, "norm") else {}
        if values.get("momentum") == CUMULATIVE and _counter(program, values["running_mean"]) is None:
            return (
                "batch norms with momentum=None whose batches nothing counts have a momentum of 0.1 "
                f"({node.meta['origin']}); net.calibrate() averages",
            )
    return ()


def _counter(program: Program, statistics: fx.Node) -> str | None:
    while statistics.op != "get_attr" and statistics.all_input_nodes:
        statistics = statistics.all_input_nodes[0]
    name = names.counter(str(statistics.target))
    return name if statistics.op == "get_attr" and name in program.tensors else None


class _Lifter:
    def __init__(self, program: Program, training: bool) -> None:
        self.program, self.training = program, training
        self.graph = fx.Graph()
        kind = Deferred if training else fx.GraphModule
        self.module = kind(nn.Module(), fx.Graph(), class_name="Network")
        self.values: dict[fx.Node, fx.Node] = {}
        self.instances: dict[str, Instance] = {}
        self.placed: set[str] = set()
        self.counters: dict[str, fx.Node] = {}  # what counts the batches of norms, read
        self.renamed: dict[str, str] = {}  # state dict prefixes that could not be attribute names
        self.kept: dict[tuple[fx.Node, ...], str] = {}  # where modules of the user's are, by the tensors that they hold

    def run(self) -> fx.Graph:
        readers = [node for node in self.program.graph.nodes if node.op == "get_attr"]
        computed = self.computed()
        for node in self.program.graph.nodes:
            if node.op == "call_function" and node not in computed:
                continue
            if node.op in ("placeholder", "get_attr", "output"):
                self.values[node] = self.copy(node)
            elif not self.training and has_kind(node, "kept module"):
                self.call_kept(node)
            elif node in self.values:  # a result of one
                continue
            else:
                self.values[node] = self.evaluation(node) or self.as_module(node) or self.copy(node)
        self.register_leftovers()
        for node in readers:
            # What nothing reads any more is out of the graph, and in the state dict.
            self.values[node].target = self.attribute_path(str(node.target))
            if not self.values[node].users:
                self.graph.erase_node(self.values[node])
        for name, reader in self.counters.items():
            reader.target = self.attribute_path(name)
        children = self.module._modules
        if "anytime" in children:  # is listed last
            children["anytime"] = children.pop("anytime")
        return self.graph

    def computed(self) -> set[fx.Node]:
        """The nodes that results depend on: an autograd function does not read what was traced of it."""

        def operands(node: fx.Node) -> Iterable[fx.Node]:
            return bound(node)["inputs"] if has_kind(node, "autograd function") else node.all_input_nodes

        return set(reachable([self.program.graph.output_node()], operands))

    def copy(self, node: fx.Node) -> fx.Node:
        new = copy_node(self.graph, node, lambda inner: self.values[inner])
        values = bound(node) if has_kind(node, "lookup") else {}
        if values.get("sparse") and values["weight"].op != "get_attr":
            # A gradient that is sparse cannot pass through the view of a table.
            new.args, new.kwargs = rebind(node.target, {**bound(new), "sparse": False})  # type: ignore[arg-type]
        return new

    # -- modules of the user's -------------------------------------------------------------------------------------

    def call_kept(self, node: fx.Node) -> None:
        """Calls the module itself, as the backbone does, and finds the results in what it returns."""
        given = bound(node)
        shell, state = shell_of(given["module"]), tuple(given["state"])
        if state not in self.kept:
            self.kept[state] = self.place_kept(shell, state)
        args, kwargs = call_of(shell.sample, [self.values[one] for one in given["inputs"]])
        call = self.graph.create_node("call_module", self.attribute_path(self.kept[state]), args, kwargs, node.name)
        call.meta = dict(node.meta)
        places = items(shell.sample.returned)
        assert places is not None
        for user in node.users:
            value = call
            for place in places[user.args[1]]:  # type: ignore[index]  # of `operator.getitem`
                value = self.graph.call_function(operator.getitem, (value, place))
                value.meta = dict(user.meta)
            self.values[user] = value

    def place_kept(self, shell: Shell, state: tuple[fx.Node, ...]) -> str:
        targets = [str(reader.target) for reader in state]
        paths = {name.removesuffix(f".{own}") for name, own in zip(targets, shell.state, strict=True)}
        path = paths.pop() if len(paths) == 1 else names.call(shell.path)
        while path in self.kept.values() or path in targets:
            path += "_"
        module = shell.filled([self.program.tensors[name] for name in targets])
        parent, name = self.container(path)
        present = parent._modules.get(name)
        for child_name, child in present.named_children() if present is not None else ():  # of tensors placed before
            if child_name not in module._modules:
                module.add_module(child_name, child)
        parent.add_module(name, module)
        self.placed.update(name for name in targets if name.startswith(f"{path}."))
        return path

    # -- evaluation form -------------------------------------------------------------------------------------------

    def evaluation(self, node: fx.Node) -> fx.Node | None:
        """The evaluation form of an operation that is mode-dependent; None for others and in training graphs."""
        if self.training or not isinstance(node.target, OpOverload):
            return None
        rule, values = traits(node), bound(node)
        if rule.evaluation is not None:
            return self.values[values[rule.evaluation]]
        if rule.training is None:
            return None
        if rule.kind == "norm" and (self.lifted_instance(node) is not None or values.get("running_mean", True) is None):
            return None
        new = self.copy(node)
        never = type(values[rule.training])()  # False, or a probability of 0
        new.args, new.kwargs = rebind(node.target, {**bound(new), rule.training: never})
        return new

    # -- modules ---------------------------------------------------------------------------------------------------

    def as_module(self, node: fx.Node) -> fx.Node | None:
        call = self.lifted_instance(node)
        if call is None and self.training:
            call = self.lift_mode_dependent(node)
        if call is None:
            return None
        self.place(call.path, call.instance)
        new = new_node(
            self.graph,
            "call_module",
            self.attribute_path(call.path),
            tuple(fx.map_arg(argument, lambda inner: self.values[inner]) for argument in call.args),
            name=node.name,
        )
        new.meta.update(node.meta)
        return new

    def lifted_instance(self, node: fx.Node) -> Call | None:
        call = parametric(self.program, node, training=self.training) or plain(node)
        if call is None:
            return None
        present = self.instances.get(call.path)
        if present is not None:
            return call if present == call.instance else None
        if call.path in self.program.tensors or any(name in self.program.tensors for name in _ancestors(call.path)):
            return None
        return call

    def lift_mode_dependent(self, node: fx.Node) -> Call | None:
        found = by_mode(node)
        if found is None:
            return self.switch(node) if self.depends_on_mode(node) else None
        instance, row = found
        values = bound(node)
        args = tuple(values[name] for name in row.inputs)
        if instance.kind is BatchNormCall:
            args = (*args[:3], *self.statistics(values))
        return Call(self.path(node, instance, *row.classes), instance, args)

    def depends_on_mode(self, node: fx.Node) -> bool:
        """Whether a call says that it trains, and does something else then."""
        training, values = traits(node).training, bound(node)
        if training is None or not values[training]:
            return False
        return values.get("running_mean", True) is not None and values.get("dropout", 1.0) != 0.0

    def switch(self, node: fx.Node) -> Call:
        training, values = traits(node).training, bound(node)
        assert isinstance(node.target, OpOverload)
        assert training is not None
        flag = position(node.target, training)
        args = tuple(values.values())
        instance = Instance(TrainingSwitch, (("target", node.target), ("position", flag)))
        return Call(self.path(node, instance), instance, (*args[:flag], *args[flag + 1 :]))

    def statistics(self, values: dict[str, Any]) -> tuple[fx.Node | None, ...]:
        """The running statistics of a norm, what selects a part of them, and what counts the batches."""
        mean, var, index = values["running_mean"], values["running_var"], None
        if has_kind(mean, "selection") and has_kind(var, "selection"):
            one, other = bound(mean), bound(var)
            if isinstance(one.get("index"), fx.Node) and one["index"] is other.get("index"):
                mean, var, index = one["self"], other["self"], one["index"]
        return mean, var, index, self.counter(mean)

    def counter(self, statistics: fx.Node) -> fx.Node | None:
        """What counts the batches of a norm, by one of its statistics or a view of them."""
        name = _counter(self.program, statistics)
        if name is not None and name not in self.counters:
            self.counters[name] = self.graph.get_attr(name)
            self.values[self.counters[name]] = self.counters[name]
        return self.counters[name] if name is not None else None

    def path(self, node: fx.Node, instance: Instance, *classes: str) -> str:
        """The module's own path if the operation came out of one of `classes`; otherwise one that all its copies share,
        for these modules hold nothing."""
        origin = node.meta["origin"]
        if origin.module_path and any(name in origin.module_class for name in classes):
            path = str(origin.module_path)
            if self.instances.get(path, instance) == instance and not self.holds_tensors(path):
                return path
        path = names.call(origin.module_path or node.name)
        while self.instances.get(path, instance) != instance:
            path += "_"
        return path

    def holds_tensors(self, path: str) -> bool:
        return any(name == path or name.startswith(path + ".") for name in self.program.tensors)

    def place(self, path: str, instance: Instance) -> None:
        if path in self.instances:
            return
        module = instance.build()
        parent, name = self.container(path)
        present = parent._modules.get(name)
        if present is not None:  # a container that a longer path made
            for child_name, child in present.named_children():
                module.add_module(child_name, child)
        parent.add_module(name, module)
        self.instances[path] = instance
        for attribute in [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]:
            full = f"{path}.{attribute}"
            if full in self.program.tensors:
                delattr(module, attribute)
                self.put(full)
            elif attribute == "num_batches_tracked":
                averages = getattr(module, "momentum", 0.0) is None  # it divides by the count
                module.register_buffer(attribute, torch.tensor(0) if averages else None)

    def put(self, name: str) -> None:
        parent, attribute = self.container(name)
        tensor = self.program.tensors[name]
        if isinstance(tensor, nn.Parameter):
            parent.register_parameter(attribute, tensor)
        else:
            parent.register_buffer(attribute, tensor, persistent=name not in self.program.transient)
        self.placed.add(name)

    def container(self, path: str) -> tuple[nn.Module, str]:
        """Where the attribute `path` belongs, and its name there; modules on the way are made."""
        module: nn.Module = self.module
        *parents, _ = path.split(".")
        done = ""
        for part in parents:
            name = self.attribute(module, done + part)
            child = module._modules.get(name)
            if child is None:
                child = self.part(done + part)
                module.add_module(name, child)
            module, done = child, f"{done}{part}."
        return module, self.attribute(module, path)

    def part(self, path: str) -> nn.Module:
        if not self.training:
            return nn.Module()
        return Added() if path == "anytime" else Part()

    def attribute(self, parent: nn.Module, path: str) -> str:
        """The last part of `path`, changed where the parent has an attribute of that name for itself."""
        name = self.renamed.get(path, path).rpartition(".")[2]
        if (
            path not in self.renamed
            and hasattr(parent, name)
            and name not in parent._modules
            and not _holds(parent, name)
        ):
            while hasattr(parent, name):
                name += "_"
            self.renamed[path] = path[: len(path) - len(path.rpartition(".")[2])] + name
        return name

    def attribute_path(self, path: str) -> str:
        """`path` as attribute names."""
        parts = path.split(".")
        prefixes = [".".join(parts[: count + 1]) for count in range(len(parts))]
        return ".".join(self.renamed.get(prefix, prefix).rpartition(".")[2] for prefix in prefixes)

    def register_leftovers(self) -> None:
        for name in self.program.tensors:
            if name not in self.placed:
                self.put(name)
        if self.renamed:
            names = {self.attribute_path(path): path for path in self.renamed}
            self.module.meta["renamed"] = names
            if self.training:
                keep_state_dict_names(self.module, names)


def _holds(module: nn.Module, name: str) -> bool:
    return name in module._parameters or name in module._buffers


def backbone_name(attribute: str, renamed: Mapping[str, str]) -> str:
    """The backbone's name of what `to_modules` had to give another attribute name (its `module.meta["renamed"]`)."""
    for ours, theirs in sorted(renamed.items(), reverse=True):  # inner names before those that contain them
        if attribute == ours or attribute.startswith(f"{ours}."):
            attribute = theirs + attribute[len(ours) :]
    return attribute


def keep_state_dict_names(module: nn.Module, names: dict[str, str]) -> None:
    """State dicts keep the backbone's names where attributes could not (a child called `graph` or `code`)."""

    def renamed(state: dict[str, Tensor], prefix: str, one: str, other: str) -> None:
        for key in [key for key in state if key == prefix + one or key.startswith(f"{prefix}{one}.")]:
            state[prefix + other + key[len(prefix + one) :]] = state.pop(key)

    def saved(_: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
        for ours, theirs in sorted(names.items(), reverse=True):  # inner names before those that contain them
            renamed(state, prefix, ours, theirs)

    def loading(_: nn.Module, state: dict[str, Tensor], prefix: str, *unused: object) -> None:
        for ours, theirs in sorted(names.items(), reverse=True):
            renamed(state, prefix, theirs, ours)

    module.register_state_dict_post_hook(saved)
    module.register_load_state_dict_pre_hook(loading)


def _ancestors(path: str) -> list[str]:
    return [path[:position] for position, letter in enumerate(path) if letter == "."]
