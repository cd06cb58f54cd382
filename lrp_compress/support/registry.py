"""Registries of named functions: the way criteria, composites, schedules and losses are added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from lrp_compress.support.errors import unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Functions or classes by name.

    Parameters
    ----------
    key : str
        The configuration key that selects an entry, named in error messages, e.g. ``"criterion.name"``.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that stores an entry under `name`."""

        def store(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.key}: {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return store

    def __getitem__(self, name: str) -> T:
        """Look an entry up.

        Raises
        ------
        UserError
            If there is none of that name; the message holds the closest match.
        """
        if name not in self._entries:
            raise unknown_name(self.key, name, self._entries)
        return self._entries[name]

    def names(self) -> list[str]:
        """Sorted names of all entries."""
        return sorted(self._entries)
