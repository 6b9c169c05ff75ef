"""Rewrites of programs, one idea a file, of which schemes are composed."""
