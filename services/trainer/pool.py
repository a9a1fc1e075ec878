"""The pool of samples and what has been labelled, as a value."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Pool:
    ids: tuple[str, ...]
    # sample id -> round in which it was labelled
    labelled_at: Mapping[str, int] = field(default_factory=dict)

    @property
    def unlabelled(self) -> tuple[str, ...]:
        """In the pool's own order."""
        return tuple(i for i in self.ids if i not in self.labelled_at)

    @property
    def labelled(self) -> tuple[str, ...]:
        """In the order in which they were labelled."""
        return tuple(self.labelled_at)
