from pathlib import Path

import pytest

from services.inference.precision import choose, has_vnni

BOTH = frozenset({"fp16", "int8"})


@pytest.mark.parametrize(
    ("wanted", "published", "on_cuda", "vnni", "chosen"),
    [
        ("auto", BOTH, True, True, "fp16"),
        ("auto", {"int8"}, True, True, "fp32"),
        ("auto", BOTH, False, True, "int8"),
        ("auto", BOTH, False, False, "fp32"),
        ("auto", {"fp16"}, False, True, "fp32"),
        ("auto", set(), True, True, "fp32"),
        ("fp32", BOTH, True, True, "fp32"),
        ("fp16", BOTH, False, False, "fp16"),
        ("int8", BOTH, True, False, "int8"),
        ("int8", {"fp16"}, False, True, "fp32"),
    ],
)
def test_the_graph_follows_the_device_and_never_one_that_was_not_published(wanted, published, on_cuda, vnni, chosen):
    assert choose(wanted, published, on_cuda, vnni) == chosen


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("fpu avx2 avx512_vnni avx512_bitalg", True),
        ("fpu avx2 avx_vnni", True),
        ("fpu avx2 avx512f avx512_vnnix", False),
    ],
)
def test_vnni_is_read_off_the_cpus_flags(tmp_path: Path, flags: str, found: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: some CPU\nflags\t\t: {flags}\nbugs\t\t: avx_vnni\n")
    assert has_vnni(cpuinfo) is found


def test_a_system_without_cpuinfo_has_no_vnni(tmp_path: Path) -> None:
    assert not has_vnni(tmp_path / "nowhere")
