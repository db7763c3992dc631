"""Prints the versions of Python and of the packages named as arguments as JSON, null where missing."""

import importlib.metadata
import json
import platform
import sys


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


print(json.dumps({"python": platform.python_version()} | {name: version(name) for name in sys.argv[1:]}))
