"""Turns operations back into modules: the last step before a graph is run, trained, shown or exported.

1. An operation whose tensors are `<path>.weight`, `<path>.bias`, ... of one path becomes the `torch.nn` module that
   computes it, under that path (`_PARAMETRIC`). One path used twice is one module called twice.
2. An operation that came out of a `torch.nn` activation, pooling or flattening module becomes that module (`_PLAIN`).
3. Operations that training and evaluation compute differently become modules in any case, in training graphs
   (`_lift_mode_dependent`); in inference graphs they take their evaluation form: dropout and stochastic depth vanish.
4. Everything else stays functional, and reads its tensors by `get_attr`.
5. Tensors that nothing reads are registered under their names too, so the state dict is the backbone's.

Nothing is copied: the modules hold the program's own tensors.
"""

from __future__ import annotations

import torch
from torch import fx, nn

from anytimeify._torch import OpOverload
from anytimeify.ir import Program
from anytimeify.lift_tables import Call, Instance, parametric, plain
from anytimeify.modules import AttentionDropout, BatchNormCall, DropPath, TrainingSwitch
from anytimeify.schema import bound, position, rebind

__all__ = ["lift"]

aten = torch.ops.aten
_DROP_PATH = torch.ops.anytimeify.drop_path.default

# The argument that says whether an operation trains, for those that no module of `torch.nn` is made from here.
_TRAINING_FLAG: dict[object, str] = {
    aten.alpha_dropout.default: "train",
    aten.dropout.default: "train",
    aten.feature_alpha_dropout.default: "train",
    aten.feature_dropout.default: "train",
    aten.gru.input: "train",
    aten.instance_norm.default: "use_input_stats",
    aten.lstm.input: "train",
    aten.native_dropout.default: "train",
    aten.rnn_relu.input: "train",
    aten.rnn_tanh.input: "train",
    aten.rrelu.default: "training",
}
_DROPOUTS = {
    aten.alpha_dropout.default: nn.AlphaDropout,
    aten.dropout.default: nn.Dropout,
    aten.feature_alpha_dropout.default: nn.FeatureAlphaDropout,
    aten.feature_dropout.default: {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d},
}
_SELECTIONS = (aten.index_select.default,)


def lift(program: Program, *, training: bool = True) -> fx.GraphModule:
    """A module that computes `program`, with its inputs and its flat tuple of outputs.

    `training=True`: follows `train()` and `eval()`. `training=False`: the inference form, in eval mode, made of nothing
    but `torch`.
    """
    lifter = _Lifter(program, training)
    graph = lifter.run()
    module = lifter.module
    module.graph = graph
    return module.train(training)


