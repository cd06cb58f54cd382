"""``python -m lrp_compress.train``: train an agent to compress."""

from lrp_compress.commands.cli import run_command

if __name__ == "__main__":
    run_command("train")
