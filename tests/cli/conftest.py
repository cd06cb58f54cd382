"""Commands as users type them, run in an empty folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.commands import Command, environment


@pytest.fixture
def lrp_compress(tmp_path: Path) -> Command:
    """Return a function that runs ``python -m lrp_compress``, or another module, in the test's empty folder."""

    def run(*arguments: str, module: str = "lrp_compress", **extra: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment(**extra), capture_output=True, text=True)

    return run
