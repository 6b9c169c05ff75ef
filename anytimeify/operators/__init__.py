"""Modules and operators of our own that networks are made of."""
