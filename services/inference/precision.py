"""Which of a version's graphs a replica runs."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from services.common.manifest import VariantKind

Precision = Literal["fp32", "fp16", "int8"]
Wanted = Literal["auto", "fp32", "fp16", "int8"]


def choose(wanted: Wanted, published: Collection[VariantKind], on_cuda: bool, vnni: bool) -> Precision:
    """fp32 wherever what is wanted was not published."""
    if wanted == "fp32":
        return "fp32"
    if wanted != "auto":
        return wanted if wanted in published else "fp32"
    if on_cuda:
        # int8 there means dequantised to float32 around each convolution: slower than no variant at all.
        return "fp16" if "fp16" in published else "fp32"
    # Without VNNI int8 saturates in pairs and gains little; fp16 on a CPU is fp32 with conversions.
    return "int8" if vnni and "int8" in published else "fp32"


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this CPU multiplies int8 in one instruction (AVX512-VNNI or AVX-VNNI); False where nobody can say."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    flags = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return bool(flags and {"avx512_vnni", "avx_vnni"} & set(flags[1].split()))
