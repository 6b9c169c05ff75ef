"""The server of examples/server: what clients get, and what they cannot do to it."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx2")

import httpx2
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from anytimeify.errors import ArgumentValueError
from anytimeify.runtime import Adaptive, AnytimeRunner
from anytimeify.serving.backend import Input
from examples.server.__main__ import images_of, main
from examples.server.app import Bounds, create_app
from examples.server.inputs import Images, Refused, from_json
from tests.backbones import Residual
from tests.deploy.nets import trained
from tests.serving.fakes import Clock, FakeLevels

SOON = 10
JSON, PNG = {"content-type": "application/json"}, {"content-type": "image/png"}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> AnytimeRunner:
    path = tmp_path_factory.mktemp("served") / "net.onnx"
    trained("nested-channels{widths=0.5,1}", Residual()).export(path)
    return AnytimeRunner(path, threads=1)


@pytest.fixture(scope="module")
def client(runner: AnytimeRunner) -> Iterator[TestClient]:
    app = create_app(
        Adaptive(runner, slo_ms=10_000, max_batch=4),
        images_of(runner.backend.inputs),
        Bounds(max_body=20_000, max_in_flight=4),
    )
    with TestClient(app) as client:
        yield client


def sample(runner: AnytimeRunner) -> Any:
    (one,) = runner.backend.inputs
    sizes = [size or 1 for size in one.sizes[1:]]
    return np.random.default_rng(0).standard_normal(sizes).astype(np.float32)


def encoded(values: Any, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind, **options)
    return file.getvalue()


def picture(height: int, width: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_json_is_answered_by_a_level_that_is_named(client: TestClient, runner: AnytimeRunner) -> None:
    x = sample(runner)
    response = client.post("/predict", json={"inputs": {runner.backend.inputs[0].name: x.tolist()}})
    document = response.json()
    assert response.status_code == 200
    assert response.headers["anytime-level"] == "1"
    assert response.headers["anytime-level-name"] == document["level"]["name"] == "width 1"
    expected = runner.predict(x[None], level=1).value[0]
    np.testing.assert_allclose(document["outputs"]["output"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_images_are_scaled_as_the_model_expects(client: TestClient, runner: AnytimeRunner, kind: str) -> None:
    height, width = sample(runner).shape[1:]
    pixels = picture(height, width)
    body = encoded(pixels, kind, **({"lossless": True} if kind == "WEBP" else {}))
    answer = client.post("/predict", content=body, headers={"content-type": f"image/{kind.lower()}"}).json()
    x = ((pixels / 255 - Images.mean) / Images.std).astype(np.float32).transpose(2, 0, 1)
    expected = runner.predict(x[None], level=1).value[0]
    np.testing.assert_allclose(answer["outputs"]["output"], expected, rtol=1e-3, atol=1e-4)


def test_images_of_other_shapes_and_kinds_are_fitted() -> None:
    images = Images(1, 8, 8, mean=(0.0,), std=(1.0,))
    tall = np.zeros((40, 8), np.uint8)
    tall[16:24] = 255  # the middle is what is taken
    (value,) = images.sample(encoded(tall))
    assert value.shape == (1, 8, 8)
    assert value.min() == 1
    sideways = Image.Exif()
    sideways[0x0112] = 6  # to be turned by 90 degrees
    half = np.zeros((16, 16), np.uint8)
    half[:, :8] = 255
    (turned,) = images.sample(encoded(half, "JPEG", exif=sideways, quality=95))
    assert turned[0, :3].mean() > 0.9
    assert turned[0, 5:].mean() < 0.1
    assert Images(3, 8, 8).sample(encoded(np.zeros((9, 9, 4), np.uint8)))[0].shape == (3, 8, 8)


def large_image() -> bytes:
    """A few bytes that say 60,000 x 60,000 pixels."""
    head = encoded(np.zeros((1, 1), np.uint8))
    header = head[12:16] + (60_000).to_bytes(4) * 2 + head[24:29]
    return head[:12] + header + zlib.crc32(header).to_bytes(4) + head[33:]


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"{", JSON, 400, "no JSON that can be read"),
        (b"[" * 10_000, JSON, 400, "no JSON that can be read"),
        (b"\xff", JSON, 400, "no JSON that can be read"),
        (b'{"inputs": {"x": NaN}}', JSON, 400, "NaN is no number"),
        (b'{"inputs": {"x": 1e999}}', JSON, 400, "some of its numbers are none"),
        (b'{"inputs": {"x": 1e39}}', JSON, 400, "some of its numbers are none"),
        (b'{"inputs": {"x": %s}}' % (b"9" * 5_000), JSON, 400, "no JSON that can be read"),
        (b'{"inputs": {"x": %s}}' % (b"9" * 400), JSON, 400, "no array of numbers"),
        (b'{"inputs": {"x": [[1], [1, 2]]}}', JSON, 400, "no array of numbers"),
        (b'{"inputs": {"x": ["1"]}}', JSON, 400, "no array of numbers"),
        (b'{"inputs": {"x": null}}', JSON, 400, "no array of numbers"),
        (b'{"inputs": {"x": [1, 2]}}', JSON, 400, "has the shape [2]: expected [3, "),
        (b'{"inputs": {"y": [1]}}', JSON, 400, 'the body should be {"inputs": {"x": [...]}}'),
        (b"[1]", JSON, 400, 'the body should be {"inputs": {"x": [...]}}'),
        (b"[" + b"1," * 20_000, JSON, 413, "larger than 20000 bytes"),
        (b"GIF89a", PNG, 400, "no PNG, JPEG or WebP image"),
        (encoded(picture(30, 30))[:500], PNG, 400, "no PNG, JPEG or WebP image"),
        (large_image(), PNG, 413, "pixels"),
        (b"1", {"content-type": "application/x-pickle"}, 415, "expected application/json, image/png"),
        (b"1", {}, 415, "the content type is ''"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(
    client: TestClient, body: bytes, headers: dict[str, str], status: int, message: str
) -> None:
    response = client.post("/predict", content=body, headers=headers)
    assert response.status_code == status
    assert message in response.json()["error"]


def test_bodies_without_an_end_are_cut_off(client: TestClient) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(10_000):
            sent += 1_000
            yield b" " * 1_000

    assert client.post("/predict", content=chunks(), headers=JSON).status_code == 413


def test_other_paths_and_methods_are_refused_in_json(client: TestClient) -> None:
    assert client.get("/predict").status_code == 405
    assert client.get("/predict").json() == {"error": "Method Not Allowed"}
    assert client.get("/../etc/passwd").status_code == 404
    assert client.get("/health").text == "ok\n"


def test_the_page_asks_nobody_else(client: TestClient) -> None:
    response = client.get("/")
    assert response.headers["content-security-policy"].startswith("default-src 'none'; connect-src 'self'")
    assert "//" not in response.text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")


def test_metrics_count_what_was_answered(runner: AnytimeRunner) -> None:
    x = sample(runner)
    name = runner.backend.inputs[0].name
    with TestClient(create_app(Adaptive(runner, slo_ms=10_000, max_batch=2))) as client:
        for _ in range(3):
            client.post("/predict", json={"inputs": {name: x.tolist()}})
        assert client.post("/predict", content=b"1", headers=PNG).status_code == 415  # this one takes no images
        lines = client.get("/metrics").text.splitlines()
    assert 'anytime_answers_total{level="1",name="width 1"} 3.0' in lines
    assert 'anytime_answers_total{level="0",name="width 0.5"} 0.0' in lines
    assert 'anytime_responses_total{status="200"} 3.0' in lines
    assert 'anytime_responses_total{status="415"} 1.0' in lines
    assert 'anytime_latency_seconds_bucket{le="10.0"} 3.0' in lines
    assert "anytime_in_flight 0.0" in lines
    assert any(line.startswith('anytime_level_seconds{batch="2",level="1"') for line in lines)


class Held:
    """Fake levels that run when they are let."""

    def __init__(self, slo_ms: float = 30_000.0, bounds: Bounds | None = None) -> None:
        self.reached, self.open = threading.Semaphore(0), threading.Event()
        clock = Clock()
        levels = FakeLevels(clock)
        self.adaptive = Adaptive(AnytimeRunner(levels, clock=clock), slo_ms, clock=clock)
        levels.before = self.hold
        self.app = create_app(self.adaptive, bounds=bounds)

    def hold(self) -> None:
        self.reached.release()
        assert self.open.wait(SOON)


def document(*values: float) -> dict[str, Any]:
    return {"inputs": {"x": list(values)}}


def test_who_would_be_late_is_told_to_come_back() -> None:
    held = Held(12.6)
    with TestClient(held.app) as client:
        waiting = [held.adaptive.submit(np.ones(3, np.float32))]
        assert held.reached.acquire(timeout=SOON)
        waiting += [held.adaptive.submit(np.ones(3, np.float32)) for _ in range(2)]
        response = client.post("/predict", json=document(1, 2, 3))
        held.open.set()
        assert [one.result(SOON) for one in waiting]
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert "the cheapest level cannot answer one more" in response.json()["error"]
        assert client.post("/predict", json=document(1, 2, 3)).json()["outputs"]["output"] % 1000 == 6


def test_a_model_that_fails_says_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    held = Held()
    held.open.set()
    with TestClient(held.app) as client:
        held.adaptive.runner.backend.run = broken  # type: ignore[method-assign]
        response = client.post("/predict", json=document(1, 2, 3))
    assert (response.status_code, response.json()) == (500, {"error": "the model failed on this input"})
    assert "a secret" in caplog.text


def broken(level: int, inputs: Any) -> Any:
    raise RuntimeError("a secret")


class Served:
    """A real server on a free port of this machine."""

    def __init__(self, app: Any) -> None:
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until = time.monotonic() + SOON
        while not self.server.started:
            assert time.monotonic() < until
            time.sleep(0.01)
        self.address = self.server.servers[0].sockets[0].getsockname()
        self.url = "http://{}:{}".format(*self.address)

    def end(self) -> None:
        self.server.should_exit = True


def test_who_waits_is_answered_when_the_server_ends() -> None:
    held = Held()
    served = Served(held.app)
    answers: list[httpx2.Response] = []

    def ask() -> None:
        answers.append(httpx2.post(f"{served.url}/predict", json=document(1, 2, 3), timeout=SOON))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert held.reached.acquire(timeout=SOON)
    until = time.monotonic() + SOON
    while "anytime_in_flight 5.0" not in httpx2.get(f"{served.url}/metrics").text:
        assert time.monotonic() < until
    served.end()
    held.open.set()
    for thread in [*threads, served.thread]:
        thread.join(SOON)
        assert not thread.is_alive()
    assert [one.json()["outputs"] for one in answers] == [{"output": 2006.0}] * 5
    with pytest.raises(Exception, match="was closed"):
        held.adaptive.submit(np.ones(3, np.float32))


def test_too_many_at_once_are_refused_unread() -> None:
    held = Held(bounds=Bounds(max_in_flight=1))
    with TestClient(held.app) as client:
        first = threading.Thread(target=client.post, args=("/predict",), kwargs={"json": document(1, 2, 3)})
        first.start()
        assert held.reached.acquire(timeout=SOON)
        response = client.post("/predict", content=b"anything")
        held.open.set()
        first.join(SOON)
    assert (response.status_code, response.headers["retry-after"]) == (503, "30")
    assert response.json() == {"error": "1 requests are being answered"}


def test_bodies_that_do_not_come_are_not_waited_for() -> None:
    served = Served(Held(bounds=Bounds(body_seconds=0.1)).app)
    with socket.create_connection(served.address, timeout=SOON) as slow:
        slow.sendall(
            b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")
    served.end()
    served.thread.join(SOON)
    assert not served.thread.is_alive()


def test_values_that_json_does_not_know_are_null() -> None:
    held = Held()
    held.open.set()
    levels = held.adaptive.runner.backend
    levels.run = lambda level, inputs: {"a": np.array([[np.nan, 1.0]]), "b": np.array([[True]])}  # type: ignore[method-assign]
    with TestClient(held.app) as client:
        response = client.post("/predict", json=document(1, 2, 3))
    assert response.json()["outputs"] == {"a": [None, 1.0], "b": [True]}


def test_integers_are_taken_without_loss() -> None:
    tokens = [Input("tokens", "int32", (None, None))]

    def read(values: Any) -> Any:
        return from_json(json.dumps({"inputs": {"tokens": values}}).encode(), tokens)[0]

    assert read([1, 2]).tolist() == [1, 2]
    for wrong in ([1.5], [2**40], [2**70], [[1], 2]):
        with pytest.raises(Refused):
            read(wrong)


def test_the_type_of_the_model_decides_about_images() -> None:
    assert images_of([Input("x", "float32", (None, 3, 8, 9))]) == Images(3, 8, 9)
    assert images_of([Input("x", "float32", (None, 1, None, None))], (8, 9)) == Images(1, 8, 9)
    assert images_of([Input("x", "float32", (None, 3, None, None))]) is None
    assert images_of([Input("x", "float32", (None, 12))]) is None
    assert images_of([Input("x", "int64", (None, 3, 8, 9))]) is None
    pictures = [Input("x", "float32", (None, 3, 8, 9))]
    with pytest.raises(ArgumentValueError, match=r"the image size is \[9, 9\], and the model takes \[8, 9\]"):
        images_of(pictures, (9, 9))
    with pytest.raises(ArgumentValueError, match=r"mean is \[0.5, 0.5\]: expected a number for each channel"):
        images_of(pictures, mean=(0.5, 0.5))
    with pytest.raises(ArgumentValueError, match="std is"):
        images_of(pictures, std=(1.0, 0.0, 1.0))


def test_what_cannot_be_served_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["server", "nowhere.onnx"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert (caught.value.code, capsys.readouterr().err) == (1, "error: nowhere.onnx does not exist\n")
