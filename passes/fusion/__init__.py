"""Replicas of a network's parts computed as one."""
