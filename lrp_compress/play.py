"""``python -m lrp_compress.play``: watch an agent, and what it looks at."""

from lrp_compress.cli import main

if __name__ == "__main__":
    main("play")
