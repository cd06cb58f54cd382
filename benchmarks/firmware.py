"""What microcontrollers make of agents in int8: where they fit, what a decision costs, what they score.

    python benchmarks/firmware.py teacher-int8.onnx student-r0.50-int8.onnx ... [--episodes 10]

Takes int8 .onnx files of one game and prints a Markdown table. Fits are the linker's, for two real chips. Instructions
are those of the Cortex-M4 on the mps2-an386, whose memory takes every network; the games are played on it too, every
output compared bit for bit with onnxruntime's. The return is the mean with its 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lrp_compress.commands.firmware import preflight, put_on_board
from lrp_compress.config.checks import check_config, conf_dir, register_schemas
from lrp_compress.config.schema import FirmwareConfig
from lrp_compress.deployment.c.boards import BOARDS
from lrp_compress.deployment.c.building import DoesNotFit, build_firmware
from lrp_compress.deployment.c.source import CSource, export_c
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.tracking.tracker import Tracker

CHIPS = ("lm3s6965evb", "netduinoplus2")
MEASURED_ON = "mps2-an386"


def configured(agent: Path, *overrides: str) -> FirmwareConfig:
    game = OnnxPolicy(agent).metadata["game"]
    composed = compose(
        "firmware", [f"+game={game}", f"agent='{agent}'", f"board={MEASURED_ON}", "tracking=none", *overrides]
    )
    return check_config(composed, FirmwareConfig)


def fit(source: CSource, name: str) -> str:
    try:
        build_firmware(source, BOARDS[name])
    except DoesNotFit as refused:
        return ", ".join(f"{count:,} bytes of {memory} too many" for memory, count in refused.over.items())
    return "yes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agents", nargs="+", type=Path, metavar="FILE.onnx")
    parser.add_argument("--episodes", type=int, default=0, help="games each plays on the board; none by default")
    parser.add_argument("--frames", type=int, default=20, help="measured decisions")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    register_schemas()
    OmegaConf.register_new_resolver("run_folder", str)
    heads = [
        f"{name}, {BOARDS[name].flash_bytes >> 10} KB flash, {BOARDS[name].ram_bytes >> 10} KB RAM" for name in CHIPS
    ]
    print(
        "| agent | " + " | ".join(heads) + " | flash | RAM | instructions per decision | at 168 MHz, at most | return |"
    )
    print("|---" * (len(heads) + 6) + "|")
    settings = [f"frames={options.frames}", f"seed={options.seed}"]
    if options.episodes:
        settings += ["play=true", f"episodes={options.episodes}"]
    with initialize_config_dir(str(conf_dir()), version_base="1.3"), tempfile.TemporaryDirectory() as folder:
        for number, agent in enumerate(options.agents):
            config, place = configured(agent.resolve(), *settings), Path(folder) / str(number)
            preflight(config)
            found = {name.removeprefix("board/"): n for name, n in put_on_board(config, place, Tracker()).items()}
            source = export_c(agent, place / "chips")
            cells = [agent.stem, *(fit(source, name) for name in CHIPS), f"{found['flash_bytes']:,.0f}"]
            cells.append(f"{found['static_ram_bytes'] + found['stack_bytes']:,.0f}")
            cells.append(f"{found['instructions_mean'] / 1e6:.2f} M")
            cells.append(f"{BOARDS['netduinoplus2'].clock_hz / found['instructions_mean']:.1f}/s")
            if options.episodes:
                mean, low, high = (found[f"return_{name}"] for name in ("mean", "ci_low", "ci_high"))
                cells.append(f"{mean:.1f} ({low:.1f} to {high:.1f})")
            else:
                cells.append("")
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
