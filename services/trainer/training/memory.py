"""How much memory a training takes, before it takes it."""

from pathlib import Path

import torch
from torch import nn

from services.common.errors import BadConfig
from services.trainer.finetune_config import FinetuneConfig
from services.trainer.training.device import Machine

_GIB = 2**30
# Kernels' work space and what fragments between allocations, on top of what is counted.
_MARGIN = 1.2
_CUDA_CONTEXT = 512 * 2**20
_TRIED_IMAGES = 2


def bytes_per_image(net: nn.Module, image: torch.Tensor) -> int:
    """What the backward pass of one image keeps, in float32, measured by a forward pass of a few copies.

    `image`: uint8 [H, W, 3]. Counts each tensor that autograd saves once, and no parameter.
    """
    parameters = {p.untyped_storage().data_ptr() for p in net.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = image[None].repeat(_TRIED_IMAGES, 1, 1, 1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        kept_alive = net(batch)  # a freed tensor's place would be given to the next one, and counted once
    del kept_alive
    return sum(saved.values()) // _TRIED_IMAGES


def bytes_of_weights(net: nn.Module, config: FinetuneConfig) -> int:
    """Weights, and for those that learn: gradients, the optimiser's moments, the running average, the best epoch's."""
    every = sum(p.nbytes for p in net.parameters())
    learning = sum(p.nbytes for p in net.parameters() if p.requires_grad)
    copies = 1 + (2 if config.optimizer == "adamw" else 1) + bool(config.ema) + bool(config.validation_share)
    return every + copies * learning


def free_bytes(machine: Machine) -> int:
    if machine.on_cuda:
        free, _total = torch.cuda.mem_get_info(machine.device)
        # What torch holds and does not use is ours too.
        held = torch.cuda.memory_reserved(machine.device) - torch.cuda.memory_allocated(machine.device)
        return max(0, free + held - _CUDA_CONTEXT)
    return free_memory_of_cpu()


def free_memory_of_cpu(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may still take: the machine's, cut to what its cgroup leaves."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    free = int(lines["MemAvailable"].split()[0]) * 1024
    try:
        limit, used = ((cgroup / name).read_text().strip() for name in ("memory.max", "memory.current"))
        reclaimable = _inactive_file(cgroup / "memory.stat")
        return free if limit == "max" else max(0, min(free, int(limit) - int(used) + reclaimable))
    except (OSError, ValueError):
        return free


def _inactive_file(stat: Path) -> int:
    """Page cache that the kernel gives up before it kills anybody."""
    rows = (line.split() for line in stat.read_text().splitlines())
    return sum(int(value) for name, value in rows if name == "inactive_file")


def require_memory(net: nn.Module, image: torch.Tensor, config: FinetuneConfig, machine: Machine, free: int) -> None:
    """Raises BadConfig naming what fits in `free` bytes when a batch does not. `net` is still on the CPU."""
    at_once = -(-config.batch_size // config.accumulate)
    fixed = bytes_of_weights(net, config)
    each = int(bytes_per_image(net, image) * machine.bytes_per_value / 4 * _MARGIN)
    needed = fixed + at_once * each
    if needed <= free:
        return
    fits = (free - fixed) // max(each, 1)
    said = (
        f"learner.finetune: {at_once} images at once need about {needed / _GIB:.1f} GiB and the "
        f"{'GPU' if machine.on_cuda else 'machine'} has {free / _GIB:.1f} GiB free"
    )
    if fits < 1:
        raise BadConfig(f"{said}; not even one fits: train fewer stages, or set a smaller backbone.input_size")
    parts = -(-config.batch_size // int(fits))
    raise BadConfig(
        f"{said}; {fits} fit: set batch_size: {fits}, or accumulate: {parts} to keep a batch of {config.batch_size}"
    )
