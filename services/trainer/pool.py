"""The pool of samples and what has been labelled: a value, with transitions that return a new one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace


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

    def label(self, ids: Iterable[str], round_no: int) -> "Pool":
        return replace(self, labelled_at={**self.labelled_at, **dict.fromkeys(ids, round_no)})
