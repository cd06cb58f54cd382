"""The place where networks were until they got a room of their own; what was documented is still found here."""

from lrp_compress.networks.nature import NATURE_WIDTHS
from lrp_compress.networks.nature import nature_cnn as PolicyNetwork

__all__ = ["NATURE_WIDTHS", "PolicyNetwork"]
