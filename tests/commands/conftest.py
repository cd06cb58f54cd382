"""Commands as users type them, run in an empty folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.commands.forks import Forks
from tests.commands.running import Command


@pytest.fixture
def lrp_compress(forks: Forks, tmp_path: Path) -> Command:
    """Return a function that does what ``python -m lrp_compress`` does, or another module, in the test's folder."""

    def run(*arguments: str, module: str = "lrp_compress", **extra: str) -> subprocess.CompletedProcess[str]:
        return forks.run(module, list(arguments), tmp_path, **extra)

    return run
