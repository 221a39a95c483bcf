"""Postgres remembers: state, fences, results and money. Everything that is written is written from here.

Synchronous on purpose, with no async twin: workers use it from a writer thread, the API from a thread pool.
Hot statements are written SQL, kept in this package and explained where they stand.
"""

from tieryard.store.connection import Connection, Store

__all__ = ["Connection", "Store"]
