"""LRP-guided compression of Atari agents for embedded systems."""

__version__ = "0.1.0"
