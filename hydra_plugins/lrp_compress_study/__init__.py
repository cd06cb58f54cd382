"""The sweeper ``hydra/sweeper=study``: Hydra looks for plugins only here, the work is in `lrp_compress.search`."""

from pathlib import Path
from typing import Any, List  # noqa: UP035

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class StudySweeper(Sweeper):
    """Hands Hydra's jobs to a study, trial by trial (settings: ``conf/hydra/sweeper/study.yaml``)."""

    def __init__(self, **search: Any) -> None:
        self._search = search

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives, and make the launcher that its configuration names."""
        self._config = config
        self._loader = hydra_context.config_loader
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: List[str]) -> None:  # noqa: UP006
        """Run the study."""
        from rich.console import Console

        from lrp_compress.config.checks import check_config, check_search, settings
        from lrp_compress.config.schema import Config
        from lrp_compress.search.search import search

        def compose(overrides: Any) -> Config:
            return check_config(settings(self._loader.load_sweep_config(self._config, list(overrides))), Config)

        folder = Path(self._config.hydra.sweep.dir)
        checked = check_search(
            {name: OmegaConf.to_object(v) if OmegaConf.is_config(v) else v for name, v in self._search.items()}
        )
        search(checked, arguments, compose, self._launcher.launch, folder, Console())
