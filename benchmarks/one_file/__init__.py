"""One file for all levels against one file each."""
