"""What a file costs before its first decision, seen from a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Only what a device would load too: a process that has imported more shows other memory.
PROGRAM = """
import json, resource, sys, time
import numpy, onnxruntime
if sys.platform == "linux":
    memory = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
else:  # there is only the largest size so far
    memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
before, start = memory(), time.perf_counter()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
loaded = time.perf_counter()
given = session.get_inputs()[0]
numbers = numpy.uint8 if given.type == "tensor(uint8)" else numpy.float32
session.run(None, {given.name: numpy.zeros((1, *given.shape[1:]), numbers)})
decided = time.perf_counter()
print(json.dumps([1e3 * (loaded - start), 1e3 * (decided - loaded), memory() - before]))
"""


@dataclass(frozen=True)
class ColdStart:
    """The first moments of a file in ONNX Runtime.

    Attributes
    ----------
    load_ms, first_ms : float
        Loading the file, and the first decision, in milliseconds.
    memory_bytes : int
        What both added to the process's resident size.
    """

    load_ms: float
    first_ms: float
    memory_bytes: int


def cold_start(path: Path) -> ColdStart:
    """Load an agent's ONNX file in a new process on one thread and let it decide once.

    Raises
    ------
    RuntimeError
        If the process fails.
    """
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{path} could not be run by itself: {done.stderr.strip()}")
    return ColdStart(*json.loads(done.stdout))
