"""A simulated day for the router: discrete events, real prompts and outcomes, published engine speeds, no wall clock.

The same arrivals and the same draws are given to each policy. `docs/explanation/simulated-day.md` tells what is
measured, what is assumed, and what came of it.
"""
