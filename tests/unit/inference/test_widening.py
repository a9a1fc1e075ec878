import numpy as np
import onnx

from services.inference.widening import cast_graph, widen


def test_every_float16_becomes_the_float32_that_numpy_says():
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    wide = widen(every)
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide, every.astype(np.float32))


def test_the_graph_is_a_valid_onnx_model():
    onnx.checker.check_model(onnx.load_from_string(cast_graph()), full_check=True)
