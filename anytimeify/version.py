"""The version of the package."""

from importlib import metadata

__all__ = ["__version__"]

try:
    __version__ = metadata.version("anytimeify")
except metadata.PackageNotFoundError:  # run from its sources, not installed
    __version__ = "0+unknown"
