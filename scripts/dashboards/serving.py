"""Serving: is it answered, fast, by the right version, and rightly."""

from scripts.dashboards.board import Annotation, Dashboard, Row, Variable
from scripts.dashboards.panels import BLUE, GREEN, RED, YELLOW, Query, lines, stat, table

_CHOSEN = 'model=~"$model"'
_NO_CALLS = "No calls in this time"
_NO_PREDICTIONS = "No predictions in this time"
_PREDICTIONS = 'method=~".+/(Predict|ModelInfer)"'


def _quantiles(histogram: str, selector: str = "", at: tuple[float, ...] = (0.5, 0.9, 0.99)) -> list[Query]:
    rate = f"sum by (le) (rate({histogram}_bucket{{{selector}}}[$__rate_interval]))"
    return [Query(f"histogram_quantile({q}, {rate})", f"p{100 * q:g}") for q in at]


def _mean(histogram: str, by: str = "", selector: str = "") -> str:
    total, count = (f"sum {by}(rate({histogram}_{part}{{{selector}}}[$__rate_interval]))" for part in ("sum", "count"))
    return f"{total} / ({count} > 0)"


# Thresholds are the alerts': InferenceErrors and the latency objective.
_AT_A_GLANCE = Row(
    "At a glance",
    5,
    [
        stat(
            "Version that serves",
            "What answers a request that names no version. 0: nothing is promoted yet.",
            Query(f"max by (model) (inference_current_version{{{_CHOSEN}}})", "{{model}}"),
            "none",
            "Inference does not tell",
            thresholds={None: YELLOW, 1: BLUE},
            decimals=0,
        ),
        stat(
            "How good it is",
            "Accuracy of the version that serves, on the campaign's test samples.",
            Query(f"model:accuracy:serving{{{_CHOSEN}}}", "{{model}} v{{version}}"),
            "percentunit",
            "Nothing promoted, or a plain model",
            thresholds={None: BLUE},
            decimals=1,
        ),
        stat(
            "What the next label is worth",
            "Accuracy that the campaign's next batch of labels is expected to bring.",
            Query('max by (campaign) (al_expected_gain{campaign=~"$model"})', "{{campaign}}"),
            "percentunit",
            "Needs 4 rounds with a random slice",
            thresholds={None: YELLOW, 0.005: GREEN},
            decimals=2,
        ),
        stat(
            "Calls per second",
            "Finished calls of all methods.",
            Query("sum(rate(inference_rpcs_total[$__rate_interval]))"),
            "reqps",
            _NO_CALLS,
            thresholds={None: BLUE},
            graph="area",
        ),
        stat(
            "Failed calls",
            "Share of calls in the last five minutes that failed through no fault of their callers. Above 5%: alert "
            "InferenceErrors.",
            Query("service:inference_errors:ratio_rate5m"),
            "percentunit",
            _NO_CALLS,
            thresholds={None: GREEN, 0.01: YELLOW, 0.05: RED},
            graph="area",
            decimals=2,
        ),
        stat(
            "Slow predictions",
            "Share of predictions in the last hour that took longer than half a second. The objective is below 1%.",
            Query("slo:inference_slow:ratio_rate1h"),
            "percentunit",
            _NO_PREDICTIONS,
            thresholds={None: GREEN, 0.01: YELLOW, 0.144: RED},
            graph="area",
            decimals=2,
        ),
    ],
)

