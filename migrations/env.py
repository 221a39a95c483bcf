"""Runs migrations on the database that `tieryard migrate` names, or TIERYARD_DATABASE_URL for developers."""

import os

from alembic import context
from sqlmodel import SQLModel

from tieryard.store import Store, schema

assert schema  # its import declares the tables

url = context.config.attributes.get("database_url") or os.environ["TIERYARD_DATABASE_URL"]
store = Store(url)
try:
    with store.engine.connect() as connection:
        context.configure(connection=connection, target_metadata=SQLModel.metadata, compare_server_default=True)
        with context.begin_transaction():
            context.run_migrations()
finally:
    store.close()
