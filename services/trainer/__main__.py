"""`al-trainer` from its first moment: a worker that is told to end while it still imports torch ends well."""

import sys

from services.common.ending import leave_on_sigterm

_SERVICES = ("worker", "metrics")


def main() -> None:
    if sys.argv[1:2] and sys.argv[1] in _SERVICES:
        leave_on_sigterm()
    from services.trainer import cli

    cli.main()


if __name__ == "__main__":
    main()
