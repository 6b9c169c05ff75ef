"""Where models come from, one kind a file."""
