"""The provider that was asked for is the one in use, or the runtime says why not: onnxruntime's faults, played."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from services.inference.cuda_runs import BoundRuns, CudaOptions, PlainRuns
from services.inference.runtime import CPU, CUDA, Onnxruntime, Provider, Runtime
from tests.tiny_models import TinyModel, network_graph

GRAPH = network_graph(TinyModel(size=4)).SerializeToString()
PLAIN = CudaOptions(io_binding=False)


class OnFakeCuda:
    """A CPU session that says that it runs on CUDA."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session

    def get_providers(self) -> list[str]:
        return [CUDA, CPU]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class FakeEngine:
    """A build with CUDA. `left_out`: it drops the provider silently. `fails`: numbers of the sessions that raise."""

    def __init__(self, built: bool = True, left_out: bool = False, fails: Sequence[int] = ()) -> None:
        self._built, self._left_out, self._fails = built, left_out, fails
        self.preloads = 0
        self.asked: list[dict[str, str]] = []

    def available(self) -> list[str]:
        return [CUDA, CPU] if self._built else [CPU]

    def preload(self) -> None:
        self.preloads += 1

    def session(self, graph: bytes, providers: Sequence[Provider]) -> Any:
        session = Onnxruntime().session(graph, [(CPU, {})])
        if providers[0][0] != CUDA:
            return session
        self.asked.append(providers[0][1])
        if len(self.asked) - 1 in self._fails:
            raise RuntimeError("CUDA failure 2: out of memory")
        return session if self._left_out else OnFakeCuda(session)


def test_a_device_that_works_is_used():
    engine = FakeEngine()
    runtime = Runtime("cuda", 4, cuda=PLAIN, engine=engine)
    assert (runtime.on_cuda, runtime.fell_back, runtime.why) == (True, False, "")
    assert runtime.session(GRAPH).get_providers()[0] == CUDA
    assert (engine.preloads, runtime.parallel_runs) == (1, 2)


def test_a_build_without_cuda_is_no_fallback_unless_cuda_was_asked_for():
    assert not Runtime("auto", 4, engine=FakeEngine(built=False)).fell_back
    asked = Runtime("cuda", 4, engine=FakeEngine(built=False))
    assert (asked.fell_back, asked.on_cuda, asked.parallel_runs) == (True, False, 4)
    assert "install onnxruntime-gpu" in asked.why


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_provider_that_onnxruntime_leaves_out_is_noticed_before_any_model_is_there(device):
    runtime = Runtime(device, 4, engine=FakeEngine(left_out=True))
    assert (runtime.on_cuda, runtime.fell_back) == (False, True)
    assert "left CUDAExecutionProvider out" in runtime.why
    assert runtime.session(GRAPH).get_providers() == [CPU]


def test_a_device_that_fails_at_a_network_is_not_asked_again():
    engine = FakeEngine(fails=[1])  # 0 is the proof at the start
    runtime = Runtime("cuda", 4, cuda=PLAIN, engine=engine)
    assert runtime.session(GRAPH).get_providers() == [CPU]
    assert (runtime.fell_back, runtime.why) == (True, "CUDA failure 2: out of memory")
    runtime.session(GRAPH)
    assert len(engine.asked) == 2


def test_a_broken_graph_is_no_fault_of_the_device():
    runtime = Runtime("cuda", 4, cuda=PLAIN, engine=FakeEngine())
    with pytest.raises(Exception, match="protobuf parsing failed"):
        runtime.session(b"no graph")
    assert (runtime.on_cuda, runtime.fell_back) == (True, False)


def test_the_cpu_is_never_asked_about_cuda():
    engine = FakeEngine()
    assert not Runtime("cpu", 4, engine=engine).on_cuda
    assert (engine.preloads, engine.asked) == (0, [])


def test_libraries_are_preloaded_only_when_that_is_on():
    engine = FakeEngine()
    Runtime("cuda", 4, cuda=CudaOptions(io_binding=False, preload_dlls=False), engine=engine)
    assert engine.preloads == 0


class BoundOnCpu(BoundRuns):
    """There is no CUDA memory here to make buffers in."""

    def __init__(self, session: Any, sizes: Sequence[int], device: str, capture: bool) -> None:
        assert device == "cuda"
        super().__init__(session, sizes, "cpu", capture)
        self.captures = capture


@pytest.fixture
def bound_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.inference.runtime.BoundRuns", BoundOnCpu)


def test_graphs_are_captured_when_a_network_is_made(bound_on_cpu):
    engine = FakeEngine()
    network = Runtime("cuda", 4, engine=engine).network(GRAPH, [1, 2])
    assert isinstance(network, BoundOnCpu)
    assert network.captures
    assert [options["enable_cuda_graph"] for options in engine.asked] == ["0", "1"]


def test_a_network_that_cannot_be_captured_runs_without_graphs_and_on_the_gpu(bound_on_cpu):
    engine = FakeEngine(fails=[1])
    runtime = Runtime("cuda", 4, engine=engine)
    network = runtime.network(GRAPH, [1, 2])
    assert isinstance(network, BoundOnCpu)
    assert not network.captures
    assert (network.session.get_providers()[0], runtime.fell_back) == (CUDA, False)
    assert [options["enable_cuda_graph"] for options in engine.asked] == ["0", "1", "0"]


def test_without_bound_buffers_and_on_the_cpu_runs_are_plain():
    assert isinstance(Runtime("cuda", 4, cuda=PLAIN, engine=FakeEngine()).network(GRAPH, [1]), PlainRuns)
    network = Runtime("cpu", 4).network(GRAPH, [1])
    assert isinstance(network, PlainRuns)
    assert network.run(["embedding"], np.zeros((3, 4, 4, 3), np.uint8))[0].shape == (3, 6)


def test_a_run_that_fails_on_its_device_raises_and_goes_on_nowhere_else():
    session = Onnxruntime().session(GRAPH, [(CPU, {})])
    assert session._enable_fallback is False  # onnxruntime would change the provider in the middle of serving
