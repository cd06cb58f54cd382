"""How MLflow shows the list of an experiment's runs: what its button *Share* would keep, made by hand."""

from __future__ import annotations

import json
from typing import Any

VIEW = "at_a_glance"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"  # of an experiment
COLUMN_WIDTH = 170  # pixels; MLflow's own cut the names off


def runs_view() -> str:
    """Compose the view: return, size and speed as columns; charts of these first, then the relevance maps.

    The parameters that MLflow writes above a picture fill its panel when there are many, so that nothing of the picture
    is left; here they are off.
    """
    figures = ("return_kept", "size_bytes", "speedup")
    columns = [f"metrics.`{VIEW}/{figure}{agent}`" for agent in ("", "_int8") for figure in figures]
    maps = {
        "uuid": "maps",
        "type": "IMAGE",
        "metricSectionId": "relevance",
        "imageKeys": ["relevance/maps"],
        "step": 0,
        "showRunParams": False,
        "isGenerated": True,
        "deleted": False,
    }
    return json.dumps(
        {
            "selectedColumns": columns,
            "columnOrder": columns,
            "columnWidths": dict.fromkeys(columns, COLUMN_WIDTH),
            "compareRunCharts": [maps],
            "compareRunSections": [_section(name) for name in (VIEW, "relevance")],
            "isAccordionReordered": True,
        }
    )


def _section(name: str) -> dict[str, Any]:
    return {
        "uuid": name,
        "name": name,
        "display": True,
        "isReordered": False,
        "isGenerated": True,
        "deleted": False,
    }
