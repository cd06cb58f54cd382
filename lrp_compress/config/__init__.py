"""The settings: their types, their ranges, their checks."""
