"""The Celery application: JSON only, late acknowledgement, one task at a time in one process."""

from typing import Any

from celery import Celery

from services.trainer.settings import Settings


def _configuration() -> dict[str, Any]:
    """Read when the configuration is first needed, so that importing this module reads nothing."""
    settings = Settings()
    return {
        "broker_url": settings.redis_url,
        "broker_connection_retry_on_startup": True,
        # For as long as it is away: a worker that gives up would only be started again.
        "broker_connection_max_retries": None,
        # What is due is derived from the database, so redelivery is a fallback that finds nothing to do.
        "broker_transport_options": {
            "visibility_timeout": 12 * 3600,
            "socket_keepalive": True,
            # A Redis that hangs counts as one that is away.
            "socket_timeout": 5,
            "socket_connect_timeout": 5,
        },
        "task_default_queue": settings.queue,
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        # Threads, not forks: CUDA never crosses a fork, and metrics live in one process.
        "worker_pool": "threads",
        "worker_concurrency": 1,
        "worker_hijack_root_logger": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_send_task_events": False,
    }


app = Celery("querent", include=["services.trainer.tasks"], set_as_current=False)
app.add_defaults(_configuration)
