"""What all tests share."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lrp_compress.support.files import atomic_path
from lrp_compress.tracking.connections import import_mlflow
from lrp_compress.tracking.stores import locked
from tests.commands.forks import Forks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts commands or servers as slow; slow files come first, so that the rest evens out the end."""
    for item in items:
        if {"forks", "server"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking through what the libraries have made, again and again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Keep torch's threads from waiting busily for cores that the emulators' threads have."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request: pytest.FixtureRequest) -> str:
    """Where networks learn: everywhere this machine can."""
    return str(request.param)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Start commands without the time that their imports take."""
    made = Forks()
    yield made
    made.close()


@pytest.fixture(scope="session")
def new_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Return a function that copies an empty MLflow database to a path: making its tables takes seconds."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # all workers'
    made = folder / "mlflow.db"
    with locked(f"sqlite:///{made}"):
        if not made.exists():
            import_mlflow()
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            with atomic_path(made) as temporary:
                SqlAlchemyStore(f"sqlite:///{temporary}", folder.as_uri()).engine.dispose()

    def copy(path: Path) -> Path:
        return Path(shutil.copy(made, path))

    return copy
