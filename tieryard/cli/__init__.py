"""The `tieryard` command."""

from tieryard.cli.main import main

__all__ = ["main"]
