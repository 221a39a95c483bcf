"""The CLI's way to the database: of TIERYARD_DATABASE_URL, or of the embedded fleet on a data directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import sqlalchemy.exc
import typer

from tieryard.errors import UserError
from tieryard.store import Store
from tieryard.store.migrate import is_current

DataDirOption = Annotated[
    Path | None, typer.Option(help="The embedded fleet's, while it runs. Default: TIERYARD_DATABASE_URL.")
]


@contextlib.contextmanager
def database(data_dir: Path | None) -> Iterator[Store]:
    """The fleet's database, at this version's schema. Raises UserError, and StoreError when it does not answer."""
    url = _embedded_url(data_dir) if data_dir is not None else os.environ.get("TIERYARD_DATABASE_URL")
    if not url:
        raise UserError("set TIERYARD_DATABASE_URL to the fleet's database, or name an embedded fleet's --data-dir")
    try:
        store = Store(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        url = ""
    if not url.startswith("postgres"):
        raise UserError("TIERYARD_DATABASE_URL is no postgresql://… URL")  # not quoted: it may have a password
    try:
        if not is_current(store):
            raise UserError("the database is not at this version's schema; run `tieryard migrate`")
        yield store
    finally:
        store.close()


def _embedded_url(data_dir: Path) -> str:
    """From the file in which a running Postgres says where its socket is: lines 4 and 5, port and directory."""
    try:
        port, directory = (data_dir / "postgres" / "postmaster.pid").read_text(encoding="utf-8").splitlines()[3:5]
    except (OSError, ValueError):
        raise UserError(f"no embedded fleet runs on {data_dir}; start it: tieryard up --data-dir {data_dir}") from None
    return f"postgresql://postgres@/tieryard?host={quote(directory)}&port={port}"
