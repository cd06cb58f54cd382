"""Agents as models that MLflow loads, serves and registers."""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Said here, because MLflow would find out by loading the model in another process, which takes seconds.
REQUIREMENTS = ("mlflow", "numpy", "onnx", "onnxruntime")


def log_onnx(client: MlflowClient, run_id: str, name: str, file: Path, example: Path, agent: Path) -> None:
    """Log an ONNX file as a model of a run, in place of one of the same name.

    Parameters
    ----------
    client : MlflowClient
        Connection to the store.
    run_id : str
        The run.
    name : str
        The model's name; ``runs:/RUN_ID/NAME`` is its address, beside ``models:/MODEL_ID``.
    file : Path
        The ONNX file; one input and one output, with any number of rows.
    example : Path
        A ``.npy`` file with a batch of inputs; their kind and shape are the model's signature.
    agent : Path
        The same agent's own file, put beside it.
    """
    import mlflow.onnx
    import onnx
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    graph, inputs = onnx.load(file), np.load(example, allow_pickle=False)
    (output,) = graph.graph.output
    kind = onnx.helper.tensor_dtype_to_np_dtype(output.type.tensor_type.elem_type)
    width = [size.dim_value for size in output.type.tensor_type.shape.dim][1:]
    signature = ModelSignature(
        Schema([TensorSpec(inputs.dtype, (-1, *inputs.shape[1:]))]),
        Schema([TensorSpec(kind, (-1, *width), output.name)]),
    )
    experiment = client.get_run(run_id).info.experiment_id
    before = client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND name = '{name}'")
    model = client.create_logged_model(experiment, name, run_id)
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder) / name
        mlflow.onnx.save_model(
            graph,
            content,
            mlflow_model=Model(model.artifact_location, run_id, model_uuid=model.model_id, model_id=model.model_id),
            signature=signature,
            input_example=inputs,
            pip_requirements=[f"{package}=={version(package)}" for package in REQUIREMENTS],
            onnx_execution_providers=["CPUExecutionProvider"],
            save_as_external_data=False,
        )
        shutil.copy(agent, content)
        client.log_model_artifacts(model.model_id, str(content))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    for other in before:
        client.delete_logged_model(other.model_id)
