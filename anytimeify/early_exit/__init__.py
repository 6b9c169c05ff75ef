"""Levels one after the other: policies that say when to stop, and networks cut into stages."""
