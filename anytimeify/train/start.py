"""What a training starts from: a saved model, a source and a scheme, or a network of the papers; and its recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from anytimeify.capture import resolve
from anytimeify.capture.inputs import call_inputs
from anytimeify.compiler import transform
from anytimeify.errors import AnytimeError, ArgumentValueError, ArtifactError, SchemeError
from anytimeify.io.files import reading, regular_file
from anytimeify.papers import recipe
from anytimeify.passes.scheme import parse_scheme
from anytimeify.runtime.load import load
from anytimeify.runtime.model import AnytimeModel
from anytimeify.taxonomy import Taxonomy
from anytimeify.train.classes import classes_of
from anytimeify.train.data import Data
from anytimeify.train.encoding import as_json, training_of
from anytimeify.train.folder import RunFolder
from anytimeify.train.optimiser import Optimiser
from anytimeify.train.schedule import Schedule
from anytimeify.train.training import Training

__all__ = ["DEFAULT", "Start", "changed", "changes", "read_training", "run_folder", "with_changes"]

PAPER = "paper:"
# Sums over levels make gradients several times as large as those of one network: hence the low rate and the warm-up.
DEFAULT = Training(
    data="any",
    optimiser=Optimiser(learning_rate=0.03, weight_decay=5e-4, nesterov=True),
    schedule=Schedule(kind="cosine", per="step", warm_up=1.0),
    batch=128,
    epochs=10,
    augmentation=("normalise",),
)


@dataclass(frozen=True)
class Start:
    """Where a training starts: `source` as the command line has it, and what `transform` is told besides. A network of
    the papers has the paper's scheme, unless another is given."""

    source: str
    scheme: str | None = None
    examples: Any = None
    taxonomy: Taxonomy | None = None
    consensus: str | None = None
    trust_pickle: bool = False
    pretrained: bool = False  # with the weights that the source's library has for the name
    checkpoint: Path | None = None  # with the weights of a file

    def recipe(self) -> Training:
        """That of the paper; the default one for all others."""
        if self.source.startswith(PAPER):
            return recipe(self.source.removeprefix(PAPER)).training
        return DEFAULT

    def build(
        self, data: Data, seed: int | None, say: Callable[[str], object] = lambda _: None, *, verify: bool = True
    ) -> AnytimeModel:
        """The network, with fresh weights where it is not a saved one, and with the classes of the data: `say` is told
        where it was given new heads for these. None in place of a seed leaves the global generator as it is. Raises
        what `transform` and `load` raise."""
        if seed is not None:
            torch.manual_seed(seed)
        path = Path(self.source)
        saved = path / "net.safetensors" if path.is_dir() else path
        options = {"taxonomy": self.taxonomy, "consensus": self.consensus}
        is_saved = path.is_dir() or path.suffix == ".safetensors"
        if self.examples is not None and is_saved:
            raise ArgumentValueError(
                f"'{self.source}' is a saved model, whose inputs have their sizes already: leave out --input-shape"
            )
        if (self.pretrained or self.checkpoint is not None) and (is_saved or self.source.startswith(PAPER)):
            raise ArgumentValueError(
                f"'{self.source}' has no weights to choose: --pretrained and --checkpoint are for the other sources"
            )
        if self.source.startswith(PAPER):
            printed = recipe(self.source.removeprefix(PAPER), len(data.classes))
            if self.examples is not None:
                printed = replace(printed, example_inputs=tuple(call_inputs(self.examples).tensors))
            if self.scheme is None:
                return printed.build(verify=False, **options)
            scheme = parse_scheme(self.scheme)
            return transform(printed.backbone, scheme, printed.example_inputs, verify=verify, **options)  # type: ignore[arg-type]
        if is_saved:
            if self.scheme is not None or any(value is not None for value in options.values()):
                raise ArgumentValueError(
                    f"'{self.source}' is a saved model, which has a scheme, and its classes, already"
                )
            net = load(saved)
        else:
            if ":" not in self.source and not path.exists():
                raise ArtifactError(f"There is no file or folder '{self.source}'. Check the path.")
            if self.scheme is None:
                raise SchemeError(f"'{self.source}' has no levels yet: give a --scheme, such as nested-channels")
            found = resolve(
                self.source, trust_pickle=self.trust_pickle, pretrained=self.pretrained, checkpoint=self.checkpoint
            )
            examples = found.example_inputs if self.examples is None else self.examples
            net = transform(found.model, parse_scheme(self.scheme), examples, verify=verify, **options)  # type: ignore[arg-type]
        return _with_classes(net, len(data.classes), say)

    def check(self, net: AnytimeModel, path: Path) -> None:
        """`ArtifactError` unless the network that a run in `path` began with has the scheme and the inputs that are
        asked for now."""
        pairs = []
        if self.scheme is not None and "=auto" not in (scheme := str(parse_scheme(self.scheme))):  # saved as a number
            pairs.append(("scheme", str(net.scheme), scheme))
        if self.examples is not None:
            before, now = (
                [",".join(map(str, tensor.shape[1:])) for tensor in tensors]
                for tensors in (net.captured.example_inputs, call_inputs(self.examples).tensors)
            )
            pairs.append(("input shape, without the batch,", "; ".join(before), "; ".join(now)))
        for what, then, asked in pairs:
            if then != asked:
                raise ArtifactError(
                    f"'{path}' holds another run: its {what} is {then}, and now it is {asked}. Choose another folder."
                )


