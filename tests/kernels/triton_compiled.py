"""Compiles the Triton kernels for sm_90, whether or not there is such a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from anytimeify.kernels import triton_norms, triton_products

SM_90 = GPUTarget("cuda", 90, 32)
INTEGERS = ("mine", "theirs", "row_level", "column_level", "ends")  # tables


def sizes() -> Mapping[str, int]:
    """The bytes of machine code of every kernel, by name and type."""
    return {name: len(triton.compile(source, target=SM_90).asm["cubin"]) for name, source in sources()}


def sources() -> Iterator[tuple[str, ASTSource]]:
    never = 1 << 30
    tiles = {"tile_p": 64, "tile_o": 64, "tile_c": 32, "precision": "ieee", "never": never}
    norm = {"levels": 4, "tile_r": 8, "tile_c": 256, "centred": True, "has_weight": True}
    for kind in ("fp32", "bf16"):
        yield f"product {kind}", source(triton_products._product, kind, {**tiles, "has_bias": True})
        yield f"contraction {kind}", source(triton_products._contraction, kind, tiles, partial="*fp32")
        full = {"means": "*fp32", "variances": "*fp32", "eps": "fp32"}
        for centred in (True, False):
            own = {**norm, "centred": centred}
            yield f"norm {kind} {centred}", source(triton_norms._norm, kind, {**own, "has_bias": centred}, **full)
            wanted = {"wants_x": True, "wants_scale": True}
            yield (
                f"gradients of a norm {kind} {centred}",
                source(triton_norms._gradients, kind, {**own, **wanted}, **full, partial="*fp32"),
            )


def source(kernel: Any, kind: str, constants: Mapping[str, Any], **types: str) -> ASTSource:
    """Arguments that are no tensors are integers; tensors have the type `kind`, unless `types` says another."""
    tensors = {"x", "weight", "bias", "y", "grad", "dx", "partial", "means", "variances"}
    known = {
        **dict.fromkeys(kernel.arg_names, "i32"),
        **dict.fromkeys(tensors, f"*{kind}"),
        **dict.fromkeys(INTEGERS, "*i32"),
        **types,
        **dict.fromkeys(constants, "constexpr"),
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    return ASTSource(kernel, signature={name: known[name] for name in kernel.arg_names}, constexprs=places)
