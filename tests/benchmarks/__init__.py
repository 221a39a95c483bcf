"""Figures beside their peers, in one run: `make bench` writes build/bench.json. Nothing here is a pass or a fail."""
