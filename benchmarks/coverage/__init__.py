"""Does it work on this backbone, and how well: `python -m benchmarks.coverage` measures and writes docs/coverage.md."""
