"""Taxonomies as data: how they are made, what they refuse, and the labels that follow."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from anytimeify import ArgumentError, ArtifactError, SchemeError, Taxonomy

TREE = {"animal": {"pet": ["cat", "dog"], "wild": ["fox"]}, "thing": {"vehicle": ["car"], "tool": ["saw", "axe"]}}
PAIRS = [
    *[("cat", "pet"), ("dog", "pet"), ("fox", "wild"), ("car", "vehicle"), ("saw", "tool"), ("axe", "tool")],
    *[("pet", "animal"), ("wild", "animal"), ("vehicle", "thing"), ("tool", "thing")],
]
PARENTS = ((0, 0, 1, 2, 3, 3), (0, 0, 1, 1))


@pytest.mark.parametrize(
    "made",
    [
        Taxonomy(PARENTS),
        Taxonomy.from_parents(*PARENTS),
        Taxonomy.from_parents(dict(enumerate(PARENTS[0])), [0, 0, 1, 1]),
        Taxonomy.from_names(PAIRS),
        Taxonomy.from_names(dict(PAIRS)),
        Taxonomy.from_tree(TREE),
    ],
)
def test_one_taxonomy_made_in_several_ways(made: Taxonomy) -> None:
    assert made.parents == PARENTS
    assert made.granularities == ("fine", "middle", "coarse")
    assert made.sizes == (6, 4, 2)
    assert made.ancestors == ((0, 1, 2, 3, 4, 5), (0, 0, 1, 2, 3, 3), (0, 0, 0, 1, 1, 1))
    assert hash(made) == hash(pickle.loads(pickle.dumps(made)))


def test_names_and_their_order() -> None:
    made = Taxonomy.from_tree(TREE, granularities=("species", "kind", "realm"))
    assert made.classes == (
        ("cat", "dog", "fox", "car", "saw", "axe"),
        ("pet", "wild", "vehicle", "tool"),
        ("animal", "thing"),
    )
    order = ["axe", "car", "cat", "dog", "fox", "saw"]
    for other in (Taxonomy.from_tree(TREE, order), Taxonomy.from_names(PAIRS, order)):
        assert other.classes[0] == tuple(order)
        assert other.parents[0] == (0, 1, 2, 2, 3, 0)  # tool, vehicle, pet, wild: as they come
        assert other.classes[1] == ("tool", "vehicle", "pet", "wild")


def test_leaves_of_a_tree_may_be_empty_dicts_or_single_names() -> None:
    assert Taxonomy.from_tree({"a": {"x": {}, "y": None}, "b": "z"}).classes == (("x", "y", "z"), ("a", "b"))


def test_labels_of_every_granularity() -> None:
    made = Taxonomy(PARENTS)
    fine, middle, coarse = made.targets(torch.tensor([[0, 5], [3, -100]]))
    assert fine.tolist() == [[0, 5], [3, -100]]
    assert middle.tolist() == [[0, 3], [2, -100]]
    assert coarse.tolist() == [[0, 1], [1, -100]]


def test_probabilities_of_coarser_classes_are_sums() -> None:
    made = Taxonomy(PARENTS)
    logits = torch.randn(3, 6, 2)
    fine = logits.softmax(1)
    torch.testing.assert_close(made.collapse(logits).exp()[:, 0], fine[:, :3].sum(1))
    torch.testing.assert_close(made.collapse(logits, "middle").exp()[:, 3], fine[:, 4:].sum(1))
    torch.testing.assert_close(made.collapse(logits, 0), logits.log_softmax(1))


def test_granularities_by_name_and_place() -> None:
    made = Taxonomy(PARENTS)
    assert [made.index(one) for one in ("fine", "coarse", 1, -1)] == [0, 2, 1, 2]
    for unknown in ("species", 3, True):
        with pytest.raises(ArgumentError, match="there are: fine, middle, coarse"):
            made.index(unknown)


@pytest.mark.parametrize("suffix", [".json", ".csv"])
@pytest.mark.parametrize("named", [True, False])
def test_files(tmp_path: Path, suffix: str, named: bool) -> None:
    made = Taxonomy.from_tree(TREE) if named else Taxonomy(PARENTS)
    made.save(tmp_path / f"classes{suffix}")
    assert Taxonomy.load(tmp_path / f"classes{suffix}") == made


def test_what_levels_predict_and_serve_is_saved(tmp_path: Path) -> None:
    made = Taxonomy(PARENTS).with_levels(heads=(("coarse",), ("coarse", "fine")), serve=("coarse", "fine"))
    assert made.heads == (("coarse",), ("fine", "coarse"))  # finest first
    made.save(tmp_path / "classes.json")
    assert Taxonomy.load(tmp_path / "classes.json") == made
    with pytest.raises(ArtifactError, match=r"heads and serve need \.json"):
        made.save(tmp_path / "classes.csv")


def test_files_that_people_write(tmp_path: Path) -> None:
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(TREE))
    assert Taxonomy.load(path) == Taxonomy.from_tree(TREE)
    path.write_text("[0, 0, 1, 1]")
    assert Taxonomy.load(path) == Taxonomy.from_parents([0, 0, 1, 1])
    path.write_text("[[0, 0, 1, 2], [0, 0, 1]]")
    assert Taxonomy.load(path).sizes == (4, 3, 2)
    path = tmp_path / "table.csv"
    path.write_text('species, kind\n"cat, tame", pet\nfox, wild\n\n')
    assert Taxonomy.load(path).classes == (("cat, tame", "fox"), ("pet", "wild"))
    path.write_text("species,kind\n2,1\n0,0\n1,0\n")
    assert Taxonomy.load(path).parents == ((0, 0, 1),)


REFUSED: dict[str, Any] = {
    "expected a map": lambda: Taxonomy(()),
    "there are no classes": lambda: Taxonomy.from_parents({}),
    "no classes in it": lambda: Taxonomy.from_tree({}),
    "class 1 has no class above it": lambda: Taxonomy.from_parents({0: 0, 2: 1}),
    "class 'cow' has no class above it": lambda: Taxonomy.from_names(PAIRS, ["cat", "cow"]),
    "two classes above it, 'pet' and 'wild'": lambda: Taxonomy.from_names([("cat", "pet"), ("cat", "wild")]),
    "lie above each other in a circle: a -> b -> a": lambda: Taxonomy.from_names([("a", "b"), ("b", "a")], ["a"]),
    "in a circle": lambda: Taxonomy.from_names([("a", "b"), ("b", "a")]),
    "'cat' has 2 classes above it and 'car' has 1": lambda: Taxonomy.from_tree({"a": {"pet": ["cat"]}, "b": ["car"]}),
    "the class 'cat' is there twice": lambda: Taxonomy.from_tree({"pet": ["cat"], "wild": ["cat"]}),
    "class 'cow' is not in the tree": lambda: Taxonomy.from_tree({"a": ["cat"], "b": ["dog"]}, ["cat", "dog", "cow"]),
    "class 'dog' is missing in classes": lambda: Taxonomy.from_tree({"a": ["cat"], "b": ["dog"]}, ["cat"]),
    "inside a list": lambda: Taxonomy.from_tree({"a": [{"b": ["c"]}]}),
    "no class of fine belongs to class 1 of coarse": lambda: Taxonomy.from_parents([0, 0, 2]),
    "class 3 of middle, which has no class above": lambda: Taxonomy.from_parents([0, 1, 2, 3], [0, 1, 0]),
    "which is no index": lambda: Taxonomy.from_parents([0, -1]),
    "coarse has one class only": lambda: Taxonomy.from_parents([0, 0]),
    "expected indices of classes": lambda: Taxonomy.from_parents({"cat": "pet"}),  # type: ignore[dict-item]
    "granularities has 3 names": lambda: Taxonomy(PARENTS[1:], ("a", "b", "c")),
    "is no name made of letters": lambda: Taxonomy(PARENTS[1:], ("fine.", "b")),
    "granularity 'a' is there twice": lambda: Taxonomy(PARENTS[1:], ("a", "a")),
    "classes names 1 classes of fine, and there are 4": lambda: Taxonomy(PARENTS[1:], (), (("a",), ("b", "c"))),
    "classes has names for 1 granularities": lambda: Taxonomy(PARENTS[1:], (), (("a", "b", "c", "d"),)),
    "heads: 'middle' is no granularity": lambda: Taxonomy(PARENTS[1:]).with_levels(heads=(("middle",),)),
    "heads: level 1 predicts nothing": lambda: Taxonomy(PARENTS[1:]).with_levels(heads=(("fine",), ())),
    "serve is for 1 levels, and heads for 2": lambda: Taxonomy(PARENTS[1:]).with_levels(
        heads=(("fine",), ("fine",)), serve=("fine",)
    ),
    "level 0 does not predict 'coarse'": lambda: Taxonomy(PARENTS[1:]).with_levels(
        heads=(("fine",),), serve=("coarse",)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused(message: str) -> None:
    with pytest.raises(SchemeError, match=message):
        REFUSED[message]()


@pytest.mark.parametrize(
    ("name", "text", "error", "message"),
    [
        ("missing.json", None, ArtifactError, "does not exist"),
        ("classes.json", "{", ArtifactError, "cannot be read"),
        ("classes.yaml", "a: b", ArtifactError, r"\.json or \.csv"),
        ("classes.json", "3", SchemeError, "expected a nested dict"),
        ("classes.json", '{"parents": [[0, 1]], "colour": 3}', SchemeError, "no field 'colour'"),
        ("classes.csv", "fine,coarse\na,b\nc\n", SchemeError, "line 3 has not one entry for each of fine, coarse"),
        ("classes.csv", "fine,coarse\n", SchemeError, "no classes"),
        ("classes.csv", "fine,coarse\n0,0\n1,1\n1,0\n", SchemeError, "the class '1' is there twice"),
        ("classes.csv", "a,b,c\n0,0,0\n1,0,1\n2,1,1\n", SchemeError, "class 0 has two classes above it"),
        ("classes.csv", "fine,the coarse\na,b\nc,d\n", SchemeError, "no name made of letters"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, text: str | None, error: Any, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=message) as caught:
        Taxonomy.load(tmp_path / name)
    assert name in str(caught.value)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="There is no folder"):
        Taxonomy(PARENTS).save(tmp_path / "missing" / "classes.json")
