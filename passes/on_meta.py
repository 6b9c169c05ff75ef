"""What a transform needs of the values of a backbone, which one on the meta device does not have."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from anytimeify.capture.on_meta import is_on_meta
from anytimeify.errors import CaptureError, SchemeError
from anytimeify.ir import Captured
from anytimeify.passes.scheme import Scheme

__all__ = ["refuse_reading_values", "refuse_unknown_values"]

_WITHOUT = "the backbone is on the meta device and has no values"
_GIVE = "give it its weights first, for instance with model.to_empty(device='cpu') and model.load_state_dict(...)"


def refuse_reading_values(scheme: Scheme, model: object, *, verify: bool = False) -> None:
    """Refuses what needs the values of a model that has none."""
    if not isinstance(model, nn.Module) or not is_on_meta(model):
        return
    if scheme.reads_values:
        raise SchemeError(f"{scheme.reads_values}, and {_WITHOUT}: {_GIVE}")
    if verify:
        raise CaptureError(f"{_WITHOUT} that the result could be compared with: pass verify=False, or {_GIVE}")


def refuse_unknown_values(captured: Iterable[Captured]) -> None:
    """Refuses buffers that results depend on and that would never have values."""
    for one in captured:
        program = one.program
        read = (str(node.target) for node in program.graph.find_nodes(op="get_attr"))
        unknown = [name for name in read if name in program.transient and program.tensors[name].is_meta]
        if unknown:
            raise CaptureError(
                f"'{unknown[0]}' is on the meta device, no checkpoint holds it, and no initialiser of the backbone "
                "computes it: build the backbone with only its parameters on the meta device (with "
                "anytimeify.parameters_on_meta(): ...)"
            )
