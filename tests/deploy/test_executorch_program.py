"""One ExecuTorch program for all levels, run by its own runtime. Where the package is missing, an error says so."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from anytimeify import MissingExtraError
from tests.backbones import images, residual_net
from tests.deploy.nets import SCHEMES, levels_of, trained

needs_executorch = pytest.mark.skipif(find_spec("executorch") is None, reason="executorch is not installed")


@needs_executorch
@pytest.mark.parametrize("scheme", [SCHEMES[0], SCHEMES[2], SCHEMES[4], SCHEMES[6]])
def test_levels_are_their_extracts(scheme: str, tmp_path: Path) -> None:
    from executorch.runtime import Runtime

    net = trained(scheme)
    net.export(tmp_path / "net.pte", "executorch")
    weights = max(sum(tensor.nbytes for tensor in net.extract(index).state_dict().values()) for index in levels_of(net))
    assert (tmp_path / "net.pte").stat().st_size < 1.15 * weights
    program = Runtime.get().load_program(tmp_path / "net.pte")
    for place, index in enumerate(levels_of(net)):
        (result,) = program.load_method(f"level_{place}").execute([images(1)])
        torch.testing.assert_close(result, net.extract(index)(images(1)), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(find_spec("executorch") is not None, reason="executorch is installed")
def test_without_executorch(tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"Writing ExecuTorch needs .* pip install 'anytimeify\[executorch\]'"):
        residual_net(verify=False).export(tmp_path / "net.pte", "executorch")
    assert not list(tmp_path.iterdir())
