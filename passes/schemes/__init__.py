"""Schemes, one a file. A scheme is found by being here; nothing lists them."""
