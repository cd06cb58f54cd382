"""``python -m lrp_compress.firmware``: an agent on an emulated microcontroller."""

from lrp_compress.commands.cli import run_command

if __name__ == "__main__":
    run_command("firmware")
