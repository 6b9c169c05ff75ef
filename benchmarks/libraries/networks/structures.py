"""Networks that read graphs and points, and spiking ones."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.libraries.networks.example import BATCH, Example, Factory

__all__ = ["NETWORKS"]

EDGES = ((0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0), (1, 0, 2, 3, 4, 5, 6, 7, 8, 9, 0, 5))


def _torch_geometric(name: str) -> Example:
    import torch_geometric.nn

    options: dict[str, Any] = {"heads": 4} if name == "GAT" else {}
    model = getattr(torch_geometric.nn, name)(8, 32, num_layers=3, out_channels=5, norm="batch_norm", **options)
    return Example(model, (torch.randn(10, 8), torch.tensor(EDGES)), batched=False)


def _e3nn() -> Example:
    from e3nn import o3
    from e3nn.nn import Gate

    class Equivariant(nn.Module):
        """Tensor products of features, with gated non-linearities between them."""

        def __init__(self) -> None:
            super().__init__()
            scalars, gates, gated = o3.Irreps("8x0e"), o3.Irreps("4x0e"), o3.Irreps("4x1o")
            self.gate = Gate(scalars, [torch.relu], gates, [torch.sigmoid], gated)
            start = o3.Irreps("6x0e + 4x1o")
            self.first = o3.FullyConnectedTensorProduct(start, "1x0e + 1x1o", self.gate.irreps_in)
            self.second = o3.Linear(self.gate.irreps_out, "5x0e")

        def forward(self, x: Tensor, direction: Tensor) -> Any:
            return self.second(self.gate(self.first(x, direction)))

    return Example(Equivariant(), (torch.randn(BATCH, 18), torch.randn(BATCH, 4)))


class Spiking(nn.Module):
    """Leaky integrate-and-fire neurons with a surrogate gradient, unrolled over five steps."""

    def __init__(self, neuron: Any) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 5)
        self.spikes: Any = nn.ModuleList(neuron() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        states, total = [neuron.init_leaky() for neuron in self.spikes], torch.zeros(())
        for _ in range(5):
            hidden, states[0] = self.spikes[0](self.first(x), states[0])
            hidden, states[1] = self.spikes[1](self.second(hidden), states[1])
            total = total + self.head(hidden)
        return total


def _snntorch() -> Example:
    import snntorch

    slope = snntorch.surrogate.fast_sigmoid(slope=25)
    return Example(Spiking(lambda: snntorch.Leaky(beta=0.9, spike_grad=slope)), (torch.rand(BATCH, 16),))


NETWORKS: dict[str, Factory] = {
    **{f"torch_geometric:{name}": partial(_torch_geometric, name) for name in ("GCN", "GAT", "GraphSAGE", "GIN")},
    "e3nn:TensorProduct": _e3nn,
    "snntorch:Leaky": _snntorch,
}
