"""`python -m api`: serves the REST API until SIGTERM."""

from __future__ import annotations

import logging
import math
import sys
from typing import Annotated

import typer
import uvicorn

from api.app import create_app
from tieryard.errors import UserError
from tieryard.settings import load_settings
from tieryard.store import Store, keys


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
) -> None:
    """Serves the REST API."""
    try:
        settings = load_settings()
        if settings.api_key is not None:
            store = Store(settings.database_url.get_secret_value())
            keys.add_key(store, settings.api_key.get_secret_value(), tenant="default", name="first")
            store.close()
        # Its traceback would quote drivers and parsers, and they quote callers; `request.failed` has the place.
        # And a caller that reads nothing has its answer broken off on purpose.
        logging.getLogger("uvicorn.error").addFilter(
            lambda record: not record.getMessage().startswith(("Exception in ASGI", "ASGI callable returned without"))
        )
        uvicorn.run(
            create_app(settings),
            host=host,
            port=port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=math.ceil(settings.drain_s),  # else it waits for running calls without end
        )
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    typer.run(serve)
