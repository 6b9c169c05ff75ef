"""Convolutions of one to three dimensions, plain and transposed.

A group is cut whole or not at all: in `(g i)` the groups `g` are outermost, so a narrower grouped convolution has fewer
groups of the same width. A depthwise convolution has `i = 1`, and its groups are its channels.
"""

from __future__ import annotations

from anytimeify.rules.op import axis_rule
from anytimeify.rules.targets import aten

for spatial, out, kernel, names in (
    ("h", "p", "kh", "conv1d"),
    ("h w", "p q", "kh kw", "conv2d"),
    ("h w d", "p q r", "kh kw kd", "conv3d"),
):
    axis_rule(
        aten(f"{names}.default", f"{names}.padding"),
        [
            f"n (g i) {spatial}, (g o) i {kernel}, (g o) -> n (g o) {out}",
            f"(g i) {spatial}, (g o) i {kernel}, (g o) -> (g o) {out}",
        ],
        literals={"groups": "g"},
        macs=f"n g o {out} i {kernel}",
    )

# the weight of a transposed convolution is (in, out / groups, ...), and every input position meets the whole kernel
for spatial, out, kernel, names in (
    ("h", "p", "kh", "conv_transpose1d.default"),
    ("h w", "p q", "kh kw", "conv_transpose2d.input"),
    ("h w d", "p q r", "kh kw kd", "conv_transpose3d.input"),
):
    axis_rule(
        aten(names),
        [
            f"n (g i) {spatial}, (g i) o {kernel}, (g o) -> n (g o) {out}",
            f"(g i) {spatial}, (g i) o {kernel}, (g o) -> (g o) {out}",
        ],
        literals={"groups": "g"},
        macs=f"n g o i {spatial} {kernel}",
    )
