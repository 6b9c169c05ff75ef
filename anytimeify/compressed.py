"""Weights without their zeros: the public names of `anytimeify.storage.compressed`."""

from anytimeify.storage.compressed import FORMAT, load_compressed, save_compressed

__all__ = ["FORMAT", "load_compressed", "save_compressed"]
