"""What is computed from embeddings alone, such as clusters: kept between rounds, and between campaigns on a source."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

_ENTRIES = 8


class Kept:
    """The newest few results by key. A pure cache: whoever puts something in could compute it again, bit by bit.

    In memory and not on disk: what a worker that died had kept is computed again in seconds.
    """

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def get(self, key: tuple[Any, ...]) -> Any:
        """None when it is not there."""
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: tuple[Any, ...], value: Any) -> None:
        self._entries[key] = value
        self._entries.move_to_end(key)
        while len(self._entries) > _ENTRIES:
            self._entries.popitem(last=False)

    def made(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What lies under `key`; made where nothing does."""
        found = self.get(key)
        if found is None:
            found = make()
            self.put(key, found)
        return found
