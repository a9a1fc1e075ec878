"""Telling any number of waiters on the event loop that something has changed."""

import asyncio


class Changes:
    """Take `next` first, then look at the state, then wait: no change falls between the look and the wait.

    Changes that come faster than a waiter looks are one to it, so a slow reader costs no memory.
    """

    def __init__(self) -> None:
        self.next = asyncio.Event()
        # No change will come any more: waiters should end.
        self.ended = False

    def tell(self) -> None:
        told, self.next = self.next, asyncio.Event()
        told.set()

    def end(self) -> None:
        self.ended = True
        self.tell()
