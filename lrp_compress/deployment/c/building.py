"""Firmware for a board, built by Debian's ARM compiler; what does not fit is told section by section."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lrp_compress.deployment.c.boards import Board
from lrp_compress.deployment.c.source import TEMPLATES, CSource
from lrp_compress.support.errors import UserError

GCC, SIZE, QEMU = "arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm"
PACKAGES = "gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"
STACK_BYTES = 2 * 1024  # kept free; the buffers are static, and a decision needs a few hundred bytes
# -O2 takes twice the instructions of -O3. A fused multiply-add would round once where onnxruntime rounds twice.
FLAGS = ("-mthumb", "-O3", "-fno-math-errno", "-ffp-contract=off", "-ffunction-sections", "-fdata-sections", "-w")
LINK_FLAGS = ("--specs=nano.specs", "--specs=nosys.specs", "-nostartfiles", "-Wl,--gc-sections", "-lm")
FLASH_SECTIONS, RAM_SECTIONS = (".text", ".ARM.exidx", ".data"), (".data", ".bss")


@dataclass(frozen=True)
class Firmware:
    """A program that fits its board.

    Attributes
    ----------
    board : Board
        Where it runs.
    elf : Path
        The file.
    actions : int
        Number of the network's outputs.
    flash_bytes : int
        Code and constants.
    static_ram_bytes : int
        Data and buffers, an observation's among them; without the stack.
    """

    board: Board
    elf: Path
    actions: int
    flash_bytes: int
    static_ram_bytes: int


class DoesNotFit(UserError):
    """A network is too large for a board.

    Parameters
    ----------
    message : str
        The line for the user.
    over : dict of str to int
        Bytes too many, by ``FLASH`` and ``RAM``.
    """

    def __init__(self, message: str, over: dict[str, int]) -> None:
        super().__init__(message)
        self.over = over


def check_tools() -> None:
    """Check that compiler and emulator are installed.

    Raises
    ------
    UserError
        If one is missing.
    """
    if missing := [tool for tool in (GCC, SIZE, QEMU) if shutil.which(tool) is None]:
        raise UserError(f"{', '.join(missing)} not found: apt-get install --no-install-recommends {PACKAGES}")


def build_firmware(source: CSource, board: Board) -> Firmware:
    """Compile and link the network's code with the harness, in the code's folder.

    Parameters
    ----------
    source : CSource
        The network's code.
    board : Board
        Whom for.

    Returns
    -------
    Firmware

    Raises
    ------
    DoesNotFit
        If it does not fit the board; the message has the sections and the bytes that are too many.
    UserError
        If the compiler is missing or fails. Everything is left in the folder.
    """
    check_tools()
    folder, elf = source.folder, source.folder / "firmware.elf"
    for name in ("harness.c", "link.ld"):
        shutil.copyfile(TEMPLATES / name, folder / name)
    places = {
        "FLASH_ORIGIN": board.flash_origin,
        "FLASH_BYTES": board.flash_bytes,
        "RAM_ORIGIN": board.ram_origin,
        "RAM_BYTES": board.ram_bytes,
        "STACK_BYTES": STACK_BYTES,
    }
    symbols = [f"-Wl,--defsym={name}={value}" for name, value in places.items()]
    files = ["policy.c", "harness.c", "-o", elf.name, *symbols, "-T", "link.ld", "-Wl,-Map=firmware.map"]
    command = [GCC, *board.cpu_flags, *FLAGS, *files, *LINK_FLAGS]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    (folder / "build.log").write_text(f"{' '.join(command)}\n{done.stderr}")
    if done.returncode:
        raise _refusal(done.stderr, source, board)
    sizes = _section_bytes(elf)
    return Firmware(
        board,
        elf,
        source.actions,
        sum(sizes.get(name, 0) for name in FLASH_SECTIONS),
        sum(sizes.get(name, 0) for name in RAM_SECTIONS),
    )


def _refusal(log: str, source: CSource, board: Board) -> UserError:
    """Say in one line why the linker refused; the compiler's own errors are in its log."""
    sections = dict(re.findall(r"section `(\S+)' will not fit in region `(\w+)'", log))
    over = {region: int(count) for region, count in re.findall(r"region `(\w+)' overflowed by (\d+) bytes", log)}
    if not over:
        return UserError(f"{GCC} failed, see {source.folder / 'build.log'}")
    sizes = {"FLASH": board.flash_bytes, "RAM": board.ram_bytes}
    told = [
        f"{', '.join(name for name, own in sections.items() if own == region)} overflows {region} "
        f"({sizes[region]:,} bytes) by {count:,} bytes"
        for region, count in over.items()
    ]
    return DoesNotFit(
        f"the network does not fit {board.name}: {'; '.join(told)}; prune further or choose a larger board "
        f"(built in {source.folder})",
        over,
    )


def _section_bytes(elf: Path) -> dict[str, int]:
    done = subprocess.run([SIZE, "-A", str(elf)], capture_output=True, text=True, check=True)
    return {name: int(count) for name, count in re.findall(r"^(\.\S+)\s+(\d+)", done.stdout, re.MULTILINE)}
