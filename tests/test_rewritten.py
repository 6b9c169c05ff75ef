"""Outputs are found by what they are, in every scheme and behind every pass that adds some."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from anytimeify import MutualDistillation, Taxonomy, schemes, transform
from anytimeify.ir.rewritten import LevelData, Output, Rewritten, numbered
from anytimeify.passes.rewrites.project import project
from anytimeify.runtime.model import AnytimeModel
from tests.backbones import Residual, images

TAXONOMY = Taxonomy.from_parents([0, 0, 1, 1, 1])
TRIANGULAR = "nested-channels{widths=0.25,0.5,1 connectivity=triangular}"


@pytest.fixture(scope="module")
def triangular() -> Rewritten:
    return transform(Residual(), TRIANGULAR, images()).rewritten


@pytest.mark.parametrize("name", [name for name, kind in schemes().items() if kind is not MutualDistillation])
def test_every_scheme_names_its_outputs_and_its_backbone(name: str) -> None:
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(4)]
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    net = transform(backbone, name, images(), verify=False)
    rewritten = net.rewritten
    assert rewritten.backbones == (net.full,)
    assert list(rewritten.outputs.values()) == list(rewritten.program.outputs)
    assert [(level.name, level.number) for level in rewritten.levels] == [(one.name, one.number) for one in net.levels]


def test_a_form_that_a_level_does_not_have_is_the_next_one(triangular: Rewritten) -> None:
    assert triangular.form("step", 1) == Output("step", 1)
    assert triangular.form("alone", 1) == Output("alone", 1)
    plain = transform(Residual(), "nested-channels{widths=0.5,1}", images()).rewritten
    assert plain.form("step", 1) == plain.form("alone", 1) == Output("level", 1)
    with pytest.raises(KeyError):
        plain.form("alone", 0, 1)


def test_names_fit_the_program(triangular: Rewritten) -> None:
    with pytest.raises(ValueError, match="outputs are called"):
        replace(triangular, names=triangular.names[:-1])
    with pytest.raises(ValueError, match="outputs are called"):
        replace(triangular, names=(*triangular.names[:-1], triangular.names[0]))


@pytest.mark.parametrize("options", [{}, {"taxonomy": TAXONOMY}, {"consensus": "average"}], ids=str)
@pytest.mark.parametrize("scheme", [TRIANGULAR, "hierarchical-ensemble{depth=1}", "auxiliary-branches{branches=1}"])
def test_all_forms_of_a_level_are_the_same_prediction(scheme: str, options: dict[str, object]) -> None:
    net = transform(Residual(), scheme, images(), **options).eval()  # type: ignore[arg-type]  # options of the test
    rewritten = net.rewritten
    granularities = range(2) if "taxonomy" in options else [None]
    values = dict(zip(rewritten.names, _run(net), strict=True))
    for level in range(len(rewritten.levels)):
        for granularity in granularities:
            together, *others = (
                values[rewritten.form(role, level, granularity)] for role in ("level", "alone", "step")
            )
            for other in others:
                torch.testing.assert_close(other, together, rtol=1e-4, atol=1e-5)


def test_passes_that_add_outputs_leave_the_others_where_they_are(triangular: Rewritten) -> None:
    net = transform(Residual(), TRIANGULAR, images(), consensus="average")
    assert net.rewritten.names[: len(triangular.names)] == triangular.names
    assert net.rewritten.levels[:-1] == triangular.levels
    assert net.rewritten.levels[-1] == LevelData("consensus", consensus=True)
    for output, node in triangular.outputs.items():
        assert net.rewritten.outputs[output].name == node.name


def test_members_that_are_levels() -> None:
    net = transform((Residual(), Residual()), "mutual-distillation{branches=1}", images(), verify=False)
    kinds = [net.levels[index].name.partition("/")[0] for role, index in net.rewritten.members if role == "level"]
    assert kinds == ["first", "first", "second", "second"]
    outputs = net(images())
    for member, (_, level) in zip(outputs.members, net.rewritten.members, strict=True):
        assert member is outputs.levels[level]


def test_numbers_are_those_of_the_scheme() -> None:
    assert [level.number for level in numbered("width", (1 / 3, 1.0))] == [1 / 3, 1.0]
    for scheme, expected in (
        ("nested-channels{widths=0.25,1}", [0.25, 1.0]),
        (TRIANGULAR, [0.25, 0.5, 1.0]),
        ("nested-weights{densities=0.1,1}", [0.1, 1.0]),
        ("hierarchical-ensemble{depth=1}", [1, 2]),
        ("auxiliary-branches{branches=1}", [None, None]),
    ):
        assert [level.number for level in transform(Residual(), scheme, images(), verify=False).levels] == expected


def _run(net: AnytimeModel) -> tuple[torch.Tensor, ...]:
    """Every output of the rewritten program."""
    with torch.no_grad():
        results: tuple[torch.Tensor, ...] = net._compiled.network(*net.call_signature.flat((images(),), {}))
    assert len(results) == len(project(net.rewritten.program, range(len(results))).outputs)
    return results
