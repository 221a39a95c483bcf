"""Alembic migrations. `tieryard migrate` runs them; a test proves that they make what the models declare."""