_CALLS = Row(
    "Calls",
    8,
    [
        lines(
            "Calls by method",
            "Finished calls per second.",
            [Query("sum by (method) (rate(inference_rpcs_total[$__rate_interval]))", "{{method}}")],
            "reqps",
            _NO_CALLS,
            minimum=0,
        ),
        lines(
            "Errors by code",
            "Calls per second that did not end in OK. INVALID_ARGUMENT, NOT_FOUND and the like are the callers'.",
            [
                Query(
                    'sum by (code) (rate(inference_rpcs_total{code!="OK"}[$__rate_interval]))',
                    "{{code}}",
                )
            ],
            "reqps",
            "No call has failed",
            minimum=0,
        ),
        lines(
            "Latency of predictions",
            "Quantiles of Predict and ModelInfer, from start to end of a call. The line is the objective for 99%.",
            _quantiles("inference_rpc_seconds", _PREDICTIONS),
            "s",
            _NO_PREDICTIONS,
            thresholds={None: "transparent", 0.5: RED},
            minimum=0,
        ),
        lines(
            "Slow predictions by window",
            "Share that took longer than half a second. Both alerts want a long and a short window above their line: "
            "14.4% for an hour and five minutes, 6% for six hours and half an hour.",
            [Query(f"slo:inference_slow:ratio_rate{window}", window) for window in ("5m", "30m", "1h", "6h")],
            "percentunit",
            _NO_PREDICTIONS,
            thresholds={None: "transparent", 0.06: YELLOW, 0.144: RED},
            minimum=0,
        ),
    ],
)

_QUEUE = Row(
    "Queue and runs",
    8,
    [
        lines(
            "Queue depth",
            "Images that wait for a run, and how many may. Above 80% for five minutes: alert QueueSaturated.",
            [
                Query("max by (instance) (inference_queue_depth)", "{{instance}}"),
                Query("max(inference_queue_limit)", "limit"),
            ],
            "short",
            "Inference does not tell",
            minimum=0,
        ),
        lines(
            "Time in the queue",
            "Quantiles of what images waited for their run. Beside run seconds it says whether replicas are missing.",
            _quantiles("inference_queue_seconds"),
            "s",
            _NO_PREDICTIONS,
            minimum=0,
        ),
        lines(
            "Batch size",
            "Images in one run of a network: under load it should grow, up to INFERENCE_MAX_BATCH.",
            [
                Query(_mean("inference_batch_size"), "mean"),
                *_quantiles("inference_batch_size", at=(0.9,)),
            ],
            "short",
            "No runs in this time",
            minimum=0,
        ),
        lines(
            "Time of a run",
            "Mean seconds of one run of a version's network.",
            [Query(_mean("inference_run_seconds", "by (model, version) ", _CHOSEN), "{{model}} v{{version}}")],
            "s",
            "No runs in this time",
            minimum=0,
        ),
    ],
)

_IMAGES = Row(
    "Images",
    8,
    [
        lines(
            "Images predicted per second, by round",
            "A round's line begins where its version takes over and ends where the next one does.",
            [
                Query(
                    "sum by (model, round)"
                    f' (rate(inference_images_total{{{_CHOSEN}, purpose="predict"}}[$__rate_interval]))',
                    "{{model}} round {{round}}",
                )
            ],
            "short",
            _NO_PREDICTIONS,
            stacked=True,
            minimum=0,
        ),
        lines(
            "Pool images scored and embedded per second, by round",
            "Work for campaigns: embeddings are stored, so that a frozen backbone embeds each image once.",
            [
                Query(
                    "sum by (model, round, purpose)"
                    f' (rate(inference_images_total{{{_CHOSEN}, purpose!="predict"}}[$__rate_interval]))',
                    "{{model}} round {{round}} {{purpose}}",
                )
            ],
            "short",
            "No campaign scored its pool in this time",
            minimum=0,
        ),
        lines(
            "Dropped requests",
            "Requests per second that were dropped before they were computed: their caller had gone, or their "
            "time was over.",
            [Query("sum by (reason) (rate(inference_dropped_requests_total[$__rate_interval]))", "{{reason}}")],
            "reqps",
            "No request was dropped",
            minimum=0,
        ),
    ],
)

