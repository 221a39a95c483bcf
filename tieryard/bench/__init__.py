"""Measures the fleet: load and its figures, and whether a candidate is as good as what serves now."""
