"""Measures the fleet: load and its figures, and whether a candidate is as good as what serves now."""

PASS_MARK = 0.7
"""A score from which on an answer passes."""
