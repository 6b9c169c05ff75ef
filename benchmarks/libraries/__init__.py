"""Networks of other people's libraries under every scheme: `make libraries` measures and writes docs/libraries.md."""
