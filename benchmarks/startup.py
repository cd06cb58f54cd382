"""How long a short command takes, as a multiple of a bare ``import hydra``.

    python benchmarks/startup.py --turns 15

Prints the median time of each command and of the import, which take turns, and the median and range of their ratio
over the turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

COMMANDS = {
    "import hydra": ["-c", "import hydra"],
    "--version": ["-m", "lrp_compress", "--version"],
    "--help": ["-m", "lrp_compress", "--help"],
    "game=brekout": ["-m", "lrp_compress", "game=brekout"],
    "completion": ["-m", "lrp_compress", "-sc", "query=bash"],
}
VARIABLES = {**os.environ, "COMP_LINE": "lrp-compress game=brea"}


def seconds(arguments: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=VARIABLES, capture_output=True, check=False)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15)
    turns = parser.parse_args().turns
    for arguments in COMMANDS.values():
        seconds(arguments)  # fills the caches of bytecode and files
    taken = [{name: seconds(arguments) for name, arguments in COMMANDS.items()} for _ in range(turns)]
    for name in COMMANDS:
        ratios = sorted(one[name] / one["import hydra"] for one in taken)
        median = statistics.median(one[name] for one in taken)
        print(f"{name:<13} {median:6.3f} s {statistics.median(ratios):6.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
