"""The server as an ASGI application: `create_app(adaptive)`."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from anytimeify import AnytimeError, ArgumentError, ArgumentValueError
from anytimeify.runtime import Adaptive, Overloaded
from examples.server.inputs import IMAGE_TYPES, Images, Refused, from_json
from examples.server.metrics import Metrics

__all__ = ["Bounds", "Service", "create_app"]

_LOG = logging.getLogger("uvicorn.error")
_PAGE = Path(__file__).with_name("page.html")
_CONTENT = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
)


@dataclass(frozen=True)
class Bounds:
    """What one request may take, and how many there may be at once."""

    max_body: int = 2**22  # bytes
    body_seconds: float = 10.0  # until all of a body is there
    max_in_flight: int = 128
    decoders: int = 2  # threads that read JSON and images


class Service:
    """Answers requests with `adaptive`. `images`: how pictures become inputs; None where the model takes none."""

    def __init__(self, adaptive: Adaptive, images: Images | None = None, bounds: Bounds | None = None) -> None:
        self.adaptive, self.images, self.bounds = adaptive, images, bounds or Bounds()
        self.metrics = Metrics(adaptive)
        self._in_flight = 0
        self._decoders = CapacityLimiter(self.bounds.decoders)

    async def predict(self, request: Request) -> Response:
        """`POST /predict`: one sample, as JSON or as an image; a JSON document with the outputs and their level."""
        self._in_flight += 1
        self.metrics.in_flight.inc()
        try:
            response = await self._answer(request)
        except Refused as error:
            response = JSONResponse({"error": str(error)}, error.status)
        finally:
            self._in_flight -= 1
            self.metrics.in_flight.dec()
        self.metrics.responses.labels(response.status_code).inc()
        return response

    async def _answer(self, request: Request) -> Response:
        if self._in_flight > self.bounds.max_in_flight:
            return self._later(f"{self.bounds.max_in_flight} requests are being answered")
        read = self._reader(request)
        body = await self._body(request)
        begin = time.perf_counter()
        try:
            sample = await to_thread.run_sync(self._in_time, read, body, begin, limiter=self._decoders)
            future = self.adaptive.submit(*sample)
        except Overloaded as error:
            return self._later(str(error))
        except (ArgumentError, ArgumentValueError) as error:  # another shape
            raise Refused(400, str(error)) from error
        except AnytimeError as error:  # it was closed
            return self._later(str(error))
        try:
            prediction = await asyncio.wrap_future(future)
        except Exception:
            _LOG.exception("a level failed")
            return JSONResponse({"error": "the model failed on this input"}, 500)
        self.metrics.latency.observe(time.perf_counter() - begin)
        value, level, elapsed_ms = prediction
        self.metrics.answers.labels(level.index, level.name).inc()
        outputs = value if isinstance(value, dict) else {"output": value}
        document = {
            "outputs": {name: _listed(one) for name, one in outputs.items()},
            "level": {"index": level.index, "name": level.name},
            "elapsed_ms": elapsed_ms,
        }
        name = level.name.encode("ascii", "replace").decode()
        return JSONResponse(document, headers={"Anytime-Level": str(level.index), "Anytime-Level-Name": name})

    def _in_time(self, read: Callable[[bytes], list[Any]], body: bytes, begin: float) -> list[Any]:
        """What the body says, unless so many others were read before that no level would be in time."""
        waited = (time.perf_counter() - begin) * 1e3
        if waited > self.adaptive.slo_ms:
            raise Overloaded(f"the request waited for {waited:.0f} ms to be read: ask again later, or elsewhere")
        return read(body)

    def _reader(self, request: Request) -> Callable[[bytes], list[Any]]:
        """What makes a sample of a body of this type."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            return partial(from_json, inputs=self.adaptive.runner.backend.inputs)
        if self.images is not None and kind in IMAGE_TYPES:
            return self.images.sample
        taken = ("application/json", *(IMAGE_TYPES if self.images else ()))
        raise Refused(415, f"the content type is '{kind}': expected {', '.join(taken)}")

    async def _body(self, request: Request) -> bytes:
        """All of it, of which never more than allowed is held."""
        most, read = self.bounds.max_body, bytearray()
        try:
            async with asyncio.timeout(self.bounds.body_seconds):
                async for chunk in request.stream():
                    read += chunk
                    if len(read) > most:
                        raise Refused(413, f"the body is larger than {most} bytes")
        except TimeoutError as error:
            raise Refused(408, f"the body did not come within {self.bounds.body_seconds:g} s") from error
        except ClientDisconnect as error:
            raise Refused(400, "the client is gone") from error
        return bytes(read)

    def _later(self, why: str) -> Response:
        seconds = max(1, math.ceil(self.adaptive.slo_ms / 1e3))
        return JSONResponse({"error": why}, 503, headers={"Retry-After": str(seconds)})


def _listed(values: Any) -> Any:
    """Nested lists; null for what is no number, which JSON does not know."""
    array = np.asarray(values)
    known = array.dtype.kind != "f" or np.isfinite(array)
    if np.all(known):
        return array.tolist()
    result = array.astype(object)
    result[~known] = None
    return result.tolist()


def create_app(adaptive: Adaptive, images: Images | None = None, bounds: Bounds | None = None) -> Starlette:
    """`/predict`, `/metrics`, `/health` and a page at `/`. When it ends, all who wait are answered, then `adaptive` is
    closed."""
    service, page = Service(adaptive, images, bounds), _PAGE.read_text()

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def index(request: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": _CONTENT})

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await to_thread.run_sync(adaptive.close)

    return Starlette(
        routes=[
            Route("/predict", service.predict, methods=["POST"]),
            Route("/metrics", metrics),
            Route("/health", health),
            Route("/", index),
        ],
        exception_handlers={HTTPException: refuse},
        lifespan=lifespan,
    )
