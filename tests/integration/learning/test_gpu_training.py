"""What only a GPU can show: that torch and onnxruntime say there what they say on a CPU.

pytest -m gpu tests/integration/learning/test_gpu_training.py
"""

import copy
from collections.abc import Iterator

import numpy as np
import onnxruntime as ort
import pytest
import torch

from services.trainer.config import BackboneConfig
from services.trainer.learning import SilentWatch
from services.trainer.training.device import choose_machine
from services.trainer.training.loop import TrainedNetwork
from tests.unit.training.conftest import Plain, backbone, colours, how, trained

pytestmark = pytest.mark.gpu

FP32, FP16 = 1e-4, 1e-2


@pytest.fixture(autouse=True)
def needs_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here: needs a GPU and a CUDA build of torch")


@pytest.fixture
def without_tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def logits(network: TrainedNetwork, images: np.ndarray, precision: str = "fp32") -> np.ndarray:
    device = next(network.net.parameters()).device.type
    machine = choose_machine(how(device=device, precision=precision))
    with torch.inference_mode(), machine.autocast():
        embeddings = network.net(torch.from_numpy(images).to(machine.device)).float().cpu().numpy()
    return embeddings @ network.weights.T + network.biases


def resnet50() -> TrainedNetwork:
    """Random weights: rounding does not ask what a network knows."""
    from services.trainer.backbones import build

    net = build(BackboneConfig(name="resnet50", weights="none", input_size=64), 32, 32, None, 0, SilentWatch()).net
    rng = np.random.default_rng(0)
    return TrainedNetwork(net, rng.normal(size=(10, 2048)).astype(np.float32), np.zeros(10, np.float32), {})


def on_cuda(network: TrainedNetwork) -> TrainedNetwork:
    return TrainedNetwork(copy.deepcopy(network.net).to("cuda"), network.weights, network.biases, {})


IMAGES = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize(("precision", "limit"), [("fp32", FP32), ("fp16", FP16)])
def test_torch_on_cuda_gives_the_logits_of_the_cpu(precision, limit, without_tf32):
    network = resnet50()
    found = logits(on_cuda(network), IMAGES, precision)
    assert relative_error(found, logits(network, IMAGES)) < limit


def test_torch_on_cuda_with_its_own_defaults_stays_within_fp16s_limit():
    network = resnet50()
    assert relative_error(logits(on_cuda(network), IMAGES), logits(network, IMAGES)) < FP16


@pytest.mark.parametrize(("precision", "limit"), [("fp32", FP32), ("fp16", FP16)])
def test_training_on_cuda_gives_the_network_of_the_cpu(precision, limit, without_tf32):
    # Few steps of a network without batch norm and draws: rounding alone, not yet what training makes of it.
    keys = {"epochs": 1, "mirror": False, "optimizer": "sgd", "learning_rate": 0.01}
    data = colours()
    on_cpu = trained(data, backbone(Plain), **keys)
    found = trained(data, backbone(Plain), **{**keys, "device": "cuda", "precision": precision})
    assert relative_error(logits(found, data.images), logits(on_cpu, data.images)) < limit


@pytest.mark.parametrize(("tf32", "limit"), [(False, FP32), (True, FP16)])
def test_onnxruntime_on_cuda_gives_the_logits_of_the_cpu(tf32, limit, tmp_path):
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime is built without CUDA: needs onnxruntime-gpu")
    network = resnet50()
    from services.trainer.torch_export import export_embedding_graph

    graph = export_embedding_graph(network.net, 32, 32)
    options = {"use_tf32": str(int(tf32))}
    ort.preload_dlls()
    session = ort.InferenceSession(graph, providers=[("CUDAExecutionProvider", options), "CPUExecutionProvider"])
    assert session.get_providers()[0] == "CUDAExecutionProvider"
    embeddings = session.run(None, {"image": IMAGES})[0]
    assert relative_error(embeddings @ network.weights.T, logits(network, IMAGES)) < limit


def test_onnxruntime_on_cuda_in_fp16_stays_within_its_limit():
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime is built without CUDA: needs onnxruntime-gpu")
    import onnx

    from services.trainer.torch_export import export_embedding_graph
    from services.trainer.variant_graphs import fp16_graph

    network = resnet50()
    graph = fp16_graph(onnx.load_model_from_string(export_embedding_graph(network.net, 32, 32)))
    ort.preload_dlls()
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CUDAExecutionProvider"])
    embeddings = session.run(None, {"image": IMAGES})[0]
    assert relative_error(embeddings @ network.weights.T, logits(network, IMAGES)) < FP16
