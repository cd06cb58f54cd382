"""A window that shows pictures, by whatever of matplotlib's backends opens one here.

Only this file uses pyplot, which looks for a screen when it is imported; so it is imported inside functions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lrp_compress.pictures.videos import FRAME_MS

DPI = 100


def has_screen() -> bool:
    """Whether a window can be opened."""
    import matplotlib
    from matplotlib import pyplot
    from matplotlib.backends.registry import BackendFilter, backend_registry

    try:
        pyplot.switch_backend(matplotlib.get_backend())
    except ImportError:  # the backend that MPLBACKEND names needs a screen, or a library that is not here
        return False
    names = backend_registry.list_builtin(BackendFilter.INTERACTIVE)  # type: ignore[no-untyped-call]
    return pyplot.get_backend().lower() in names


def show(pictures: NDArray[np.uint8], title: str) -> None:
    """Show pictures in a window at the speed of the game, over and over, until it is closed.

    Parameters
    ----------
    pictures : ndarray of uint8, shape (T, height, width, 3)
        One for each agent step.
    title : str
        The window's.
    """
    from matplotlib import pyplot, rc_context
    from matplotlib.animation import FuncAnimation
    from matplotlib.artist import Artist

    height, width = pictures.shape[1:3]
    with rc_context({"toolbar": "None"}):
        figure = pyplot.figure(title, figsize=(width / DPI, height / DPI), dpi=DPI)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    drawn = axis.imshow(pictures[0])

    def draw(step: int) -> list[Artist]:
        drawn.set_data(pictures[step])
        return [drawn]

    animation = FuncAnimation(figure, draw, frames=len(pictures), interval=FRAME_MS)
    pyplot.show()
    animation.pause()  # it must be kept until here, or it ends at once
    pyplot.close(figure)
