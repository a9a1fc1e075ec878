"""A PostgreSQL server of a test's own, of the Debian package, with user, password and database as compose has them."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.debian import program
from tests.e2e.stack import free_port, wait_for

NAME = PASSWORD = "querent"


class Postgres:
    """`start` and `stop` it as often as you like; `remove` deletes its data."""

    def __init__(self, *options: str) -> None:
        """`options`: of the server's command line."""
        newest_first = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
        self._bin = Path(program("postgres", "postgresql", path=os.pathsep.join(map(str, newest_first)))).parent
        self.port = free_port()
        # Root's server runs as another user, who cannot look into pytest's folders.
        self._as = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        self._folder = Path(tempfile.mkdtemp(prefix="querent-postgres-"))
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self._initialise()

    def _initialise(self) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD)
        for path in (self._folder, password):
            if self._as:
                shutil.chown(path, self._as["user"], self._as["group"])
        to, options = self._folder / "data", ("--auth=scram-sha-256", "--encoding=UTF8", "--no-sync")
        self._run("initdb", "-D", to, "-U", NAME, f"--pwfile={password}", *options, **self._as)

    @property
    def url(self) -> str:
        """As people have it in their Secrets: without a driver."""
        return f"postgresql://{NAME}:{PASSWORD}@127.0.0.1:{self.port}/{NAME}"

    @property
    def environment(self) -> dict[str, str]:
        """For psql and its kin: what they need not be told in a container of the image."""
        return {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGPASSWORD": PASSWORD}

    @property
    def log(self) -> Path:
        return self._folder / "server.log"

    def start(self) -> None:
        """It answers, and has the database, when this returns."""
        listens = ("-h", "127.0.0.1", "-p", str(self.port), "-k", "", *self._options)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._folder / "data", *listens],
                cwd=self._folder, stdout=log, stderr=log, **self._as,
            )  # fmt: skip
        wait_for(lambda: self._answers("postgres"), "PostgreSQL")
        if not self._answers(NAME):
            self._run("createdb", "-U", NAME, NAME)

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def stop(self, sent: signal.Signals = signal.SIGINT) -> int:
        """Its exit code. SIGINT, the default, is what its image is stopped with; SIGQUIT ends it as a crash would."""
        assert self._process
        self._process.send_signal(sent)
        return self._process.wait(timeout=30)

    def remove(self) -> None:
        """Also while it runs."""
        if self._process and self._process.poll() is None:
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder)

    @contextmanager
    def database(self, name: str) -> Iterator[str]:
        """The URL of one more database, which is gone afterwards."""
        self._run("createdb", "-U", NAME, name)
        yield self.url.removesuffix(NAME) + name
        self._run("dropdb", "-U", NAME, "--force", name)

    def _answers(self, database: str) -> bool:
        asked = [self._bin / "psql", "-U", NAME, "-d", database, "-c", ""]
        return subprocess.run(asked, env=os.environ | self.environment, capture_output=True).returncode == 0

    def _run(self, name: str, *arguments: object, **how: Any) -> None:
        environment = os.environ | self.environment
        subprocess.run(
            [self._bin / name, *map(str, arguments)],
            check=True, cwd=self._folder, env=environment, stdout=subprocess.DEVNULL, **how,
        )  # fmt: skip


def _version(folder: Path) -> float:
    return float(folder.parent.name)
