"""An agent on an emulated microcontroller: built, measured, compared bit for bit, and at play."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from lrp_compress.agents.checkpoints import stated_frame_skip
from lrp_compress.config.schema import FirmwareConfig
from lrp_compress.deployment.c.boards import BOARDS, Board
from lrp_compress.deployment.c.building import Firmware, build_firmware, check_tools
from lrp_compress.deployment.c.emulation import EmulatedBoard
from lrp_compress.deployment.c.integer_layers import read_int8
from lrp_compress.deployment.c.source import export_c
from lrp_compress.deployment.files.onnx_sessions import OnnxPolicy
from lrp_compress.deployment.measuring.latency import DEADLINES_HZ
from lrp_compress.environments.acting import ActionRule, Outputs, action_rule
from lrp_compress.environments.atari import AtariEnvs, Interface
from lrp_compress.environments.games import Game, play_game, turns
from lrp_compress.environments.returns import bootstrap_interval
from lrp_compress.pictures.videos import side_by_side_video
from lrp_compress.stages.resume import run_once
from lrp_compress.support.errors import UserError, unknown_name
from lrp_compress.support.files import file_digest
from lrp_compress.support.seeding import stage_seed
from lrp_compress.tracking.runs import check_store, training_view
from lrp_compress.tracking.tracker import Tracker

BUILD = "build"
VIDEO = "play.gif"
FRAME_STRIDE = 10  # steps of play from one measured observation to the next


def preflight(config: FirmwareConfig) -> None:
    """Check what a run needs from outside, before anything is written.

    Raises
    ------
    UserError
        If the board is unknown; a tool is missing; the agent's file is missing, corrupt, of another format or for
        another game; or the tracking store does not answer.
    """
    if config.board not in BOARDS:
        raise unknown_name("board", config.board, BOARDS)
    check_tools()
    read_int8(Path(config.agent))
    _open_game(config, _load(config), 0).close()
    check_store(config.tracking)


def run(config: FirmwareConfig, run_dir: Path, sweep: str | None) -> dict[str, float]:
    """Do one run, or find that it is done; then print its table.

    Parameters
    ----------
    config : FirmwareConfig
        The checked configuration.
    run_dir : Path
        The run's folder.
    sweep : str or None
        Name of the sweep the run belongs to.

    Returns
    -------
    dict of str to float
        The metrics of `put_on_board`.
    """
    console = Console(markup=False)
    identity = {"agent": file_digest(Path(config.agent))}
    tags = {"board": config.board} | ({"sweep": sweep} if sweep else {})
    metrics = run_once(config, run_dir, identity, tags, functools.partial(put_on_board, config, run_dir), console)
    console.print(board_table(metrics, BOARDS[config.board], config.run_name))
    console.print(f"firmware  {run_dir / BUILD / 'firmware.elf'}", soft_wrap=True)
    if config.play:
        console.print(f"video     {run_dir / VIDEO}", soft_wrap=True)
    if view := training_view(config.tracking):
        console.print(f"runs      {view}", soft_wrap=True)
    return metrics


def put_on_board(config: FirmwareConfig, run_dir: Path, tracker: Tracker) -> dict[str, float]:
    """Build the firmware, measure it, compare it with onnxruntime, and let it play.

    Parameters
    ----------
    config : FirmwareConfig
        The checked configuration.
    run_dir : Path
        The run's folder; the code and the firmware are left in ``build``, also of a network that does not fit.
    tracker : Tracker
        Where the artifacts go.

    Returns
    -------
    dict of str to float
        ``board/...``: bytes of flash, static RAM and stack, instructions of a decision, frames compared, and after play
        the mean return and the numbers of games and decisions.

    Raises
    ------
    UserError
        If the network does not fit the board, QEMU stops or does not answer, or an output or a game differs from
        onnxruntime's.
    """
    board = BOARDS[config.board]
    firmware = build_firmware(export_c(Path(config.agent), run_dir / BUILD), board)
    metrics = _measure(config, firmware)
    if config.play:
        metrics |= _play(config, firmware, run_dir / VIDEO)
        tracker.artifact(run_dir / VIDEO)
    for name in ("firmware.elf", "policy.c", "policy.h", "kernels.h", "grouped.h", "maps.h"):
        tracker.artifact(run_dir / BUILD / name, BUILD)
    return metrics


def board_table(metrics: dict[str, float], board: Board, title: str) -> Table:
    """Lay out what `put_on_board` has found."""
    value = {name.removeprefix("board/"): number for name, number in metrics.items()}
    low, mean, high = (value[f"instructions_{end}"] for end in ("min", "mean", "max"))
    bound = board.clock_hz / mean
    ram = value["static_ram_bytes"] + value["stack_bytes"]
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("")
    table.add_column(f"{board.name} ({board.chip})")
    table.add_row("fits", "yes")
    table.add_row("flash, bytes", _of(value["flash_bytes"], board.flash_bytes))
    table.add_row("RAM, bytes", _of(ram, board.ram_bytes))
    table.add_row("  static", f"{value['static_ram_bytes']:,.0f}")
    table.add_row("  stack, measured", f"{value['stack_bytes']:,.0f}")
    table.add_row("instructions per decision", f"{mean:,.0f} ({low:,.0f} to {high:,.0f})")
    table.add_row("clock", f"{board.clock_hz / 1e6:g} MHz, {board.clock_source}")
    table.add_row("decisions per second", f"at most {bound:,.1f}, if each instruction takes one cycle")
    for hertz in DEADLINES_HZ:
        table.add_row(f"  share of 1/{hertz} s", f"at least {hertz / bound:.0%}")
    table.add_row("same bits as onnxruntime", f"{value['frames']:.0f} of {value['frames']:.0f} observations")
    if "games" in value:
        table.add_row("return, board in the loop", _return(value))
        table.add_row("same games as onnxruntime", f"{value['games']:.0f}, {value['decisions']:,.0f} decisions")
    return table


def _return(value: dict[str, float]) -> str:
    """Write the mean return, with its interval if more than one game has been played."""
    mean, low, high = (f"{value[f'return_{end}']:,.1f}" for end in ("mean", "ci_low", "ci_high"))
    return mean if value["games"] == 1 else f"{mean} ({low} to {high})"


def _of(part: float, whole: int) -> str:
    return f"{part:,.0f} of {whole:,} ({part / whole:.1%})"


def _measure(config: FirmwareConfig, firmware: Firmware) -> dict[str, float]:
    """Let the board decide on observations of the agent's play, and compare."""
    policy = _load(config)
    observations = np.stack(list(itertools.islice(_observations(config, policy), config.frames)))
    with EmulatedBoard(firmware, config.timeout_s) as board:
        outputs = board.outputs(observations).numpy()
        stack = board.finish()
    wanted = policy.outputs(observations).numpy()
    if outputs.tobytes() != wanted.tobytes():
        differing = int((outputs != wanted).any(axis=1).sum())
        raise UserError(
            f"{differing} of {len(outputs)} observations give other outputs than in onnxruntime (by up to "
            f"{np.abs(outputs - wanted).max():.3g}); export the agent again, and report it if that changes nothing"
        )
    return {
        "board/flash_bytes": float(firmware.flash_bytes),
        "board/static_ram_bytes": float(firmware.static_ram_bytes),
        "board/stack_bytes": float(stack),
        "board/instructions_mean": statistics.fmean(board.instructions),
        "board/instructions_min": float(min(board.instructions)),
        "board/instructions_max": float(max(board.instructions)),
        "board/frames": float(len(outputs)),
    }


