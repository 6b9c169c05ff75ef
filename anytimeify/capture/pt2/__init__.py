"""Exported programs read part by part, against a list of what runs no code, instead of by torch's loader."""

from anytimeify.capture.pt2.checks import RefusedError as RefusedError
from anytimeify.capture.pt2.read import MODEL as MODEL
from anytimeify.capture.pt2.read import read_program as read_program

__all__ = ["MODEL", "RefusedError", "read_program"]
