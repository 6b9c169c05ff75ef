"""Complex numbers, integers, half precision, and tensors on other devices."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from anytimeify import CaptureError, VerificationError, transform, verification
from tests.robustness.helpers import SCHEME, check, close, with_prefix

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class GlobalFilter(nn.Module):
    """Mixes positions by a product of spectra, with complex weights kept as pairs of real ones."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.complex_weight = nn.Parameter(torch.randn(side, side // 2 + 1, width, 2) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, dim=(1, 2), norm="ortho") * torch.view_as_complex(self.complex_weight)
        result: Tensor = torch.fft.irfft2(spectrum, s=x.shape[1:3], dim=(1, 2), norm="ortho")
        return result


class FilterNet(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches, self.norm, self.filter = nn.Conv2d(3, width, 2, 2), nn.LayerNorm(width), GlobalFilter(width, 4)
        self.mlp, self.head = nn.Sequential(nn.Linear(width, 16), nn.GELU(), nn.Linear(16, width)), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        x = x + self.mlp(self.filter(self.norm(x)))
        result: Tensor = self.head(x.mean((1, 2)))
        return result


def test_filters_in_the_frequency_domain() -> None:
    model = FilterNet()
    net = check(model, IMAGES)
    filters = [site for group in net.axes.narrowable for site in group.sites if "complex_weight" in site.tensor]
    assert [site.dim for site in filters] == [2]


class ComplexInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.body(x.abs()).relu()) * torch.exp(1j * x.angle().mean(1, keepdim=True))
        return result


def test_complex_inputs_and_results() -> None:
    x = torch.randn(2, 4, dtype=torch.complex64)
    net = check(ComplexInputs(), x)
    assert net(x, level=0).dtype == torch.complex64


def test_a_complex_result_that_differs_in_its_imaginary_part_alone_differs() -> None:
    x = torch.zeros(2, 4)
    one = torch.complex(x, x + 1)
    assert verification.difference(one, one) == 0
    assert verification.difference(one, torch.complex(x, x + 2)) == pytest.approx(1.0)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(10, 8, padding_idx=0), nn.Embedding(6, 8)
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 10)

    def forward(self, ids: Tensor, padding: Tensor | None = None) -> Tensor:
        x = self.embed(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        result: Tensor = self.head(self.layer(x, src_key_padding_mask=padding))
        return result


IDS = torch.randint(1, 10, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "inputs", [IDS, IDS.int(), (IDS, torch.tensor([[False] * 6, [False, False, False, False, True, True]]))]
)
def test_token_ids_and_boolean_masks(inputs: object) -> None:
    check(Tokens(), inputs)


class Bytes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        x = torch.where(keep[:, None, None, None], self.conv(x.float() / 255), 0.0)
        result: Tensor = self.head(x.relu().mean((2, 3)))
        return result


def test_images_of_bytes() -> None:
    check(Bytes(), (torch.randint(0, 256, (2, 3, 6, 6), dtype=torch.uint8), torch.tensor([True, False])))


# Half precision.


class Deep(nn.Module):
    """Residual blocks: enough of them for half precision to round visibly."""

    def __init__(self, width: int = 16, blocks: int = 6) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        for block in self.blocks:
            x = x + block(x)
        result: Tensor = self.head(x.mean((2, 3)))
        return result


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = Deep().to(dtype)
    net = check(model, IMAGES.to(dtype), rtol=2 * torch.finfo(dtype).eps)
    assert {parameter.dtype for parameter in net.parameters()} == {dtype}
    thin = with_prefix(Deep(8).to(dtype), model)
    close(net(IMAGES.to(dtype), level=0), thin(IMAGES.to(dtype)), 8 * torch.finfo(dtype).eps)


class Cast(nn.Module):
    """Casts to half precision by itself, so that it cannot run in double precision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, dtype=torch.bfloat16), nn.LayerNorm(8)
        self.head = nn.Linear(8, 3, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x.bfloat16()).float().mean((2, 3)))
        result: Tensor = self.head(x.bfloat16())
        return result


def changed(net: nn.Module, by: float) -> None:
    with torch.no_grad():
        net.get_parameter("head.bias").add_(by)


def test_half_precision_is_judged_by_what_it_rounds_off() -> None:
    """A last bit is no difference, a wrong bias is; also where double precision cannot decide."""
    for make in (Cast, lambda: Deep().bfloat16()):
        model = make().eval()
        images = IMAGES if make is Cast else IMAGES.bfloat16()
        changed(model, 1.0)
        net = transform(model, SCHEME, images)
        other = copy.deepcopy(model)
        changed(other, 1.0)
        with pytest.raises(VerificationError, match="differs from the backbone"):
            verification.verify(net, other)
    changed(model := Cast().eval(), 1.0)
    net, near = transform(model, SCHEME, IMAGES), copy.deepcopy(model)
    changed(near, 0.01)
    assert not torch.equal(near(IMAGES), model(IMAGES))
    verification.verify(net, near)


def test_other_types_than_the_model_takes() -> None:
    with pytest.raises(CaptureError, match=r"Deep does not run on the example inputs .*BFloat16"):
        transform(Deep(), SCHEME, IMAGES.bfloat16())


# Devices.


def test_a_model_without_values() -> None:
    with torch.device("meta"):
        model = Deep()
    for inputs in (IMAGES, IMAGES.to("meta")):
        with pytest.raises(CaptureError, match=r"on the meta device .*verify=False.*to_empty"):
            transform(model, SCHEME, inputs)
    model = Deep()
    model.head.to("meta")
    with pytest.raises(CaptureError, match=r"on the meta device"):
        transform(model, SCHEME, IMAGES)
    net = transform(model, SCHEME, IMAGES, verify=False)
    assert [name for name, one in net.named_parameters() if one.is_meta and "anytime" not in name] == [
        name for name, one in model.named_parameters() if one.is_meta
    ]
    with pytest.raises(CaptureError, match="example input is on the meta device"):
        transform(Deep(), SCHEME, IMAGES.to("meta"))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    images = IMAGES.to("cuda", dtype)
    net = check(Deep().to("cuda", dtype), images, rtol=max(1e-4, 4 * torch.finfo(dtype).eps))
    assert {tensor.device.type for tensor in net.tensors().values()} == {"cuda"}
    net.cpu().float()
    assert net(IMAGES, level=0).device.type == "cpu"


@pytest.mark.cuda
def test_inputs_on_another_device_than_the_model() -> None:
    with pytest.raises(CaptureError, match=r"Deep is on cuda:0, but the example inputs are on cpu"):
        transform(Deep().cuda(), SCHEME, IMAGES)
    with pytest.raises(CaptureError, match=r"Deep is on cpu, but the example inputs are on cuda:0"):
        transform(Deep(), SCHEME, IMAGES.cuda())


@pytest.mark.cuda
def test_the_random_state_of_the_gpu_is_left_alone() -> None:
    torch.cuda.manual_seed(3)
    expected = torch.rand(1, device="cuda")
    torch.cuda.manual_seed(3)
    transform(Deep().cuda(), SCHEME, IMAGES.cuda())
    assert torch.equal(torch.rand(1, device="cuda"), expected)
