"""Serves the levels of one file.

    python -m examples.server net.onnx --slo-ms 50
    curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/predict

Answers come within the limit: the more requests wait, the cheaper the level that answers. Look at
http://127.0.0.1:8000/ while it does. SIGTERM and Ctrl-C end it after all who wait were answered.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence

import uvicorn

from anytimeify.errors import AnytimeError, ArgumentValueError
from anytimeify.runtime import Adaptive, AnytimeRunner
from anytimeify.serving.backend import Input
from examples.server.app import Bounds, create_app
from examples.server.inputs import Images

__all__ = ["images_of", "main"]


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="what net.export or net.save wrote")
    parser.add_argument("--slo-ms", type=float, default=100.0, help="within which answers come")
    parser.add_argument("--max-batch", type=int, default=8)
    parser.add_argument("--threads", type=int, help="that one batch is computed with")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-body", type=int, default=Bounds.max_body, help="bytes")
    parser.add_argument("--max-in-flight", type=int, default=Bounds.max_in_flight)
    parser.add_argument("--image-size", type=int, nargs=2, metavar=("H", "W"), help="where the file leaves it open")
    parser.add_argument("--mean", type=float, nargs="+", default=Images.mean, help="of image channels, from 0 to 1")
    parser.add_argument("--std", type=float, nargs="+", default=Images.std)
    options = parser.parse_args()
    try:
        runner = AnytimeRunner(options.file, threads=options.threads)
        images = images_of(runner.backend.inputs, options.image_size, options.mean, options.std)
        bounds = Bounds(options.max_body, max_in_flight=options.max_in_flight)
        app = create_app(Adaptive(runner, options.slo_ms, options.max_batch), images, bounds)
    except AnytimeError as error:
        parser.exit(1, f"error: {error}\n")
    gc.collect()
    gc.freeze()  # the search for garbage stops all threads, and leaves out what is there by now
    uvicorn.run(app, host=options.host, port=options.port, access_log=False, timeout_graceful_shutdown=30)


def images_of(
    inputs: Sequence[Input],
    size: Sequence[int] | None = None,
    mean: Sequence[float] = Images.mean,
    std: Sequence[float] = Images.std,
) -> Images | None:
    """How pictures become the input; None where the model does not take pictures of one or three channels.
    `ArgumentValueError` for another size than the model's, where it has one."""
    if len(inputs) != 1 or inputs[0].dtype != "float32" or len(inputs[0].sizes) != 4:
        return None
    _, channels, height, width = inputs[0].sizes
    if size is not None and not all(own in (None, given) for own, given in zip((height, width), size, strict=True)):
        raise ArgumentValueError(f"the image size is {list(size)}, and the model takes {[height, width]}")
    height, width = size or (height, width)
    if channels not in (1, 3) or height is None or width is None:
        return None
    return Images(channels, height, width, mean, std)


if __name__ == "__main__":
    main()
