"""Experiments whose exact answer is known."""
