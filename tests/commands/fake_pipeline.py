"""The command line with a pipeline that ends as the seed says, where the real one would take a minute and end well.

Run as ``python -m tests.commands.fake_pipeline`` with the arguments of ``python -m lrp_compress``.
"""

from __future__ import annotations

import logging
import sys
import time
import types
from pathlib import Path

from lrp_compress.config.schema import Config
from lrp_compress.support.errors import UserError


def preflight(config: Config) -> None:
    if config.teacher.source != "auto":
        raise UserError(f"no such file: {config.teacher.source}")


def run(config: Config, run_dir: Path, sweep: str | None) -> None:
    print("run", config.criterion.name, config.prune.ratio, run_dir.relative_to(Path.cwd()), sweep, flush=True)
    logging.getLogger(__name__).info("at work")
    match config.seed:
        case 1:
            raise RuntimeError("out of luck")
        case 2:
            raise UserError("a mistake found late")
        case 3:
            raise KeyboardInterrupt
        case 4:
            try:
                print("open", flush=True)
                time.sleep(60)
            finally:
                print("closed", flush=True)


if __name__ == "__main__":
    pipeline = types.ModuleType("lrp_compress.pipeline")
    vars(pipeline).update(preflight=preflight, run=run)
    sys.modules["lrp_compress.pipeline"] = pipeline
    from lrp_compress.commands.cli import main

    main()
