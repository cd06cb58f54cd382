"""What the tests of firmware share."""

from __future__ import annotations

import shutil

import pytest

from lrp_compress.deployment.c.building import GCC, PACKAGES, QEMU

needs_arm_tools = pytest.mark.skipif(
    shutil.which(GCC) is None or shutil.which(QEMU) is None,
    reason=f"apt-get install --no-install-recommends {PACKAGES}",
)
