"""`AnytimeModel`: one graph with a prediction per level, over one set of parameters."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from anytimeify import report as reports
from anytimeify.analysis.mask_density import masks
from anytimeify.capture.inputs import CallInputs
from anytimeify.codegen.call_signature import batch_arguments
from anytimeify.codegen.recompute import share
from anytimeify.codegen.stacked_parameters import accept_backbones
from anytimeify.codegen.to_modules import keep_state_dict_names
from anytimeify.deploy import export as deploy
from anytimeify.deploy.levels import Levels
from anytimeify.early_exit.build import build
from anytimeify.early_exit.network import Staged
from anytimeify.errors import ArgumentError, BudgetError
from anytimeify.ir import AllOutputs, Level, Outputs, names
from anytimeify.kernels.layers import to_mask
from anytimeify.kernels.together import masked_weights
from anytimeify.level_names import LevelName, find_level
from anytimeify.operators.modules import Added, BatchNormCall, Watch, Watched
from anytimeify.report import Report
from anytimeify.runtime import budget as budgets
from anytimeify.runtime import extraction
from anytimeify.runtime import latency as latencies
from anytimeify.runtime.awaited import Awaited, refuse_without_values
from anytimeify.runtime.budget import Budget
from anytimeify.runtime.calibration import calibrate
from anytimeify.runtime.compiled import Compiled, Form, Layout
from anytimeify.runtime.described import Described
from anytimeify.runtime.latency import Place, Runtime
from anytimeify.runtime.reset_classifier import check_shapes, new_heads
from anytimeify.storage import models as storage

__all__ = ["AnytimeModel"]

_OWN = frozenset({"loss", "_awaited", "_compiled", "_forms", "_graphs", "_latencies", "_layout", "_watch"})


class AnytimeModel(Described):
    """All levels of a network, cheapest first.

    `net(*inputs)` returns `Outputs` and trains all levels together; `net(*inputs, level=k)` computes one level alone.
    Parameters, buffers and children are those of the backbone, under the backbone's own names, so that its
    checkpoints load; what a scheme adds lies below `anytime`.

    It shares the three dictionaries of modules (`_parameters`, `_buffers`, `_modules`) with the network that was
    compiled, whose graphs are no children of it: so no name of the backbone can collide with a name of this class.
    """

    _watch: Watch  # of parts that are assigned to
    _graphs: tuple[fx.GraphModule, ...]  # this and the next are of `_compiled`, at hand for a compiler
    _layout: Layout
    _forms: Mapping[bool, Form] | None

    def __init__(self, compiled: Compiled, loss: nn.Module | None = None) -> None:
        super().__init__()
        self._watch = Watch()
        self._latencies: dict[tuple[Any, ...], float] = {}
        share(compiled.network, self)
        self._take(compiled)
        rewritten = compiled.definition.rewritten
        if compiled.renamed:
            keep_state_dict_names(self, dict(compiled.renamed))
        self._awaited = Awaited(compiled.definition, self.tensors())
        if self._awaited.backbones:
            self.register_load_state_dict_pre_hook(_loading)  # type: ignore[no-untyped-call]  # of torch
            self.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]  # of torch
        if rewritten.stacked_parameters:
            accept_backbones(self, lambda net: net._compiled.definition.stacked())
        if any(masks(rewritten.program)):
            self.register_load_state_dict_post_hook(_recount)  # type: ignore[no-untyped-call]  # of torch
        self.loss = loss if loss is not None else compiled.definition.default_loss()

    def _take(self, compiled: Compiled) -> None:
        """Runs the graphs of a network that has the dictionaries of this model."""
        self._compiled, self._graphs, self._layout = compiled, compiled.graphs, compiled.layout
        self._forms = compiled.forms
        for part in self.modules():
            if isinstance(part, Watched):
                part._watch = self._watch
        self._watch.changed = False

    def __deepcopy__(self, memo: dict[int, Any]) -> AnytimeModel:
        result = type(self).__new__(type(self))
        memo[id(self)] = result
        state = {name: value for name, value in self.__dict__.items() if name not in ("_compiled", "_forms", "_graphs")}
        result.__dict__.update(copy.deepcopy(state, memo))
        result._take(self._compiled.copied(result))
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

    @property
    def loss(self) -> nn.Module:
        """The training objective, called as `loss(outputs, target)`. Assign another to replace it."""
        return self._modules[names.ADDED]._modules["loss"]  # type: ignore[union-attr, return-value]  # set in __init__

    @loss.setter
    def loss(self, loss: nn.Module) -> None:
        if not isinstance(loss, nn.Module):
            raise ArgumentError(
                f"the loss is a {type(loss).__name__}: expected an nn.Module, called as loss(outputs, target)"
            )
        if names.ADDED not in self._modules:
            self._modules[names.ADDED] = Added()
        self._modules[names.ADDED].add_module("loss", loss)  # type: ignore[union-attr]  # a module, never None
        self._definition.tell(loss)

    def consensus_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of a learned consensus, for an optimiser that trains nothing else; none without."""
        for name, parameter in self.named_parameters():
            if name.startswith(names.CONSENSUS):
                yield parameter

    # What the model does.

    def forward(
        self, *args: Any, level: LevelName | None = None, granularity: int | str | None = None, **kwargs: Any
    ) -> Any:
        """All levels as `Outputs`, or the prediction of one `level`, at its cost: its index, one of `levels`, its name
        (`"width 0.25"`), or its number as a float (`0.25`) where the scheme has one number a level.

        With a taxonomy every level and member of the outputs is a tuple, finest labels first; one level gives the
        `granularity` that it serves, another one that it has, or with `"all"` a tuple of all that it has.

        With `output="all"` one level gives what the backbone returns in the mode that the model is in, and so do the
        `results` of the outputs."""
        if self._watch.changed and not torch.compiler.is_compiling():
            check_shapes(self._definition, self.tensors())
            self._watch.changed = False
        inputs = self.call_signature.flat(args, kwargs)
        if level is None:
            if granularity is not None:
                raise ArgumentError("granularity is given without level: all levels give all that they have")
            if torch.compiler.is_compiling():
                return self._all(inputs)
            with masked_weights(to_mask(self, self._compiled.triangular)):
                return self._all(inputs)
        index = self._index(level)
        if self._forms is not None and granularity is None:
            return self._forms[self.training].result(index, inputs)
        if granularity == "all":
            return tuple(self.graph(index, name)(*inputs) for name in self.granularities[index])
        return self.graph(index, granularity)(*inputs)

    def _all(self, inputs: Sequence[Tensor]) -> Outputs | AllOutputs:
        if self._forms is not None:
            return self._forms[self.training].outputs(inputs)
        given = self._graphs[0](*inputs)
        return Outputs(*(tuple(_at(given, place) for place in places) for places in self._layout))

    def graph(self, level: LevelName, granularity: int | str | None = None) -> fx.GraphModule:
        """The graph of one level as it runs, as modules, with flat inputs: the granularity that it serves, or
        another one that it has."""
        index = self._index(level)
        if granularity is None:
            return self._graphs[1 + index]
        return self._compiled.graph(index, self._definition.granularity(index, granularity))

    def graph_of(self, level: LevelName, granularity: int | str | None = None) -> fx.GraphModule:
        """As `graph`; with `output="all"` the graph of all that the level returns in eval mode, as a flat tuple."""
        if self._forms is None or granularity is not None:
            return self.graph(level, granularity)
        return self._forms[False].graphs[1 + self._index(level)]

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Level, Tensor]]:
        """Predictions of better and better levels: stop whenever time is up.

        Where the model is `resumable`, each step computes only what the steps before it did not."""
        if self.resumable:
            yield from self._compiled.stream(self.call_signature.flat(args, kwargs))
            return
        for level in self.levels:
            if not level.training_only:
                yield level, self(*args, level=level, **kwargs)

    def select(self, budget: Budget) -> Level:
        """The best level within the budget; `BudgetError` names the cheapest level and its cost where none fits."""
        if not isinstance(budget, Budget):
            raise ArgumentError(f"a budget is given as {budget!r}: expected a Budget, such as Budget(macs=5e8)")
        itemsize = next((p.element_size() for p in self.parameters() if p.is_floating_point()), 4)
        return budgets.select(
            self.levels,
            budget,
            itemsize,
            lambda level: self.latency(
                level,
                device=budget.device,
                batch_size=budget.batch_size,
                runtime=budget.runtime,
                threads=budget.threads,
            ),
        )

    def latency(
        self,
        level: LevelName,
        *,
        device: str | torch.device | None = None,
        batch_size: int = 1,
        seconds: float = 1.0,
        runtime: Runtime = "torch",
        threads: int | None = None,
        cached: bool = True,
    ) -> float:
        """Median milliseconds of one batch through the extracted graph of a level, on `device`, as `runtime` runs it.

        Measured once: kept until the shapes or types of the parameters change, and on the disk
        (`anytimeify.measure.cache`). `cached=False` measures now, and keeps nothing.
        """
        index = self._index(level)
        refuse_without_values(self.tensors(), "measured")
        place = self._place(device, runtime, threads, batch_size)
        structure = hash(tuple((name, tensor.shape, tensor.dtype) for name, tensor in self.tensors().items()))
        key = (index, place, torch.get_num_threads(), structure)
        if cached and key in self._latencies:
            return self._latencies[key]
        found = latencies.measure(latencies.prepare_level(self, index, place), seconds=seconds, cached=cached).median_ms
        if cached:
            self._latencies[key] = found
        return found

    def _place(self, device: str | torch.device | None, runtime: Runtime, threads: int | None, batch: int) -> Place:
        where = next((tensor.device for tensor in self.tensors().values()), torch.device("cpu"))
        if device is None and runtime == "onnxruntime":
            where = torch.device("cpu")
        chosen = latencies.usable(where if device is None else latencies.device_of(device), runtime)
        return Place(chosen, runtime, threads, batch)

    def extract(
        self,
        level: LevelName | Budget,
        *,
        fold: bool = False,
        dense: bool = False,
        granularity: int | str | None = None,
    ) -> fx.GraphModule:
        """One level as a standalone module in eval mode: called like the backbone, returns the level's prediction, or
        with `output="all"` what the backbone returns in eval mode.

        Its parameters are small copies under names made from the backbone's; running it needs no import of
        anytimeify. `fold=True` merges batch norms into the convolutions before them, and evaluates what else depends on
        parameters alone. Triangular layers are cut into the blocks that they have, `conv.0.weight`, `conv.1.weight`,
        ..., which is what the level costs; `dense=True` leaves them whole, `conv.weight` with zeros: more to compute,
        in fewer calls. With a taxonomy, the prediction is of the granularity that the level serves, or of another one
        that it has.
        """
        refuse_without_values(self.tensors(), "extracted")
        index = self.select(level).index if isinstance(level, Budget) else self._index(level)
        return self._extract(index, self._definition.granularity(index, granularity), fold=fold, dense=dense)

    def _extract(
        self, index: int, granularity: int | None, *, fold: bool = False, dense: bool = False, copied: bool = True
    ) -> fx.GraphModule:
        """As `extract`; `copied=False` where the result is only run, and not kept."""
        rewritten = self.rewritten
        return extraction.extract(
            rewritten.program,
            index,
            self.call_signature,
            positions=rewritten.positions(index, granularity),
            structure=None if rewritten.results is None else rewritten.results.evaluation,
            merge_batch_norms=fold,
            dense=dense,
            copied=copied,
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
        but not stopped between for every sample. With `output="all"` stages give predictions alone.
        """
        refuse_without_values(self.tensors(), "staged")
        usable = [level.index for level in self.levels if not level.training_only]
        if granularity is not None and levels is None and self.taxonomy is not None:
            name = self.taxonomy.granularities[self.taxonomy.index(granularity)]
            usable = [index for index in usable if name in self.granularities[index]]
        chosen = usable if levels is None else sorted({self._index(level) for level in levels})
        if not chosen or not set(chosen) <= set(usable):
            raise BudgetError(f"levels={levels!r}: expected some of {', '.join(map(str, usable))}")
        kept = [self.levels[index] for index in chosen]
        (place,) = {self._definition.granularity(index, granularity) for index in chosen}
        return build(
            self.captured, self.rewritten, kept, merge_batch_norms=fold, granularity=place, scheme=str(self.scheme)
        )

    def export(
        self,
        path: str | os.PathLike[str],
        format: str = "onnx",
        levels: Literal["all"] | Sequence[LevelName] = "all",
        *,
        granularity: int | str | None = None,
        force: bool = False,
    ) -> None:
        """Writes several levels into one file, over one set of weights: all but those for training only, or some
        `levels`, which the file numbers from 0 on, the cheapest first.

        `"onnx"`: the backbone's inputs and one more, `level`, an integer; the outputs are those of an extract, and no
        more than that level is computed. `"pt2"`: an archive of torch.export with a program for each level.
        `"executorch"`: a program with a method for each level, for one sample; needs the extra of its name. Norms stay
        as they are, so that levels share the layers before them; runtimes merge them when they load the file.
        `"staged"`: a folder of ONNX stages, each of which computes what those before it did not
        (docs/staged_format.md). What the file holds stands in its metadata (`anytimeify.deploy.description`). With a
        taxonomy, every level gives the granularity that it serves, or all of them one `granularity`.

        Whole or not at all, after every level was compared with its extract. Raises `ArtifactError` where the file
        exists (`force=True` replaces it) or cannot be written, and otherwise as `anytimeify.deploy.export` says.
        """
        chosen = self._exported(levels)
        if format == deploy.STAGED:
            self.staged(chosen, granularity=granularity).export(path, ("onnx",), force=force)
            return
        captured = self.captured
        args, kwargs = self.call_signature.arguments(captured.example_inputs, captured.signature)
        dynamic = captured.batch is not None
        deployed = Levels(
            tuple(self.levels[index] for index in chosen),
            [self.extract(index, granularity=granularity) for index in chosen],
            CallInputs(args, kwargs),
            dynamic,
            str(self.scheme),
            captured.batch_range if dynamic else None,
        )
        deploy.export(deployed, path, format, force=force)

    def _exported(self, levels: Literal["all"] | Sequence[LevelName]) -> list[int]:
        usable = [level.index for level in self.levels if not level.training_only]
        if levels == "all":
            return usable
        if isinstance(levels, str | int | float | Level):
            raise ArgumentError(f"levels={levels!r}: expected 'all', or a sequence of levels, such as [0, 2]")
        chosen = sorted({self._index(level) for level in levels})
        if not chosen or not set(chosen) <= set(usable):
            raise BudgetError(f"levels={levels!r}: expected some of {', '.join(map(str, usable))}")
        return chosen

    def calibrate(self, batches: Iterable[Any]) -> None:
        """Re-estimates the running statistics of every batch norm: their mean over the batches, with equal weights.

        A batch is the model's input or inputs, or `(inputs, target)`, as a data loader gives it. Batch norms that
        several levels share hold the statistics of one width only: then those of the full level are estimated.
        """
        # Members of a stack have statistics of their own, whoever reads them in parts; and where levels nest in one
        # pass, those of a channel are the same at every level.
        rewritten = self._definition.rewritten
        apart = rewritten.stacked_parameters or not self.exact
        calls = any(isinstance(module, BatchNormCall) for module in self.modules())
        shared = not apart and (calls or rewritten.shared_norms)
        level = self.full if shared else None
        count = len(self.call_signature.parameters)

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
        self._take(new_heads(self, self._compiled, self.tensors(), classes))
        self._latencies.clear()
        self.recount()

    def recount(self) -> None:
        """Takes the costs of the levels from the masks as they are now, after masks were changed by hand. Loading a
        state dict and `anytimeify.masks.refresh` do so themselves."""
        self._compiled = self._compiled.recounted(self.tensors())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model into one file without pickle; `anytimeify.load(path)` reads it. Of a loss that is not one of
        `anytimeify.losses` nothing is kept, and an `AnytimeWarning` says so."""
        refuse_without_values(self.tensors(), "saved")
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
        return find_level(self.levels, level)


def _loading(net: AnytimeModel, state: Mapping[str, Any], prefix: str, *unused: object) -> None:
    net._awaited.loading(state, prefix, net._compiled.renamed)


def _loaded(net: AnytimeModel, keys: Any) -> None:
    made = net._awaited.loaded(net._definition, net.tensors())
    keys.missing_keys[:] = [name for name in keys.missing_keys if name not in made]


def _recount(net: AnytimeModel, keys: object) -> None:
    net.recount()


def _at(given: Sequence[Tensor], place: int | tuple[int, ...]) -> Any:
    return tuple(given[one] for one in place) if isinstance(place, tuple) else given[place]
