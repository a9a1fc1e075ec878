"""Bearer tokens from a setting and from a file that may change while the process runs."""

from pathlib import Path

import structlog

from services.common.errors import BadConfig
from services.common.files import signature

log = structlog.get_logger()


class Tokens:
    """The tokens that hold now: `given`, then those of `file`, one a line, read again when the file changes.

    `name` is the setting that errors speak of. A file that cannot be read any more leaves its last tokens in force; one
    that has become empty has none.
    """

    def __init__(self, name: str, given: str = "", file: Path | None = None) -> None:
        """Raises BadConfig for a file that is missing or holds no token, and for tokens that no header can carry."""
        if given and not given.strip():
            # A secret that came out blank must not open what it was to close.
            raise BadConfig(f"{name} is blank; leave it out to have no token")
        self._name = name
        self._given: tuple[str, ...] = (_checked(given.strip(), name),) if given.strip() else ()
        self._file = file
        self._seen: object = None
        self._tokens: tuple[str, ...] = self._given
        if file:
            try:
                self._seen = signature(file)
                self._tokens = self._read(file)
            except OSError as error:
                raise BadConfig(f"{name}_FILE: cannot read {file}: {error.strerror or error}") from error
            if self._tokens == self._given:
                raise BadConfig(f"{name}_FILE: {file} holds no token; write one a line")

    def __bool__(self) -> bool:
        """Whether tokens are configured; stays so when the file loses its last one."""
        return bool(self._given or self._file)

    def current(self) -> tuple[str, ...]:
        """Looks at the file each time, which costs a microsecond or two."""
        if self._file:
            seen: object = None
            try:
                # The signature of what is read must be older than the reading, or a change in between is missed.
                seen = signature(self._file)
                if seen != self._seen:
                    self._tokens = self._read(self._file)
                    log.info("tokens_read", setting=f"{self._name}_FILE", tokens=len(self._tokens))
            except (OSError, BadConfig) as error:
                if seen != self._seen:  # said once
                    log.warning(
                        "tokens_kept", setting=f"{self._name}_FILE", tokens=len(self._tokens), problem=str(error)
                    )
            self._seen = seen
        return self._tokens

    def _read(self, file: Path) -> tuple[str, ...]:
        where = f"{self._name}_FILE: {file}"
        # Bytes that are not text become a character that no token may have.
        lines = enumerate(file.read_text("utf-8", errors="replace").splitlines(), 1)
        read = (_checked(line.strip(), f"{where}, line {number}") for number, line in lines if line.strip())
        return (*self._given, *read)


def _checked(token: str, where: str) -> str:
    if not all("!" <= character <= "~" for character in token):
        # Never the token itself: messages end in logs.
        raise BadConfig(f"{where}: a token is printable ASCII without spaces")
    return token
