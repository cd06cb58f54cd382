"""``python -m lrp_compress.report``: one page about many runs."""

from lrp_compress.commands.report import main

if __name__ == "__main__":
    main()