class _Lifter:
    def __init__(self, program: Program, training: bool) -> None:
        self.program, self.training = program, training
        self.graph = fx.Graph()
        self.module = fx.GraphModule(nn.Module(), fx.Graph(), class_name="Network")
        self.values: dict[fx.Node, fx.Node] = {}
        self.instances: dict[str, Instance] = {}
        self.placed: set[str] = set()
        self.tops = {name.partition(".")[0] for name in program.tensors}

    def run(self) -> fx.Graph:
        readers = [node for node in self.program.graph.nodes if node.op == "get_attr"]
        for node in self.program.graph.nodes:
            if node.op in ("placeholder", "get_attr", "output"):
                if node.op == "output":
                    self.register_leftovers()
                self.values[node] = self.copy(node)
            else:
                self.values[node] = self.evaluation(node) or self.lifted(node) or self.copy(node)
        for node in readers:
            if not self.values[node].users:
                self.graph.erase_node(self.values[node])
        return self.graph

    def copy(self, node: fx.Node) -> fx.Node:
        return self.graph.node_copy(node, lambda inner: self.values[inner])

    # -- evaluation form -------------------------------------------------------------------------------------------

    def evaluation(self, node: fx.Node) -> fx.Node | None:
        """The evaluation form of an operation that is mode-dependent; None for others and in training graphs."""
        if self.training or not isinstance(node.target, OpOverload):
            return None
        if node.target in _DROPOUTS or node.target is _DROP_PATH:
            return self.values[node.args[0]]  # type: ignore[index]  # canonical: a node
        changed: dict[str, object] = {}
        if node.target is aten.scaled_dot_product_attention.default:
            changed = {"dropout_p": 0.0}
        elif node.target is aten.batch_norm.default or node.target is aten.instance_norm.default:
            if self.lifted_instance(node) is not None or bound(node)["running_mean"] is None:
                return None
            changed = {"training" if node.target is aten.batch_norm.default else "use_input_stats": False}
        elif node.target in _TRAINING_FLAG:
            changed = {_TRAINING_FLAG[node.target]: False}
        if not changed:
            return None
        new = self.copy(node)
        new.args, new.kwargs = rebind(node.target, {**bound(new), **changed})
        return new

    # -- modules ---------------------------------------------------------------------------------------------------

    def lifted(self, node: fx.Node) -> fx.Node | None:
        call = self.lifted_instance(node)
        if call is None and self.training:
            call = self.lift_mode_dependent(node)
        if call is None:
            return None
        self.place(call.path, call.instance)
        new = self.graph.create_node(
            "call_module",
            call.path,
            tuple(fx.map_arg(argument, lambda inner: self.values[inner]) for argument in call.args),
            name=node.name,
        )
        new.meta = dict(node.meta)
        return new

    def lifted_instance(self, node: fx.Node) -> Call | None:
        call = parametric(self.program, node) or plain(node)
        if call is None:
            return None
        present = self.instances.get(call.path)
        if present is not None:
            return call if present == call.instance else None
        if call.path in self.program.tensors or any(name in self.program.tensors for name in _ancestors(call.path)):
            return None
        return call

    def lift_mode_dependent(self, node: fx.Node) -> Call | None:
        values = bound(node) if isinstance(node.target, OpOverload) else {}
        if node.target in _DROPOUTS and values["train"] and values["p"] > 0:
            kind = _DROPOUTS[node.target]
            if isinstance(kind, dict):
                kind = kind.get(len(node.meta["type"].shape))
            if kind is not None:
                instance = Instance(kind, (("p", values["p"]),))
                return Call(self.path(node, instance, "torch.nn.modules.dropout."), instance, (node.args[0],))
        if node.target is _DROP_PATH:
            config = tuple((name, values[name]) for name in ("keep_prob", "scale_by_keep", "mode"))
            return Call(self.path(node, Instance(DropPath, config), "DropPath", "StochasticDepth"), Instance(DropPath, config), (values["x"],))  # fmt: skip
        if node.target is aten.scaled_dot_product_attention.default and values["dropout_p"] > 0:
            config = tuple((name, values[name]) for name in ("is_causal", "scale", "enable_gqa"))
            instance = Instance(AttentionDropout, (("p", values["dropout_p"]), *config))
            args = tuple(values[name] for name in ("query", "key", "value", "attn_mask"))
            return Call(self.path(node, instance), instance, args)
        if node.target is aten.batch_norm.default and values["training"] and values["running_mean"] is not None:
            return self.batch_norm_call(node, values)
        if node.target in _TRAINING_FLAG and self.depends_on_mode(node, values):
            flag = position(node.target, _TRAINING_FLAG[node.target])
            args = list(values.values())
            instance = Instance(TrainingSwitch, (("target", node.target), ("position", flag)))
            return Call(self.path(node, instance), instance, (*args[:flag], *args[flag + 1 :]))
        return None

    def depends_on_mode(self, node: fx.Node, values: dict[str, object]) -> bool:
        if not values[_TRAINING_FLAG[node.target]]:
            return False
        if node.target is aten.instance_norm.default:
            return values["running_mean"] is not None
        return values.get("dropout", 1.0) != 0.0

    def batch_norm_call(self, node: fx.Node, values: dict[str, object]) -> Call:
        mean, var, index = values["running_mean"], values["running_var"], None
        assert isinstance(mean, fx.Node) and isinstance(var, fx.Node)
        if mean.target in _SELECTIONS and var.target in _SELECTIONS and bound(mean)["index"] is bound(var)["index"]:
            mean, var, index = bound(mean)["self"], bound(var)["self"], bound(mean)["index"]
        instance = Instance(BatchNormCall, (("momentum", values["momentum"]), ("eps", values["eps"])))
        args = (values["input"], values["weight"], values["bias"], mean, var, index)
        return Call(self.path(node, instance), instance, args)

    def path(self, node: fx.Node, instance: Instance, *classes: str) -> str:
        """The module's own path if the operation came out of one of `classes`, else a path named after the node."""
        origin = node.meta["origin"]
        if origin.module_path and any(name in origin.module_class for name in classes):
            path = str(origin.module_path)
            if self.instances.get(path, instance) == instance and not self.holds_tensors(path):
                return path
        path = node.name
        while path.partition(".")[0] in self.tops or path in self.instances or hasattr(self.module, path):
            path += "_"
        return path

    def holds_tensors(self, path: str) -> bool:
        return any(name == path or name.startswith(path + ".") for name in self.program.tensors)

    def place(self, path: str, instance: Instance) -> None:
        if path in self.instances:
            return
        module = instance.build()
        parent, name = self.container(path)
        present = getattr(parent, name, None)
        if isinstance(present, nn.Module):  # a container that a longer path made
            for child_name, child in present.named_children():
                module.add_module(child_name, child)
        parent.add_module(name, module)
        self.instances[path] = instance
        for attribute in [*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))]:
            full = f"{path}.{attribute}"
            if full in self.program.tensors:
                self.put(full)
            elif attribute == "num_batches_tracked":
                module.num_batches_tracked = None
        module.training = self.training

    def put(self, name: str) -> None:
        parent, attribute = self.container(name)
        tensor = self.program.tensors[name]
        if attribute in parent._parameters or attribute in parent._buffers:
            delattr(parent, attribute)
        if isinstance(tensor, nn.Parameter):
            parent.register_parameter(attribute, tensor)
        else:
            parent.register_buffer(attribute, tensor, persistent=name not in self.program.transient)
        self.placed.add(name)

    def container(self, path: str) -> tuple[nn.Module, str]:
        *parents, name = path.split(".")
        module: nn.Module = self.module
        for part in parents:
            child = module._modules.get(part)
            if child is None:
                child = nn.Module()
                module.add_module(part, child)
            module = child
        return module, name

    def register_leftovers(self) -> None:
        for name in self.program.tensors:
            if name not in self.placed:
                self.put(name)


def _ancestors(path: str) -> list[str]:
    return [path[:position] for position, letter in enumerate(path) if letter == "."]

