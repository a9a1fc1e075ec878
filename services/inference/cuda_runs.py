"""Runs of a network: plainly, or from buffers of fixed sizes as CUDA likes them.

CUDA tunes, allocates and captures for each batch size anew, so that on a GPU there are few sizes ("buckets") and what
comes is padded to the next one. Nothing here asks for a GPU: the tests run it on the CPU provider.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import onnxruntime as ort

from services.common.datatypes import DATATYPES, NUMPY_TYPES

ConvAlgoSearch = Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"]
# Run option of onnxruntime: which captured graph a run replays.
GRAPH_ID = "gpu_graph_id"


@dataclass(frozen=True)
class CudaOptions:
    """How the CUDA provider is used. See docs/configuration.md for where each default comes from."""

    io_binding: bool = True
    # Only with io_binding: a captured graph reads and writes the addresses it was captured with.
    graphs: bool = True
    conv_algo_search: ConvAlgoSearch = "HEURISTIC"
    tf32: bool = False
    prefer_nhwc: bool = False
    preload_dlls: bool = True
    # 0: no limit.
    gpu_mem_limit_bytes: int = 0

    @property
    def captures(self) -> bool:
        return self.io_binding and self.graphs

    def provider_options(self, capture: bool) -> dict[str, str]:
        """For onnxruntime, which takes text."""
        options = {
            # onnxruntime's default tries every algorithm anew for each batch size: seconds at the first of a size.
            "cudnn_conv_algo_search": self.conv_algo_search,
            "arena_extend_strategy": "kSameAsRequested",
            # On by default, and off by some 1e-3: replicas on CPU and GPU fill one store of fp32 embeddings.
            "use_tf32": str(int(self.tf32)),
            "prefer_nhwc": str(int(self.prefer_nhwc)),
            "enable_cuda_graph": str(int(capture)),
        }
        if self.gpu_mem_limit_bytes:
            options["gpu_mem_limit"] = str(self.gpu_mem_limit_bytes)
        return options


class Runs(Protocol):
    """A network that can be run from several threads."""

    @property
    def session(self) -> ort.InferenceSession: ...

    def run(self, outputs: Sequence[str], images: np.ndarray) -> list[np.ndarray]:
        """uint8 [N, H, W, 3] -> the named outputs, each with N rows."""


class PlainRuns:
    """onnxruntime's own `run`: any batch size, buffers made for each."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session = session
        self._input = session.get_inputs()[0].name

    def run(self, outputs: Sequence[str], images: np.ndarray) -> list[np.ndarray]:
        return list(self.session.run(outputs, {self._input: images}))


class BoundRuns:
    """Buckets with buffers of their own on `device`, and with `capture` a CUDA graph for each, replayed by its id.

    All runs happen in one thread: onnxruntime keeps captured graphs by thread, and a session that captures must not be
    run from two. Callers wait for it, so that the next batch is there when one is done.
    """

    def __init__(self, session: ort.InferenceSession, sizes: Sequence[int], device: str, capture: bool) -> None:
        self.session = session
        self._sizes = sorted(set(sizes))
        self._thread = ThreadPoolExecutor(1, "network")
        # The largest first: the arena then never grows again.
        self._bound = self._thread.submit(
            lambda: {size: _Bucket(session, size, device, capture) for size in reversed(self._sizes)}
        ).result()

    def warm_up(self) -> None:
        """Run every bucket once, which captures its graph. Raises what onnxruntime raises when it cannot."""
        for bound in self._bound.values():
            self._thread.submit(bound.run, bound.blank).result()

    def run(self, outputs: Sequence[str], images: np.ndarray) -> list[np.ndarray]:
        return self._thread.submit(self._run, outputs, images).result()

    def _run(self, outputs: Sequence[str], images: np.ndarray) -> list[np.ndarray]:
        step = self._sizes[-1]
        parts = [self._one(images[first : first + step]) for first in range(0, len(images), step)]
        return [np.concatenate([p[name] for p in parts]) if len(parts) > 1 else parts[0][name] for name in outputs]

    def _one(self, images: np.ndarray) -> dict[str, np.ndarray]:
        return self._bound[bucket_of(len(images), self._sizes)].run(images)


class _Bucket:
    """Batches of up to `size` images: input and outputs at addresses that never change."""

    def __init__(self, session: ort.InferenceSession, size: int, device: str, capture: bool) -> None:
        (image,) = session.get_inputs()
        outputs = session.get_outputs()
        self._session = session
        shape = (size, *image.shape[1:])
        self._input = _buffer(image.type, shape, device)
        self._outputs = {o.name: _buffer(o.type, (size, *o.shape[1:]), device) for o in outputs}
        self.blank = np.zeros(shape, _numpy_type(image.type))
        self._padded = np.zeros_like(self.blank)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(image.name, self._input)
        for name, buffer in self._outputs.items():
            self._binding.bind_ortvalue_output(name, buffer)
        self._options = ort.RunOptions()
        # Always said where the session captures: a run without an id would be captured as graph 0.
        if capture:
            self._options.add_run_config_entry(GRAPH_ID, str(size))

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """All outputs: the network computes them anyway, and small ones cost little to fetch."""
        count = len(images)
        if count < len(self._padded):
            self._padded[:count] = images
            self._padded[count:] = 0
            images = self._padded
        self._input.update_inplace(np.ascontiguousarray(images))
        self._session.run_with_iobinding(self._binding, self._options)
        self._binding.synchronize_outputs()
        # A buffer on the CPU is handed out as it is, and the next run writes into it.
        return {name: np.array(buffer.numpy()[:count]) for name, buffer in self._outputs.items()}


def buckets(sizes: Sequence[int]) -> list[int]:
    """Ascending: the sizes that are asked for, and every power of two below the largest."""
    powers = {2**power for power in range(max(sizes).bit_length())}
    return sorted(powers | set(sizes))


def bucket_of(count: int, sizes: Sequence[int]) -> int:
    """The smallest bucket that holds `count` images."""
    return next(size for size in sizes if size >= count)


def _numpy_type(name: str) -> np.dtype:
    """Of onnxruntime's name."""
    return NUMPY_TYPES[DATATYPES[name]]


def _buffer(type_name: str, shape: Sequence[int], device: str) -> ort.OrtValue:
    """Raises ValueError where a dimension but the first is not a number."""
    if not all(isinstance(dimension, int) for dimension in shape):
        raise ValueError(f"buffers need fixed dimensions beside the batch; the graph has {list(shape)}")
    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), _numpy_type(type_name), device, 0)
