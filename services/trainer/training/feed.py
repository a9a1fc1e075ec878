"""Labelled images on their way to the device: uint8, decoded once, a batch ahead of the network."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

# A source's labelled images below this share of a GPU's free memory are moved there whole, once.
_SHARE_OF_GPU = 0.25
_AHEAD = 3


class Feed:
    """Batches of uint8 [B, H, W, 3] on the device, by row. `waited_s`: how long the training has waited for them.

    On a GPU with room, all images lie there and a batch is a gather on the device. Otherwise a side thread copies
    batches into pinned memory ahead of time. On a CPU the images are where the network is.
    """

    def __init__(self, images: np.ndarray, device: torch.device, whole: bool | None = None) -> None:
        self.waited_s = 0.0
        self._device = device
        self._images = images
        self._ahead = device.type == "cuda"
        self._on_device: torch.Tensor | None = None
        if self._ahead:
            free = torch.cuda.mem_get_info(device)[0]
            if whole or (whole is None and images.nbytes <= _SHARE_OF_GPU * free):
                self._on_device = torch.from_numpy(np.ascontiguousarray(images)).to(device)
                self._ahead = False

    def batches(self, rows: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        """One tensor for each array of rows, in order."""
        source = self._prefetched(rows) if self._ahead else map(self._gathered, rows)
        while True:
            started = time.perf_counter()
            batch = next(source, None)
            self.waited_s += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _gathered(self, rows: np.ndarray) -> torch.Tensor:
        if self._on_device is not None:
            return self._on_device[torch.from_numpy(rows).to(self._device)]
        return torch.from_numpy(self._images[rows]).to(self._device)

    def _prefetched(self, rows: Sequence[np.ndarray]) -> Iterator[torch.Tensor]:
        ready: queue.Queue[torch.Tensor | BaseException | None] = queue.Queue(_AHEAD)
        ended = threading.Event()

        def put(item: torch.Tensor | BaseException | None) -> None:
            while not ended.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return
                except queue.Full:
                    continue

        def fill() -> None:
            try:
                for some in rows:
                    if ended.is_set():
                        return
                    put(torch.from_numpy(self._images[some]).pin_memory())
                put(None)
            except BaseException as error:
                put(error)

        threading.Thread(target=fill, name="feed", daemon=True).start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item.to(self._device, non_blocking=True)
        finally:
            ended.set()
