"""From a canonical program to modules that run: layers under the backbone's names, and how they are called."""
