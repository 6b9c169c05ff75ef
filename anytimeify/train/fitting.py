"""`fit`: trains an anytime model by a recipe.

    run = fit(net, "mnist5k", training, out="run")

On Hugging Face Accelerate: in one process, or in those that `accelerate launch` or `torchrun` starts.
"""

from __future__ import annotations

import copy
import json
import os
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anytimeify import kernels, progress
from anytimeify.errors import ArgumentError, ArgumentValueError, ArtifactError
from anytimeify.runtime.load import load
from anytimeify.runtime.model import AnytimeModel
from anytimeify.train import distribution
from anytimeify.train.accelerator import accelerator_for
from anytimeify.train.averaging import Average
from anytimeify.train.checkpoint_shapes import check_optimiser
from anytimeify.train.classes import check_classes
from anytimeify.train.clock import Clock
from anytimeify.train.data import Data, open_data
from anytimeify.train.encoding import as_json, flat
from anytimeify.train.evaluation import accuracies, require_metrics
from anytimeify.train.folder import RunFolder
from anytimeify.train.loading import Loader, mixed_seed
from anytimeify.train.preparation import Preparation
from anytimeify.train.random_state import random_state, restore_random_state, seed_everything
from anytimeify.train.stage import Modes, Stage, gradients_kept
from anytimeify.train.training import Training

__all__ = ["Run", "fit"]

_CALIBRATION = 32  # batches, where statistics have to be estimated anew


@dataclass(frozen=True)
class Run:
    """What came of a training.

    Fields
        net: the network that was given, trained; its weights may be spread over processes (`Training.shard`).
        training: the recipe.
        history: a dict an epoch, as `metrics.jsonl` has them: `epoch` (from 1), `stage` (phase), `step`,
            `learning_rate`, `loss` (of the training), `accuracy` (of every level, by its name), `seconds`,
            `samples_per_second`. The last is of the network as it is now, after calibration.
        out: the folder, where there is one.
    """

    net: AnytimeModel
    training: Training
    history: tuple[dict[str, Any], ...]
    out: Path | None = None

    @property
    def accuracy(self) -> dict[str, float]:
        """The accuracy of every level at the end, by its name."""
        return dict(self.history[-1]["accuracy"])


def fit(
    net: AnytimeModel,
    data: Data | str,
    training: Training,
    *,
    out: str | os.PathLike[str] | None = None,
    resume: Literal["auto"] | bool = "auto",
    accelerator: Any = None,
    teacher: nn.Module | None = None,
    limit_batches: int | None = None,
    checkpoint_every: int | None = None,
) -> Run:
    """Trains all levels of `net`, in place, and evaluates each of them after every epoch.

    Parameters
        data: `Data`, or the name of some, such as `"digits"`. Samples are made to fit the network's input, which has
            to be one tensor (`anytimeify.train.preparation`); its classes have to be those of the data, or more.
        out: the folder of the run: config, metrics, curves, checkpoints after every epoch, and the network at the end.
            None: nothing is written.
        resume: `"auto"`: goes on with the run that is in `out`, and starts one where there is none; True: only goes on;
            False: only starts. A run goes on with the same recipe and data alone, and ends with the same weights as if
            it had never stopped, bit for bit on a CPU.
        accelerator: an `accelerate.Accelerator`; by default one of the recipe's precision. The recipe says how
            gradients are accumulated, not the accelerator.
        teacher: whom levels learn from, where the recipe has a `Teacher`: a network that takes the same inputs and
            gives logits. By default the full level, as it is before the training.
        limit_batches: at most so many batches in an epoch, and in an evaluation.
        checkpoint_every: steps after which a checkpoint is written too.

    Learning rates, schedules and evaluation are those of the recipe; seeds too, so that a call changes the state of the
    global generators. On CPU it gives the same bits every time. In several processes, `Training.batch` is that of all
    together, and the gradient is that of the whole batch; statistics of batch norms are of each process's share.

    Raises `ArgumentValueError` for recipes and data that do not go with the network, and for a loss that is no longer
    finite; `ArtifactError` where the folder holds another run or cannot be written; `MissingExtraError` without
    accelerate or torchmetrics.
    """
    if not isinstance(net, AnytimeModel):
        raise ArgumentError(f"net is a {type(net).__name__}: expected the AnytimeModel that transform(...) gives")
    if resume not in ("auto", True, False):
        raise ArgumentValueError(f"resume is {resume!r}: expected 'auto', True or False")
    require_metrics()
    if isinstance(data, str):
        data = open_data(data)
    with accelerator_for(training, accelerator) as accelerator, gradients_kept(net) as restore:
        fitting = _Fitting(net, data, training, accelerator, out, limit_batches, checkpoint_every, restore)
        with _the_same_every_time(accelerator.device):
            return fitting.run(resume, teacher)


