"""What every objective takes for labels: class indices, class probabilities, smoothed or not; and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anytimeify import AnytimeError, Outputs, Taxonomy
from anytimeify.losses import (
    CoDistillation,
    ConsensusLoss,
    CrossLayerMutual,
    HierarchicalCoDistillation,
    HierarchicalLoss,
    HierarchicalMimicking,
    IndependentLoss,
    InPlaceDistillation,
    JointLoss,
    Objective,
    TaxonomyLoss,
)
from anytimeify.losses.objective import cross_entropy

CLASSES = 5
TAXONOMY = Taxonomy.from_parents([0, 0, 1, 2, 2], [0, 0, 1])
ON_ONE_GRANULARITY: tuple[Callable[..., Objective], ...] = (
    CoDistillation,
    CrossLayerMutual,
    HierarchicalCoDistillation,
    HierarchicalLoss,
    HierarchicalMimicking,
    InPlaceDistillation,
    IndependentLoss,
    JointLoss,
    lambda **given: ConsensusLoss(JointLoss(), **given),
)
EVERY = (*ON_ONE_GRANULARITY, lambda **given: TaxonomyLoss(JointLoss(), TAXONOMY, **given))
SHAPES = ((4, CLASSES), (4, CLASSES, 2, 3))


def outputs(shape: tuple[int, ...]) -> Outputs:
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> tuple[Tensor, ...]:
        return tuple(torch.randn(shape, generator=generator) for _ in range(count))

    return Outputs(some(3), some(4))


def labels(shape: tuple[int, ...]) -> Tensor:
    return torch.randint(CLASSES, (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(1))


def probabilities(shape: tuple[int, ...]) -> Tensor:
    """As mixup makes them: of two classes each."""
    own = labels(shape)
    mixed = 0.7 * F.one_hot(own, CLASSES) + 0.3 * F.one_hot((own + 2) % CLASSES, CLASSES)
    return mixed.movedim(-1, 1).float()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", [labels, probabilities])
def test_the_measure_is_that_of_torch(make: Callable[..., Tensor], shape: tuple[int, ...], smoothing: float) -> None:
    logits, target = outputs(shape).levels[0], make(shape)
    expected = F.cross_entropy(logits, target, label_smoothing=smoothing)
    assert torch.equal(cross_entropy(logits, target, smoothing), expected)


def test_labels_that_do_not_count() -> None:
    logits, target = outputs((4, CLASSES)).levels[0], torch.tensor([1, -100, 2, -100])
    torch.testing.assert_close(cross_entropy(logits, target, 0.1), cross_entropy(logits[::2], target[::2], 0.1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("make", ON_ONE_GRANULARITY)
def test_certain_probabilities_are_indices(make: Callable[..., Objective], shape: tuple[int, ...]) -> None:
    out, own = outputs(shape), labels(shape)
    certain = F.one_hot(own, CLASSES).movedim(-1, 1).float()
    for smoothing in (0.0, 0.2):
        loss = make(label_smoothing=smoothing)
        terms, expected = loss.terms(out, certain), loss.terms(out, own)
        assert terms.keys() == expected.keys()
        for name, term in terms.items():
            torch.testing.assert_close(term, expected[name])


@pytest.mark.parametrize("make", ON_ONE_GRANULARITY)
def test_labels_are_smoothed_and_what_is_distilled_is_not(make: Callable[..., Objective]) -> None:
    shape = SHAPES[0]
    out, own, mixed = outputs(shape), labels(shape), probabilities(shape)
    plain, smoothed = make().terms(out, own), make(label_smoothing=0.3).terms(out, own)
    assert any(name.endswith("cross_entropy") for name in plain)
    # Of a smoothed cross-entropy, 0.7 is that with the labels and 0.3 that with the uniform distribution.
    uniform = make().terms(out, torch.full(shape, 1 / CLASSES))
    for name, term in plain.items():
        if name.endswith("cross_entropy"):
            torch.testing.assert_close(smoothed[name], 0.7 * term + 0.3 * uniform[name])
        else:
            assert torch.equal(smoothed[name], term)
            assert torch.equal(make().terms(out, mixed)[name], term)


def test_probabilities_of_coarser_classes_are_sums() -> None:
    out: Any = Outputs(tuple(tuple(torch.randn(4, size) for size in TAXONOMY.sizes) for _ in range(2)))  # type: ignore[misc]  # with a taxonomy
    mixed = probabilities(SHAPES[0])
    middle = torch.stack([mixed[:, :2].sum(1), mixed[:, 2], mixed[:, 3:].sum(1)], 1)
    coarse = torch.stack([mixed[:, :3].sum(1), mixed[:, 3:].sum(1)], 1)
    for own, expected in zip(TAXONOMY.targets(mixed), (mixed, middle, coarse), strict=True):
        torch.testing.assert_close(own, expected)
    loss = TaxonomyLoss(JointLoss(label_smoothing=0.1), TAXONOMY)
    terms = loss.terms(out, mixed)
    expected = F.cross_entropy(out.levels[1][2], coarse, label_smoothing=0.1)
    torch.testing.assert_close(terms["coarse/level1/cross_entropy"], expected)
    torch.testing.assert_close(loss(out, (mixed, middle, coarse)), loss(out, mixed))


def test_smoothing_of_what_is_inside() -> None:
    loss = ConsensusLoss(TaxonomyLoss({"fine": JointLoss(), "coarse": InPlaceDistillation()}), label_smoothing=0.2)
    assert [one.label_smoothing for one in loss.modules() if isinstance(one, Objective)] == [0.2] * 4
    assert ConsensusLoss(JointLoss(label_smoothing=0.3)).label_smoothing == 0.3
    assert TaxonomyLoss(nn.CrossEntropyLoss()).label_smoothing == 0.0
    assert "label_smoothing=0.2" in repr(loss)
    assert "label_smoothing" not in repr(JointLoss())
    with pytest.raises(ValueError, match="CrossEntropyLoss: give it to that one itself"):
        TaxonomyLoss(nn.CrossEntropyLoss(), label_smoothing=0.1)


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), True, "0.1", None])
def test_what_is_no_smoothing(make: Callable[..., Objective], value: Any) -> None:
    if value is None and make in EVERY[-2:]:
        return  # that of what is inside
    with pytest.raises(ValueError, match=r"label_smoothing is .*: expected a number from 0 to 1") as found:
        make(label_smoothing=value)
    assert isinstance(found.value, AnytimeError)


@pytest.mark.parametrize("make", EVERY)
def test_called_on_a_tensor(make: Callable[..., Objective]) -> None:
    loss: Any = make()
    logits, own = outputs(SHAPES[0]).levels[0], labels(SHAPES[0])
    calls: tuple[Callable[[], Any], ...] = (
        lambda: loss(logits),
        lambda: loss(logits, own),
        lambda: loss.terms(logits, own),
        lambda: loss((logits,), own),
    )
    for call in calls:
        with pytest.raises(TypeError, match=r"net.loss\(net\(x\), target\)") as found:
            call()
        assert isinstance(found.value, AnytimeError)
    with pytest.raises(TypeError, match="without a target"):
        loss(outputs(SHAPES[0]))


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        ((4, 5), torch.zeros(4)),  # indices that are not whole numbers
        ((4, 5), torch.zeros(4, 5, dtype=torch.int64)),  # probabilities that are
        ((4, 5), torch.zeros(4, dtype=torch.int32)),
        ((4, 5), torch.zeros(4, dtype=torch.bool)),
        ((4, 5), torch.tensor(1)),
        ((4, 5), torch.zeros(4, 6)),
        ((4, 5), torch.zeros(3, 5)),
        ((4, 5, 2, 3), torch.zeros(4, 5)),
        ((4, 5, 2, 3), torch.zeros(4, 2, 3, 5)),
        ((4, 5, 2, 3), torch.zeros(4, 2, 3)),
        ((5,), torch.zeros(5)),
    ],
)
def test_targets_that_do_not_fit(logits: tuple[int, ...], target: Tensor) -> None:
    with pytest.raises(ValueError, match="do not go with a target of shape") as found:
        cross_entropy(torch.zeros(logits), target)
    assert isinstance(found.value, AnytimeError)
    assert str(target.dtype) in str(found.value)


def test_targets_that_are_no_labels() -> None:
    with pytest.raises(TypeError, match="are for TaxonomyLoss"):
        JointLoss()(outputs(SHAPES[0]), (labels(SHAPES[0]),) * 2)
    with pytest.raises(TypeError, match="expected labels of the finest classes"):
        TaxonomyLoss(JointLoss(), TAXONOMY).targets(0)  # type: ignore[arg-type]  # no tensor
    with pytest.raises(ValueError, match=r"floating target of shape \(4, 3\).*expected \(N, 5\)"):
        TAXONOMY.targets(torch.zeros(4, 3))
