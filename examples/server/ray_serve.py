"""The same server on many machines, by Ray Serve: every replica has a queue and lowers its level on its own.

    python -m examples.server.ray_serve net.onnx --replicas 2 --slo-ms 50

Ray spreads requests over the replicas and starts more of them when load stays high, which takes seconds; until then
the levels fall. A replica is given all requests at once, and not one after the other, for its queue is what decides.
Needs `pip install 'ray[serve]'`, and on all machines the file at the same path.
"""

from __future__ import annotations

import argparse
import gc
import signal
import threading

from ray import serve
from ray.serve.metrics import Counter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from anytimeify.runtime import Adaptive, AnytimeRunner
from examples.server.__main__ import images_of
from examples.server.app import Bounds, Service

__all__ = ["Levels", "main"]


@serve.deployment(max_ongoing_requests=Bounds.max_in_flight)
class Levels:
    """One replica: `POST /predict`, as the server alone answers it."""

    def __init__(self, file: str, slo_ms: float, max_batch: int, threads: int) -> None:
        runner = AnytimeRunner(file, threads=threads)
        self.adaptive = Adaptive(runner, slo_ms, max_batch)
        self.service = Service(self.adaptive, images_of(runner.backend.inputs))
        self.answers = Counter("anytime_answers", "Answers by level", ("level",))
        self.replica = serve.get_replica_context().replica_id.unique_id
        gc.collect()
        gc.freeze()

    async def __call__(self, request: Request) -> Response:
        """Ray takes its metrics itself, so that `/metrics` is not here."""
        if (request.method, request.url.path) != ("POST", "/predict"):
            return JSONResponse({"error": "POST to /predict"}, 404)
        response = await self.service.predict(request)
        response.headers["Anytime-Replica"] = self.replica
        if "Anytime-Level" in response.headers:
            self.answers.inc(tags={"level": response.headers["Anytime-Level"]})
        return response

    def __del__(self) -> None:
        """Called by Ray after the last request of this replica was answered."""
        self.adaptive.close()


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--most", type=int, help="replicas that Ray may start when load stays high")
    parser.add_argument("--slo-ms", type=float, default=100.0)
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    scale = {"num_replicas": options.replicas}
    if options.most:
        scale = {"autoscaling_config": {"min_replicas": options.replicas, "max_replicas": options.most}}
    serve.start(http_options={"host": "127.0.0.1", "port": options.port})
    bound = Levels.options(ray_actor_options={"num_cpus": options.threads}, **scale)
    serve.run(bound.bind(options.file, options.slo_ms, options.max_batch, options.threads), name="levels")
    stopped = threading.Event()
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()


if __name__ == "__main__":
    main()
