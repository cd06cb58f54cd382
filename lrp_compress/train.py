"""``python -m lrp_compress.train``: train an agent to compress."""

from lrp_compress.cli import run_command

if __name__ == "__main__":
    run_command("train")
