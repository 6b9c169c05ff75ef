"""How long something takes, here and now, and keeping that on the disk. Needs no torch."""
