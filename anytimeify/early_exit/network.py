"""`Staged`: a chain of inference graphs, run until a policy is content with every sample."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from anytimeify.codegen.call_signature import BatchLimits, CallSignature
from anytimeify.early_exit.cascade import Chain
from anytimeify.early_exit.policies import ExitPolicy
from anytimeify.early_exit.running import links, run
from anytimeify.early_exit.write import write
from anytimeify.errors import ArgumentError, ArtifactError
from anytimeify.ir import Level

__all__ = ["Exited", "Staged"]


class Exited(NamedTuple):
    """What a staged network returns: the predictions, and for every sample the number of the exit it left at."""

    prediction: Tensor
    exits: Tensor


class Staged(nn.Module):
    """The levels of a network as a chain of graphs, cheapest first: each stage takes features, and gives features and a
    prediction. For inference: stages are in eval mode and their parameters ask for no gradient.

    `staged(*inputs, policy=policy)` is called like the backbone. After every stage but the last, the policy says which
    samples stop (`anytimeify.early_exit.policies`); the others go on, and a stage that no sample needs is not run.
    Without a policy (neither here nor as `staged.policy`) all samples go to the end.

    Samples go on alone where features keep them apart in one dimension. Where they do not (windows of all pictures in
    one dimension), and where the batch is of fixed size, the whole batch goes on until every sample has stopped; each
    still gets the prediction of its own exit.

    `stages` are plain modules that may be called on their own, compiled (`for stage in staged.stages: stage.compile()`)
    or replaced by others that compute the same.
    """

    def __init__(
        self,
        chain: Chain,
        stages: Sequence[nn.Module],
        *,
        policy: ExitPolicy | None = None,
        example_inputs: tuple[Tensor, ...] | None = None,
    ) -> None:
        super().__init__()
        self.chain = chain
        self.stages = nn.ModuleList(stages)
        self.policy = policy
        limits = BatchLimits.of([chain.values[name] for name in chain.inputs], chain.batch, chain.batch_range)
        self.call_signature = CallSignature.from_signature(chain.signature, chain.inputs, limits)
        self._example_inputs = example_inputs
        self._links = links(chain.inputs, [(stage.reads, stage.gives) for stage in chain.stages])
        self._separable = chain.separable
        # What has to be thinned out before the next stage, by exit.
        self._thinned = tuple(
            tuple((name, dim) for name in chain.read_later(exit) if (dim := chain.sample_dim(name)) is not None)
            for exit in range(len(chain.stages))
        )
        self.requires_grad_(False)
        self.eval()

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that the exits are, cheapest first."""
        return tuple(stage.level for stage in self.chain.stages)

    @property
    def macs(self) -> tuple[int, ...]:
        """What one sample costs that leaves at each exit, the heads before it included."""
        return self.chain.macs

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Level, Tensor]]:
        """Predictions of better and better levels for the whole batch: stop whenever time is up."""
        known = dict(zip(self.chain.inputs, self.call_signature.flat(args, kwargs), strict=True))
        yield from zip(self.levels, run(self.stages, self._links, known), strict=True)

    def forward(self, *args: Any, policy: ExitPolicy | None = None, **kwargs: Any) -> Exited:
        """The predictions of the exits that the samples left at."""
        chosen = self.policy if policy is None else policy
        if chosen is not None and len({self.chain.values[stage.gives[-1]].shape for stage in self.chain.stages}) > 1:
            raise ArgumentError(
                "the exits predict different classes, so that samples which leave at different ones have no common "
                "prediction: make it of one granularity, net.staged(granularity=...), or call stream"
            )
        known: dict[str, Any] = dict(zip(self.chain.inputs, self.call_signature.flat(args, kwargs), strict=True))
        batch = _Batch(self._separable)
        last = len(self._links) - 1
        for exit, prediction in enumerate(run(self.stages, self._links, known)):
            batch.arrive(prediction)
            if exit == last or chosen is None:
                continue
            going = batch.decide(chosen(batch.seen, exit), exit)
            if going is _NONE:
                break
            if going is not None and self._separable:
                for name, dim in self._thinned[exit]:
                    known[name] = _take(known[name], dim, going)
        return batch.result(exit)

    def export(
        self, directory: str | os.PathLike[str], formats: Sequence[str] = ("pt2",), *, force: bool = False
    ) -> None:
        """Writes a folder with one file per stage and format (`"pt2"`, `"onnx"`) and `stages.json`, which says what
        they hand on, the levels and the policy; `anytimeify.staged.load(directory)` reads it.

        Whole or not at all, after every file was compared with its stage. Raises `ArtifactError` where the folder
        exists (`force=True` replaces one that was written so), `ArgumentError` for a policy that is a function, and
        otherwise as `anytimeify.storage.export` does.
        """
        if self._example_inputs is None:
            raise ArtifactError("a staged network that was loaded is not written again: copy its folder")
        write(directory, formats, self.chain, list(self.stages), self._example_inputs, self.policy, force=force)

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode: stages have no training form."""
        return super().train(False)

    def extra_repr(self) -> str:
        return f"policy={self.policy}"


_NONE = torch.empty(0, dtype=torch.int64)


class _Batch:
    """Which samples of a batch are still there, and what the others left with."""

    def __init__(self, separable: bool) -> None:
        self.separable = separable
        self.seen: list[Tensor] = []  # predictions of all exits so far, as the policy reads them
        self.rows: Tensor | None = None  # positions of the samples that are still there; None: all of them
        self.left: list[tuple[Tensor, Tensor, int]] = []  # positions, predictions, exit

    def arrive(self, prediction: Tensor) -> None:
        self.seen.append(prediction)

    def decide(self, stop: Tensor | bool, exit: int) -> Tensor | None:
        """Which of the samples that the next stage could have go on: None for all of them, `_NONE` for none."""
        if isinstance(stop, bool):
            return _NONE if stop else None
        prediction = self.seen[-1]
        if stop.dtype is not torch.bool or stop.shape != prediction.shape[:1]:
            raise ArgumentError(
                f"the policy gave a tensor of shape {tuple(stop.shape)} and type {stop.dtype} at exit {exit}: expected "
                f"one truth value for each of {prediction.shape[0]} samples"
            )
        if self.rows is not None and not self.separable:
            stop = stop[self.rows]
        count = int(stop if len(stop) == 1 else stop.sum())
        if count == len(stop):
            return _NONE
        if not count:
            return None
        out, going = stop.nonzero().flatten(), (~stop).nonzero().flatten()
        here = self._here(prediction)
        self.left.append((out if self.rows is None else self.rows[out], here[out], exit))
        self.rows = going if self.rows is None else self.rows[going]
        if self.separable:
            self.seen = [_take(one, 0, going) for one in self.seen]
        return going

    def result(self, exit: int) -> Exited:
        """Everything, the samples that are still there leaving at `exit`."""
        rest = self._here(self.seen[-1])
        if self.rows is None:
            return Exited(rest, torch.full(rest.shape[:1], exit, device=rest.device))
        self.left.append((self.rows, rest, exit))
        count = sum(len(rows) for rows, _, _ in self.left)
        prediction = rest.new_empty((count, *rest.shape[1:]))
        exits = self.rows.new_empty(count)
        for rows, part, number in self.left:
            prediction[rows] = part
            exits[rows] = number
        return Exited(prediction, exits)

    def _here(self, prediction: Tensor) -> Tensor:
        """The samples of a prediction that are still there."""
        return prediction if self.rows is None or self.separable else prediction[self.rows]


def _take(value: Tensor, dim: int, rows: Tensor) -> Tensor:
    """Some samples. In the first dimension by indexing, which unlike `index_select` keeps the memory format."""
    return value[rows] if dim == 0 else value.index_select(dim, rows)
