"""Work that cannot be interrupted, while somebody looks whether it still has to be done."""

import threading
from collections.abc import Callable
from typing import TypeVar

from services.trainer.learning import Watch

T = TypeVar("T")

_LOOK_EVERY_S = 0.5


def watched(work: Callable[[], T], phase: str, watch: Watch) -> T:
    """Run `work` in a side thread, looking at `watch` meanwhile.

    When the watch says stop, the thread is left to end by itself; what it makes is dropped.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=phase, daemon=True)
    thread.start()
    while thread.is_alive():
        watch.progress(phase, 0, 1)
        thread.join(_LOOK_EVERY_S)
    if errors:
        raise errors[0]
    watch.progress(phase, 1, 1)
    return results[0]
