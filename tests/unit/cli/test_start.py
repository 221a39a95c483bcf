"""What each command loads before it does anything."""

from __future__ import annotations

import subprocess
import sys


def test_no_command_waits_for_what_few_need() -> None:
    asked = "import sys, tieryard.cli.main; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in found.stdout.split()}
    assert not loaded & {"numpy", "scipy", "matplotlib", "lightgbm"}
