"""``python -m lrp_compress``."""

from lrp_compress.commands.cli import main

main()
