"""What only a GPU can show: that CUDA says what the CPU says, captured or not. Run with `pytest -m gpu`."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from services.inference.cuda_runs import BoundRuns, CudaOptions, buckets
from services.inference.runtime import CUDA, Runtime
from services.trainer.onnx_graph import head_graph, model_graph
from services.trainer.variant_graphs import fp16_graph
from tests.unit.learning.test_variants import POOL, convolution, head, images

OUTPUTS = ("probabilities", "logits", "embedding")
SIZES = buckets([32])


def cuda(**options: object) -> Runtime:
    runtime = Runtime("cuda", 2, cuda=CudaOptions(**options))  # type: ignore[arg-type]
    if not runtime.on_cuda:
        pytest.skip(f"no CUDA here: {runtime.why}")
    return runtime


pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def needs_cuda() -> None:
    if CUDA not in ort.get_available_providers():
        pytest.skip("this onnxruntime is built without CUDA: needs onnxruntime-gpu and a GPU")


def network(graph: onnx.ModelProto) -> bytes:
    return bytes(model_graph(graph, head_graph(head(), graph.ir_version)).SerializeToString())


def on_cpu(count: int) -> list[np.ndarray]:
    return Runtime("cpu", 2).network(network(convolution()), SIZES).run(OUTPUTS, images(POOL[:count]))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("count", [1, 3, 32])
@pytest.mark.parametrize("graphs", [False, True])
def test_cuda_gives_the_logits_of_the_cpu_within_1e_4_in_fp32(count: int, graphs: bool) -> None:
    found = cuda(graphs=graphs, tf32=False).network(network(convolution()), SIZES).run(OUTPUTS, images(POOL[:count]))
    for name, one, other in zip(OUTPUTS, found, on_cpu(count), strict=True):
        assert relative_error(one, other) < 1e-4, name


@pytest.mark.parametrize("graphs", [False, True])
def test_cuda_gives_the_logits_of_the_cpu_within_1e_2_in_fp16(graphs: bool) -> None:
    found = cuda(graphs=graphs).network(network(fp16_graph(convolution())), SIZES).run(OUTPUTS, images(POOL[:32]))
    for name, one, other in zip(OUTPUTS, found, on_cpu(32), strict=True):
        assert relative_error(one, other) < 1e-2, name


def test_captured_graphs_follow_their_input() -> None:
    runs = cuda().network(network(convolution()), SIZES)
    assert isinstance(runs, BoundRuns)
    assert runs.session.get_providers()[0] == CUDA
    assert runs.session.get_provider_options()[CUDA]["enable_cuda_graph"] == "1", "the graphs were not captured"
    one, other = (runs.run(["logits"], images(part))[0] for part in (POOL[:5], POOL[5:10]))
    np.testing.assert_array_equal(runs.run(["logits"], images(POOL[:5]))[0], one)
    assert not np.array_equal(one, other)


def test_every_option_is_one_that_onnxruntime_knows() -> None:
    options = replace(CudaOptions(), prefer_nhwc=True, tf32=True, gpu_mem_limit_bytes=2**30)
    runtime = Runtime("cuda", 2, cuda=options)
    assert (runtime.on_cuda, runtime.why) == (True, "")
