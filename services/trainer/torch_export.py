"""The torch module as an ONNX graph. Slow (seconds): done once for each embedding, in a thread that can be left."""

import contextlib
import io
import logging
import threading
import warnings

import torch
from torch import nn

from services.trainer.onnx_graph import OPSET, tidied

# torch specialises sizes 0 and 1; any other becomes the dynamic one.
_EXAMPLE_BATCH = 2
# stdout and the warning filters are the process's own; an export that was left may still be running.
_ONE_AT_A_TIME = threading.Lock()


def export_embedding_graph(net: nn.Module, height: int, width: int) -> bytes:
    """uint8 `image` [N, height, width, 3] -> float32 `embedding` [N, D], serialised. `net` is on the CPU."""
    example = torch.zeros(_EXAMPLE_BATCH, height, width, 3, dtype=torch.uint8)
    exporter_log = logging.getLogger("torch.onnx")
    level = exporter_log.level
    exporter_log.setLevel(logging.ERROR)
    try:
        # The exporter warns about its own internals and prints what it does.
        with _ONE_AT_A_TIME, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                net,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["image"],
                output_names=["embedding"],
                dynamic_shapes=({0: torch.export.Dim("N")},),
                verbose=False,
            )
    finally:
        exporter_log.setLevel(level)
    assert program is not None  # with dynamo=True it is always given
    return tidied(program.model_proto).SerializeToString()
