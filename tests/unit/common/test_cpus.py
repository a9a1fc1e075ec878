import os

import pytest

from services.common.cpus import available_cpus

ALLOWED = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "cpus"),
    [
        ("100000 100000", 1),
        ("50000 100000", 1),
        ("max 100000", ALLOWED),
        ("99900000 100000", ALLOWED),
        ("nonsense", ALLOWED),
    ],
)
def test_the_cgroups_quota_counts_not_the_hosts_cores(tmp_path, quota, cpus):
    (tmp_path / "cpu.max").write_text(quota)
    assert available_cpus(tmp_path) == cpus


def test_the_first_version_of_cgroups_is_read_too(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cpus(tmp_path) == 1


def test_without_a_cgroup_the_affinity_counts(tmp_path):
    assert available_cpus(tmp_path) == ALLOWED
