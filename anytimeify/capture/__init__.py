"""From any source of a model to a canonical program."""

from anytimeify.capture.pipeline import capture as capture
from anytimeify.capture.source import Source as Source
from anytimeify.capture.source import SourceKind as SourceKind
from anytimeify.capture.source_pt2 import load_exported as load_exported
from anytimeify.capture.sources import resolve as resolve

__all__ = ["Source", "SourceKind", "capture", "load_exported", "resolve"]
