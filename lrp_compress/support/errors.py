"""The exceptions that are told in one line, and the hint that goes with an unknown name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

USERINFO = re.compile(r"://[^/\s@]*:[^/\s]*@")  # a password may hold an @
QUERY = re.compile(r"((?:https?|hf)://[^\s?]*)\?\S*")  # where tokens are


class UserError(Exception):
    """Something the user can put right; shown as one line without a traceback.

    The message names what was given, what is allowed and the remedy.
    """


class GivenUp(UserError):
    """A student is too far from its teacher to go on with."""


def unknown_name(kind: str, given: str, known: Iterable[str]) -> UserError:
    """Build the error for a name that is not in a registry.

    Parameters
    ----------
    kind : str
        What the name should have been, e.g. ``"criterion.name"``.
    given : str
        The name that was given.
    known : iterable of str
        The names that exist.

    Returns
    -------
    UserError
        One line with the closest match, if there is one, and all known names.
    """
    names = sorted(known)
    return UserError(f"{kind}={given} is unknown{did_you_mean(given, names)}; choose from: {', '.join(names)}")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Word the closest of the known names as a question in brackets; empty if none is close."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def printable(text: str) -> str:
    """Escape what would steer a terminal, since a message may quote a file from anywhere, and leave passwords out."""
    text = QUERY.sub(r"\1?…", USERINFO.sub("://…@", text))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