_VERSIONS = Row(
    "Versions",
    8,
    [
        lines(
            "Version over time",
            "What serves, by replica; each step is a hot swap, marked on every panel of this page.",
            [Query(f"inference_current_version{{{_CHOSEN}}}", "{{model}} on {{instance}}")],
            "none",
            "Inference does not tell",
            steps=True,
            decimals=0,
            minimum=0,
        ),
        table(
            "Versions in memory",
            "With what each runs: the provider, and the precision of its graph.",
            {
                "Replicas": (
                    Query(f"count by (model, version, round, provider, precision) (inference_model_info{{{_CHOSEN}}})"),
                    "none",
                )
            },
            "No version is loaded",
        ),
        lines(
            "Refused versions",
            "Load failures in the last quarter of an hour, by reason. Any: alert ModelLoadFailures.",
            [Query("sum by (reason) (increase(inference_model_load_failures_total[15m]))", "{{reason}}")],
            "short",
            "Inference does not tell",
            minimum=0,
        ),
        lines(
            "Fell back to the CPU",
            "1 where a GPU was asked for and the CPU is used: alert ProviderFellBack.",
            [Query("max by (instance) (inference_provider_fallback)", "{{instance}}")],
            "none",
            "Inference does not tell",
            steps=True,
            decimals=0,
            minimum=0,
            maximum=1,
        ),
    ],
)

_QUALITY = Row(
    "Is it right",
    9,
    [
        lines(
            "Live accuracy and test accuracy",
            "From the feedback of the day before each moment, beside what the test samples said. Ten points "
            "below: alert "
            "LiveAccuracyLow. People who only report mistakes pull it down.",
            [
                Query(
                    "sum by (model, version)"
                    f' (increase(inference_feedback_total{{{_CHOSEN}, correct="true"}}[1d]))'
                    f" / (sum by (model, version) (increase(inference_feedback_total{{{_CHOSEN}}}[1d])) > 0)",
                    "{{model}} v{{version}} live",
                ),
                Query(
                    f"max by (model, version) (inference_model_accuracy{{{_CHOSEN}}})", "{{model}} v{{version}} test"
                ),
            ],
            "percentunit",
            "No feedback in a day",
            minimum=0,
            maximum=1,
        ),
        lines(
            "Feedback per hour",
            "Predictions whose true class was told: below fifty a day, live accuracy says little.",
            [
                Query(
                    f"sum by (model, correct) (increase(inference_feedback_total{{{_CHOSEN}}}[1h]))",
                    "{{model}} correct={{correct}}",
                )
            ],
            "short",
            "No feedback in this time",
            minimum=0,
        ),
        lines(
            "Confidence",
            "Median and lowest tenth of the probability of the most probable class, over an hour.",
            [
                Query(
                    f"histogram_quantile({q}, sum by (model, version, le)"
                    f" (rate(inference_prediction_confidence_bucket{{{_CHOSEN}}}[1h])))",
                    f"{{{{model}}}} v{{{{version}}}} p{100 * q:g}",
                )
                for q in (0.5, 0.1)
            ],
            "percentunit",
            _NO_PREDICTIONS,
            minimum=0,
            maximum=1,
        ),
        lines(
            "Confidence drift",
            "Kolmogorov-Smirnov distance of the last hour's confidences from the last day's, once there were 200 "
            "predictions in the hour. Above 0.2: alert ConfidenceDrift.",
            [Query(f"model_version:confidence_drift:ks1h{{{_CHOSEN}}}", "{{model}} v{{version}}")],
            "short",
            "Fewer than 200 predictions in an hour",
            thresholds={None: "transparent", 0.2: RED},
            minimum=0,
            maximum=1,
        ),
    ],
)

_NOW = f'count_values by (model) ("version", max by (model) (inference_current_version{{{_CHOSEN}}}))'
_BEFORE = f'count_values by (model) ("version", max by (model) (inference_current_version{{{_CHOSEN}}} offset 1m))'

SERVING = Dashboard(
    uid="querent-serving",
    title="Querent: serving",
    description="Calls, latency, queue, model versions and live accuracy of the inference service.",
    rows=[_AT_A_GLANCE, _CALLS, _QUEUE, _IMAGES, _VERSIONS, _QUALITY],
    variables=[Variable("model", "Model", "label_values(inference_current_version, model)")],
    annotations=[
        Annotation(
            "Swaps", f"{_NOW} unless on (model, version) {_BEFORE}", "{{model}}: version {{version}} serves", BLUE
        )
    ],
)