def _the_same_every_time(device: torch.device) -> AbstractContextManager[object]:
    """On CPU a run has the same bits every time, so layers are not computed in whatever form is measured to be the
    fastest, unless a form is asked for."""
    return kernels.form("rule") if device.type == "cpu" and kernels.kind() == "measured" else nullcontext()


class _Fitting:
    """A call of `fit`: where it is, and what it writes."""

    def __init__(
        self,
        net: AnytimeModel,
        data: Data,
        training: Training,
        accelerator: Any,
        out: str | os.PathLike[str] | None,
        limit: int | None,
        every: int | None,
        restore: Any,
    ) -> None:
        self.net, self.training, self.accelerator = net, training, accelerator
        self.data = data.held_out(training.holdout, training.seed)
        self.folder = RunFolder(out) if out is not None else None
        self.limit, self.every, self.restore = limit, every, restore
        check_classes(net, self.data)
        self.prepare = Preparation(self.data, _sample_shape(net), training)
        self.stages = list(training.stages())
        self.modes = Modes(net)
        self.history: list[dict[str, Any]] = []
        self.average: Average | None = None
        # Where it is: the next step to take.
        self.stage = self.epoch = self.step = self.steps = 0
        self.losses = torch.zeros((), device=accelerator.device)

    @property
    def leads(self) -> bool:
        return bool(self.accelerator.is_main_process)

    # The course of a run.

    def run(self, resume: Literal["auto"] | bool, teacher: nn.Module | None) -> Run:
        seed_everything(mixed_seed(self.training.seed, self.accelerator.process_index))
        checkpoint = self._started(resume)
        taught = self._teacher(teacher)
        if self.training.channels_last:
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # of torch
        self._clock = Clock(self._total())
        try:
            for place, training in enumerate(self.stages):
                if checkpoint is not None and place < checkpoint["stage"]:
                    continue
                self._run_stage(place, training, taught, checkpoint)
                checkpoint = None
            self._finish()
        finally:
            if self.folder is not None:
                self.folder.close()
        self.modes.reset()
        out = self.folder.path if self.folder is not None else None
        return Run(self.net, self.training, tuple(self.history), out)

    def _run_stage(self, place: int, training: Training, teacher: Any, checkpoint: dict[str, Any] | None) -> None:
        stage = self.begin(place, training, teacher)
        if checkpoint is not None:
            self.go_on(stage, checkpoint)
            self._clock.done = self.steps
        loader = self._loader(training.batch)
        while self.epoch < training.epochs:
            self._run_epoch(stage, loader)
        if self.average is not None:
            self.average.swap()  # what was evaluated is kept
            self.average = None

    def begin(self, place: int, training: Training, teacher: nn.Module | None) -> Stage:
        """A stage at its first step."""
        self.restore()
        stage = Stage(self.net, training, self.accelerator, teacher)
        if training.ema is not None:
            self.average = Average(self.net, training.ema)
        self.stage, self.epoch, self.step = place, 0, 0
        return stage

    def _run_epoch(self, stage: Stage, loader: Loader) -> None:
        training, started, device = stage.training, time.perf_counter(), self.accelerator.device
        self.modes.restore(training.frozen_norms)
        number = sum(one.epochs for one in self.stages[: self.stage]) + self.epoch  # over all stages
        if self.step == 0:
            stage.begin(number)
            self.losses.zero_()
        first = self.step
        for inputs, target in loader.training(number, self.prepare.training, first):
            rate = stage.rate(self.epoch + self.step / loader.steps)
            loss = stage.step(self._moved(inputs), target.to(device), mixed_seed(training.seed, number, self.step))
            if self.average is not None:
                self.average.step()
            self.losses += loss
            self.step += 1
            self.steps += 1
            if self._clock.tick(loader.size):
                progress.step(self._said(number, float(loss)), self._clock.share)
            if self.every is not None and self.steps % self.every == 0 and self.step < loader.steps:
                self._save(stage)
        seconds = time.perf_counter() - started
        mean = float(self._mean(self.losses)) / loader.steps
        line = {
            "epoch": number + 1,
            "stage": self.stage,
            "step": self.steps,
            "learning_rate": rate,
            "loss": mean,
            "accuracy": self._evaluated(),
            "seconds": round(seconds, 3),
            "samples_per_second": round(loader.size * (loader.steps - first) / max(seconds, 1e-9), 1),
        }
        if not mean < float("inf"):
            raise ArgumentValueError(
                f"the loss is {mean} in epoch {number + 1}: take a lower learning rate than {rate:g}, a warm-up, or "
                "clip gradients"
            )
        self.history.append(line)
        self.epoch, self.step = self.epoch + 1, 0
        self._note(line)
        self._save(stage)

    def _finish(self) -> None:
        """Statistics of norms, a last evaluation, and the network's file."""
        batches = self.training.calibrate
        if batches is None:
            moved = any(one.ema is not None or one.refresh_masks for one in self.stages)
            batches = _CALIBRATION if moved or self.net.rewritten.shared_norms else 0
        if batches and self.history:
            loader = self._loader(self.training.batch)
            with self.accelerator.autocast():
                self.net.calibrate(
                    self._moved(inputs)
                    for inputs, _ in islice(loader.training(self.training.all_epochs, self.prepare.evaluation), batches)
                )
            if self.accelerator.num_processes > 1:
                distribution.same_buffers(self.net)
            self.history[-1] = {**self.history[-1], "accuracy": self._evaluated()}
        if self.folder is None:
            return
        state = distribution.whole(self.net.state_dict()) if distribution.sharded(self.net) else None
        if self.leads:
            self.folder.rewrite(self.history)
            self.folder.draw(self.history, self._title())
            net = self.net
            if state is not None:
                net = load(self.folder.start)
                net.load_state_dict(state)
            if not self.folder.result.exists():
                net.save(self.folder.result)

    # The folder.

    def _started(self, resume: Literal["auto"] | bool) -> dict[str, Any] | None:
        """The checkpoint to go on from, where there is a run to go on with."""
        if self.folder is None:
            if resume is True:
                raise ArgumentValueError("resume=True: give the folder of the run, out=...")
            return None
        exists = self.folder.exists
        self.accelerator.wait_for_everyone()  # all have looked before one makes it
        if exists:
            if resume is False:
                raise ArtifactError(f"'{self.folder.path}' holds a run already. Resume it, or choose another name.")
            checkpoint = self.found(self.folder)
        elif resume is True:
            raise ArtifactError(f"'{self.folder.path}' holds no run that could be resumed.")
        else:
            checkpoint = None
            if self.leads:
                self.folder.create()
                if not self.folder.start.exists():
                    self.net.save(self.folder.start)
                self.folder.write_config(self._config())
        self.accelerator.wait_for_everyone()
        if checkpoint is not None:
            self.history = list(checkpoint["history"])
        if self.leads:
            self.folder.open(self.history)
        return checkpoint

    def found(self, folder: RunFolder) -> dict[str, Any] | None:
        """The last checkpoint of this run; `ArtifactError` where the folder holds another, or it is damaged."""
        self._compare(folder.path, folder.config())
        checkpoint = folder.last()
        if checkpoint is not None and checkpoint["stage"] >= len(self.stages):
            raise ArtifactError(f"'{folder.path}' is damaged: its last checkpoint is of a phase that there is not")
        return checkpoint

    def _config(self) -> dict[str, Any]:
        return {
            "data": self.data.name,
            "scheme": str(self.net.scheme),
            "levels": [level.name for level in self.net.levels],
            "limit_batches": self.limit,
            "training": as_json(self.training),
        }

    def _compare(self, path: Path, before: Any) -> None:
        """Raises `ArtifactError` unless the run is the one that was started."""
        then = flat(before) if isinstance(before, dict) else {}
        for name, now in flat(json.loads(json.dumps(self._config()))).items():
            if name != "training.workers" and then.get(name) != now:  # how samples are loaded changes nothing
                raise ArtifactError(
                    f"'{path}' holds another run: its {name} is {then.get(name)!r}, and now it is {now!r}. Choose "
                    "another folder."
                )

    def _save(self, stage: Stage) -> None:
        if self.folder is None:
            return
        randoms = self._gathered(random_state())
        state = {
            **{name: getattr(self, name) for name in ("stage", "epoch", "step", "steps")},
            "losses": self.losses,
            "net": distribution.whole(dict(self.net.state_dict())),
            **stage.state_dict(),
            "average": distribution.whole(self.average.state_dict()) if self.average is not None else None,
            "random": randoms,
            "history": self.history,
        }
        if self.leads:
            self.folder.save(state, self.steps)

    def go_on(self, stage: Stage, state: dict[str, Any]) -> None:
        """Goes on where a checkpoint was written. `ArtifactError` where it is of another network, or of none."""
        assert self.folder is not None, "checkpoints lie in folders of runs"
        with self.folder.reading_last():
            self._restore(stage, state)

    def _restore(self, stage: Stage, state: dict[str, Any]) -> None:
        if state["epoch"] > stage.training.epochs or state["step"] >= self._loader(stage.training.batch).steps:
            raise ValueError(f"it is at step {state['step']} of epoch {state['epoch']}, which there is not")
        check_optimiser(stage.optimiser, state["optimiser"], self.net)
        if self.average is not None:
            self.average.check(state["average"])
        distribution.load(self.net, state["net"])
        stage.load_state_dict(state)
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for name in ("stage", "epoch", "step", "steps"):
            setattr(self, name, state[name])
        self.losses.copy_(state["losses"])
        if len(state["random"]) == self.accelerator.num_processes:
            restore_random_state(state["random"][self.accelerator.process_index])

    def _note(self, line: dict[str, Any]) -> None:
        if self.leads and self.folder is not None:
            self.folder.note(line)
            self.folder.draw(self.history, self._title())
        if self.leads and progress.is_shown():
            levels = " ".join(f"{value:.3f}" for value in line["accuracy"].values())
            said = self._said(line["epoch"] - 1, line["loss"])
            progress.step(f"{said}; accuracy of levels {levels}", self._clock.share)

    def _said(self, number: int, loss: float) -> str:
        """What progress says: the epoch, the loss, the rate, and how long it will take."""
        epoch = f"epoch {number + 1} of {self.training.all_epochs}"
        return f"{epoch}: loss {loss:.4g}, {self._clock.rate:,.0f} samples/s, {self._clock.left} left"

    def _title(self) -> str:
        return f"{self.net.scheme} on {self.data.name}"

    # Parts.

    def _total(self) -> int:
        """Steps of all stages."""
        return sum(self._loader(one.batch).steps * one.epochs for one in self.stages)

    def _loader(self, batch: int, samples: Any = None) -> Loader:
        return Loader(
            self.data.train if samples is None else samples,
            batch,
            self.training.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            self.training.workers,
            self.limit,
        )

    def _evaluated(self) -> dict[str, float]:
        """The accuracy of every level, of the averaged weights where there are some."""
        if self.accelerator.num_processes > 1:
            distribution.same_buffers(self.net)
        batches = (
            (self._moved(inputs), labels)
            for inputs, labels in self._loader(self.training.batch, self.data.test).evaluation(self.prepare.evaluation)
        )
        self.net.eval()
        with self.average.in_place() if self.average is not None else nullcontext():
            return accuracies(self.net, batches, autocast=self.accelerator.autocast, device=self.accelerator.device)

    def _moved(self, inputs: Tensor) -> Tensor:
        if self.training.channels_last and inputs.ndim == 4:
            return inputs.to(self.accelerator.device, memory_format=torch.channels_last, non_blocking=True)
        return inputs.to(self.accelerator.device, non_blocking=True)

    def _mean(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value.clone(), "mean")  # type: ignore[no-any-return]  # of accelerate

    def _gathered(self, value: Any) -> list[Any]:
        if self.accelerator.num_processes == 1:
            return [value]
        found: list[Any] = [None] * self.accelerator.num_processes
        torch.distributed.all_gather_object(found, value)
        return found

    def _teacher(self, given: nn.Module | None) -> nn.Module | None:
        """A network that stays as it is, in eval mode; nobody where the recipe has no teacher."""
        if all(one.teacher is None for one in self.stages):
            return None
        teacher = given
        if teacher is None:
            net = self.net
            if self.folder is not None and self.folder.start.exists():  # the weights of a run that goes on come later
                net = load(self.folder.start)
            teacher = net.extract(net.full)
        return copy.deepcopy(teacher).to(self.accelerator.device).eval().requires_grad_(False)


def _sample_shape(net: AnytimeModel) -> tuple[int, ...]:
    inputs = net.captured.example_inputs
    if len(inputs) != 1 or not inputs[0].is_floating_point():
        raise ArgumentValueError(
            f"the network takes {len(inputs)} inputs: fit trains networks of one floating tensor; "
            "for others write a loop with anytimeify.train.Together().step(...)"
        )
    return tuple(inputs[0].shape[1:])
