"""The window, with a backend that draws where nobody sees it."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.backend_bases import TimerBase

from lrp_compress.pictures.window import has_screen, show


@pytest.mark.parametrize("name", ["agg", "template"])
def test_a_backend_that_opens_no_window_is_no_screen(name: str):
    pyplot.switch_backend(name)
    assert not has_screen()


def test_the_pictures_are_shown_one_after_the_other(monkeypatch: pytest.MonkeyPatch):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
    timers: list[TimerBase] = []
    seen = []

    def look() -> None:
        canvas = pyplot.figure("a game").canvas
        for _ in range(5):
            canvas.draw()
            seen.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
            for function, arguments, named in timers[0].callbacks:
                function(*arguments, **named)

    pyplot.switch_backend("agg")
    monkeypatch.setattr(TimerBase, "start", lambda timer, interval=None: timers.append(timer))
    monkeypatch.setattr(pyplot, "show", look)
    show(pictures, "a game")
    np.testing.assert_array_equal(seen, pictures[[0, 0, 1, 2, 0]])  # the first is there before the clock starts
    assert pyplot.get_fignums() == []
