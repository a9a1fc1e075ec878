"""Where and how exactly a network is trained: device, precision, memory layout."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import structlog
import torch

from services.common.errors import BadConfig
from services.trainer.finetune_config import FinetuneConfig

log = structlog.get_logger()

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Machine:
    device: torch.device
    precision: Literal["fp32", "bf16", "fp16"]
    channels_last: bool

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def bytes_per_value(self) -> int:
        return 4 if self.precision == "fp32" else 2

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, _DTYPES[self.precision], enabled=self.precision != "fp32")


def choose_machine(config: FinetuneConfig) -> Machine:
    """Raises BadConfig for a device or a precision that is not here."""
    device = choose_device(config.device)
    precision = _precision(config.precision, device)
    wanted = config.channels_last
    channels_last = (device.type == "cuda" and precision != "fp32") if wanted == "auto" else wanted
    return Machine(device, precision, channels_last)


def choose_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Raises BadConfig when CUDA was asked for by name and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BadConfig("learner.finetune.device: cuda, but torch sees no CUDA device here; use auto or cpu")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def _precision(
    wanted: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device
) -> Literal["fp32", "bf16", "fp16"]:
    if device.type == "cuda":
        if wanted == "auto":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        return wanted
    if wanted == "fp16":
        raise BadConfig("learner.finetune.precision: fp16 is for GPUs and torch sees none; use bf16, fp32 or auto")
    if wanted == "bf16" and not cpu_has_fast_bf16():
        # The same configuration must run on the next machine too; bf16 without instructions for it is slower.
        log.warning("precision_not_fast", asked="bf16", used="fp32", why="this CPU has no AVX512-BF16 and no AMX")
        return "fp32"
    return "fp32" if wanted == "auto" else wanted


def cpu_has_fast_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Does the CPU multiply bfloat16 itself?"""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    flags = {flag for line in text.splitlines() if line.startswith(("flags", "Features")) for flag in line.split()}
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
