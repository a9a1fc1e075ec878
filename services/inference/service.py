"""The composition root: the whole service is built here from Settings, started and stopped."""

import asyncio
import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from services.common.bucket_registry import open_registry
from services.common.errors import Conflict
from services.common.pb import (
    model_registry_pb2,
    model_registry_pb2_grpc,
    pool_scoring_pb2,
    pool_scoring_pb2_grpc,
    prediction_pb2,
    prediction_pb2_grpc,
)
from services.common.registry import MAX_BATCH_SIZE
from services.common.tokens import Tokens
from services.inference.batcher import BatchRule
from services.inference.binding import bind, taken
from services.inference.boundary import Boundary
from services.inference.certificates import Certificates
from services.inference.cuda_runs import CudaOptions, buckets
from services.inference.embedding import Embedder
from services.inference.feedback import FeedbackRecorder
from services.inference.folders import Folders
from services.inference.health import READINESS, Health
from services.inference.journal import Journal
from services.inference.loading import Loader
from services.inference.memory import LoadedModels
from services.inference.metrics import Metrics
from services.inference.oip_metadata import Catalogue
from services.inference.oip_servicer import SERVICE_NAME, OpenInferenceServicer
from services.inference.predicting import Limits, Predictor
from services.inference.reflection import BothPools
from services.inference.runtime import CUDA, Runtime
from services.inference.scoring import Scorer
from services.inference.security import Gate, make_gate, warn_of_open_doors
from services.inference.servicer import ModelRegistryServicer, PoolScoringServicer, PredictionServicer
from services.inference.settings import Settings
from services.inference.store import ModelStore
from services.inference.watching import Watchers

log = structlog.get_logger()

