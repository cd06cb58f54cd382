"""Modules of a user's own, which register parts: criteria, composites, schedules, losses, exports."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from lrp_compress.support.errors import UserError
from lrp_compress.support.files import file_digest


def load_plugins(names: Sequence[str]) -> None:
    """Import modules, from the current folder too.

    Parameters
    ----------
    names : sequence of str
        Dotted names.

    Raises
    ------
    UserError
        If there is no such module, or it fails while it is imported.
    """
    here = str(Path.cwd())
    if names and here not in sys.path:
        sys.path.insert(0, here)
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            known = isinstance(error, ModuleNotFoundError) and error.name in (name, name.partition(".")[0])
            why = f"is neither in {here} nor installed" if known else f"fails with {type(error).__name__}: {error}"
            raise UserError(f"plugins: module {name} {why}") from error


def plugin_digests(names: Sequence[str]) -> dict[str, str]:
    """Digest the files of imported plugins: what they do is part of a run's identity."""
    files = {name: sys.modules[name].__file__ for name in names}
    return {f"plugin {name}": file_digest(Path(file)) for name, file in files.items() if file}
