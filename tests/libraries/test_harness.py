"""The benchmark of other libraries' networks: its comparison notices what is wrong, its page says what was found."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytimeify import AnytimeModel, transform
from benchmarks.coverage import children
from benchmarks.libraries import __main__ as command
from benchmarks.libraries import comparison, page, worker
from benchmarks.libraries.networks import NETWORKS, Example

DENSE = "nested-channels{widths=0.25,0.5,1}"


class Net(nn.Module):
    """A convolution, a norm, dropout and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.body, self.head = nn.Conv2d(16, 32, 3), nn.Linear(32, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.norm(self.stem(x)).relu()).relu().mean((2, 3))
        result: Tensor = self.head(self.drop(x))
        return result


def example() -> Example:
    torch.manual_seed(0)
    return Example(Net(), (torch.randn(2, 3, 8, 8),))


def made(scheme: str = DENSE) -> tuple[AnytimeModel, Example]:
    one = example()
    return transform(one.model, scheme, one.inputs), one


@pytest.mark.parametrize("scheme", command.SCHEMES.values())
def test_a_network_is_run_as_it_is_on_the_page(scheme: str) -> None:
    found: dict[str, Any] = {}
    worker.run(found.update, example, scheme)
    assert found["status"] in ("verified", "refused"), found
    assert (found["status"] == "verified") == (scheme not in ("auxiliary-branches", "nested-depth")), found


def test_all_of_it_is_compared() -> None:
    net, one = made()
    found = comparison.compare(net, one.model, one.inputs)
    assert found == {"batches": [2, 1, 3], "gradients": "train"}


def _full(net: AnytimeModel, model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("stem.weight").mul_(1.01)


def _level(net: AnytimeModel, model: nn.Module) -> None:
    whole = net.extract
    small = whole(1)
    vars(net)["extract"] = lambda level: small if getattr(level, "index", level) == 0 else whole(level)


def _gradient(net: AnytimeModel, model: nn.Module) -> None:
    model.get_submodule("norm").register_forward_hook(lambda norm, inputs, x: 1.1 * x - 0.1 * x.detach())


def _other_batches(net: AnytimeModel, model: nn.Module) -> None:
    model.register_forward_hook(lambda module, inputs, result: result + (result.shape[0] == 3))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_full, r"the full level among all against the backbone, batch of 2"),
        (_level, r"the extract of width 0.25, batch of 2"),
        (_gradient, r"gradient of (stem|norm).* differs .* double precision"),
        (_other_batches, r"the full level among all against the backbone, batch of 3"),
    ],
)
def test_what_is_wrong_is_noticed(spoil: Callable[[AnytimeModel, nn.Module], None], message: str) -> None:
    net, one = made()
    spoil(net, one.model)
    with pytest.raises(comparison.WrongModelError, match=message):
        comparison.compare(net, one.model, one.inputs)


def test_new_inputs_stay_within_the_ranges_of_the_example() -> None:
    given: Mapping[str, Tensor] = {
        "x": torch.randn(2, 4),
        "words": torch.tensor([[1, 50], [2, 60]]),
        "mask": torch.tensor([[1.0, 0.0], [1.0, 1.0]]),
        "table": torch.randn(4, 2),
    }
    new = comparison.new_inputs(given, 3)
    assert new["x"].shape == (3, 4)
    assert not torch.equal(new["x"][:2], given["x"])
    assert set(new["words"][:, 0].tolist()) <= {1, 2}
    assert set(new["words"][:, 1].tolist()) <= {50, 60}
    assert set(new["mask"].flatten().tolist()) <= {0.0, 1.0}
    assert new["table"] is given["table"]


def test_a_network_that_does_not_run_says_so() -> None:
    found: dict[str, Any] = {}
    worker.run(found.update, lambda: Example(Net(), (torch.randn(2, 4, 8, 8),)), DENSE)
    assert found["status"] == "does not run"
    assert "to have 3 channels" in found["why"]


def row(name: str, scheme: str, status: str, why: str = "", **more: Any) -> dict[str, Any]:
    return {"backbone": name, "scheme": scheme, "status": status, "why": why, "revision": "abc", **more}


ROWS = [
    row("torch:one", "torch.export", "verified"),
    row("torch:one", DENSE, "verified", fixed="the batch is 2"),
    row("torch:two", "torch.export", "verified"),
    row("torch:two", DENSE, "refused", "UnsupportedOpError: 'aten.a_' (node 'a_1' of x) works in place"),
    row("torch:three", "torch.export", "not exported", "UserError: no"),
    row("torch:three", DENSE, "refused", "UnsupportedOpError: 'aten.b_' (node 'b_7' of y) works in place"),
]


def test_the_page_counts_networks_that_export_and_groups_reasons(tmp_path: Path) -> None:
    page.write(ROWS, command.SCHEMES, tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert f"| channels | `{DENSE}` | 1 of 2 | 1 | 0 | 0 |" in text
    assert "| torch.export | `torch.export` | 2 of 3 |" in text
    assert "| torch:one | verified | verified, fixed batch |  |  |  |  |" in text
    assert text.count("works in place") == 1  # two of one kind
    assert "torch:two (channels); torch:three (channels)" in text
    assert f"* torch {torch.__version__}" in text


def test_what_failed_is_run_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, str]] = []

    def measured(name: str, schemes: Sequence[str], **limits: float) -> list[dict[str, Any]]:
        ran.extend((name, scheme) for scheme in schemes)
        return [row(name, scheme, "verified", seconds=1.0) for scheme in schemes]

    monkeypatch.setattr(command, "measure", measured)
    monkeypatch.setattr(command, "NETWORKS", dict.fromkeys(("torch:one", "torch:two"), example))
    results, out = tmp_path / "rows.jsonl", tmp_path / "page.md"
    results.write_text("".join(f"{line}\n" for line in map(json.dumps, ROWS)))
    asked = ["--results", str(results), "--out", str(out), "--failing-first"]
    assert command.main([*asked, "--schemes", "torch.export", "channels"]) == 0
    assert ran == [
        ("torch:two", "torch.export"),
        ("torch:two", DENSE),
        ("torch:one", "torch.export"),
        ("torch:one", DENSE),
    ]
    assert command.main([*asked, "--networks", "other:*"]) == 2


@pytest.mark.parametrize(("seconds", "why"), [(0.01, "time limit of 0 s in step: start"), (60.0, "ended with")])
def test_a_process_that_gives_no_answer_has_crashed(seconds: float, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "WORKER", "tests.libraries.nothing")  # no such module
    monkeypatch.setattr(command, "_STARTING", 0.0)
    (found,) = command.measure("torch:one", [DENSE], seconds=seconds, gib=0)
    assert found["status"] == "crashed"
    assert why in found["why"]


def test_a_fork_is_ended_after_its_time() -> None:
    ended = children.forked(lambda: time.sleep(60), 0.2)
    assert ended.timed_out
    assert ended.code < 0
    assert children.forked(lambda: None, 60.0).code == 0
    assert children.forked(lambda: sys.exit(3), 60.0).code == 1


def test_no_library_is_imported_before_its_network_is_made() -> None:
    assert len(NETWORKS) >= 40
    assert len({name.partition(":")[0] for name in NETWORKS}) >= 16
    assert not {"ultralytics", "diffusers", "monai", "speechbrain"} & set(sys.modules)
