"""Columns that many tables have."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, DateTime, func


def time_column(*, nullable: bool = False, now: bool = False) -> Any:
    """A moment, with its zone; `now`: that of the insert."""
    return Column(DateTime(timezone=True), nullable=nullable, server_default=func.now() if now else None)
