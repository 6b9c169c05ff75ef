"""A load test of a server on this machine: requests at random times, whether others were answered or not.

    python -m examples.server.load http://127.0.0.1:8000 --phases 50x10,400x20,50x10

Phases are requests a second times seconds. The server says what its input is: it is sent noise as an image, or with
`--json SIZES` as numbers. Only addresses of this machine are taken, and at most a hundred thousand requests.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import ipaddress
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx2
import numpy as np
from PIL import Image

__all__ = ["Outcome", "Phase", "main", "phases_of", "run"]

_MOST = 100_000


class Phase(NamedTuple):
    """So many requests a second, for so many seconds."""

    rate: float
    seconds: float


@dataclass
class Outcome:
    """What became of the requests of a phase: milliseconds until the answers, and how many got which status and
    level."""

    phase: Phase
    ms: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    levels: Counter[int] = field(default_factory=Counter)

    def row(self) -> str:
        """A line of the table."""
        times = " | ".join(f"{np.quantile(self.ms, share):.1f}" for share in (0.5, 0.99)) if self.ms else "- | -"
        counts = ", ".join(f"{level}: {count}" for level, count in sorted(self.levels.items()))
        others = {status: count for status, count in self.statuses.items() if status not in (200, 503)}
        return (
            f"| {self.phase.rate:g} | {self.statuses.total()} | {self.statuses[200]} | {self.statuses[503]} | "
            f"{others or '-'} | {times} | {counts} |"
        )


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="http://127.0.0.1:PORT")
    parser.add_argument("--phases", default="50x10,400x20,50x10")
    parser.add_argument("--image", type=int, default=64, help="height and width of the images that are sent")
    parser.add_argument("--json", help="sizes of the input x, such as 3x32x32: numbers instead of images")
    options = parser.parse_args()
    body, kind = _numbers(options.json) if options.json else _image(options.image)
    outcomes = asyncio.run(run(options.url, phases_of(options.phases), body, kind))
    print(
        "| requests a second | sent | answered | refused | others | median ms | 99th percentile ms | level: answers |"
    )
    print("|" + "---|" * 8)
    for outcome in outcomes:
        print(outcome.row())


def phases_of(text: str) -> list[Phase]:
    """`50x10,400x20`, of at most a hundred thousand requests."""
    phases = [Phase(*map(float, part.split("x"))) for part in text.split(",")]
    if sum(phase.rate * phase.seconds for phase in phases) > _MOST:
        raise SystemExit(f"{text}: more than {_MOST} requests")
    return phases


async def run(url: str, phases: Sequence[Phase], body: bytes, kind: str) -> list[Outcome]:
    """The phases, one after the other. `SystemExit` for an address of another machine."""
    host = urlsplit(url).hostname or ""
    if host != "localhost" and not _is_loopback(host):
        raise SystemExit(f"{url} is not on this machine: load tests go to 127.0.0.1 alone")
    generator, outcomes, tasks = random.Random(0), [], []
    limits = httpx2.Limits(max_connections=256, max_keepalive_connections=256, keepalive_expiry=2)  # uvicorn: 5 s
    async with httpx2.AsyncClient(timeout=60, limits=limits, trust_env=False) as client:
        due = time.perf_counter()
        for phase in phases:
            outcomes.append(Outcome(phase))
            end = due + phase.seconds
            while (due := due + generator.expovariate(phase.rate)) < end:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.append(asyncio.create_task(_ask(client, f"{url.rstrip('/')}/predict", body, kind, outcomes[-1])))
            due = end
        await asyncio.gather(*tasks)
    return outcomes


async def _ask(client: httpx2.AsyncClient, url: str, body: bytes, kind: str, outcome: Outcome) -> None:
    begin = time.perf_counter()
    try:
        response = await client.post(url, content=body, headers={"Content-Type": kind})
    except httpx2.TransportError:
        outcome.statuses[0] += 1
        return
    outcome.statuses[response.status_code] += 1
    if response.status_code == 200:
        outcome.ms.append((time.perf_counter() - begin) * 1e3)
        outcome.levels[int(response.headers["Anytime-Level"])] += 1


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _image(size: int) -> tuple[bytes, str]:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue(), "image/jpeg"


def _numbers(sizes: str) -> tuple[bytes, str]:
    values = np.random.default_rng(0).standard_normal([int(size) for size in sizes.split("x")])
    return json.dumps({"inputs": {"x": values.round(3).tolist()}}).encode(), "application/json"


if __name__ == "__main__":
    main()
