"""The server under test and what must be true of every answer of it."""

import base64
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import psutil
from grpc import StatusCode

from services.client.client import QuerentClient
from services.common import images as codec
from services.common.pb import open_inference_pb2 as oip
from services.common.pb import pool_scoring_pb2 as pool_pb
from services.common.pb import prediction_pb2 as prediction_pb
from tests.fuzz.requests import (
    MAX_MESSAGE_BYTES,
    MODEL_INFER,
    PREDICT,
    SCORE_POOL,
    STREAMS,
    Known,
    Request,
    good_requests,
)
from tests.tiny_models import (
    Folders,
    RunningInference,
    TinyModel,
    TinySource,
    next_version,
    png,
    probabilities,
    publish,
    running_inference,
)

RSS_LIMIT_MB = 200.0
TEXT_LIMIT = 2_000
# Of the server's CPU, for one call. Half of it is one image of 64 million pixels.
CPU_LIMIT_S = 3.0
GOOD_EVERY = 100

_REFUSED = {StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND}
# FAILED_PRECONDITION: the damaged version, and unloading what answers. UNAVAILABLE: the unpromoted campaign.
_DOCUMENTED = {StatusCode.OK, *_REFUSED, StatusCode.FAILED_PRECONDITION, StatusCode.UNAVAILABLE}
# What Python's own exceptions look like when somebody hands them on.
_RAW = re.compile(r"Traceback|object at 0x|<_io\.|\b[A-Z][A-Za-z]+(Error|Exception)\b|^'[^']*'$|^\(.*\)$|^\d+$")

_MODEL = TinyModel(members=2)
_SECOND = next_version(_MODEL)
_COLOUR = (200, 30, 30)


@dataclass(frozen=True)
class Answer:
    code: StatusCode
    text: str
    wall_s: float
    cpu_s: float


@dataclass
class Tally:
    """What a run of the fuzzer has seen."""

    wanted: int = 0
    sent: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, float, str] = (0.0, 0.0, "")
    rss_start_mb: float = 0.0
    rss_growth_mb: float = 0.0
    rss_peak_mb: float = 0.0

    def told(self) -> str:
        codes = ", ".join(f"{code} {count}" for code, count in self.codes.most_common())
        cpu, wall, method = self.slowest
        return (
            f"{self.sent} requests: {codes}; slowest call {cpu:.2f} s of CPU ({wall:.2f} s, {method}); RSS "
            f"{self.rss_start_mb:.0f} MB at the start, {self.rss_growth_mb:+.0f} MB at most between calls, "
            f"{self.rss_peak_mb - self.rss_start_mb:+.0f} MB at most inside one"
        )


class Target:
    def __init__(self, server: RunningInference, source: TinySource, channel: grpc.Channel) -> None:
        self._server = server
        self._channel = channel
        self._process = psutil.Process(server.process.pid)
        with QuerentClient(server.address, timeout_s=20) as client:
            predicted = client.predict([png()] * 4, model="tiny", with_feedback_id=True)
        self.known = Known(
            source.source_id,
            tuple(source.ids["pool"]),
            tuple(prediction.prediction_id for prediction in predicted.predictions),
        )
        self._source = source
        self.tally = Tally()
        for _ in range(20):  # memory that the first calls of any kind take is not growth
            for request in good_requests(self.known):
                self._call(request)
        self.tally.rss_start_mb = self._rss_mb()

    def check(self, request: Request) -> None:
        """Send it, and raise AssertionError with a way to send it again when anything is wrong with the answer."""
        answer = self._call(request)
        self.tally.sent += 1
        self.tally.codes[answer.code.name] += 1
        self.tally.slowest = max(self.tally.slowest, (answer.cpu_s, answer.wall_s, request.method))
        wrong = [*_wrong(request, answer), *self._wrong_server()]
        if not wrong and self.tally.sent % GOOD_EVERY == 0:
            wrong = self.wrong_good_answers()
        if wrong:
            raise AssertionError(f"{'; '.join(wrong)}\n{answer}\n{_again(request)}")

    def wrong_good_answers(self) -> list[str]:
        """What is wrong with the answers to good requests; nothing."""
        pixels = codec.decode(png(_COLOUR), 8, 8)[np.newaxis]
        expected = probabilities(_SECOND, pixels)
        wrong = []
        predict = prediction_pb.PredictRequest(model="tiny", encoded=prediction_pb.EncodedImages(images=[png(_COLOUR)]))
        answer = self._channel.unary_unary(PREDICT)(predict.SerializeToString(), timeout=20)
        [prediction] = prediction_pb.PredictResponse.FromString(answer).predictions
        given = {c.index: c.probability for c in prediction.classes}
        if not np.allclose([given[i] for i in range(3)], expected[0], atol=1e-5):
            wrong.append(f"a good Predict is answered with {given}")
        tensor = oip.ModelInferRequest.InferInputTensor(name="image", datatype="UINT8", shape=pixels.shape)
        infer = oip.ModelInferRequest(model_name="tiny", inputs=[tensor], raw_input_contents=[pixels.tobytes()])
        answer = self._channel.unary_unary(MODEL_INFER)(infer.SerializeToString(), timeout=20)
        raw = oip.ModelInferResponse.FromString(answer).raw_output_contents[0]
        if not np.allclose(np.frombuffer(raw, np.float32), expected[0], atol=1e-5):
            wrong.append("a good ModelInfer is answered wrongly")
        score = pool_pb.ScorePoolRequest(source_id=self.known.source_id, acquisition="least_confidence", split="test")
        parts = self._channel.unary_stream(SCORE_POOL)(score.SerializeToString(), timeout=20)
        scores = np.concatenate([pool_pb.ScorePoolResponse.FromString(part).scores.scores for part in parts])
        most_probable = probabilities(_SECOND, self._source.images(self._source.ids["test"])).max(axis=1)
        if not np.allclose(scores, 1 - most_probable, atol=2e-3):
            wrong.append("a good ScorePool is answered wrongly")
        return wrong

    def logged_failures(self) -> list[str]:
        """Log lines of calls that failed in a way that nobody foresaw."""
        return [line for line in self._server.logged if "call_failed" in line or "never retrieved" in line]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note the highest RSS, also inside calls."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                self.tally.rss_peak_mb = max(self.tally.rss_peak_mb, self._rss_mb())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def _call(self, request: Request) -> Answer:
        started, cpu = time.perf_counter(), self._cpu_s()
        code, text = StatusCode.OK, ""
        try:
            if request.method in STREAMS:
                for _ in self._channel.unary_stream(request.method)(request.data, timeout=request.timeout_s):
                    pass
            else:
                self._channel.unary_unary(request.method)(request.data, timeout=request.timeout_s)
        except grpc.RpcError as error:
            code, text = error.code(), error.details() or ""
        return Answer(code, text, time.perf_counter() - started, self._cpu_s() - cpu)

    def _wrong_server(self) -> list[str]:
        if self._server.process.poll() is not None:
            return [f"the server has ended with {self._server.process.returncode}"]
        growth = self._rss_mb() - self.tally.rss_start_mb
        self.tally.rss_growth_mb = max(self.tally.rss_growth_mb, growth)
        return [f"RSS has grown by {growth:.0f} MB"] if growth > RSS_LIMIT_MB else []

    def _rss_mb(self) -> float:
        return self._process.memory_info().rss / 1e6 if self._process.is_running() else 0.0

    def _cpu_s(self) -> float:
        try:
            times = self._process.cpu_times()
        except psutil.Error:
            return 0.0
        return times.user + times.system


