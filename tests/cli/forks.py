"""Commands in fresh forks of a process that has imported their libraries, and has done nothing else.

A new interpreter spends most of a short command's time importing torch and MLflow. `Forks` sends the commands; this
module, run as a script, does them.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

from lrp_compress.commands import COMMANDS
from lrp_compress.tracking.runs import import_mlflow
from tests.cli.commands import REPOSITORY, environment


class Forks:
    """The process, which does one command after the other."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.cli.forks"]
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment(), stdin=pipe, stdout=pipe, text=True, bufsize=1
        )

    def run(self, module: str, arguments: list[str], folder: Path, **extra: str) -> subprocess.CompletedProcess[str]:
        """Do what ``python -m MODULE ARGUMENTS`` does in a folder."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        with tempfile.TemporaryDirectory() as streams:
            job = [module, arguments, str(folder), environment(**extra), streams]
            self._server.stdin.write(f"{json.dumps(job)}\n")
            code = int(self._server.stdout.readline())
            told = [Path(streams, name).read_text() for name in ("out", "err")]
        return subprocess.CompletedProcess([module, *arguments], code, *told)

    def close(self) -> None:
        """End the process."""
        self._server.communicate()


def serve() -> None:
    """Do the commands that standard input brings, and answer with their exit codes."""
    import_mlflow()
    for command in COMMANDS.values():
        importlib.import_module(command.module)
    for module in ("search.search", "reporting.publishing"):
        importlib.import_module(f"lrp_compress.{module}")
    gc.freeze()  # what is never looked at is never copied
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            become(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def become(module: str, arguments: list[str], folder: str, variables: dict[str, str], streams: str) -> None:
    """Turn this process into a command's; it ends with the command's exit code."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for number, file in enumerate((os.devnull, f"{streams}/out", f"{streams}/err")):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    sys.argv[1:] = arguments
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # ONNX Runtime's own end waits for a thread that no fork has


if __name__ == "__main__":
    serve()
