"""`AnytimeModel`: one graph with a prediction per level, over one set of parameters."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from anytimeify import budget as budgets
from anytimeify import extraction, storage
from anytimeify import report as reports
from anytimeify.axes import Axes
from anytimeify.budget import Budget
from anytimeify.calibration import batch_arguments, calibrate
from anytimeify.calling import Calling
from anytimeify.definition import Definition, freeze_unread, register_missing
from anytimeify.errors import ArgumentError, BudgetError
from anytimeify.heads import check_shapes, new_heads
from anytimeify.ir import Captured, Level, Outputs, Rewritten
from anytimeify.kept import masks
from anytimeify.level_names import LevelName, find_level
from anytimeify.lift import backbone_name, keep_state_dict_names, lift
from anytimeify.losses.taxonomy import TaxonomyLoss
from anytimeify.modules import Added, BatchNormCall, Watch, Watched
from anytimeify.parts import take_parts_together
from anytimeify.passes.consensus import Consensus
from anytimeify.passes.options import Options
from anytimeify.passes.project import ancestors
from anytimeify.passes.resume import steps
from anytimeify.recompute import recomputing, share
from anytimeify.report import Report
from anytimeify.rewriter import Scheme
from anytimeify.stacks import accept_backbones
from anytimeify.staged.build import build
from anytimeify.staged.network import Staged
from anytimeify.staged.running import Link, links, run
from anytimeify.taxonomy import Taxonomy

__all__ = ["AnytimeModel"]

_OWN = frozenset(
    {"loss", "_definition", "_everything", "_graphs", "_latencies", "_others", "_renamed", "_steps", "_watch"}
)


class AnytimeModel(Watched):
    """All levels of a network, cheapest first.

    `net(*inputs)` returns `Outputs` and trains all levels together; `net(*inputs, level=k)` computes one level alone.
    Parameters, buffers and children are those of the backbone, under the backbone's own names, so that its
    checkpoints load; what a scheme adds lies below `anytime`.

    How it is built: the joint graph and one graph per level are `fx.GraphModule`s that are not children of this
    module but share its three dictionaries (`_parameters`, `_buffers`, `_modules`). Whatever happens to those (`.to()`,
    `load_state_dict`, a child replaced by a wrapper) happens to all graphs at once, no name of the backbone can
    collide with a name of this class, and nothing is registered twice.
    """

    _watch: Watch  # of parts that are assigned to

    def __init__(
        self,
        captured: Captured,
        axes: Axes,
        scheme: Scheme,
        rewritten: Rewritten,
        loss: nn.Module | None = None,
        *,
        options: Options | None = None,
    ) -> None:
        super().__init__()
        self._watch = Watch()
        network = lift(rewritten.program)
        register_missing(network, captured.program)
        freeze_unread(rewritten.program)
        self._parameters, self._buffers, self._modules = network._parameters, network._buffers, network._modules
        self._non_persistent_buffers_set = network._non_persistent_buffers_set
        self._renamed: dict[str, str] = network.meta.get("renamed", {})
        if self._renamed:
            keep_state_dict_names(self, self._renamed)
        if rewritten.stacks:
            accept_backbones(self, lambda net: net._definition.stacked())
        options = options or Options()
        self._definition = Definition.of(captured, axes, scheme, rewritten, owned=self.tensors(), options=options)
        if any(masks(rewritten.program)):
            self.register_load_state_dict_post_hook(_recount)  # type: ignore[no-untyped-call]  # of torch
        self._latencies: dict[tuple[Any, ...], float] = {}
        self._steps: tuple[list[fx.GraphModule], tuple[Link, ...]] | None = None
        self._bind(network)
        self.loss = loss if loss is not None else options.default_loss(scheme)

    def _bind(self, network: fx.GraphModule) -> None:
        """Makes the graph modules that run: the joint one, and one per level."""
        whole, rewritten = network.graph, self._definition.rewritten
        outputs: tuple[fx.Node, ...] = whole.output_node().args[0]  # type: ignore[assignment]  # canonical: a flat tuple
        positions = [rewritten.position(level) for level in range(len(self.levels))]
        joint = _only(whole, [outputs[place] for place in rewritten.joint])
        views = [joint, *(_only(whole, outputs[position]) for position in positions)]
        self._graphs = tuple(self._module(graph) for graph in views)
        self._everything = whole
        for part in self.modules():
            if isinstance(part, Watched):
                part._watch = self._watch
        self._watch.changed = False
        self._others: dict[int, fx.GraphModule] = {}
        self._steps = None

    def _module(self, graph: fx.Graph) -> fx.GraphModule:
        take_parts_together(graph, self._sharing(nn.Module()))
        if self.checkpoint:
            return recomputing(graph, self)
        module: fx.GraphModule = self._sharing(fx.GraphModule(self._sharing(nn.Module()), graph))
        return module

    def _sharing(self, module: Any) -> Any:
        return share(self, module)

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers as they are now, by name, those of the loss left out; tied ones under each name."""
        live: dict[str, Tensor] = dict(self.named_buffers(remove_duplicate=False))
        live.update(self.named_parameters(remove_duplicate=False))
        return {
            backbone_name(name, self._renamed): tensor
            for name, tensor in live.items()
            if not name.startswith("anytime.loss.")
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> AnytimeModel:
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        left_out = ("_graphs", "_everything", "_others", "_steps")
        state = {name: value for name, value in self.__dict__.items() if name not in left_out}
        result.__dict__.update(copy.deepcopy(state, memo))
        result._bind(fx.GraphModule(result._sharing(nn.Module()), _whole(self._everything)))
        return result

    def __reduce__(self) -> Any:
        raise ArgumentError(
            "an AnytimeModel is not pickled, for its graphs are code. Write it with net.save(path) and read it with "
            "anytimeify.load(path), in another process too; or pickle net.state_dict(), or net.extract(level)"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:  # nn.Module would take `loss` for a child, and refuses others where a child has the name
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def get_submodule(self, target: str) -> nn.Module:
        """As in `nn.Module`, also for a child of the backbone that is called like a member of this class."""
        first, _, rest = target.partition(".")
        child = self._modules.get(first)
        return child.get_submodule(rest) if child is not None else super().get_submodule(target)

    # What the model is.

    @property
    def levels(self) -> tuple[Level, ...]:
        """The networks inside, cheapest first, with what each of them costs for one sample."""
        return self._definition.levels

    @property
    def resumable(self) -> bool:
        """Whether `stream` computes at each step only what earlier steps did not."""
        return self._definition.rewritten.resumable

    @property
    def scheme(self) -> Scheme:
        return self._definition.scheme

    @property
    def axes(self) -> Axes:
        return self._definition.axes

    @property
    def full(self) -> int:
        """The position of the level that equals the backbone."""
        return self._definition.rewritten.full % len(self.levels)

    @property
    def exact(self) -> bool:
        """Whether the full level equals the backbone as long as nothing is trained."""
        return self._definition.rewritten.exact

    @property
    def backbones(self) -> tuple[int, ...]:
        """The positions of the levels that equal the backbones: one, or one for each of two."""
        return self._definition.rewritten.backbones or (self.full,)

    @property
    def taxonomy(self) -> Taxonomy | None:
        """The classes of every granularity, where predictions are of several."""
        return self._definition.options.taxonomy

    @property
    def consensus(self) -> Consensus | None:
        """How the last level combines the others, where it does."""
        return self._definition.options.consensus

    @property
    def checkpoint(self) -> bool:
        """Whether the levels recompute in the backward pass what the backbone recomputes."""
        return self._definition.options.checkpoint

    @property
    def granularities(self) -> tuple[tuple[str, ...], ...]:
        """Which granularities every level predicts, finest first; empty without a taxonomy."""
        names = self.taxonomy.granularities if self.taxonomy is not None else ()
        heads = self._definition.rewritten.heads
        return tuple(tuple(names[place] for place, _ in own) for own in heads[: len(self.levels)])

    @property
    def served(self) -> tuple[str, ...]:
        """The granularity that every level serves where one prediction is asked for; empty without a taxonomy."""
        names = self.taxonomy.granularities if self.taxonomy is not None else ()
        return tuple(names[place] for place in self._definition.rewritten.served)

    def consensus_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of a learned consensus, for an optimiser that trains nothing else; none without."""
        for name, parameter in self.named_parameters():
            if name.startswith("anytime.consensus."):
                yield parameter

    @property
    def captured(self) -> Captured:
        """The backbone in canonical form, with the tensors of this model as they are now."""
        return self._definition.captured_with(self.tensors())

    @property
    def rewritten(self) -> Rewritten:
        """The joint graph in canonical form, with the tensors of this model as they are now."""
        return self._definition.rewritten_with(self.tensors())

    @property
    def calling(self) -> Calling:
        return self._definition.calling

    @property
    def graphs(self) -> tuple[fx.GraphModule, ...]:
        """The joint graph, then the graph of each level, as they run: in lifted form, with flat inputs."""
        return self._graphs

    @property
    def loss(self) -> nn.Module:
        """The training objective, called as `loss(outputs, target)`. Assign another to replace it."""
        return self._modules["anytime"]._modules["loss"]  # type: ignore[union-attr, return-value]  # set in __init__

    @loss.setter
    def loss(self, loss: nn.Module) -> None:
        if not isinstance(loss, nn.Module):
            raise ArgumentError(
                f"the loss is a {type(loss).__name__}: expected an nn.Module, called as loss(outputs, target)"
            )
        if "anytime" not in self._modules:
            self._modules["anytime"] = Added()
        self._modules["anytime"].add_module("loss", loss)  # type: ignore[union-attr]  # a module, never None
        if self.taxonomy is not None:
            self._say_taxonomy(loss, self.taxonomy)

    def _say_taxonomy(self, loss: nn.Module, taxonomy: Taxonomy) -> None:
        """Tells an objective for several granularities which ones levels and members have."""
        rewritten = self._definition.rewritten
        levels, members = (
            [[granularity for granularity, _ in rewritten.heads[place]] for place in places]
            for places in (range(len(self.levels) - rewritten.consensus), rewritten.members)
        )
        for module in loss.modules():
            if isinstance(module, TaxonomyLoss):
                module.bind(taxonomy, levels, members)

    # What the model does.

    def forward(
        self, *args: Any, level: LevelName | None = None, granularity: int | str | None = None, **kwargs: Any
    ) -> Any:
        """All levels as `Outputs`, or the prediction of one `level`, at its cost: its index, one of `levels`, its name
        (`"width 0.25"`), or its number as a float (`0.25`) where the scheme has one number a level.

        With a taxonomy every level and member of the outputs is a tuple, finest labels first; one level gives the
        `granularity` that it serves, another one that it has, or with `"all"` a tuple of all that it has."""
        if self._watch.changed and not torch.compiler.is_compiling():
            check_shapes(self._definition, self.tensors())
            self._watch.changed = False
        inputs = self.calling.flat(args, kwargs)
        rewritten = self._definition.rewritten
        if level is None:
            if granularity is not None:
                raise ArgumentError("granularity is given without level: all levels give all that they have")
            flat = dict(zip(rewritten.joint, self._graphs[0](*inputs), strict=True))
            levels = (rewritten.taken(flat, place) for place in range(len(self.levels)))
            return Outputs(tuple(levels), tuple(rewritten.taken(flat, place) for place in rewritten.members))
        index = self._index(level)
        if granularity == "all":
            return tuple(self.graph(index, name)(*inputs) for name in self.granularities[index])
        return self.graph(index, granularity)(*inputs)

    def graph(self, level: LevelName, granularity: int | str | None = None) -> fx.GraphModule:
        """The graph of one level as it runs, in lifted form, with flat inputs: the granularity that it serves, or
        another one that it has."""
        index = self._index(level)
        place = self._place(index, granularity)
        if place == self._place(index):
            return self._graphs[1 + index]
        if place not in self._others:
            outputs: tuple[fx.Node, ...] = self._everything.output_node().args[0]  # type: ignore[assignment]
            self._others[place] = self._module(_only(self._everything, outputs[place]))
        return self._others[place]

    def _place(self, index: int, granularity: int | str | None = None) -> int:
        """The output that is the prediction of a level at its own cost."""
        rewritten = self._definition.rewritten
        if granularity is None:
            return rewritten.position(index)
        if self.taxonomy is None:
            raise ArgumentError(f"granularity={granularity!r}: this model has no taxonomy")
        place = self.taxonomy.index(granularity)
        if self.taxonomy.granularities[place] not in self.granularities[index]:
            raise ArgumentError(
                f"level {index} ({self.levels[index].name}) does not predict {self.taxonomy.granularities[place]}; it "
                f"predicts {', '.join(self.granularities[index])}"
            )
        return rewritten.position(index, place)

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Level, Tensor]]:
        """Predictions of better and better levels: stop whenever time is up.

        Where the model is `resumable`, each step computes only what the steps before it did not."""
        if self.resumable:
            yield from self._resume(self.calling.flat(args, kwargs))
            return
        for level in self.levels:
            if not level.training_only:
                yield level, self(*args, level=level, **kwargs)

    def _resume(self, inputs: Sequence[Tensor]) -> Iterator[tuple[Level, Tensor]]:
        levels = [level for level in self.levels if not level.training_only]
        names = [node.name for node in self._everything.find_nodes(op="placeholder")]
        if self._steps is None:
            outputs: tuple[fx.Node, ...] = self._everything.output_node().args[0]  # type: ignore[assignment]
            places = self._definition.rewritten.steps
            chain = steps(self._everything, [outputs[places[level.index]] for level in levels])
            reads_and_gives = [(step.reads, step.gives) for step in chain]
            self._steps = [self._module(step.graph) for step in chain], links(names, reads_and_gives)
        known: dict[str, Any] = dict(zip(names, inputs, strict=True))
        yield from zip(levels, run(*self._steps, known), strict=True)

    def select(self, budget: Budget) -> Level:
        """The best level within the budget; `BudgetError` names the cheapest level and its cost where none fits."""
        if not isinstance(budget, Budget):
            raise ArgumentError(f"a budget is given as {budget!r}: expected a Budget, such as Budget(macs=5e8)")
        itemsize = next((p.element_size() for p in self.parameters() if p.is_floating_point()), 4)
        return budgets.select(
            self.levels,
            budget,
            itemsize,
            lambda level: self.latency(level, device=budget.device, batch_size=budget.batch_size),
        )

    def latency(
        self, level: LevelName, *, device: str | torch.device | None = None, batch_size: int = 1, seconds: float = 1.0
    ) -> float:
        """Median milliseconds of one batch through the extracted graph of a level, on `device`.

        Measured once: the result is kept until the shapes or types of the parameters change.
        """
        index = self._index(level)
        tensors = self.tensors()
        where = (
            budgets.usable(torch.device(device))
            if device is not None
            else next((t.device for t in tensors.values()), torch.device("cpu"))
        )
        structure = hash(tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()))
        key = (index, str(where), batch_size, torch.get_num_threads(), structure)
        if key not in self._latencies:
            dtype = next((t.dtype for t in self.parameters() if t.is_floating_point()), torch.get_default_dtype())
            inputs = budgets.example_batch(self._definition.captured, batch_size)
            moved = tuple(x.to(where, dtype) if x.is_floating_point() else x.to(where) for x in inputs)
            args, kwargs = self.calling.arguments(moved, self._definition.captured.signature)
            module = self.extract(index).to(where)
            self._latencies[key] = budgets.measure_latency(module, args, kwargs, device=where, seconds=seconds)
        return self._latencies[key]

    def extract(
        self,
        level: LevelName | Budget,
        *,
        fold: bool = False,
        dense: bool = False,
        granularity: int | str | None = None,
    ) -> fx.GraphModule:
        """One level as a standalone module in eval mode: called like the backbone, returns the level's prediction.

        Its parameters are small copies under names made from the backbone's; running it needs no import of
        anytimeify. `fold=True` merges batch norms into the convolutions before them, and evaluates what else depends on
        parameters alone. Triangular layers are cut into the blocks that they have, `conv.0.weight`, `conv.1.weight`,
        ..., which is what the level costs; `dense=True` leaves them whole, `conv.weight` with zeros: more to compute,
        in fewer calls. With a taxonomy, the prediction is of the granularity that the level serves, or of another one
        that it has.
        """
        index = self.select(level).index if isinstance(level, Budget) else self._index(level)
        return extraction.extract(
            self.rewritten.program,
            index,
            self.calling,
            position=self._place(index, granularity),
            merge_batch_norms=fold,
            dense=dense,
        )

    def staged(
        self,
        levels: Sequence[LevelName] | None = None,
        *,
        fold: bool = True,
        granularity: int | str | None = None,
    ) -> Staged:
        """The levels as a chain of inference graphs, which early exit stops between: each computes what those before
        it did not. Levels for training only are left out; `levels` chooses among the others. Tensors are copies.

        `fold=True` merges batch norms into the convolutions before them. With a taxonomy every level gives the
        granularity that it serves, or all of them one `granularity`; levels that give different ones can be streamed,
        but not stopped between for every sample.
        """
        usable = [level.index for level in self.levels if not level.training_only]
        if granularity is not None and levels is None and self.taxonomy is not None:
            name = self.taxonomy.granularities[self.taxonomy.index(granularity)]
            usable = [index for index in usable if name in self.granularities[index]]
        chosen = usable if levels is None else sorted({self._index(level) for level in levels})
        if not chosen or not set(chosen) <= set(usable):
            raise BudgetError(f"levels={levels!r}: expected some of {', '.join(map(str, usable))}")
        kept = [self.levels[index] for index in chosen]
        for index in chosen:
            self._place(index, granularity)  # refuses what a level does not have
        place = None if granularity is None or self.taxonomy is None else self.taxonomy.index(granularity)
        return build(self.captured, self.rewritten, kept, merge_batch_norms=fold, granularity=place)

    def calibrate(self, batches: Iterable[Any]) -> None:
        """Re-estimates the running statistics of every batch norm: their mean over the batches, with equal weights.

        A batch is the model's input or inputs, or `(inputs, target)`, as a data loader gives it. Batch norms that
        several levels share hold the statistics of one width only: then those of the full level are estimated.
        """
        # Members of a stack have statistics of their own, whoever reads them in parts; and where levels nest in one
        # pass, those of a channel are the same at every level.
        apart = self._definition.rewritten.stacks or not self.exact
        calls = any(isinstance(module, BatchNormCall) for module in self.modules())
        shared = not apart and (calls or getattr(self.scheme, "norms", None) == "shared")
        level = self.full if shared else None
        count = len(self.calling.parameters)

        def forward(batch: Any) -> None:
            args, kwargs = batch_arguments(batch, count)
            self(*args, level=level, **kwargs)

        calibrate(self, batches, forward)

    def reset_classifier(self, classes: int) -> None:
        """Gives every level and member a new head, drawn as the layers of torch draw theirs, for so many classes.

        In place, as in timm: all else stays, down to the parameter objects. An optimiser made before does not know the
        new parameters. Raises `SchemeError` where the classes are not made by layers that can be made anew (tied ones,
        those of operations without a rule), and for models with a taxonomy, which says how many classes there are.
        """
        self._definition, network = new_heads(self, self._definition, self.tensors(), classes)
        self._latencies.clear()
        self._bind(network)
        self.recount()

    def recount(self) -> None:
        """Takes the costs of the levels from the masks as they are now, after masks were changed by hand. Loading a
        state dict and `anytimeify.masks.refresh` do so themselves."""
        self._definition = self._definition.recounted(self.tensors())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model into one file without pickle; `anytimeify.load(path)` reads it. Of a loss that is not one of
        `anytimeify.losses` nothing is kept, and an `AnytimeWarning` says so."""
        options = self._definition.options
        storage.write(path, storage.Stored(self.captured, self.scheme, self.tensors(), options, self.loss))

    def report(self) -> Report:
        """Levels with their cost, axis groups with sites, roles and pins with reasons; prints as a table."""
        return reports.report(self)

    def extra_repr(self) -> str:
        return f"{self.scheme}, {len(self.levels)} levels"

    def _index(self, level: LevelName) -> int:
        if type(level) is int and 0 <= level < len(self.levels):
            return level  # nothing to look up, and nothing that compilers could stop at
        return find_level(self._definition.rewritten.level_names, level)


def _recount(net: AnytimeModel, keys: object) -> None:
    net.recount()


def _whole(graph: fx.Graph) -> fx.Graph:
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    return copied


def _only(graph: fx.Graph, output: fx.Node | Sequence[fx.Node]) -> fx.Graph:
    """A lifted graph that returns one tensor of the whole one, or a tuple of some; placeholders all stay."""
    needed = ancestors([output] if isinstance(output, fx.Node) else output)
    result = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = result.node_copy(node, copies.__getitem__)
    result.output(copies[output] if isinstance(output, fx.Node) else tuple(copies[node] for node in output))
    return result
