"""Which version answers for each model, as a number: dashboards draw it, alerts compare it with what is promoted."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class AnsweringVersions(Collector):
    """Read from `versions` when Prometheus asks: model -> version that answers, 0 while none does."""

    def __init__(self, versions: Callable[[], Mapping[str, int]]) -> None:
        self._versions = versions

    def collect(self) -> Iterable[GaugeMetricFamily]:
        text = "Version that answers requests which name none; 0: none does."
        answering = GaugeMetricFamily("inference_current_version", text, labels=["model"])
        for model, version in self._versions().items():
            answering.add_metric([model], version)
        yield answering
