"""`python -m tieryard`: the same as the `tieryard` command."""

from tieryard.cli import main

main()
