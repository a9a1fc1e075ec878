"""The network that other servers were measured with: EfficientNet-Lite0, float32 [N, 3, 128, 128] to 1,000 logits."""

import logging
import warnings
from pathlib import Path

import torch

from services.trainer import torchvision_shim, weights
from services.trainer.graph_cache import file_in_weights_dir

assert torchvision_shim.torchvision  # timm imports torchvision too, so that the shim comes first
import timm  # noqa: E402 (as above)

NAME = "peers-1"
SIZE = 128
_BACKBONE = "tf_efficientnet_lite0"


def export_peers_model(weights_dir: Path | None, path: Path) -> Path:
    """Raises SystemExit when there are no weights: a network of random numbers is as fast, but who would believe it?"""
    file = weights.local_file(weights_dir, file_in_weights_dir(_BACKBONE))
    if file is None:
        raise SystemExit(f"bench-serving needs {file_in_weights_dir(_BACKBONE)} in QUERENT_WEIGHTS_DIR")
    network = timm.create_model(_BACKBONE, pretrained=False)
    network.load_state_dict(dict(weights.load_safetensors(file)))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(),
            (torch.zeros(2, 3, SIZE, SIZE),),
            str(path),
            input_names=["input"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            opset_version=18,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return path
