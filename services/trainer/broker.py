"""Redis as the worker sees it, asked when Prometheus asks: no exporter of its own is needed to watch it."""

from collections.abc import Iterator

import redis
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

# Well inside Prometheus's scrape timeout: a broker that hangs must not hide the other metrics.
_TIMEOUT_S = 1.0


class BrokerCollector(Collector):
    """Every worker tells the same numbers, so take the maximum over workers and not the sum."""

    def __init__(self, url: str, queue: str) -> None:
        self._client = redis.Redis.from_url(url, socket_connect_timeout=_TIMEOUT_S, socket_timeout=_TIMEOUT_S)
        self._queue = queue

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The names alone: a registry that is given a collector must not wait for Redis."""
        yield from _families()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        up, messages, memory = _families()
        try:
            messages.add_metric([], self._client.llen(self._queue))
            memory.add_metric([], self._client.info("memory")["used_memory"])
        except redis.RedisError:
            up.add_metric([], 0)
        else:
            up.add_metric([], 1)
        yield from (up, messages, memory)


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily("al_broker_up", "1 when Redis answers this worker, 0 when it does not"),
        GaugeMetricFamily("al_broker_messages", "Tasks in the queue that no worker has taken yet"),
        GaugeMetricFamily("al_broker_memory_bytes", "Memory that Redis uses, in bytes"),
    )