def _wrong(request: Request, answer: Answer) -> list[str]:
    """What is wrong with an answer; nothing."""
    allowed = set(_DOCUMENTED)
    if request.may_expire:
        allowed.add(StatusCode.DEADLINE_EXCEEDED)
    if request.too_large:
        allowed = {StatusCode.RESOURCE_EXHAUSTED}
    elif not request.known_method:
        allowed = {StatusCode.UNIMPLEMENTED}
    wrong = []
    if answer.code not in allowed:
        wrong.append(f"the status is {answer.code.name}")
    if answer.code is not StatusCode.OK:
        if len(answer.text.split()) < 2 or len(answer.text) > TEXT_LIMIT or _RAW.search(answer.text):
            wrong.append("the message says nothing, too much, or is an exception's")
        if answer.code in _REFUSED and not re.search(request.says, answer.text):
            wrong.append(f"the message names none of {request.says!r}")
    if answer.cpu_s > CPU_LIMIT_S:
        wrong.append(f"the call took {answer.cpu_s:.1f} s of CPU")
    return wrong


def _again(request: Request) -> str:
    """Lines of Python that send the request to a server on port 8001."""
    if len(request.data) <= 4_000:
        data = f"base64.b64decode({base64.b64encode(request.data).decode()!r})"
    else:
        with tempfile.NamedTemporaryFile(prefix="fuzz-", suffix=".bin", delete=False) as file:
            file.write(request.data)
        data = f"Path({file.name!r}).read_bytes()  # {len(request.data)} bytes"
    kind = "unary_stream" if request.method in STREAMS else "unary_unary"
    sent = f"data, timeout={request.timeout_s}"
    return (
        f"to send it again:\n  data = {data}\n"
        f"  channel = grpc.insecure_channel('127.0.0.1:8001')\n"
        f"  channel.{kind}({request.method[:200]!r})({sent})"
    )


@contextmanager
def fuzzed_server(root: Path) -> Iterator[Target]:
    """A real process with three versions (the second answers, the third is damaged) and an unpromoted campaign."""
    folders = Folders(root)
    publish(folders.registry, _MODEL)
    publish(folders.registry, _SECOND, promote=True)
    damaged = publish(folders.registry, next_version(_SECOND))
    (damaged / "model.onnx").write_bytes(bytes(100))
    publish(folders.registry, TinyModel(campaign="unpromoted"))
    source = folders.source()
    options = [
        ("grpc.enable_retries", 0),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
    ]
    with (
        running_inference(folders, INFERENCE_MAX_MESSAGE_BYTES=str(MAX_MESSAGE_BYTES)) as server,
        grpc.insecure_channel(server.address, options=options) as channel,
    ):
        target = Target(server, source, channel)
        with target.watched():
            yield target