# Enough for watchers of health.CONNECTIONS to hear that they should go elsewhere, and for their last calls to come.
_LEAVING_SECONDS = 0.1
# EfficientNet-Lite0 at 128 px, ms of CPU an image in batches of 1, 4, 8, 16, 32: 3.25, 3.04, 2.92, 3.01, 3.20.
_CPU_BATCH = 8
_SERVICES = (
    *(
        service.full_name
        for module in (prediction_pb2, pool_scoring_pb2, model_registry_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
    ),
    SERVICE_NAME,
)


class InferenceServer:
    """The whole service in one object: `start`, then `stop`. Everything is made here from Settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._credentials = _credentials(settings)
        threads = settings.cpu_threads
        self.metrics = Metrics()
        self._runtime = Runtime(settings.device, threads, settings.precision, _cuda_options(settings))
        self.metrics.provider_fallback.set(self._runtime.fell_back)
        self._pools = [
            ThreadPoolExecutor(workers, name)
            for name, workers in (
                ("decode", threads),
                ("predict", max(threads, 2)),
                ("embed", threads),
                ("score", threads),
            )
        ]
        self._boundary = Boundary(self.metrics, _gate(settings), packages=("querent.", "inference."))
        self._server = self._grpc_server()
        self._store = self._register(self._boundary.around(self._server))
        self._has_device = True
        self._probed: grpc.aio.Server | None = None
        self._polling: asyncio.Task[None] | None = None
        self._close_metrics: Callable[[], None] = lambda: None
        self.grpc_port = 0
        self.health_port = 0
        self.metrics_port = 0

    def _grpc_server(self) -> grpc.aio.Server:
        limit = self._settings.max_message_bytes
        return grpc.aio.server(
            maximum_concurrent_rpcs=self._settings.max_concurrent_rpcs,
            options=[
                # With SO_REUSEPORT a second server would take half of the calls and nobody would notice.
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                # Clients may ping during a long ScorePool without being told to go away.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                *_connection_age(self._settings.max_connection_age_seconds),
            ],
        )

    def _register(self, server: Any) -> ModelStore:
        """`server`: what services are registered with."""
        settings, metrics = self._settings, self.metrics
        decode_pool, run_pool, embed_pool, score_pool = self._pools
        registry = open_registry(settings.registry_dir, settings.registry_bucket)
        best_batch = MAX_BATCH_SIZE if self._runtime.on_cuda else _CPU_BATCH
        max_batch = settings.max_batch or best_batch
        loader = Loader(registry, self._runtime, warm_up_sizes(max_batch, best_batch, self._runtime), metrics)
        loaded = LoadedModels(loader, metrics, settings.max_loaded)
        store = ModelStore(registry, loader, loaded, settings.models)
        folders = Folders(settings.sources_dir, settings.data_dir, settings.embeddings_dir, registry)
        embedder = Embedder(folders, embed_pool, settings.cpu_threads, metrics, best_batch)
        scorer = Scorer(folders, embedder, score_pool, settings.cpu_threads, metrics)
        metrics.follow(lambda: store.answering)
        metrics.queue_limit.set(settings.queue_limit)
        rule = BatchRule(max_batch, settings.max_delay_ms / 1000, settings.queue_limit)
        limits = Limits(settings.max_images, settings.max_pixels)
        predictor = Predictor(decode_pool, run_pool, rule, limits, metrics)

        self._feedback = FeedbackRecorder(store, Journal(settings.feedback_dir), metrics)
        self._health = Health(_SERVICES, lambda: store.answering, store.changes, lambda: predictor.saturated)

        # The other half is for calls that end.
        watchers = Watchers(store, max(1, settings.max_concurrent_rpcs // 2))

        prediction_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionServicer(store, predictor, self._feedback), server
        )
        pool_scoring_pb2_grpc.add_PoolScoringServiceServicer_to_server(PoolScoringServicer(store, scorer), server)
        model_registry_pb2_grpc.add_ModelRegistryServiceServicer_to_server(
            ModelRegistryServicer(store, watchers), server
        )
        catalogue = Catalogue(store, registry, loaded, rule)
        server.add_generic_rpc_handlers((OpenInferenceServicer(store, predictor, catalogue, self._is_ready).handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflected = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(reflected, server, BothPools())  # type: ignore[arg-type]  # it need not be a pool
        return store

    def _is_ready(self) -> bool:
        return bool(self._health.status(READINESS) == health_pb2.HealthCheckResponse.SERVING)

    async def start(self) -> None:
        """Serving when it returns: what is promoted is loaded. Raises Conflict when a port is taken."""
        settings = self._settings
        self.metrics_port = self._start_metrics()
        self.grpc_port = bind(self._server, settings.grpc_host, settings.grpc_port, self._credentials)
        await self._server.start()
        if settings.health_port is not None:
            await self._serve_probes(settings.health_port)
        await self._look()
        self._health.set_started()
        # What is here now stays for good: the collector need not walk through it again and again.
        gc.freeze()
        self._polling = asyncio.create_task(self._poll())
        log.info(
            "serving",
            grpc=f"{settings.grpc_host}:{self.grpc_port}",
            metrics=f"{settings.metrics_host}:{self.metrics_port}",
            registry=str(settings.registry_dir),
            threads=settings.cpu_threads,
        )

    async def stop(self, lame_duck_seconds: float = 0.0, hurry: asyncio.Event | None = None) -> None:
        """Not ready at once, serving on for the lame-duck time, then done when the running calls are."""
        log.info("draining", lame_duck_seconds=lame_duck_seconds, grace_seconds=self._settings.grace_seconds)
        self._health.leave()
        with suppress(TimeoutError):
            async with asyncio.timeout(lame_duck_seconds):
                await (hurry or asyncio.Event()).wait()
        # What comes between the server's stop and the caller's hearing of it ends as CANCELLED and is never retried.
        self._health.send_away()
        await asyncio.sleep(_LEAVING_SECONDS)
        # Watching has no end of its own: the drain would wait for it until the grace is over.
        self._store.changes.end()
        await self._server.stop(self._settings.grace_seconds)
        if self._polling:
            self._polling.cancel()
            with suppress(asyncio.CancelledError):
                await self._polling
        if self._probed:
            await self._probed.stop(None)
        self._close_metrics()
        self._feedback.close()
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        log.info("stopped")

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            try:
                await self._look()
            except Exception:
                # The next look may go well; a replica that no longer follows the registry is worse than noise.
                log.exception("poll_failed")

    async def _look(self) -> None:
        await self._store.sync()
        device = self._settings.device != "cuda" or not self._runtime.fell_back
        if not device and self._has_device:
            consequence = "not ready; set INFERENCE_DEVICE=auto to use the CPU"
            log.error("device_missing", wanted=CUDA, why=self._runtime.why, consequence=consequence)
        self._has_device = device
        self._health.set_ready(device and not self._store.missing)

    async def _serve_probes(self, port: int) -> None:
        self._probed = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._probed)
        self.health_port = bind(self._probed, self._settings.grpc_host, port, None, "INFERENCE_HEALTH_PORT")
        await self._probed.start()

    def _start_metrics(self) -> int:
        host, port = self._settings.metrics_host, self._settings.metrics_port
        try:
            server, _ = start_http_server(port, host, self.metrics.registry)
        except OSError as error:
            raise Conflict(taken("metrics", host, port, "INFERENCE_METRICS_PORT", error)) from error

        def close() -> None:
            server.shutdown()
            server.server_close()

        # The HTTP server looks for its end every half second, and nobody has to wait for that.
        self._close_metrics = threading.Thread(target=close, daemon=True).start
        return int(server.server_port)


def warm_up_sizes(max_batch: int, embed_batch: int, runtime: Runtime) -> list[int]:
    """Batch sizes to run before serving: on a GPU each new size costs; on a CPU the largest makes the arena."""
    sizes = [1, embed_batch, max_batch]
    return buckets(sizes) if runtime.on_cuda else sizes


def _cuda_options(settings: Settings) -> CudaOptions:
    return CudaOptions(
        io_binding=settings.io_binding,
        graphs=settings.cuda_graphs,
        conv_algo_search=settings.cudnn_conv_algo_search,
        tf32=settings.cuda_tf32,
        prefer_nhwc=settings.cuda_prefer_nhwc,
        preload_dlls=settings.preload_dlls,
        gpu_mem_limit_bytes=settings.gpu_mem_limit_bytes,
    )


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    """Raises BadConfig for files that cannot be used."""
    cert, key = settings.tls_cert_file, settings.tls_key_file
    return Certificates(cert, key, settings.tls_client_ca_file).credentials() if cert and key else None


def _gate(settings: Settings) -> Gate:
    """Raises BadConfig for token files that cannot be used."""
    predict = Tokens("INFERENCE_PREDICT_TOKEN", settings.predict_token.get_secret_value(), settings.predict_token_file)
    admin = Tokens("INFERENCE_ADMIN_TOKEN", settings.admin_token.get_secret_value(), settings.admin_token_file)
    tokens = bool(predict or admin)
    authenticated = tokens or settings.tls_client_ca_file is not None
    warn_of_open_doors(settings.grpc_host, settings.tls_cert_file is not None, authenticated, tokens)
    return make_gate(predict, admin)


def _connection_age(seconds: float) -> list[tuple[str, int]]:
    # No grace is set, which is a grace without end: running calls finish, new ones go to a new connection.
    return [("grpc.max_connection_age_ms", max(1, round(seconds * 1000)))] if seconds else []
