"""Bulk classification: the question, its answer, thresholds, gates and scores. Pure: no store, no engines."""
