"""`al-trainer metrics`: the gauges of every campaign from the database, and Redis's, for when no worker runs.

Autoscaling from zero workers needs somebody who says that there is work; this process needs neither a GPU nor torch.
"""

import signal
import threading

import structlog
from prometheus_client import CollectorRegistry, start_http_server

from services.common.bucket_registry import open_registry
from services.common.errors import Conflict
from services.common.observability import configure_logging
from services.trainer.broker import BrokerCollector
from services.trainer.campaign_store import CampaignStore
from services.trainer.database import open_database
from services.trainer.leases import LeaseStore
from services.trainer.metrics import TrainerMetrics
from services.trainer.settings import Settings

log = structlog.get_logger()


def serve_campaign_metrics(config: Settings) -> None:
    """Blocks until SIGTERM or Ctrl-C. Raises Conflict when the metrics port is in use."""
    configure_logging(config.log_level, config.log_style)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    engine = open_database(config.database_url)
    store, leases = CampaignStore(engine), LeaseStore(engine)
    models = open_registry(config.registry_dir, config.registry_bucket)
    registry = CollectorRegistry()
    registry.register(BrokerCollector(config.redis_url, config.queue))
    metrics = TrainerMetrics(registry)
    metrics.restore(store, models, leases.workload())
    try:
        start_http_server(config.metrics_port, config.metrics_host, registry)
    except OSError as error:
        raise Conflict(
            f"port {config.metrics_port} on {config.metrics_host} cannot be used for metrics ({error.strerror}); "
            "set TRAINER_METRICS_PORT to a free one"
        ) from error
    log.info("metrics_served", address=f"http://{config.metrics_host}:{config.metrics_port}/metrics")
    while not ended.wait(config.due_seconds):
        try:
            metrics.restore(store, models, leases.workload())
        # A database that is away for a moment: the last values stay until it is back.
        except Exception as error:
            log.warning("campaigns_not_read", error=str(error))
