"""A student as C code, and as firmware for a board."""
