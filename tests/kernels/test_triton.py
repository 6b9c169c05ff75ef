"""The Triton kernels: interpreted where there is Triton, on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from anytimeify import kernels
from anytimeify.kernels import Form, choice, products, staircase
from tests.kernels.cases import Case
from tests.source_files import ROOT

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["triton_by_hand", "triton_norms_by_hand"])
def test_interpreted(kernels: str) -> None:
    """In a process of its own, for Triton decides at import whether it interprets."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, "-m", f"tests.kernels.{kernels}"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if "only 0-dimensional arrays can be converted" in result.stderr:
        pytest.skip("the interpreter of this Triton (3.6) needs a NumPy below 2.4")
    assert result.returncode == 0, result.stderr


@needs_triton
@pytest.mark.slow
def test_compiled_for_a_gpu_that_is_not_there() -> None:
    """Every kernel, for sm_90."""
    from tests.kernels.triton_compiled import sizes

    assert all(size > 1000 for size in sizes().values())


@needs_triton
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    from anytimeify.kernels import triton_products

    shape = staircase(200, 136, (10, 100, 150, 200), (6, 60, 100, 130), 4)
    weight, bias = (torch.randn(*size, device="cuda", dtype=dtype) for size in ((200, 136), (200,)))
    kept = products.masked(weight, shape)
    for size in ((500,), (4, 49)):
        x = torch.randn(size[0], 136, *size[1:], device="cuda", dtype=dtype)
        grad = torch.randn(size[0], 200, *size[1:], device="cuda", dtype=dtype)
        near = 1e-3 if dtype is torch.float32 else 5e-2
        exact = products.product(x.double(), kept.double(), bias.double(), shape, 1)
        scale = float(exact.abs().max())
        found = triton_products.product(x, weight, bias, shape).double()
        torch.testing.assert_close(found, exact, rtol=near, atol=near * scale)
        gradients = triton_products.product_gradients(grad, x, weight, shape, (True, True))
        doubles = products.product_gradients(grad.double(), x.double(), kept.double(), shape, 1, (True, True))
        for one, other in zip(gradients, doubles, strict=True):
            assert one is not None
            assert other is not None
            torch.testing.assert_close(one.double(), other, rtol=near, atol=near * float(other.abs().max()))


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["masked", "prefixes", "blocks", "measured"])
def test_layers_on_a_gpu(kind: choice.Kind) -> None:
    """Every form, whatever is measured to be the fastest, means the masked layer."""
    ends = (16, 32, 48, 64)
    layers = (
        Case(ends, ends, 4, 64, (16, 16), (3, 3), (1, 1), (1, 1), (1, 1), batch=16),
        Case(ends, ends, 4, 64, (16, 16), (1, 1), (1, 1), (0, 0), (1, 1), batch=16),
        Case(ends, ends, 4, 64, batch=1024),
    )
    for case in layers:
        x, weight, bias = (None if one is None else one.detach() for one in case.tensors())
        assert x is not None
        assert weight is not None
        expected = case.dense(x, weight, bias)
        moved = [None if one is None else one.cuda().requires_grad_() for one in (x, weight, bias)]
        with kernels.form(kind):
            y = case.fast(*moved)  # type: ignore[arg-type]  # input and weight are there
            torch.testing.assert_close(y.cpu(), expected)
            y.square().sum().backward()
        given = [None if one is None else one.clone().requires_grad_() for one in (x, weight, bias)]
        case.dense(*given).square().sum().backward()  # type: ignore[arg-type]
        for one, other in zip(moved, given, strict=True):
            assert one is not None
            assert other is not None
            torch.testing.assert_close(one.grad.cpu(), other.grad)  # type: ignore[union-attr]


def test_no_kernels_without_a_gpu() -> None:
    with kernels.form("measured"):
        kernels.triangular_linear(torch.randn(512, 128), torch.randn(128, 128), None, [64, 128], [64, 128], 2)
    assert Form("triton") not in kernels.choices().values()
