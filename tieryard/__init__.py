"""What the fleet knows: jobs, queues, catalog, routing, engines, store, costs."""

__version__ = "0.1.0"
