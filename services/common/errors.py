"""Every error that a caller can act on.

QuerentError
├── BadRequest            fix the request: it names the index and the limit
│   ├── BadImage          an image that cannot be used
│   └── BadConfig         a configuration that cannot be run
├── NotFound              ask for something else: it names what there is
├── Conflict              the thing exists already, or its state forbids this
├── Unavailable           try again: not ready yet, or a peer is away
│   └── ModelNotReady     nothing is promoted yet
├── Overloaded            try again later: a queue is full
├── DeadlineExpired       the caller has stopped waiting
├── Unauthenticated       say who you are: no token, or one that is not known
├── Forbidden             ask with another token: this one's scope is too small
├── DamagedArtefact       a file that is not what its checksum says
├── LeaseLost             another worker owns the campaign now
└── Stopped               the process was asked to stop; the work is given back
"""

import difflib
from collections.abc import Iterable


class QuerentError(Exception):
    """Base of all errors whose message is meant for the caller."""


class BadRequest(QuerentError): ...


class BadImage(BadRequest): ...


class BadConfig(BadRequest): ...


class NotFound(QuerentError): ...


class Conflict(QuerentError): ...


class Unavailable(QuerentError): ...


class ModelNotReady(Unavailable): ...


class Overloaded(QuerentError): ...


class DeadlineExpired(QuerentError): ...


class Unauthenticated(QuerentError): ...


class Forbidden(QuerentError): ...


class DamagedArtefact(QuerentError): ...


class LeaseLost(QuerentError): ...


class Stopped(QuerentError): ...


# Of a name from a request; and of the names that a message lists.
_SHOWN_CHARACTERS = 60
_SHOWN_NAMES = 20


def shown(given: str) -> str:
    """A name from a request, for a message: quoted, and cut when it is longer than any name of ours."""
    if len(given) <= _SHOWN_CHARACTERS:
        return repr(given)
    return f"{given[:_SHOWN_CHARACTERS]!r}... ({len(given)} characters)"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, else all of them."""
    names = sorted(known)
    # difflib takes seconds over a name of megabytes.
    nearest = difflib.get_close_matches(given[: 4 * _SHOWN_CHARACTERS], names, n=1, cutoff=0.6)
    if nearest:
        return f"did you mean {nearest[0]!r}?"
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"known: {', '.join(names[:_SHOWN_NAMES])}{more}" if names else "there are none"
