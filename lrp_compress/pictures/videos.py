"""Videos of play, as animated GIF: agents side by side, and an agent beside what it looks at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lrp_compress.pictures.figures import lay_over
from lrp_compress.support.files import atomic_path

ZOOM, MARGIN = 3, 4  # times; pixels of the game
FRAME_MS = 67  # an agent step: 4 of 60 frames a second


def side_by_side_video(path: Path, plays: Sequence[NDArray[np.uint8]]) -> Path:
    """Write agents' play side by side as an animated GIF, at the speed of the game.

    Parameters
    ----------
    path : Path
        The GIF to write.
    plays : sequence of ndarray of uint8, each of shape (T, 84, 84)
        Frames per agent, left to right; one that ends early stands still on its last frame.

    Returns
    -------
    Path
        `path`.
    """
    length = max(len(frames) for frames in plays)
    lined_up = [np.concatenate([frames, frames[-1:].repeat(length - len(frames), axis=0)]) for frames in plays]
    return write_video(path, _beside(lined_up))


def relevance_pictures(frames: NDArray[np.uint8], maps: Tensor) -> NDArray[np.uint8]:
    """Draw play with its relevance laid over it beside it.

    Parameters
    ----------
    frames : ndarray of uint8, shape (T, 84, 84)
        The play.
    maps : Tensor, shape (T, 84, 84)
        Heat maps; full colour is the 99.9 % quantile of all magnitudes, so that moments compare.

    Returns
    -------
    ndarray of uint8, shape (T, height, width, 3)
        The pictures.
    """
    values = maps.detach().float().cpu().numpy()
    signed = np.clip(values / (np.quantile(np.abs(values), 0.999) or 1), -1, 1)
    overlaid = np.stack([lay_over(frame / 255, own) for frame, own in zip(frames, signed, strict=True)])
    plain = np.repeat(frames[..., None], 3, axis=3)
    return _beside([plain, (overlaid * 255).astype(np.uint8)])


def _beside(lined_up: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Put plays of the same length and kind, grey (T, 84, 84) or coloured (T, 84, 84, 3), beside each other."""
    margin = np.full((*lined_up[0].shape[:2], MARGIN, *lined_up[0].shape[3:]), 255, dtype=np.uint8)
    columns = [part for frames in lined_up for part in (margin, frames)][1:]
    return np.concatenate(columns, axis=2).repeat(ZOOM, axis=1).repeat(ZOOM, axis=2)


def write_video(path: Path, pictures: NDArray[np.uint8]) -> Path:
    """Write pictures as an animated GIF, at the speed of the game.

    Parameters
    ----------
    path : Path
        The GIF to write.
    pictures : ndarray of uint8, shape (T, height, width) or (T, height, width, 3)
        One for each agent step.

    Returns
    -------
    Path
        `path`.
    """
    first, *others = (Image.fromarray(picture) for picture in pictures)
    with atomic_path(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=others, duration=FRAME_MS, loop=0)
    return path
