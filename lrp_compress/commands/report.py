"""``python -m lrp_compress.report``: one page about many runs."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from omegaconf import OmegaConf

from lrp_compress.commands.arguments import Parser
from lrp_compress.config.checks import conf_dir
from lrp_compress.config.schema import TrackingConfig
from lrp_compress.support.errors import UserError, printable
from lrp_compress.support.processes import printing_never_fails


def main() -> None:
    """Read the command line, write the page, say where it is; exit with 2 and one line for a mistake."""
    printing_never_fails()
    tracking, storage, cache = _defaults()
    parser = Parser(
        prog="python -m lrp_compress.report",
        description="Writes report.html, which needs no network, and report.csv about many finished runs.",
        epilog="Sweeps and studies write theirs when they end. Example of a filter: \"tags.game = 'breakout'\"",
    )
    parser.add_argument(
        "source", nargs="+", help="folders of sweeps, studies or runs; or the name of a study; or a filter of MLflow"
    )
    parser.add_argument("--out", type=Path, help="folder for the two files; default: the source's, else report/")
    parser.add_argument("--storage", default=storage, help="database of studies; default: %(default)s")
    parser.add_argument("--tracking", default=tracking.uri, help="MLflow store; default: %(default)s")
    parser.add_argument("--experiment", default=tracking.experiment, help="MLflow experiment; default: %(default)s")
    try:
        options = parser.parse_args()
        own = dataclasses.replace(tracking, uri=options.tracking, experiment=options.experiment)
        print(_write(options, own, cache / "downloads"))
    except UserError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: cannot write {error.filename}: {error.strerror}; choose another --out", file=sys.stderr)
        sys.exit(2)


def _defaults() -> tuple[TrackingConfig, str, Path]:
    """Read from ``conf/`` where runs are recorded, studies kept and copies put, unless it is said otherwise."""
    tracking = OmegaConf.load(conf_dir() / "tracking" / "sqlite.yaml")
    study = OmegaConf.load(conf_dir() / "hydra" / "sweeper" / "study.yaml")
    cache = Path(OmegaConf.load(conf_dir() / "config.yaml").cache_dir)
    return TrackingConfig(**OmegaConf.to_container(tracking, resolve=True)), str(study.storage), cache  # type: ignore[arg-type]


def _write(options: argparse.Namespace, tracking: TrackingConfig, downloads: Path) -> Path:
    from lrp_compress.reporting.collections import Elsewhere, from_filter, from_folder, from_folders, from_study
    from lrp_compress.reporting.page import write_report
    from lrp_compress.tracking.runs import check_store

    elsewhere = Elsewhere(tracking, downloads)
    source, folder = options.source[0], Path(options.source[0])
    if len(options.source) > 1:
        folders = [Path(one) for one in options.source]
        return write_report(from_folders(folders, elsewhere), options.out or Path("report"))
    if folder.is_dir():
        return write_report(from_folder(folder, elsewhere), options.out or folder)
    if any(sign in source for sign in "=<>"):
        check_store(tracking)
        return write_report(from_filter(source, elsewhere), options.out or Path("report"))
    if "/" in source:
        raise UserError(f"there is no folder {source}")
    return write_report(from_study(source, options.storage, elsewhere), options.out or Path("report"))


if __name__ == "__main__":
    main()
