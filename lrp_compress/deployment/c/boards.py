"""Microcontroller boards that QEMU emulates: memories, processor, clock."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
CORTEX_M3 = ("-mcpu=cortex-m3",)
CORTEX_M4 = ("-mcpu=cortex-m4", "-mfpu=fpv4-sp-d16", "-mfloat-abi=hard")
CORTEX_M7 = ("-mcpu=cortex-m7", "-mfpu=fpv5-d16", "-mfloat-abi=hard")
CORTEX_M55 = ("-mcpu=cortex-m55", "-mfloat-abi=hard")


@dataclass(frozen=True)
class Board:
    """A board.

    Attributes
    ----------
    name : str
        QEMU's name of the machine.
    chip : str
        The processor and what it sits in.
    cpu_flags : tuple of str
        The compiler's flags for the processor.
    flash_origin, ram_origin : int
        Addresses of the memories.
    flash_bytes, ram_bytes : int
        Their sizes.
    clock_hz : int
        The processor's clock.
    clock_source : str
        Where the clock stands.
    """

    name: str
    chip: str
    cpu_flags: tuple[str, ...]
    flash_origin: int
    flash_bytes: int
    ram_origin: int
    ram_bytes: int
    clock_hz: int
    clock_source: str


# The MPS boards are FPGAs: their program memory is RAM in place of flash.
_BOARDS = (
    Board(
        "netduinoplus2",
        "STM32F405, Cortex-M4F",
        CORTEX_M4,
        0x08000000,
        1024 * KIB,
        0x20000000,
        128 * KIB,
        168_000_000,
        "the maximum in the STM32F405's data sheet, ST DS8626",
    ),
    Board(
        "lm3s6965evb",
        "LM3S6965, Cortex-M3",
        CORTEX_M3,
        0x0,
        256 * KIB,
        0x20000000,
        64 * KIB,
        50_000_000,
        "the maximum in the LM3S6965's data sheet",
    ),
    Board(
        "mps2-an386",
        "Cortex-M4F on the MPS2 FPGA",
        CORTEX_M4,
        0x0,
        4096 * KIB,
        0x20000000,
        4096 * KIB,
        25_000_000,
        "as in QEMU's hw/arm/mps2.c, after Arm's note AN386",
    ),
    Board(
        "mps2-an500",
        "Cortex-M7 on the MPS2 FPGA",
        CORTEX_M7,
        0x0,
        4096 * KIB,
        0x20000000,
        4096 * KIB,
        25_000_000,
        "as in QEMU's hw/arm/mps2.c, after Arm's note AN500",
    ),
    Board(
        "mps3-an547",
        "Cortex-M55 on the MPS3 FPGA",
        CORTEX_M55,
        0x0,
        512 * KIB,
        0x20000000,
        512 * KIB,
        32_000_000,
        "as in QEMU's hw/arm/mps2-tz.c, after Arm's note AN547",
    ),
)
BOARDS = {board.name: board for board in _BOARDS}
