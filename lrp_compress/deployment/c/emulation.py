"""A board at work: firmware in QEMU, one process that takes observations and gives decisions.

The harness reads from QEMU's standard input and writes to its standard output, so the two pipes of the process are the
whole connection: they end when it ends, on either side, and no write or read here waits longer than the time limit.
QEMU counts instructions (``-icount``): virtual time advances by a fixed 32 ns each, and the board's own clock, whose
ticks per instruction are calibrated at the start, says how many a decision took. It has no pipeline, no caches and no
wait states: instruction counts are exact and repeatable, seconds are not to be had from it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import struct
import subprocess
import time
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lrp_compress.deployment.c.building import QEMU, Firmware
from lrp_compress.support.errors import UserError

CALIBRATION_INSTRUCTIONS = 2_000_000  # of harness.c
WORD = struct.Struct("<I")


class EmulatedBoard:
    """A board that runs firmware for as long as the ``with`` block lasts.

    Parameters
    ----------
    firmware : Firmware
        What it runs.
    timeout_s : float
        Longest wait for an answer, in seconds of the host.

    Attributes
    ----------
    instructions : list of int
        Instructions of every decision so far.

    Raises
    ------
    UserError
        If QEMU or the firmware stops, or does not answer in time. QEMU's messages are in ``qemu.log`` beside the
        firmware.
    """

    def __init__(self, firmware: Firmware, timeout_s: float) -> None:
        self.instructions: list[int] = []
        self._firmware = firmware
        self._timeout_s = timeout_s
        self._log = firmware.elf.with_name("qemu.log")
        self._decision = struct.Struct(f"<II{firmware.actions}f")

    def __enter__(self) -> EmulatedBoard:
        command = [QEMU, "-M", self._firmware.board.name, "-kernel", str(self._firmware.elf), "-display", "none"]
        command += ["-monitor", "none", "-serial", "none", "-semihosting-config", "enable=on,target=native"]
        command += ["-icount", "shift=5,align=off,sleep=off"]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to_board, self._from_board = self._process.stdin, self._process.stdout
        os.set_blocking(self._to_board.fileno(), False)
        try:
            (ticks,) = WORD.unpack(self._exchange(b"", WORD.size))
        except BaseException:
            self._stop()
            raise
        self._instructions_per_tick = CALIBRATION_INSTRUCTIONS / ticks
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def outputs(self, observations: NDArray[Any]) -> Tensor:
        """Let the board decide.

        Parameters
        ----------
        observations : ndarray, shape (N, ...)
            One decision each, one after the other.

        Returns
        -------
        Tensor of float32, shape (N, actions)
            The outputs as the board computed them.
        """
        return torch.from_numpy(np.stack([self._decide(observation) for observation in observations]))

    def finish(self) -> int:
        """End the firmware.

        Returns
        -------
        int
            Bytes of stack that it used at most.
        """
        self._to_board.close()
        (stack,) = WORD.unpack(self._exchange(b"", WORD.size))
        return int(stack)

    def _decide(self, observation: NDArray[Any]) -> NDArray[np.float32]:
        ticks, action, *values = self._decision.unpack(self._exchange(observation.tobytes(), self._decision.size))
        outputs = np.array(values, dtype=np.float32)
        if action != outputs.argmax():
            raise RuntimeError(f"the board chose action {action}, but its outputs were {outputs.tolist()}")
        self.instructions.append(round(ticks * self._instructions_per_tick))
        return outputs

    def _exchange(self, request: bytes, size: int) -> bytes:
        """Send a request and take an answer of a known size, within the time limit."""
        deadline = time.monotonic() + self._timeout_s
        answer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._from_board, selectors.EVENT_READ)
            if request:
                selector.register(self._to_board, selectors.EVENT_WRITE)
            while len(answer) < size:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise UserError(
                        f"{self._firmware.board.name} in QEMU gave no answer within {self._timeout_s:g} s (timeout_s); "
                        f"its messages are in {self._log}"
                    )
                for key, _ in ready:
                    if key.fileobj is self._to_board:
                        request = self._send(request)
                        if not request:
                            selector.unregister(self._to_board)
                    elif part := os.read(key.fd, size - len(answer)):
                        answer += part
                    else:
                        raise self._stopped()
        return answer

    def _send(self, request: bytes) -> bytes:
        """Send what the pipe takes; what is left."""
        try:
            return request[os.write(self._to_board.fileno(), request) :]
        except BrokenPipeError as error:
            raise self._stopped() from error

    def _stopped(self) -> UserError:
        code = self._process.wait(self._timeout_s)
        lines = self._log.read_text(errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        return UserError(f"{self._firmware.board.name} in QEMU stopped with code {code}: {said} (see {self._log})")

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._to_board, self._from_board):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
