"""The stages of a run, a chapter a file."""
