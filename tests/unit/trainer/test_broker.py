"""What a worker tells of Redis."""

import time

import pytest
import redis
from prometheus_client import CollectorRegistry

from services.trainer.broker import BrokerCollector
from tests.e2e.stack import Stack, free_port


@pytest.fixture
def stack(tmp_path):
    stack = Stack(tmp_path)
    stack.start_redis()
    yield stack
    stack.end_all()


def test_waiting_tasks_are_counted(stack):
    redis.Redis(port=stack.redis_port).rpush("querent", "one", "two")
    registry = CollectorRegistry()
    registry.register(BrokerCollector(f"redis://127.0.0.1:{stack.redis_port}/0", "querent"))
    assert registry.get_sample_value("al_broker_up") == 1
    assert registry.get_sample_value("al_broker_messages") == 2
    assert registry.get_sample_value("al_broker_memory_bytes") > 100_000


def test_a_redis_that_is_away_is_0_and_has_no_numbers():
    registry = CollectorRegistry(auto_describe=True)
    registry.register(BrokerCollector(f"redis://127.0.0.1:{free_port()}/0", "querent"))
    began = time.monotonic()
    assert registry.get_sample_value("al_broker_up") == 0
    assert registry.get_sample_value("al_broker_messages") is None
    assert time.monotonic() - began < 5
