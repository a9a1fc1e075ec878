"""Fleet: what runs, what waits, and what it takes of the machines."""

from scripts.dashboards.board import Dashboard, Row
from scripts.dashboards.panels import BLUE, GREEN, RED, YELLOW, Query, lines, stat

# `job` ends with the service's name: `trainer` in compose, `NAMESPACE/trainer` with a PodMonitor.
_OURS = 'job=~".*(trainer|inference|campaigns)"'
_NO_WORKER = "No worker tells"
_NO_GPU = "No GPU metrics: dcgm-exporter is not scraped"
_UP_OR_DOWN = [
    {
        "type": "value",
        "options": {"0": {"text": "down", "color": RED, "index": 0}, "1": {"text": "up", "color": GREEN, "index": 1}},
    }
]

_AT_A_GLANCE = Row(
    "At a glance",
    4,
    [
        stat(
            "Workers",
            "Workers that Prometheus reaches. None while there is work: alert WorkerGone.",
            Query('sum(up{job=~".*trainer"})'),
            "none",
            "No worker is known",
            thresholds={None: RED, 1: GREEN},
        ),
        stat(
            "At work",
            "Workers that are busy with a task. All of them, and tasks waiting: one more would help.",
            Query("sum(al_worker_busy)"),
            "none",
            _NO_WORKER,
            thresholds={None: BLUE},
        ),
        stat(
            "Replicas of inference",
            "Replicas that Prometheus reaches. None: alert InferenceGone.",
            Query('sum(up{job=~".*inference"})'),
            "none",
            "No replica is known",
            thresholds={None: RED, 1: GREEN},
        ),
        stat(
            "Redis",
            "Whether it answers the workers. When it does not: alert RedisDown.",
            Query("min(al_broker_up)"),
            "none",
            _NO_WORKER,
            thresholds={None: RED, 1: GREEN},
            mappings=_UP_OR_DOWN,
        ),
        stat(
            "Tasks that wait",
            "Of campaigns and comparisons, by the database: what a worker could begin.",
            Query('max(al_tasks{state="queued"})'),
            "none",
            _NO_WORKER,
            thresholds={None: BLUE, 10: YELLOW},
        ),
        stat(
            "Campaigns that run",
            "Of these some may wait: see the Campaign dashboard.",
            Query('sum(max by (campaign) (al_campaign_state{state="running"}))'),
            "none",
            _NO_WORKER,
            thresholds={None: BLUE},
        ),
    ],
)

_WORKERS = Row(
    "Workers and queues",
    8,
    [
        lines(
            "Workers at work",
            "By worker: 1 while it is busy with a task.",
            [Query("al_worker_busy", "{{instance}}")],
            "none",
            _NO_WORKER,
            steps=True,
            stacked=True,
            minimum=0,
            decimals=0,
        ),
        lines(
            "Tasks",
            "Of campaigns and comparisons, by the database: queued and running. Beside them what lies in Redis: tasks "
            "that are queued and not there are put back within a minute.",
            [
                Query("max by (state) (al_tasks)", "{{state}}"),
                Query("max(al_broker_messages)", "in Redis"),
            ],
            "none",
            _NO_WORKER,
            steps=True,
            minimum=0,
            decimals=0,
        ),
        lines(
            "Campaigns by state",
            "failed: alert CampaignFailed.",
            [Query("sum by (state) (max by (campaign, state) (al_campaign_state))", "{{state}}")],
            "none",
            "There are no campaigns yet",
            steps=True,
            stacked=True,
            minimum=0,
            decimals=0,
        ),
        lines(
            "Reached by Prometheus",
            "1 while a service tells its metrics; 0 for five minutes: alert TargetDown.",
            [Query(f"up{{{_OURS}}}", "{{job}} {{instance}}")],
            "none",
            "Prometheus knows of no service",
            steps=True,
            minimum=0,
            maximum=1,
            decimals=0,
        ),
    ],
)

_REDIS = Row(
    "Redis",
    7,
    [
        lines(
            "Redis answers",
            "By worker, at each scrape: 0 where it does not within a second.",
            [Query("al_broker_up", "{{instance}}")],
            "none",
            _NO_WORKER,
            steps=True,
            minimum=0,
            maximum=1,
            decimals=0,
        ),
        lines(
            "Memory of Redis",
            "Tasks carry ids only, so a few MB are normal; noeviction refuses work when it is full.",
            [Query("max(al_broker_memory_bytes)", "used")],
            "bytes",
            "Redis does not answer",
            minimum=0,
        ),
    ],
)

_PROCESSES = Row(
    "Processes",
    8,
    [
        lines(
            "CPU",
            "Cores in use.",
            [Query(f"rate(process_cpu_seconds_total{{{_OURS}}}[$__rate_interval])", "{{job}} {{instance}}")],
            "short",
            "No service tells",
            minimum=0,
        ),
        lines(
            "Memory",
            "Resident. It should be level between swaps; a container that passes its limit ends with exit code 137.",
            [Query(f"process_resident_memory_bytes{{{_OURS}}}", "{{job}} {{instance}}")],
            "bytes",
            "No service tells",
            minimum=0,
        ),
        lines(
            "Open files",
            "Share of what the process may have open.",
            [Query(f"process_open_fds{{{_OURS}}} / process_max_fds{{{_OURS}}}", "{{job}} {{instance}}")],
            "percentunit",
            "No service tells",
            minimum=0,
        ),
        lines(
            "Time since start",
            "Falls to nothing at each restart.",
            [Query(f"time() - process_start_time_seconds{{{_OURS}}}", "{{job}} {{instance}}")],
            "s",
            "No service tells",
            minimum=0,
        ),
    ],
)

_GPUS = Row(
    "GPUs",
    8,
    [
        lines(
            "GPU utilisation",
            "Share of time in which a kernel ran, as NVIDIA's dcgm-exporter tells it.",
            [Query("DCGM_FI_DEV_GPU_UTIL", "{{Hostname}} GPU {{gpu}}")],
            "percent",
            _NO_GPU,
            minimum=0,
            maximum=100,
        ),
        lines(
            "GPU memory in use",
            "Framebuffer in use; onnxruntime keeps what it once took (INFERENCE_GPU_MEM_LIMIT_BYTES bounds it).",
            [Query("DCGM_FI_DEV_FB_USED", "{{Hostname}} GPU {{gpu}}")],
            "mbytes",  # MiB, as dcgm counts
            _NO_GPU,
            minimum=0,
        ),
        lines(
            "GPU memory free",
            "Room for a second version during a hot swap.",
            [Query("DCGM_FI_DEV_FB_FREE", "{{Hostname}} GPU {{gpu}}")],
            "mbytes",
            _NO_GPU,
            minimum=0,
        ),
    ],
)

FLEET = Dashboard(
    uid="querent-fleet",
    title="Querent: fleet",
    description="Workers, replicas, queues, Redis, processes and GPUs.",
    rows=[_AT_A_GLANCE, _WORKERS, _REDIS, _PROCESSES, _GPUS],
)
