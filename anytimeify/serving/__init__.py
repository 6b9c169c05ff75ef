"""Levels of one file, chosen request by request. Nothing here needs torch but `torch_levels`."""
