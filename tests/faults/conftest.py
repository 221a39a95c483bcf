"""The fleets of the acceptance tests, for what takes too long to stand among them."""

from tests.acceptance.conftest import quick, start_fleet

__all__ = ["quick", "start_fleet"]
