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
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lrp_compress.api import settings
from lrp_compress.commands.table import COMMANDS
from lrp_compress.compression.attribution import _mend_torchvision
from lrp_compress.support.processes import process_start
from lrp_compress.tracking.connections import import_mlflow
from tests.commands.running import REPOSITORY, environment

PATIENCE_S = 240
# What commands import only when they need it, or torch when it first learns.
LATER = (
    *("lrp_compress.commands.cli", "lrp_compress.search.search", "lrp_compress.reporting.publishing"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.pyfunc.loaders", "matplotlib.backends.backend_agg"),
    *("torch._dynamo", "zennit.core", "zennit.rules"),
)


class Forks:
    """The process, which starts one command after the other."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.commands.forks"]
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment(), stdin=pipe, stdout=pipe, text=True, bufsize=1
        )

    def start(self, module: str, arguments: list[str], folder: Path, **extra: str) -> Fork:
        """Begin what ``python -m MODULE ARGUMENTS`` does in a folder; with the module ``-c`` what a program does."""
        return Fork(self.ask, module, arguments, folder, environment(**extra))

    def run(self, module: str, arguments: list[str], folder: Path, **extra: str) -> subprocess.CompletedProcess[str]:
        """Do it, and give how it has ended."""
        with self.start(module, arguments, folder, **extra) as fork:
            return fork.wait()

    def ask(self, *request: object) -> int:
        """Send a request, and give the answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(f"{json.dumps(request)}\n")
        return int(self._server.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._server.communicate()


class Fork:
    """A command under way; it is killed where its block ends before it does."""

    def __init__(
        self, ask: Callable[..., int], module: str, arguments: list[str], folder: Path, variables: dict[str, str]
    ) -> None:
        self._streams = tempfile.TemporaryDirectory()
        self._ask = ask
        self._command = [module, *arguments]
        self._code: int | None = None
        self.pid = ask("start", module, arguments, str(folder), variables, self._streams.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._code is None:
            self.send_signal(signal.SIGKILL)
            self.wait()
        self._streams.cleanup()

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def told(self) -> list[str]:
        """What it has printed so far: standard output, standard error."""
        paths = (Path(self._streams.name, name) for name in ("out", "err"))
        return [path.read_text() if path.exists() else "" for path in paths]

    def until(self, sign: Callable[[], Any]) -> None:
        """Wait for a sign of its work."""
        limit = time.monotonic() + PATIENCE_S
        while True:
            lives = process_start(self.pid) is not None
            if sign():
                return
            assert lives, f"it has ended: {self.told()}"
            assert time.monotonic() < limit
            time.sleep(0.01)

    def first_line(self) -> str:
        """Wait for the first line that it prints."""
        self.until(lambda: "\n" in self.told()[0])
        return self.told()[0].partition("\n")[0]

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end."""
        if self._code is None:
            self._code = self._ask("wait", self.pid)
        return subprocess.CompletedProcess(self._command, self._code, *self.told())


def serve() -> None:
    """Start the commands that standard input brings, and answer with their pids, then with their exit codes."""
    import_mlflow()
    _mend_torchvision()
    for module in (*(command.module for command in COMMANDS.values()), *LATER):
        importlib.import_module(module)
    importlib.import_module(
        "mlflow.utils.requirements_utils"
    )._init_modules_to_packages_map()  # over a second, once a process
    settings("breakout")  # Hydra's parser learns its grammar
    gc.freeze()  # what is never looked at is never copied
    for line in sys.stdin:
        match json.loads(line):
            case ["wait", pid]:
                answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            case ["start", *job]:
                answer = os.fork()
                if not answer:
                    become(*job)
        print(answer, flush=True)


def become(module: str, arguments: list[str], folder: str, variables: dict[str, str], streams: str) -> None:
    """Turn this process into a command's; it ends with the command's exit code."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    for number, file in enumerate((os.devnull, f"{streams}/out", f"{streams}/err")):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    code = 0
    try:
        if module == "-c":
            sys.argv = ["-c", *arguments[1:]]
            exec(arguments[0], {"__name__": "__main__"})
        else:
            sys.argv[1:] = arguments
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
