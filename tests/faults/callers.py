"""Concurrent callers of `Predict` in a process of their own, so that the server's gaps are not theirs.

    with calling(server.address, callers=32) as load:
        ...
    load.answers.started, .ended, .version, .top       # one entry a call, on time.time()'s clock

The clock is the wall's, as that of the server's log: both run on one machine.
"""

import argparse
import asyncio
import contextlib
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from services.common.pb import prediction_pb2, prediction_pb2_grpc

FAILED = -1


@dataclass(frozen=True)
class Answers:
    """One entry for each call, in the order of their ends: (N,)"""

    started: np.ndarray
    ended: np.ndarray
    # FAILED when the call was not answered.
    version: np.ndarray
    # Index of the most probable class.
    top: np.ndarray

    @property
    def failed(self) -> int:
        return int((self.version == FAILED).sum())

    def between(self, first: float, last: float) -> "Answers":
        """Those of calls that ended in that time."""
        inside = (self.ended >= first) & (self.ended < last)
        return Answers(self.started[inside], self.ended[inside], self.version[inside], self.top[inside])

    def longest_gap_ms(self) -> float:
        """Between an answer and the next, whoever got them."""
        return 1000 * float(np.diff(self.ended).max())

    def p99_ms(self) -> float:
        return 1000 * float(np.percentile(self.ended - self.started, 99))


class Load:
    answers: Answers


@contextlib.contextmanager
def calling(address: str, image: bytes, callers: int = 32) -> Iterator[Load]:
    """Callers that each wait for their answer before the next call, without retries, until the block ends.

    `image` is encoded. The block begins when each caller has got an answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        sent, written = Path(folder) / "image", Path(folder) / "calls.npy"
        sent.write_bytes(image)
        command = [sys.executable, "-m", __name__, address, str(sent), str(callers), str(written)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin
        assert process.stdout
        load = Load()
        try:
            assert process.stdout.readline() == b"calling\n", "the callers did not get their first answers"
            yield load
            process.stdin.close()
            assert process.wait(timeout=60) == 0
            rows = np.load(written)
            order = np.argsort(rows[:, 1])
            started, ended, version, top = rows[order].T
            load.answers = Answers(started, ended, version.astype(int), top.astype(int))
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()


async def _call(address: str, image: bytes, callers: int, written: Path) -> None:
    done = asyncio.Event()
    calls: list[tuple[float, float, float, float]] = []
    request = prediction_pb2.PredictRequest(encoded=prediction_pb2.EncodedImages(images=[image]), top_k=1)

    async def caller(stub: prediction_pb2_grpc.PredictionServiceStub) -> None:
        started = time.time()
        try:
            answer = await stub.Predict(request, timeout=30)
            version, top = answer.version, answer.predictions[0].classes[0].index
        except grpc.aio.AioRpcError as error:
            print(error.code(), error.details(), file=sys.stderr)
            version, top = FAILED, FAILED
        calls.append((started, time.time(), version, top))

    async def calling_on(stub: prediction_pb2_grpc.PredictionServiceStub) -> None:
        while not done.is_set():
            await caller(stub)

    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        stub = prediction_pb2_grpc.PredictionServiceStub(channel)  # type: ignore[no-untyped-call]
        await asyncio.gather(*(caller(stub) for _ in range(callers)))
        # Pauses of the callers' own collector would look like the server's.
        gc.collect()
        gc.freeze()
        gc.disable()
        print("calling", flush=True)
        tasks = [asyncio.create_task(calling_on(stub)) for _ in range(callers)]
        await asyncio.to_thread(sys.stdin.read)
        done.set()
        await asyncio.gather(*tasks)
    np.save(written, np.array(calls))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("image", type=Path)
    parser.add_argument("callers", type=int)
    parser.add_argument("written", type=Path)
    given = parser.parse_args()
    asyncio.run(_call(given.address, given.image.read_bytes(), given.callers, given.written))
