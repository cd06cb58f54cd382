"""The pictures of README and documentation.

python docs/pictures/make.py play outputs/breakout-…     # play.gif, of a run's teacher and student
python docs/pictures/make.py front                       # front.svg, of the figures in this file
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from lrp_compress.agents.checkpoints import load_agent
from lrp_compress.agents.teachers import teachers_dir
from lrp_compress.compression.attribution import heat_maps
from lrp_compress.environments.acting import action_rule
from lrp_compress.environments.groups import Acting
from lrp_compress.environments.recording import record_play
from lrp_compress.pictures.figures import lay_over
from lrp_compress.support.files import atomic_path

HERE = Path(__file__).parent
STEPS, SKIPPED, FRAME_MS, ZOOM, MARGIN, CAPTION = 96, 90, 90, 3, 8, 40
COLOURS = 96

# x: how many times fewer bytes or parameters, y: return kept. Ours: docs/results.md, int8 files against the teacher's
# float32 file. Theirs: as their papers say, of other agents, measured by them.
OURS = {
    "Pong": [(16, 0.997), (66, 0.996), (206, 0.990), (417, 0.975)],
    "Breakout": [(205, 1.013), (418, 0.940)],
}
THEIRS = {
    "Rusu et al. 2015, mean of ten games, parameters": [(4, 1.08), (14, 1.02), (25, 0.84)],
    "Avé et al. 2022 (QPD), 0.5 % of the size, “no loss”": [(200, 1.0)],
    "Ivanov et al. 2025, Boxing, zeroed weights, read off their plot": [(10, 0.87), (20, 0.78), (50, 0.33)],
}


def play(run: Path) -> Path:
    """Draw teacher, student and what the student looks at beside each other."""
    student = load_agent(run / "student.safetensors")
    teacher = load_agent(teachers_dir() / f"{student.info.game}.safetensors")
    result = json.loads((run / "result.json").read_text())
    rule = action_rule("auto", student.network.head_kind, 0.001)
    seen = [record_play(agent, Acting(rule, "noop", 1), SKIPPED + STEPS)[SKIPPED:] for agent in (teacher, student)]
    length = min(map(len, seen))
    maps = heat_maps(student.network, torch.from_numpy(seen[1][:length]), "epsilon", "greedy").float().numpy()
    maps = np.clip(maps / np.quantile(np.abs(maps), 0.99), -1, 1)
    frames = [observations[:length, -1] / 255 for observations in seen]
    columns = [
        (frames[0][..., None].repeat(3, 3), f"teacher, {result['teacher/size_bytes'] / 1e6:.1f} MB"),
        (frames[1][..., None].repeat(3, 3), f"student, {result['int8/size_bytes'] / 1e6:.2f} MB"),
        (np.stack([lay_over(*pair) for pair in zip(frames[1], maps, strict=True)]), "what the student looks at"),
    ]
    side = 84 * ZOOM
    font = ImageFont.load_default(18)
    pictures = []
    for moment in range(length):
        picture = Image.new("RGB", (3 * side + 4 * MARGIN, side + CAPTION + MARGIN), "white")
        draw = ImageDraw.Draw(picture)
        for number, (column, caption) in enumerate(columns):
            left = MARGIN + number * (side + MARGIN)
            frame = Image.fromarray((column[moment] * 255).astype(np.uint8)).resize(
                (side, side), Image.Resampling.NEAREST
            )
            picture.paste(frame, (left, CAPTION))
            draw.text((left + side / 2, CAPTION / 2), caption, fill="black", font=font, anchor="mm")
        pictures.append(picture.quantize(COLOURS, dither=Image.Dither.NONE))
    path = HERE / "play.gif"
    with atomic_path(path) as temporary:
        pictures[0].save(
            temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=FRAME_MS, loop=0, optimize=True
        )
    return path


def front() -> Path:
    """Draw return kept against how many times smaller, and what others have published."""
    plt.rcParams["svg.hashsalt"] = "front"  # the same picture is the same file
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    for name, points in OURS.items():
        axes.plot(*zip(*points, strict=True), marker="o", linewidth=2, label=f"lrp_compress, {name}, int8 file")
    for (name, points), marker in zip(THEIRS.items(), "s^D", strict=True):
        axes.plot(*zip(*points, strict=True), marker=marker, linewidth=1, linestyle=":", color="0.45", label=name)
    axes.axhline(1, color="0.8", linewidth=1, zorder=0)
    axes.set(xscale="log", xlabel="times smaller than the teacher", ylabel="return kept", ylim=(0, 1.15))
    axes.set_xticks([5, 10, 20, 50, 100, 200, 400], labels=["5", "10", "20", "50", "100", "200", "400"])
    axes.minorticks_off()
    axes.legend(loc="lower left", frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    path = HERE / "front.svg"
    figure.savefig(path, metadata={"Date": None})
    return path


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("play").add_argument("run", type=Path, help="folder of a finished run")
    kinds.add_parser("front")
    options = parser.parse_args()
    print(play(options.run) if options.kind == "play" else front())


if __name__ == "__main__":
    main()
