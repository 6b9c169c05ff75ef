"""How many classes a network predicts, and whether they are those of the data."""

from __future__ import annotations

from anytimeify.errors import ArgumentValueError
from anytimeify.ir.node_meta import type_of
from anytimeify.runtime.model import AnytimeModel
from anytimeify.train.data import Data

__all__ = ["check_classes", "classes_of"]


def classes_of(net: AnytimeModel) -> int:
    """The finest ones, where it has a taxonomy."""
    if net.taxonomy is not None:
        return net.taxonomy.sizes[0]
    program, signature = net.captured.program, net.captured.signature
    place = signature.prediction if len(program.outputs) > 1 else 0
    count: int = type_of(program.outputs[place]).shape[1].coefficient
    return count


def check_classes(net: AnytimeModel, data: Data) -> None:
    """Raises `ArgumentValueError` where the labels of the data are not among what the network predicts."""
    own, given = classes_of(net), len(data.classes)
    if net.taxonomy is not None and own != given:
        raise ArgumentValueError(f"the network's taxonomy has {own} classes, and {data.name} has {given}")
    if own < given:
        raise ArgumentValueError(
            f"the network predicts {own} classes, and {data.name} has {given}: net.reset_classifier({given}) gives "
            "every level a new head"
        )
