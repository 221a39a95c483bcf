"""Tenants of the system's own: each is made when it is first asked for."""

from __future__ import annotations

from tieryard.store.connection import Connection


def system_tenant(connection: Connection, name: str) -> int:
    """Its id."""
    row = connection.execute("SELECT id FROM tenant WHERE name = %s", [name]).fetchone()
    if row is None:
        row = connection.execute(
            "INSERT INTO tenant (name) VALUES (%s) ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id",
            [name],
        ).fetchone()
    assert row is not None
    return int(row[0])
