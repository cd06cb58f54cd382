"""A network's values for many observations, while its layers are changed one after another, from the first on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from torch import Tensor

from lrp_compress.networks.fast import fast_first
from lrp_compress.networks.graph import Network
from lrp_compress.networks.ops import WEIGHTED


class Stepwise:
    """Computes what a layer reads once the layers before it have changed for the last time.

    Of each batch the values that later layers still read are kept, so that to go from layer to layer takes as long as
    to compute the network once.

    Parameters
    ----------
    network : Network
        Whose layers change in place, in their order.
    batches : sequence of Tensor, each of shape (N, *network.observations.shape)
        On the network's device.
    most : int
        Bytes of kept values for each observation. Where they do not suffice, values are computed again from the last
        that did, or from the observations. The values of one batch at all layers in between come on top.
    """

    def __init__(self, network: Network, batches: Sequence[Tensor], most: int) -> None:
        self.network = network
        self._batches = batches
        self._most = most
        self._kept: list[tuple[int, dict[str, Tensor]]] = [(0, {})] * len(batches)  # of layers before this place

    def read(self, name: str, *values_of: str) -> Iterator[tuple[Tensor, ...]]:
        """Compute values for each batch, as they are by now.

        Parameters
        ----------
        name : str
            Of the next layer with weights that changes, not the first one. Those before it must no longer change.
        *values_of : str
            The layers whose values are given.
        """
        layers = self.network.layers
        order = {layer.name: place for place, layer in enumerate(layers)}
        keep = self._cheapest(order[name])
        end = max(keep, *(order[one] + 1 for one in values_of))
        for number, batch in enumerate(self._batches):
            start, values = self._kept[number]
            values = dict(values)
            for place in range(start, end + 1):
                if place == keep:
                    kept = {one: values[one] for one in self._still_read(keep)}
                    if sum(value.nbytes for value in kept.values()) <= self._most * len(batch):
                        self._kept[number] = keep, kept
                if place == 0:
                    values[layers[0].name] = fast_first(self.network, batch)
                elif place < end:
                    module = self.network.get_submodule(layers[place].name)
                    values[layers[place].name] = module(*(values[one] for one in layers[place].inputs))
            yield tuple(values[one] for one in values_of)

    def _cheapest(self, place: int) -> int:
        """Find where values take the least room, with nothing but layers without weights between there and a place."""
        first = max(before for before in range(place) if self.network.layers[before].op in WEIGHTED) + 1
        return min(range(place, first - 1, -1), key=self._room)

    def _room(self, place: int) -> int:
        return sum(prod(self.network.shapes[name]) for name in self._still_read(place))

    def _still_read(self, place: int) -> set[str]:
        """Name the layers before a place whose values are read at it or behind it."""
        before = {layer.name for layer in self.network.layers[:place]}
        return before.intersection(name for layer in self.network.layers[place:] for name in layer.inputs)
