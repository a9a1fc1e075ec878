"""Buckets, padding and bound buffers, on the CPU provider: the code is the same on a GPU, but for the device's name."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest

from services.inference.cuda_runs import GRAPH_ID, BoundRuns, CudaOptions, PlainRuns, bucket_of, buckets
from services.inference.runtime import CPU, Onnxruntime
from tests.tiny_models import TinyModel, network_graph

OUTPUTS = ("probabilities", "logits", "embedding")
MODEL = TinyModel(size=4, members=2)


def session() -> ort.InferenceSession:
    return Onnxruntime().session(network_graph(MODEL).SerializeToString(), [(CPU, {})])


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def test_buckets_are_powers_of_two_and_the_sizes_that_are_asked_for():
    assert buckets([1, 32]) == [1, 2, 4, 8, 16, 32]
    assert buckets([1, 32, 48]) == [1, 2, 4, 8, 16, 32, 48]
    assert buckets([1]) == [1]


@pytest.mark.parametrize(("count", "bucket"), [(1, 1), (2, 2), (3, 4), (8, 8), (9, 16)])
def test_a_batch_takes_the_smallest_bucket_that_holds_it(count, bucket):
    assert bucket_of(count, buckets([16])) == bucket


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_bound_runs_give_the_bits_of_a_run_on_the_padded_batch(count, capture):
    bound = BoundRuns(session(), buckets([8]), "cpu", capture)
    bound.warm_up()
    padded = np.zeros((bucket_of(count, buckets([8])), 4, 4, 3), np.uint8)
    padded[:count] = images(count)
    expected = PlainRuns(session()).run(OUTPUTS, padded)
    for found, whole in zip(bound.run(OUTPUTS, images(count)), expected, strict=True):
        np.testing.assert_array_equal(found, whole[:count])


def test_a_batch_beyond_the_largest_bucket_is_run_in_parts():
    found = BoundRuns(session(), [1, 2, 4], "cpu", False).run(OUTPUTS, images(11))
    for part, whole in zip(found, PlainRuns(session()).run(OUTPUTS, images(11)), strict=True):
        np.testing.assert_allclose(part, whole, atol=1e-6)


def test_answers_are_the_callers_own_and_do_not_change_with_the_next_run():
    bound = BoundRuns(session(), [4], "cpu", False)
    (first,) = bound.run(["embedding"], images(4, seed=1))
    before = first.copy()
    bound.run(["embedding"], images(4, seed=2))
    np.testing.assert_array_equal(first, before)


def test_nothing_of_a_larger_batch_before_is_left_in_the_padding():
    bound = BoundRuns(session(), [4], "cpu", False)
    bound.run(OUTPUTS, images(3))
    bound.run(OUTPUTS, images(1))
    padding = bound._bound[4]._padded[1:]
    assert not padding.any()


def test_images_that_are_a_view_with_gaps_are_taken_as_they_look():
    bound = BoundRuns(session(), [2], "cpu", False)
    gaps = images(4)[::2]
    np.testing.assert_allclose(bound.run(["embedding"], gaps)[0], PlainRuns(session()).run(["embedding"], gaps)[0])


def test_callers_in_many_threads_get_their_own_answers():
    bound = BoundRuns(session(), buckets([4]), "cpu", True)
    expected = [PlainRuns(session()).run(["logits"], images(3, seed))[0] for seed in range(20)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: bound.run(["logits"], images(3, seed))[0], range(20)))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


class FakeBinding:
    def __init__(self) -> None:
        self.bound: list[str] = []

    def bind_ortvalue_input(self, name, value) -> None:
        self.bound.append(name)

    bind_ortvalue_output = bind_ortvalue_input

    def synchronize_outputs(self) -> None: ...


class FakeSession:
    """Knows the network's contract; remembers by which thread and with which graph id it was run."""

    def __init__(self, real: ort.InferenceSession) -> None:
        self._real = real
        self.runs: list[tuple[int, str]] = []

    def get_inputs(self):
        return self._real.get_inputs()

    def get_outputs(self):
        return self._real.get_outputs()

    def io_binding(self) -> FakeBinding:
        return FakeBinding()

    def run_with_iobinding(self, binding, options) -> None:
        try:
            graph = options.get_run_config_entry(GRAPH_ID)
        except RuntimeError:  # none was set
            graph = ""
        self.runs.append((threading.get_ident(), graph))


@pytest.mark.parametrize(("capture", "graphs"), [(True, ["4", "2", "1", "4", "1"]), (False, [""] * 5)])
def test_each_bucket_replays_a_graph_of_its_own_in_one_thread_captured_largest_first(capture, graphs):
    fake = FakeSession(session())
    bound = BoundRuns(fake, buckets([4]), "cpu", capture)
    bound.warm_up()
    bound.run(OUTPUTS, images(3))
    bound.run(OUTPUTS, images(1))
    assert [graph for _, graph in fake.runs] == graphs
    threads = {thread for thread, _ in fake.runs}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_graph_without_fixed_sizes_cannot_be_bound():
    graph = network_graph(MODEL)
    graph.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "H"
    open_ended = Onnxruntime().session(graph.SerializeToString(), [(CPU, {})])
    with pytest.raises(ValueError, match="fixed dimensions"):
        BoundRuns(open_ended, [1], "cpu", False)


def test_options_reach_onnxruntime_as_its_own_text():
    default = CudaOptions().provider_options(capture=True)
    assert default == {
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
        "prefer_nhwc": "0",
        "enable_cuda_graph": "1",
    }
    changed = CudaOptions(conv_algo_search="EXHAUSTIVE", tf32=True, prefer_nhwc=True, gpu_mem_limit_bytes=10)
    assert changed.provider_options(capture=False) == {
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "1",
        "prefer_nhwc": "1",
        "enable_cuda_graph": "0",
        "gpu_mem_limit": "10",
    }


def test_nothing_is_captured_without_bound_buffers():
    assert CudaOptions().captures
    assert not CudaOptions(io_binding=False).captures
    assert not CudaOptions(graphs=False).captures
