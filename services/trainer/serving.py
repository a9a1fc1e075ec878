"""The worker process: metrics, Celery, and a clean end."""

import threading
from typing import Any, NoReturn

import structlog
from celery import signals
from prometheus_client import REGISTRY, start_http_server

from services.common.ending import leave
from services.common.errors import Conflict
from services.common.observability import configure_logging
from services.trainer import worker_wiring
from services.trainer.broker import BrokerCollector
from services.trainer.celery_app import app
from services.trainer.heartbeat import Heartbeat
from services.trainer.rounds import OnStep, ignore_step
from services.trainer.settings import Settings
from services.trainer.worker import Deadline

log = structlog.get_logger()


def serve_worker(config: Settings, on_step: OnStep = ignore_step) -> NoReturn:
    """Works until it is told to stop, then ends the process. Raises Conflict when the metrics port is in use."""
    configure_logging(config.log_level, config.log_style)
    runner = worker_wiring.build_task_runner(config, on_step)
    worker_wiring.install(runner)
    if config.metrics_port:
        _serve_metrics(config)
    if config.heartbeat_file:
        # Before Celery: a worker that waits for Redis is alive, and a restart would not bring Redis back.
        Heartbeat(config.heartbeat_file).start()
    threading.current_thread().name = "worker"
    deadline = Deadline(config.grace_seconds, runner.give_back)

    @signals.worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator] # celery has no types
    def _begin_to_end(**_: Any) -> None:
        deadline.begin()

    worker = app.Worker(loglevel=config.log_level, without_mingle=True, without_gossip=True)
    worker.start()
    leave(worker.exitcode or 0)


def _serve_metrics(config: Settings) -> None:
    REGISTRY.register(BrokerCollector(config.redis_url, config.queue))
    try:
        start_http_server(config.metrics_port, addr=config.metrics_host)
    except OSError as error:
        raise Conflict(
            f"port {config.metrics_port} on {config.metrics_host} cannot be used for metrics ({error.strerror}); "
            "set TRAINER_METRICS_PORT to a free one, or to 0 for none"
        ) from error
    log.info("metrics_served", address=f"http://{config.metrics_host}:{config.metrics_port}/metrics")
