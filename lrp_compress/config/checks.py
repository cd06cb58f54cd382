"""The checks of a composed configuration against the schema, each refusal one line that names the remedy."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lrp_compress.config.ranges import Range
from lrp_compress.config.schema import (
    Config,
    FirmwareConfig,
    PlayConfig,
    RootConfig,
    SearchConfig,
    TrainConfig,
    flatten,
)
from lrp_compress.support.errors import UserError, unknown_name

Root = TypeVar("Root", bound=RootConfig)

MOST = 2**31 - 1  # the emulator and torch take no larger numbers
# Numbers that another one bounds.
AT_MOST = {
    "criterion.states": "rollouts.states",
    "rollouts.block": "rollouts.states",
    "distill.batch_size": "distill.replay_states",
}


def conf_dir() -> Path:
    """Folder of the YAML files: inside an installed package, else at the top of the repository."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def options(group: str) -> list[str]:
    """Names of the files of one group of ``conf/``, sorted."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def register_schemas() -> None:
    """Make the types known to Hydra, as the first entry of the commands' files in ``conf/``."""
    ConfigStore.instance().store(name="schema", node=Config)
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    ConfigStore.instance().store(name="play_schema", node=PlayConfig)
    ConfigStore.instance().store(name="firmware_schema", node=FirmwareConfig)


def check_storage(storage: str) -> None:
    """Check the address of a study's database before it is written down anywhere.

    Raises
    ------
    UserError
        If it is none, holds a password, or is a database in memory, which ends with its process.
    """
    from sqlalchemy.engine import make_url  # what opens it has to read it
    from sqlalchemy.exc import ArgumentError

    try:
        address = make_url(storage)
    except (ArgumentError, ValueError) as error:
        named = "search.storage" if "://" in storage else f"search.storage={storage}"  # else it may hold a password
        raise UserError(
            f"{named} is no address of a database; write sqlite:///FILE.db or postgresql+psycopg://USER@HOST/NAME"
        ) from error
    if address.password or any("pass" in key.lower() for key in address.query):
        raise UserError(
            f"search.storage={address.drivername}://… holds a password, which would be kept in files; leave it out and "
            "set PGPASSWORD"
        )
    in_memory = not address.database or ":memory:" in address.database or address.query.get("mode") == "memory"
    if address.get_backend_name() == "sqlite" and in_memory:
        raise UserError(f"search.storage={storage} is in memory and ends with its process; write sqlite:///FILE.db")


def check_config(cfg: DictConfig, schema: type[Root]) -> Root:
    """Check a composed configuration and turn it into its dataclass.

    Parameters
    ----------
    cfg : DictConfig
        The composed configuration without the ``hydra`` node.
    schema : type
        The root dataclass.

    Returns
    -------
    instance of `schema`
        Every value present, of its type and in its range.

    Raises
    ------
    UserError
        For a game that was not chosen, and for a key or a value that is unknown, missing, of the wrong type, out of
        range or at odds with another one.
    """
    try:
        values = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
        if values.get("game", MISSING) in (MISSING, None):
            games = ", ".join(options("game"))
            raise UserError(
                f"no game was chosen; add e.g. game=breakout, or --help to see all settings; games: {games}"
            )
        _check_section(schema, schema, values, "")
        config = cast(Root, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values)))
    except OmegaConfBaseException as error:
        raise UserError(omegaconf_message(error)) from error
    if isinstance(config, Config):
        _check_together(config)
    return config


