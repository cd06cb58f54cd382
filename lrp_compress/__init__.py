"""LRP-guided compression of Atari agents for embedded systems.

``import lrp_compress as lc`` offers the functions of `lrp_compress.api`; they are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "compress",
    "distill",
    "evaluate",
    "heat_maps",
    "load_agent",
    "prune",
    "relevance",
    "repair",
    "rollouts",
    "save_agent",
    "settings",
    "watch",
]

if TYPE_CHECKING:
    from lrp_compress.api import (
        compress,
        distill,
        evaluate,
        heat_maps,
        load_agent,
        prune,
        relevance,
        repair,
        rollouts,
        save_agent,
        settings,
        watch,
    )


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("lrp_compress.api"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
