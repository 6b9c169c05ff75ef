"""docs/evidence.md: every experiment of the papers, over several seeds."""
