"""`al-trainer metrics`: what autoscaling looks at while no worker runs."""

import signal
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.stack import Stack, free_port, wait_for

pytestmark = pytest.mark.slow


def test_a_campaign_that_waits_for_its_first_worker_is_told_without_torch(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    campaign = stack.start_digits()
    port = free_port()
    stack.environment["TRAINER_METRICS_PORT"] = str(port)
    program = (
        "import sys; from services.trainer.cli import main; sys.argv[1:] = ['metrics']; main();"
        "assert 'torch' not in sys.modules and 'celery' not in sys.modules"
    )
    process = stack.start("metrics", sys.executable, "-c", program)

    def told() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                return answer.read().decode()
        except urllib.error.URLError:
            return ""

    try:
        text = str(wait_for(told, "the metrics"))
        assert 'al_tasks{state="queued"} 1.0' in text
        assert 'al_tasks{state="running"} 0.0' in text
        assert "al_broker_up 0.0" in text  # nobody has started a Redis here, and somebody must say so
        assert f'al_campaign_state{{campaign="{campaign.name}",state="running"}} 1.0' in text
        assert stack.end(process, signal.SIGTERM) == 0
    finally:
        stack.end_all()
