"""Every registered rule on its own: the operation on narrowed operands gives what the rule says.

Operands are parameters, so all of their axes start free. At several widths the program is narrowed, run, and compared
with the types that the analysis gave. Every operation that has a rule must have a call here.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from anytimeify._torch import flatten, schema
from anytimeify.analysis.axes import analyse
from anytimeify.graph.builder import Builder
from anytimeify.ir import Origin, Program, Size, TensorType
from anytimeify.operators.derivatives import name_of
from anytimeify.operators.kept_modules import Multiple, Sample, Shell, remember
from anytimeify.passes.rewrites.narrow import clone_narrowed
from anytimeify.rules import axis_rule, registered
from anytimeify.rules.pointwise import pointwise
from anytimeify.rules.table import unregister

aten = torch.ops.aten


def f(*shape: int) -> Tensor:
    return torch.nn.Parameter(torch.rand(shape) * 0.8 + 0.1)


def i(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * gradients[0]


KEPT = remember(
    Shell(
        torch.nn.Linear(8, 8, bias=False, device="meta"),
        ("weight",),
        Sample(
            ((None, 8),), (((Multiple(1, 0, 0), 8), torch.float32),), flatten(((0,), {}))[1], (Tensor,), flatten(0)[1]
        ),
        "layer",
    )
)
IMAGE = (2, 8, 6, 6)
# positional arguments of each operation; a list of several calls where the rule distinguishes them
CALLS: dict[str, list[tuple[Any, ...]]] = {
    "conv1d": [
        (f(2, 8, 9), f(12, 8, 3), f(12)),
        (f(2, 8, 9), f(12, 2, 3), None, [1], [1], [1], 4),
        (f(2, 1, 16), f(1, 1, 5), None, [1], [4], [2]),  # a convolution along channels
    ],
    "conv1d.padding": [(f(2, 8, 9), f(12, 8, 3), f(12)), (f(2, 1, 16), f(3, 1, 4), None, [1], "same")],
    "conv2d": [
        (f(*IMAGE), f(12, 8, 3, 3), f(12)),
        (f(*IMAGE), f(8, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], 8),
        (f(*IMAGE), f(12, 2, 3, 3), f(12), [1, 1], [1, 1], [1, 1], 4),
        (f(8, 6, 6), f(12, 8, 3, 3)),
        (f(2, 2, 16, 6), f(1, 2, 3, 3), f(1), [1], [1]),
    ],
    "conv3d": [(f(2, 8, 5, 5, 5), f(6, 4, 3, 3, 3), f(6), [1, 1, 1], [0, 0, 0], [1, 1, 1], 2)],
    "conv_transpose1d": [(f(2, 8, 9), f(8, 3, 3), f(6), [1], [0], [0], 2)],
    "conv_transpose2d": [(f(*IMAGE), f(8, 5, 3, 3), f(5)), (f(*IMAGE), f(8, 3, 3, 3), None, [2, 2], [0, 0], [0, 0], 4)],
    "conv_transpose3d": [(f(2, 8, 4, 4, 4), f(8, 5, 3, 3, 3), f(5))],
    "linear": [(f(2, 5, 8), f(12, 8), f(12)), (f(8), f(12, 8))],
    "matmul": [(f(3, 4, 8), f(3, 8, 6)), (f(4, 8), f(8, 6)), (f(3, 4, 8), f(8)), (f(8), f(3, 8, 6)), (f(8), f(8))],
    "mm": [(f(4, 8), f(8, 6))],
    "bmm": [(f(3, 4, 8), f(3, 8, 6))],
    "mv": [(f(4, 8), f(8))],
    "addmm": [(f(6), f(4, 8), f(8, 6)), (f(4, 6), f(4, 8), f(8, 6))],
    "baddbmm": [(f(3, 4, 6), f(3, 4, 8), f(3, 8, 6))],
    "bilinear": [(f(4, 8), f(4, 6), f(5, 8, 6), f(5)), (f(2, 3, 8), f(2, 3, 6), f(5, 8, 6))],
    "embedding": [(f(11, 8), i(11, 2, 5))],
    "outer": [(f(4), f(6))],
    "einsum": [
        ("nci,oc->noi", [f(2, 8, 5), f(12, 8)]),
        ("bhid,bhjd->bhij", [f(2, 4, 5, 6), f(2, 4, 7, 6)]),
        ("nii->ni", [f(2, 8, 8)]),
        ("nci,dd->nci", [f(2, 8, 5), f(6, 6)]),
        ("nci,cii", [f(2, 8, 5), f(8, 5, 5)]),
    ],
    "scaled_dot_product_attention": [(f(2, 4, 5, 6), f(2, 4, 7, 6), f(2, 4, 7, 3))],
    "lstm": [
        (f(2, 5, 6), [f(1, 2, 8), f(1, 2, 8)], [f(32, 6), f(32, 8), f(32), f(32)], True, 1, 0.0, False, False, True),
        (f(5, 2, 6), [f(2, 2, 8), f(2, 2, 8)], [f(32, 6), f(32, 8)] * 2, False, 1, 0.0, False, True, False),
    ],
    "gru": [
        (f(2, 5, 6), f(1, 2, 8), [f(24, 6), f(24, 8), f(24), f(24)], True, 1, 0.0, False, False, True),
        (
            f(2, 5, 6),
            f(4, 2, 8),
            [f(24, 6), f(24, 8)] * 2 + [f(24, 16), f(24, 8)] * 2,
            *(False, 2, 0.0, False, True, True),
        ),
    ],
    "rnn_tanh": [(f(2, 5, 6), f(1, 2, 8), [f(8, 6), f(8, 8), f(8), f(8)], True, 1, 0.0, False, False, True)],
    "rnn_relu": [(f(2, 5, 6), f(2, 2, 8), [f(8, 6), f(8, 8)] * 2, False, 1, 0.0, False, True, True)],
    "lstm_cell": [(f(2, 6), [f(2, 8), f(2, 8)], f(32, 6), f(32, 8), f(32), f(32))],
    "gru_cell": [(f(2, 6), f(2, 8), f(24, 6), f(24, 8)), (f(2, 6), f(2, 8), f(24, 6), f(24, 8), f(24), f(24))],
    "rnn_tanh_cell": [(f(2, 6), f(2, 8), f(8, 6), f(8, 8), f(8), f(8))],
    "rnn_relu_cell": [(f(2, 6), f(2, 8), f(8, 6), f(8, 8))],
    "_grouped_mm": [
        (f(7, 16), f(3, 16, 8), torch.tensor([2, 4, 7], dtype=torch.int32)),
        (f(3, 7, 16), f(3, 16, 8)),
    ],
    "histc": [(f(2, 8), 4, 0, 1)],
    "index_put": [
        (f(9, 4), [i(9, 5)], f(5, 4)),
        (f(2, 9, 4), [None, i(9, 5)], f(4)),
        (f(5, 4, 6), [i(5, 3), None, i(6, 3)], f(3, 4), True),
    ],
    "batch_norm": [(f(*IMAGE), f(8), f(8), torch.rand(8), torch.rand(8), True, 0.1, 1e-5, False)],
    "instance_norm": [(f(*IMAGE), f(8), f(8), None, None, True, 0.1, 1e-5, False)],
    "layer_norm": [(f(2, 5, 8), [8], f(8), f(8)), (f(2, 4, 6), [4, 6], f(4, 6))],
    "rms_norm": [(f(2, 5, 8), [8], f(8))],
    "group_norm": [(f(*IMAGE), 4, f(8), f(8)), (f(*IMAGE), 1, f(8), f(8))],
    "_weight_norm": [(f(8, 4, 3), f(8, 1, 1), 0), (f(8, 4, 3), f(1, 1, 3), 2)],
    "bitwise_and.Scalar": [(i(3, 2, 8), 1)],
    "bitwise_or.Scalar": [(i(3, 2, 8), 1)],
    "bitwise_xor.Scalar": [(i(3, 2, 8), 1)],
    "bitwise_and.Scalar_Tensor": [(1, i(3, 2, 8))],
    "bitwise_or.Scalar_Tensor": [(1, i(3, 2, 8))],
    "bitwise_xor.Scalar_Tensor": [(1, i(3, 2, 8))],
    "clamp": [(f(2, 8), 0.1)],
    "clip": [(f(2, 8), 0.1)],
    "clamp.Tensor": [(f(2, 8), f(8))],
    "clip.Tensor": [(f(2, 8), f(8))],
    "fill.Tensor": [(f(2, 8), f())],
    "masked_fill.Tensor": [(f(2, 8), torch.rand(8) > 0.5, f())],
    "native_dropout": [(f(2, 8), 0.5, True)],
    "to.device": [(f(2, 8), torch.device("cpu"), torch.float32)],
    "to.prim_Device": [(f(2, 8), torch.device("cpu"))],
    "norm.ScalarOpt_dim_dtype": [(f(2, 8, 5), 2.0, [1], False, {"dtype": torch.float32})],
    "norm.ScalarOpt_dtype": [(f(2, 8, 5), 2.0, {"dtype": torch.float32})],
    "movedim.int": [(f(2, 8, 6), 1, 2)],
    "moveaxis.int": [(f(2, 8, 6), 1, 2)],
    "prelu": [(f(*IMAGE), f(8)), (f(*IMAGE), f(1))],
    "expand_as": [(f(1, 8), f(6, 8))],
    "glu": [(f(2, 8, 5), 1)],
    "drop_path": [(f(2, 8, 5), 0.5, True, "row")],
    "by_mode": [(f(2, 8, 5), f(2, 8, 5))],
    "update_buffer": [(f(8), f(8))],
    "after": [(f(2, 8, 5), [f(8)])],
    "autograd_function": [([f(2, 8)], [f(2, 8)], name_of(Doubled, (torch.ones(1),)))],
    "kept_module": [([f(2, 8)], [f(8, 8)], KEPT, False)],
    "triangular_conv": [
        (f(2, 8, 9), f(12, 8, 3), f(12), [6, 12], [4, 8], 2, [1], [1], [1]),
        (f(*IMAGE), f(12, 8, 3, 3), None, [6, 12], [4, 8], 2, [2, 1], [1, 1], [1, 1]),
        (f(2, 8, 4, 4, 4), f(12, 8, 1, 1, 1), f(12), [6, 12], [4, 8], 2, [1, 1, 1], [0, 0, 0], [1, 1, 1]),
    ],
    "prefix_norm": [(f(2, 3, 8), [2, 8], f(8), f(8), 1e-5, True), (f(2, 8), [4, 8], None, None, 1e-5, False)],
    "prefix_group_norm": [(f(*IMAGE), [2, 8], f(8), f(8), 1e-5), (f(2, 8, 5), [4, 8], None, None, 1e-5)],
    "prefix_standardise": [(f(1, 8, 6), [2, 8], [3, 6], f(8), None, 1e-5)],
    "triangular_linear": [(f(2, 5, 8), f(12, 8), f(12), [6, 12], [4, 8], 2)],
    "softmax": [(f(2, 8, 5), -1)],
    "log_softmax": [(f(2, 8, 5), 1)],
    "_softmax": [(f(2, 8, 5), 1, False)],
    "_log_softmax": [(f(2, 8, 5), 1, False)],
    "cumsum": [(f(2, 8, 5), 1)],
    "cumprod": [(f(2, 8, 5), 1)],
    "cummax": [(f(2, 8, 5), 1)],
    "cummin": [(f(2, 8, 5), 1)],
    "roll": [(f(2, 8, 5), [1], [1])],
    "flip": [(f(2, 8, 5), [1])],
    "sort": [(f(2, 8, 5), 1)],
    "argsort": [(f(2, 8, 5), 1)],
    "max_pool1d": [(f(2, 8, 9), [3])],
    "avg_pool1d": [(f(2, 8, 9), [3])],
    "adaptive_avg_pool1d": [(f(2, 8, 9), [3])],
    "max_pool2d": [(f(*IMAGE), [2, 2]), (f(8, 6, 6), [2, 2])],
    "avg_pool2d": [(f(*IMAGE), [2, 2])],
    "adaptive_avg_pool2d": [(f(*IMAGE), [1, 1])],
    "max_pool3d": [(f(2, 8, 4, 4, 4), [2, 2, 2])],
    "avg_pool3d": [(f(2, 8, 4, 4, 4), [2, 2, 2])],
    "_adaptive_avg_pool2d": [(f(*IMAGE), [1, 1])],
    "_adaptive_avg_pool3d": [(f(2, 8, 4, 4, 4), [1, 1, 1])],
    "adaptive_avg_pool3d": [(f(2, 8, 4, 4, 4), [1, 1, 1])],
    "max_pool1d_with_indices": [(f(2, 8, 9), [3])],
    "adaptive_max_pool1d": [(f(2, 8, 9), [3])],
    "max_pool2d_with_indices": [(f(*IMAGE), [2, 2])],
    "adaptive_max_pool2d": [(f(*IMAGE), [2, 2])],
    "max_pool3d_with_indices": [(f(2, 8, 4, 4, 4), [2, 2, 2])],
    "adaptive_max_pool3d": [(f(2, 8, 4, 4, 4), [2, 2, 2])],
    "pad": [(f(*IMAGE), [1, 1, 2, 2]), (f(*IMAGE), [0, 0, 0, 0, 4, 4]), (f(2, 8), [0, 3])],
    "constant_pad_nd": [(f(*IMAGE), [0, 0, 0, 0, 0, 8])],
    "reflection_pad1d": [(f(2, 8, 5), [1, 1])],
    "reflection_pad2d": [(f(*IMAGE), [1, 1, 1, 1])],
    "reflection_pad3d": [(f(2, 8, 4, 4, 4), [1] * 6)],
    "replication_pad1d": [(f(2, 8, 5), [1, 1])],
    "replication_pad2d": [(f(*IMAGE), [1, 1, 1, 1])],
    "replication_pad3d": [(f(2, 8, 4, 4, 4), [1] * 6)],
    "pixel_shuffle": [(f(2, 16, 3, 3), 2)],
    "pixel_unshuffle": [(f(*IMAGE), 2)],
    "channel_shuffle": [(f(*IMAGE), 2)],
    "native_channel_shuffle": [(f(*IMAGE), 2)],
    "im2col": [(f(*IMAGE), [3, 3], [1, 1], [0, 0], [1, 1])],
    "col2im": [(f(2, 36, 9), [6, 6], [2, 2], [1, 1], [0, 0], [2, 2])],
    "unfold": [(f(2, 8, 6), 2, 2, 2)],
    "view": [(f(2, 8, 6), [2, 4, 2, 6])],
    "_unsafe_view": [(f(2, 8, 6), [16, 6])],
    "reshape": [(f(2, 8, 6), [2, 4, 2, 6]), (f(2, 4, 2, 6), [2, 8, -1]), (f(2, 6, 4), [2, 24])],
    "flatten": [(f(2, 8, 3, 3), 1)],
    "unflatten": [(f(2, 8, 6), 1, [4, 2])],
    "reshape_as": [(f(2, 8, 6), f(2, 4, 2, 6))],
    "view_as": [(f(2, 8, 6), f(2, 4, 2, 6))],
    "squeeze": [(f(2, 1, 8),)],
    "squeeze.dim": [(f(2, 1, 8), 1)],
    "squeeze.dims": [(f(2, 1, 8), [1])],
    "unsqueeze": [(f(2, 8), 1)],
    "permute": [(f(2, 8, 6), [2, 0, 1])],
    "transpose": [(f(2, 8, 6), 1, 2)],
    "swapaxes": [(f(2, 8, 6), 1, 2)],
    "swapdims": [(f(2, 8, 6), 1, 2)],
    "t": [(f(8, 6),)],
    "numpy_T": [(f(8, 6),)],
    "mT": [(f(2, 8, 6),)],
    "matrix_H": [(f(8, 6),)],
    "adjoint": [(f(2, 8, 6),)],
    "movedim": [(f(2, 8, 6), [1], [2])],
    "moveaxis": [(f(2, 8, 6), [1], [2])],
    "expand": [(f(1, 8), [4, 8]), (f(8, 1), [3, 8, 5])],
    "broadcast_to": [(f(1, 8), [4, 8])],
    "repeat": [(f(2, 8), [3, 1, 2])],
    "tile": [(f(2, 8), [2])],
    "repeat_interleave": [(f(2, 8), 3, 1)],
    "cat": [([f(2, 8, 5), f(2, 4, 5)], 1), ([f(2, 8, 5), f(2, 0, 5)], 1), ([f(0), f(2, 8, 5)], 1)],
    "concat": [([f(2, 8, 5), f(2, 4, 5)], 1)],
    "concatenate": [([f(2, 8, 5), f(2, 4, 5)], 1)],
    "stack": [([f(2, 8), f(2, 8)], 1)],
    "split": [(f(2, 8, 5), 4, 1), (f(2, 7, 5), 4, 1)],
    "split.sizes": [(f(2, 8, 5), [2, 6], 1)],
    "split_with_sizes": [(f(2, 8, 5), [2, 6], 1)],
    "chunk": [(f(2, 8, 5), 2, 1)],
    "tensor_split.sections": [(f(2, 8, 5), 2, 1)],
    "tensor_split.indices": [(f(2, 8, 5), [3, 5], 1)],
    "grid_sampler": [(f(*IMAGE), f(2, 5, 5, 2), 0, 0, False)],
    "grid_sampler_2d": [(f(*IMAGE), f(2, 5, 5, 2), 0, 0, False)],
    "grid_sampler_3d": [(f(2, 8, 4, 4, 4), f(2, 5, 5, 5, 3), 0, 0, False)],
    "unbind": [(f(2, 3, 5), 1)],
    "select": [(f(2, 3, 5), 1, 0)],
    "slice": [(f(2, 8, 5), 1, 8, 100), (f(2, 8, 5), 1, 2, 6), (f(2, 8, 5), 1, 0, 4), (f(2, 8, 5), 1, 0, 8, 2)],
    "narrow": [(f(2, 8, 5), 1, 2, 4)],
    "index": [(f(9, 4), [i(9, 25)]), (f(2, 9, 4), [None, i(9, 5, 5)]), (f(5, 4, 6), [i(5, 3), None, i(6, 3)])],
    "gather": [(f(2, 9, 4), 1, i(9, 2, 3, 4))],
    "diff": [(f(2, 9, 4), 1, 1)],
    "complex": [(f(2, 8), f(2, 8))],
    "polar": [(f(2, 8), f(2, 8))],
    "imag": [(torch.randn(2, 8, dtype=torch.complex64),)],
    "view_as_real": [(torch.randn(2, 8, dtype=torch.complex64),)],
    "view_as_real_copy": [(torch.randn(2, 8, dtype=torch.complex64),)],
    "view_as_complex": [(f(2, 8, 2),)],
    "index_select": [(f(9, 4), 0, i(9, 25))],
    "topk": [(f(2, 8, 5), 2, 1)],
    "one_hot": [(i(4, 2, 5), 4)],
    "slice_scatter": [(f(2, 8, 5), f(2, 4, 5), 1, 0, 4)],
    "dot": [(f(8), f(8))],
    "vdot": [(f(8), f(8))],
    "inner": [(f(2, 4, 8), f(8))],
    "tensordot": [(f(2, 8, 5), f(5, 8, 6), [1, 2], [1, 0]), (f(2, 8, 5), f(8, 6), [1], [0])],
    "matrix_exp": [(f(8, 8),)],
    "linalg_matrix_exp": [(f(8, 8),)],
    "linalg_solve": [(f(8, 8), f(8, 4))],
    "linalg_inv": [(f(8, 8),)],
    "linalg_householder_product": [(f(8, 4), f(4))],
    "linalg_qr": [(f(8, 4),)],
    "linalg_svd": [(f(8, 4),)],
    "linalg_cholesky": [(torch.nn.Parameter(torch.eye(8)),)],
    "linalg_det": [(f(8, 8),)],
    "linalg_slogdet": [(f(8, 8),)],
    "linalg_eigh": [(f(8, 8),)],
    "mH": [(f(4, 8),)],
    "diagonal_scatter": [(f(2, 8, 8, 5), f(2, 5, 8), 0, 1, 2)],
    "scatter_add": [
        (f(9, 8), 0, i(9, 6, 8), f(6, 8)),
        (f(9, 8), 0, i(9, 6, 5), f(6, 8)),
        (f(2, 9, 8), 1, i(9, 2, 4, 8), f(2, 4, 8)),
    ],
    "scatter.src": [(f(9, 8), 0, i(9, 6, 8), f(6, 8))],
    "scatter.value": [(f(9, 8), 0, i(9, 6, 8), 0.5)],
    "scatter.reduce": [(f(9, 8), 0, i(9, 6, 8), f(6, 8), {"reduce": "add"})],
    "scatter.value_reduce": [(f(9, 8), 0, i(9, 6, 8), 0.5, {"reduce": "multiply"})],
    "scatter_reduce.two": [(f(9, 8), 0, i(9, 6, 8), f(6, 8), "mean")],
    "index_add": [(f(9, 8), 0, i(9, 6), f(6, 8))],
    "index_copy": [(f(9, 8), 0, i(9, 6), f(6, 8))],
    "index_reduce": [(f(9, 8), 0, i(9, 6), f(6, 8), "amax")],
    "index_fill.int_Scalar": [(f(9, 8), 0, i(9, 6), 0.5)],
    "select_scatter": [(f(2, 8, 5), f(2, 5), 1, 0)],
    "max": [(f(2, 8, 5),)],
    "min": [(f(2, 8, 5),)],
    "median": [(f(2, 8, 5),)],
    "max.dim": [(f(2, 8, 5), 1)],
    "min.dim": [(f(2, 8, 5), 1)],
    "median.dim": [(f(2, 8, 5), 1)],
    "mode": [(f(2, 8, 5), 1)],
    "max.other": [(f(2, 8), f(8))],
    "min.other": [(f(2, 8), f(8))],
    "argmax": [(f(2, 8, 5), 1)],
    "argmin": [(f(2, 8, 5), 1)],
    "zeros": [([2, 3],)],
    "ones": [([2, 3],)],
    "full": [([2, 3], 1.0)],
    "rand": [([2, 3],)],
    "randn": [([2, 3],)],
    "empty.memory_format": [([2, 3],)],
    "new_zeros": [(f(2), [2, 3])],
    "new_ones": [(f(2), [2, 3])],
    "new_full": [(f(2), [2, 3], 1.0)],
    "new_empty": [(f(2), [2, 3])],
    "arange": [(5,)],
    "eye": [(4,)],
    "tril": [(f(5, 5),)],
    "triu": [(f(5, 5),)],
    "meshgrid": [([f(3), f(4)],)],
    "linspace": [(0.0, 1.0, 5)],
    "logspace": [(0.0, 1.0, 5)],
    "randint": [(5, [2, 3])],
    "randint.low": [(1, 5, [2, 3])],
    "randperm": [(5,)],
    "hann_window": [(5,)],
    "scalar_tensor": [(1.0,)],
    "tril_indices": [(4, 4)],
    "triu_indices": [(4, 4)],
    "upsample_nearest1d": [(f(2, 8, 5), [10])],
    "upsample_linear1d": [(f(2, 8, 5), [10], False)],
    "upsample_nearest2d": [(f(*IMAGE), [12, 12])],
    "_upsample_nearest_exact2d": [(f(*IMAGE), [12, 12])],
    "upsample_bilinear2d": [(f(*IMAGE), [12, 12], False)],
    "upsample_bicubic2d": [(f(*IMAGE), [12, 12], False)],
    "_upsample_bilinear2d_aa": [(f(*IMAGE), [12, 12], False)],
    "_upsample_bicubic2d_aa": [(f(*IMAGE), [12, 12], False)],
    "upsample_nearest3d": [(f(2, 8, 4, 4, 4), [8, 8, 8])],
    "upsample_trilinear3d": [(f(2, 8, 4, 4, 4), [8, 8, 8], False)],
}
for _kind in ("", "i", "r", "ir", "h", "ih"):
    for _rank, _dims in (("", 1), ("2", [1, 2]), ("n", [1, 2])):
        _shape = torch.randn(2, 6, 8, 3, dtype=torch.complex64 if _kind in ("i", "ir", "h") else torch.float32)
        CALLS[f"fft_{_kind}fft{_rank}"] = [(_shape, None, _dims)]
"""Calls of `name.overload`, or of the default overload of `name`."""


def run_rule(target: Any, arguments: tuple[Any, ...], width: float) -> bool:
    """Narrow a program of one call and run it; whether anything could be narrowed."""
    program, node = one_call(target, arguments)
    axes = analyse(program)
    dims = axes.dims[node]
    kinds = node.meta["type"]
    for each, kind in zip(dims, kinds, strict=True) if isinstance(kinds, tuple) else [(dims, kinds)]:
        assert len(each) == len(kind.shape)
        for expr, size in zip(each, kind.shape, strict=True):
            assert axes.size(expr, {}) == size
    if not axes.narrowable:
        return False
    builder = Builder.copying(program)
    widths = axes.widths(width)
    env = clone_narrowed(builder, program, axes, widths, prefix="thin_")
    thin = builder.build([env[node]], program.graph.output_node())
    values: dict[fx.Node, Any] = {}
    for step in thin.graph.nodes:
        if step.op == "get_attr":
            values[step] = thin.tensors[str(step.target)]
        elif step.op == "call_function":
            args, kwargs = fx.map_arg((step.args, dict(step.kwargs)), lambda source: values[source])
            values[step] = step.target(*args, **kwargs)
    result, kind = values[thin.outputs[0]], thin.outputs[0].meta["type"]
    for tensor, one in zip(result, kind, strict=True) if isinstance(kind, tuple) else [(result, kind)]:
        assert [size.coefficient for size in one.shape] == list(tensor.shape)
    return bool(widths)


def one_call(target: Any, arguments: tuple[Any, ...]) -> tuple[Program, fx.Node]:
    """A program of one call whose operands are tensors read by name. Nothing of it is an output."""
    graph = fx.Graph()
    tensors: dict[str, Tensor] = {}
    held = graph.placeholder("held")
    held.meta = {"type": TensorType((Size(1, ("s0",)),), torch.float32), "origin": Origin()}

    def read(value: Any) -> Any:
        if isinstance(value, list):
            return [read(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        name = f"t{len(tensors)}"
        tensors[name] = value
        node = graph.create_node("get_attr", name, name=name)
        node.meta = {"type": type_of(value), "origin": Origin()}
        return node

    kwargs = arguments[-1] if arguments and isinstance(arguments[-1], dict) else {}
    given = arguments[:-1] if kwargs else arguments
    args = tuple(map(read, given))
    with torch.no_grad():
        result = target(*(_copies(value) for value in given), **kwargs)
    node = graph.call_function(target, args, kwargs)
    node.meta = {"type": type_of(result), "origin": Origin("here")}
    graph.output((held,))
    return Program(graph, tensors), node


def _copies(value: Any) -> Any:
    if isinstance(value, list):
        return [_copies(item) for item in value]
    return value.detach().clone() if isinstance(value, Tensor) else value


def type_of(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(type_of, value))
    return TensorType(tuple(Size(n) for n in value.shape), value.dtype)


def calls_of(target: Any) -> list[tuple[Any, ...]]:
    """The calls to try for an operation; those of element-wise operations and reductions follow from the schema."""
    name, overload = schema(target).name.rpartition("::")[2], schema(target).overload_name or "default"
    if f"{name}.{overload}" in CALLS:
        return CALLS[f"{name}.{overload}"]
    if name in CALLS and overload in ("default", "int", "using_ints", "Tensor", "input", "intlist", "self_int", "dim"):
        return CALLS[name]
    if not may_generate(target, name):
        return []
    positional = [generated(argument, name) for argument in required(target)]
    kwargs = {
        a.name: KEYWORDS.get(a.name) for a in schema(target).arguments if a.kwarg_only and not a.has_default_value()
    }
    return [(*positional, kwargs) if kwargs else tuple(positional)]


KEYWORDS = {"rounding_mode": "floor", "decimals": 1, "dtype": torch.float32}


def may_generate(target: Any, name: str) -> bool:
    from anytimeify.rules.reduce import NAMES

    return registered()[target].infer is pointwise or name in NAMES.split()


def required(target: Any) -> list[Any]:
    return [a for a in schema(target).arguments if not a.has_default_value() and not a.kwarg_only]


def generated(argument: Any, name: str) -> Any:
    kind = str(argument.type)
    if "Tensor" in kind:
        shape = {"other": (8, 1), "exponent": (8, 1), "tensor2": (8, 1), "end": (8, 1)}.get(argument.name, (2, 8, 5))
        if argument.name in ("mask", "condition"):
            return torch.rand(2, 8, 5) > 0.5
        return i(3, *shape) if name.startswith("bitwise") else f(*shape)
    if argument.name in ("dim", "dims"):
        return [1] if "List" in kind or "[]" in kind else 1
    return {"float": 0.5, "number": 0.5, "int": 1, "bool": False}.get(
        kind, torch.float32 if "dtype" in argument.name else 1
    )


TARGETS = sorted((target for target, rule in registered().items() if rule.kind != "size"), key=str)


@pytest.mark.parametrize("target", [target for target in TARGETS if calls_of(target)], ids=str)
def test_narrowed_calls_have_the_shape_that_the_rule_says(target: Any) -> None:
    for arguments in calls_of(target):
        for width in (0.1, 0.3, 0.5, 0.75):
            run_rule(target, arguments, width)


def test_every_rule_is_tried() -> None:
    untried = {str(target).rpartition(".")[0] for target in TARGETS if not calls_of(target)}
    tried = {str(target).rpartition(".")[0] for target in TARGETS if calls_of(target)}
    assert untried - tried == set()


def test_the_check_finds_wrong_rules() -> None:
    """A rule that says that a sum over channels keeps them must fail."""
    target = aten.linalg_matmul.default
    axis_rule(target, "i k, k j -> i k")
    try:
        with pytest.raises((AssertionError, RuntimeError)):
            run_rule(target, (f(4, 8), f(8, 6)), 0.5)
    finally:
        unregister(target)
