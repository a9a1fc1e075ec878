"""Which device runs the networks, in which precision, and proof that it is the device that was asked for."""

from collections.abc import Collection, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import onnxruntime as ort
import structlog

from services.common.manifest import VariantKind
from services.inference.cuda_runs import BoundRuns, CudaOptions, PlainRuns, Runs
from services.inference.precision import Precision, Wanted, choose, has_vnni
from services.inference.widening import cast_graph

log = structlog.get_logger()

Device = Literal["auto", "cpu", "cuda"]
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
Provider = tuple[str, dict[str, str]]


class Engine(Protocol):
    """The part of onnxruntime that knows devices."""

    def available(self) -> Sequence[str]:
        """Providers that this build has, whether or not they work here."""

    def preload(self) -> None:
        """Find the CUDA libraries that came as wheels."""

    def session(self, graph: bytes, providers: Sequence[Provider]) -> ort.InferenceSession:
        """Raises what onnxruntime raises; it may leave out a provider that it cannot load, and only log it."""


class Onnxruntime:
    def available(self) -> Sequence[str]:
        return list(ort.get_available_providers())

    def preload(self) -> None:
        ort.preload_dlls()

    def session(self, graph: bytes, providers: Sequence[Provider]) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads hold cores that gRPC and decoding need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # With its fallback a session whose provider fails would go on, on the CPU, at its start or in any later run.
        return ort.InferenceSession(graph, options, providers=list(providers), enable_fallback=0)


class Runtime:
    """Makes sessions. `fell_back`: a GPU was asked for, or seemed to be there, and the CPU is used; `why` says why."""

    def __init__(
        self,
        device: Device,
        threads: int,
        precision: Wanted = "auto",
        cuda: CudaOptions | None = None,
        engine: Engine | None = None,
        vnni: bool | None = None,
    ) -> None:
        self.device = device
        self.threads = threads
        self.wanted_precision = precision
        self.fell_back = False
        self.why = ""
        self._cuda = cuda or CudaOptions()
        self._engine = engine or Onnxruntime()
        self._vnni = has_vnni() if vnni is None else vnni
        self.on_cuda = device != "cpu" and self._has_cuda()

    @property
    def parallel_runs(self) -> int:
        """On a CPU, single-thread runs side by side beat one run on all cores (200 against 147 images/s)."""
        return 2 if self.on_cuda else self.threads

    def precision(self, published: Collection[VariantKind]) -> Precision:
        return choose(self.wanted_precision, published, self.on_cuda, self._vnni)

    def session(self, graph: bytes) -> ort.InferenceSession:
        """On the GPU if that works, else on the CPU; the caller sees which by `fell_back`."""
        if self.on_cuda:
            try:
                return self._cuda_session(graph, capture=False)
            except Exception as error:
                # A graph that the CPU refuses too is no fault of the device.
                session = self._engine.session(graph, [(CPU, {})])
                self._fall_back(error)
                return session
        return self._engine.session(graph, [(CPU, {})])

    def network(self, graph: bytes, sizes: Sequence[int]) -> Runs:
        """A session for batches of images; on a GPU with buffers and captured graphs for `sizes`, as configured."""
        if self.on_cuda and self._cuda.captures:
            try:
                bound = BoundRuns(self._cuda_session(graph, capture=True), sizes, "cuda", capture=True)
                bound.warm_up()
            except Exception as error:
                log.warning("cuda_graphs_unavailable", why=str(error), consequence="this network runs without them")
            else:
                return bound
        session = self.session(graph)
        if self.on_cuda and self._cuda.io_binding:
            return BoundRuns(session, sizes, "cuda", capture=False)
        return PlainRuns(session)

    def _cuda_session(self, graph: bytes, capture: bool) -> ort.InferenceSession:
        session = self._engine.session(graph, [(CUDA, self._cuda.provider_options(capture)), (CPU, {})])
        if session.get_providers()[0] != CUDA:
            raise RuntimeError(f"onnxruntime left {CUDA} out; its log, or INFERENCE_LOG_LEVEL=DEBUG, tells more")
        return session

    def _has_cuda(self) -> bool:
        """Proof by a run of one node: the build's list of providers says nothing of drivers, libraries and devices."""
        if CUDA not in self._engine.available():
            if self.device == "cuda":
                self._fall_back(f"this onnxruntime is built without {CUDA}; install onnxruntime-gpu in its place")
            return False
        try:
            if self._cuda.preload_dlls:
                self._engine.preload()
            session = self._cuda_session(cast_graph(), capture=False)
            session.run(["wide"], {"narrow": np.zeros((1, 1), np.float16)})
        except Exception as error:
            self._fall_back(error)
            return False
        return True

    def _fall_back(self, why: Any) -> None:
        # Those that follow do not try again: versions of one replica must not run on different devices.
        self.on_cuda = False
        self.fell_back = True
        self.why = str(why)
        log.warning("cuda_unusable", why=self.why, consequence="the CPU is used")