def _with_classes(net: AnytimeModel, classes: int, say: Callable[[str], object]) -> AnytimeModel:
    if net.taxonomy is not None:
        return net
    own = classes_of(net)
    if own != classes:
        net.reset_classifier(classes)
        say(f"the network predicts {own} classes, and the data have {classes}: every level gets a new head")
    return net


def read_training(path: Path) -> Training:
    """A recipe from a JSON file, or from the config of a run."""
    with reading(path):
        found = json.loads(regular_file(path).read_text(encoding="utf-8"))
        return training_of(found.get("training", found))


def changed(training: Training, settings: Sequence[str]) -> Training:
    """A recipe with fields changed by texts such as `ema=0.999`, `optimiser.momentum=0.8`, `augmentation=["flip"]`:
    values are JSON, or else plain text. `ArgumentValueError` for what is no field."""
    value = as_json(training)
    for setting in settings:
        name, equals, text = setting.partition("=")
        *path, last = name.split(".")
        place: Any = value
        for part in path:
            place = place.get(part) if isinstance(place, dict) else None
        if not equals or not isinstance(place, dict):
            raise ArgumentValueError(f"'{setting}' changes no field: expected FIELD=VALUE, such as ema=0.999")
        try:
            place[last] = json.loads(text)
        except json.JSONDecodeError:
            place[last] = text
    try:
        return training_of(value)
    except AnytimeError as error:
        raise ArgumentValueError(f"{', '.join(settings)}: {error}") from error


def changes(before: Training, after: Training) -> list[str]:
    """The texts with which `changed` makes one recipe of another, but for its seed."""
    was, now = as_json(before), as_json(after)
    found = {name: value for name, value in now.items() if was.get(name) != value and name != "seed"}
    parts = {name: value for name, value in found.items() if isinstance(value, dict) and isinstance(was[name], dict)}
    inside = {
        f"{name}.{field}": one
        for name, value in parts.items()
        for field, one in value.items()
        if was[name].get(field) != one
    }
    whole = {name: value for name, value in found.items() if name not in parts}
    return [f"{name}={json.dumps(value)}" for name, value in {**whole, **inside}.items()]


def run_folder(path: Path, resume: bool, force: bool) -> RunFolder:
    """The folder to write to. `ArtifactError` where something is there that is neither resumed nor replaced, or
    nothing that could be resumed."""
    folder = RunFolder(path)
    if resume and not folder.exists:
        raise ArtifactError(f"'{path}' holds no run that could be resumed.")
    if force and not resume and path.exists() and not folder.exists:
        raise ArtifactError(f"'{path}' holds no run: --force removes only a run. Remove it yourself.")
    if not resume and path.exists() and not force:
        raise ArtifactError(f"'{path}' exists already. Nothing was written; resume it, or choose another name.")
    return folder


def with_changes(training: Training, *, epochs: int | None, **fields: Any) -> Training:
    """A recipe with what is not None changed: `learning_rate`, `warm_up`, and fields of its own."""
    if epochs is not None:
        if epochs < 1:
            raise ArgumentValueError(f"epochs is {epochs}: expected a whole number, 1 or more")
        training = training.for_epochs(epochs)
    rate, warm_up = fields.pop("learning_rate", None), fields.pop("warm_up", None)
    if rate is not None:
        training = replace(training, optimiser=replace(training.optimiser, learning_rate=rate))
    if warm_up is not None:
        training = replace(training, schedule=replace(training.schedule, warm_up=warm_up))
    return replace(training, **{name: value for name, value in fields.items() if value is not None})