def _play(config: FirmwareConfig, firmware: Firmware, video: Path) -> dict[str, float]:
    """Play whole games with the board in the loop, and the same games with onnxruntime."""
    policy = _load(config)
    with EmulatedBoard(firmware, config.timeout_s) as board:
        played = [_game(config, policy, board.outputs, number) for number in range(config.episodes)]
        board.finish()
    for number, game in enumerate(played):
        if not game.same_as(_game(config, policy, policy.outputs, number)):
            raise UserError(f"game {number} on {config.board} went otherwise than with onnxruntime")
    side_by_side_video(video, [played[0].frames])
    returns = np.array([game.score for game in played])
    low, high = bootstrap_interval(returns, config.evaluate.confidence, config.seed)
    return {
        "board/return_mean": float(returns.mean()),
        "board/return_ci_low": low,
        "board/return_ci_high": high,
        "board/games": float(len(played)),
        "board/decisions": float(len(board.instructions)),
    }


def _game(config: FirmwareConfig, policy: OnnxPolicy, outputs_of: Outputs, number: int) -> Game:
    with _open_game(config, policy, number) as envs:
        return play_game(envs, outputs_of, _rule(config, policy), _seed(config, number), config.evaluate.stall_limit)


def _observations(config: FirmwareConfig, policy: OnnxPolicy) -> Iterator[NDArray[np.uint8]]:
    """Take every tenth observation of the agent's play with onnxruntime, game after game."""
    for number in itertools.count():
        with _open_game(config, policy, number) as envs:
            game = turns(
                envs, policy.outputs, _rule(config, policy), _seed(config, number), config.evaluate.stall_limit
            )
            for turn in itertools.islice(game, 0, None, FRAME_STRIDE):
                yield turn.observation


def _open_game(config: FirmwareConfig, policy: OnnxPolicy, number: int) -> AtariEnvs:
    """Open the agent's environment for one game."""
    about = policy.metadata
    envs = AtariEnvs(
        config.game.name,
        1,
        config.protocol,
        _seed(config, number),
        Interface(
            action_set=about.get("action_set", "minimal"),
            fire_on_life_loss=about.get("fire_on_life_loss") == "true",
            frame_skip=int(about.get("frame_skip", "4")),
            max_frames=config.evaluate.max_frames,
        ),
        threads=1,
    )
    if str(envs.actions) != about.get("actions"):
        envs.close()
        raise UserError(
            f"agent file {config.agent} has {about.get('actions')} actions, {config.game.name} has {envs.actions}; it "
            "was trained for another action set"
        )
    return envs


def _rule(config: FirmwareConfig, policy: OnnxPolicy) -> ActionRule:
    return action_rule(config.evaluate.action, policy.metadata["head"], config.evaluate.epsilon)


def _seed(config: FirmwareConfig, number: int) -> int:
    return stage_seed(config.seed, "firmware", number)


def _load(config: FirmwareConfig) -> OnnxPolicy:
    policy = OnnxPolicy(Path(config.agent))
    game = policy.metadata.get("game")
    if game != config.game.name:
        raise UserError(f"agent file {config.agent} plays {game}, not {config.game.name}; choose game={game}")
    stated_frame_skip(policy.metadata, f"agent file {config.agent}")
    return policy
