"""``python -m lrp_compress``."""

from lrp_compress.cli import main

main()
