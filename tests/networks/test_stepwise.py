"""Values of a network whose layers change one after another."""

from __future__ import annotations

import pytest
import torch

from lrp_compress.networks.fast import fast_outputs
from lrp_compress.networks.graph import Network
from lrp_compress.networks.stepwise import Stepwise
from tests.compression.networks import built


def computed(network: Network, names: list[str], batch: torch.Tensor) -> list[torch.Tensor]:
    """Compute the whole network and listen to some layers of it."""
    values: dict[str, torch.Tensor] = {}

    def listen(name: str) -> torch.utils.hooks.RemovableHandle:
        keep = lambda module, inputs, output: values.update({name: output})  # noqa: E731
        return network.get_submodule(name).register_forward_hook(keep)

    handles = [listen(name) for name in names]
    fast_outputs(network, batch)
    for handle in handles:
        handle.remove()
    return [values[name] for name in names]


@pytest.mark.parametrize("most", [0, 20_000, 10**9])  # bytes of an observation's values: none, of late layers, all
@pytest.mark.parametrize("kind", ["impala", "other"])
@torch.no_grad()
def test_values_are_those_of_the_network_as_it_is_by_now(kind: str, most: int) -> None:
    network = built(kind)
    batches = torch.split(network.observations.random(5, seed=0), 3)
    steps = Stepwise(network, batches, most)
    runs: list[object] = []
    network.get_submodule(network.weighted[1]).register_forward_pre_hook(lambda module, inputs: runs.append(module))
    for name in network.weighted[1:]:
        names = [*network.layer(name).inputs, *(network.readers(name) or [name])]
        del runs[:]
        found = list(steps.read(name, *names))
        if name == "head":
            assert bool(runs) == (most == 0)
        for batch, values in zip(batches, found, strict=True):
            assert all(map(torch.equal, values, computed(network, names, batch)))
        network.get_parameter(f"{name}.weight").mul_(1.5)
