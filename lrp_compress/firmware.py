"""``python -m lrp_compress.firmware``: an agent on an emulated microcontroller."""

from lrp_compress.cli import main

if __name__ == "__main__":
    main("firmware")
