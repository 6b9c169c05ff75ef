"""Saved models, weights and exports: what is written, and how it is read back without running code."""
