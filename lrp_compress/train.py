"""``python -m lrp_compress.train``: train an agent to compress."""

from lrp_compress.cli import main

if __name__ == "__main__":
    main("train")
