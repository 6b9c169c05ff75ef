"""From any source of a model to a canonical program."""

from anytimeify.capture.pipeline import capture as capture
from anytimeify.capture.sources.pt2 import load_exported as load_exported
from anytimeify.capture.sources.registry import resolve as resolve
from anytimeify.capture.sources.source import Source as Source
from anytimeify.capture.sources.source import SourceKind as SourceKind

__all__ = ["Source", "SourceKind", "capture", "load_exported", "resolve"]
