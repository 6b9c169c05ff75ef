"""Networks of other people's libraries, by name: `library:network`. A library is imported when its network is made."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.libraries.networks import images, sequences, sound, structures, tables, volumes
from benchmarks.libraries.networks.example import Example, Factory

__all__ = ["NETWORKS", "Example"]

NETWORKS: Mapping[str, Factory] = {
    **images.NETWORKS,
    **volumes.NETWORKS,
    **sound.NETWORKS,
    **sequences.NETWORKS,
    **tables.NETWORKS,
    **structures.NETWORKS,
}
