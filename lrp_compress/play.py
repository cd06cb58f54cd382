"""``python -m lrp_compress.play``: watch an agent, and what it looks at."""

from lrp_compress.commands.cli import run_command

if __name__ == "__main__":
    run_command("play")
