"""How a peer is measured: one run for each line on standard input, answered by one line of JSON.

The speed measurement decides when a run is made, so that its own runs and a peer's take turns.
"""

import json
import os
import sys
import time


def serve(run):
    """Answers requests until standard input ends. `run()` makes one run and returns its steps."""
    # What libraries print goes to standard error, out of the way of the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for _ in sys.stdin:
        start = time.perf_counter()
        steps = run()
        seconds = time.perf_counter() - start
        print(json.dumps({"steps": steps, "seconds": seconds}), file=answers, flush=True)
