"""Opens the safetensors files of a run with the format's own Python package and prints what is in them.

A model must be tensors of floating-point numbers, all of them finite; a checkpoint must be arrays
of bytes, under the names of what was saved. See run.sh for how it is run.

Verified with Python 3.11.7, safetensors 0.8.0, numpy 2.4.6.

Exit code 1 when a file is missing, cannot be read, or holds something else.
"""

import json
import sys
from pathlib import Path

import numpy
from safetensors import safe_open


def main(directory, names):
    for name in names:
        path = Path(directory) / name
        if not path.exists():
            sys.exit(f"{path}: there is no such file")
        with safe_open(path, framework="numpy") as file:
            description = json.loads(file.metadata()["plainrl"])
            print(f"{path.name}: {json.dumps(description)}")
            if description["kind"] not in ("model", "checkpoint"):
                sys.exit(f"{path}: kind {description['kind']}")
            if not file.keys():
                sys.exit(f"{path}: holds nothing")
            for key in file.keys():
                tensor = file.get_tensor(key)
                print(f"  {key}: {tensor.dtype} {list(tensor.shape)}", end="")
                if description["kind"] == "checkpoint":
                    print()
                    if tensor.dtype != numpy.uint8 or tensor.ndim != 1:
                        sys.exit(f"{path}: {key} is not an array of bytes")
                    continue
                if tensor.dtype not in (numpy.float32, numpy.float64) or tensor.size == 0:
                    sys.exit(f"{path}: {key} is not a tensor of numbers")
                print(f", from {tensor.min():g} to {tensor.max():g}")
                if not numpy.isfinite(tensor).all():
                    sys.exit(f"{path}: {key} has numbers that are not finite")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: check_safetensors.py DIRECTORY [FILE...]")
    main(sys.argv[1], sys.argv[2:] or ["model.safetensors", "checkpoint.safetensors"])