def settings(config: DictConfig) -> DictConfig:
    """Give the composed configuration without Hydra's own node."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def check_search(values: Mapping[str, Any]) -> SearchConfig:
    """Check the settings of a search and turn them into their dataclass.

    Raises
    ------
    UserError
        For a value that is unknown, missing, of the wrong type, out of range or at odds with another one.
    """
    try:
        _check_section(SearchConfig, SearchConfig, values, "search.")
        config = cast(SearchConfig, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SearchConfig), values)))
    except OmegaConfBaseException as error:
        raise UserError(f"search.{omegaconf_message(error)}") from error
    if config.space.min_samples > config.space.max_samples:
        raise UserError(
            f"search.space.min_samples={config.space.min_samples} is more than "
            f"search.space.max_samples={config.space.max_samples}; lower the one or raise the other"
        )
    return config


def unknown_key(key: str, schema: type) -> UserError:
    """Build the error for a dotted key that the configuration does not have."""
    keys = list(_keys(schema))
    # A bare name may mean the last part of a key: ratio, prune.ratio.
    names = {known.rpartition(".")[2]: known for known in keys} | {known: known for known in keys}
    close = [names[match] for match in difflib.get_close_matches(key, names, n=1)]
    hint = f" (did you mean {close[0]}?)" if close else ""
    section = key.rpartition(".")[0]
    siblings = [known for known in keys if known.rpartition(".")[0] == section] or [
        entry.name for entry in dataclasses.fields(schema)
    ]
    return UserError(f"there is no setting {key}{hint}; there are: {', '.join(siblings)}")


def omegaconf_message(error: OmegaConfBaseException) -> str:
    """One line for an error of OmegaConf, led by the key that it is about."""
    line = str(error).splitlines()[0]
    return f"{error.full_key}: {line}" if error.full_key else line


def _keys(section: type, prefix: str = "") -> Iterator[str]:
    for name, kind in typing.get_type_hints(section).items():
        yield prefix + name
        if dataclasses.is_dataclass(kind):
            yield from _keys(cast(type, kind), f"{prefix}{name}.")


def _check_section(schema: type, section: type, values: Mapping[str, Any], prefix: str) -> None:
    """Check the keys and values of one dataclass of the schema, and of those within it."""
    kinds = typing.get_type_hints(section)
    for name in values:
        if name not in kinds:
            raise unknown_key(prefix + str(name), schema)
    for entry in dataclasses.fields(section):
        key, value = prefix + entry.name, values.get(entry.name, MISSING)
        if value == MISSING:
            raise UserError(f"{key} has no value; give one with {key}=VALUE")
        if dataclasses.is_dataclass(kinds[entry.name]):
            if not isinstance(value, dict):
                raise UserError(f"{key}={value} is no option of {key}; choose from: {', '.join(options(key))}")
            _check_section(schema, cast(type, kinds[entry.name]), value, f"{key}.")
        elif isinstance(value, dict):
            for part, one in value.items():
                _check_value(f"{key}.{part}", one, entry.metadata.get("allowed"))
        else:
            _check_value(key, value, entry.metadata.get("allowed"))


def _check_value(key: str, value: Any, allowed: Range | Iterable[str] | None) -> None:
    if value == "":
        raise UserError(f"{key} is empty; give it a value")
    if isinstance(allowed, Range):
        # Other types are left to OmegaConf, which converts them or says why not.
        if isinstance(value, int | float) and value not in allowed:
            raise UserError(f"{key}={value} is not allowed; it must be {allowed}")
    elif allowed is not None and value not in allowed:
        raise unknown_name(key, str(value), allowed)
    if isinstance(value, int | float) and not abs(value) <= MOST:  # nan neither
        raise UserError(f"{key}={value} is not allowed; it must be a number, and at most {MOST}")


def _check_together(config: Config) -> None:
    """Refuse settings that are fine one by one and make no sense together."""
    prune, values = config.prune, flatten(config)
    if (prune.schedule == "one_shot") != (prune.steps == 1):
        raise UserError(
            f"prune.schedule={prune.schedule} does not go with prune.steps={prune.steps}; one_shot takes 1 step, other "
            "schedules at least 2: choose e.g. prune=one_shot or prune=cubic"
        )
    if prune.budget != "none" and (prune.layer_ratios or prune.scope == "global"):
        other = "prune.layer_ratios" if prune.layer_ratios else "prune.scope=global"
        raise UserError(
            f"prune.budget={prune.budget} chooses each layer's ratio; leave out {other} or set prune.budget=none"
        )
    for key, limit in AT_MOST.items():
        if cast(float, values[key]) > cast(float, values[limit]):
            raise UserError(
                f"{key}={values[key]} is more than {limit}={values[limit]}; lower the one or raise the other"
            )
