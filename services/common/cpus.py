"""How many CPUs this process may really use."""

import math
import os
from pathlib import Path


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs this process may use: the affinity mask, cut to the cgroup's quota (a host's core count lies)."""
    allowed = len(os.sched_getaffinity(0))
    return max(1, min(allowed, math.ceil(_quota(cgroup) or allowed)))


def _quota(cgroup: Path) -> float | None:
    try:
        if (cgroup / "cpu.max").is_file():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        # "max" in version 2 and -1 in version 1 both mean "no quota".
        return float(quota) / float(period) if quota not in {"max", "-1"} else None
    except (OSError, ValueError):
        return None
