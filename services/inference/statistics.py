"""What one loaded model version has done, as plain integers: ModelStatistics and Triton's counters read them.

Counts as Triton counts: durations are summed over requests, so that a run shared by eight requests counts eight
times; inference_count counts images and execution_count counts runs.
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from services.common.errors import DeadlineExpired, Overloaded, QuerentError

Reason = Literal["REJECTED", "CANCELED", "BACKEND", "OTHER"]
REASONS: tuple[Reason, ...] = ("REJECTED", "CANCELED", "BACKEND", "OTHER")


@dataclass
class Duration:
    """How often, and nanoseconds in total."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """`count` requests took `ns` each."""
        self.count += count
        self.ns += ns * count


@dataclass(eq=False)
class Statistics:
    """Written on the event loop only; any thread may read."""

    inference_count: int = 0
    execution_count: int = 0
    # Unix time in milliseconds; 0: never.
    last_inference_ms: int = 0
    # Requests that were admitted and wait for their run.
    pending: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    failures: Counter[Reason] = field(default_factory=Counter)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    # Images in a run -> its (input, infer, output)
    batches: dict[int, tuple[Duration, Duration, Duration]] = field(default_factory=dict)

    def ended(self, ns: int, error: BaseException | None) -> None:
        """One request, after `ns`; `error` is what it was not answered for."""
        if error is None:
            self.success.add(ns)
            return
        self.fail.add(ns)
        self.failures[_reason(error)] += 1

    def ran(self, images: int, requests: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """One run of the network over `images`, for `requests` at once."""
        self.inference_count += images
        self.execution_count += 1
        self.last_inference_ms = time.time_ns() // 1_000_000
        parts = self.batches.setdefault(images, (Duration(), Duration(), Duration()))
        for total, batch, ns in zip(
            (self.compute_input, self.compute_infer, self.compute_output),
            parts,
            (input_ns, infer_ns, output_ns),
            strict=True,
        ):
            total.add(ns, requests)
            batch.add(ns)


def _reason(error: BaseException) -> Reason:
    if isinstance(error, Overloaded):
        return "REJECTED"
    if isinstance(error, (asyncio.CancelledError, DeadlineExpired)):
        return "CANCELED"
    return "OTHER" if isinstance(error, QuerentError) else "BACKEND"
