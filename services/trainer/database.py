"""Opening the database: SQLite as safe as it can be, PostgreSQL as it is, both migrated under a lock."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from services.common.errors import BadConfig, Unavailable

_POSTGRES = "postgresql+psycopg"
# A server that vanished without a word is noticed within half a minute and not after the system's two hours; what the
# URL says goes before. Seconds, tcp_user_timeout in milliseconds.
_POSTGRES_OPTIONS = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
# Any constant will do; it must only differ from other advisory locks in the same PostgreSQL database.
_MIGRATION_LOCK = 7_241_090


def open_database(url: str) -> Engine:
    """An engine on a migrated database. Raises BadConfig for a bad URL, Unavailable when it cannot be reached."""
    try:
        parsed = _with_driver(make_url(url))
    except ArgumentError as error:
        raise BadConfig(f"TRAINER_DATABASE_URL {url!r} is not a database URL (sqlite:///path.db)") from error
    try:
        sqlite = parsed.get_backend_name() == "sqlite"
        engine = _open_sqlite(parsed) if sqlite else _open_server(parsed)
        with _migration_lock(engine, parsed.database), engine.connect() as connection:
            _migrate(connection)
    except OperationalError as error:
        shown = parsed.render_as_string(hide_password=True)
        raise Unavailable(f"the database {shown} cannot be opened: {error.orig}") from error
    except OSError as error:
        raise Unavailable(f"the database {parsed.database} cannot be opened: {error}") from error
    except (ImportError, NoSuchModuleError) as error:
        advice = "for PostgreSQL: pip install 'querent[postgres]'"
        raise BadConfig(f"TRAINER_DATABASE_URL names a database without a driver here ({error}); {advice}") from error
    return engine


def _with_driver(url: URL) -> URL:
    """`postgresql://` and `postgres://`, as Secrets hold them, mean the driver that the extra brings."""
    return url.set(drivername=_POSTGRES) if url.drivername in ("postgresql", "postgres") else url


def _open_server(url: URL) -> Engine:
    ours = _POSTGRES_OPTIONS if url.drivername == _POSTGRES else {}
    options = {name: value for name, value in ours.items() if name not in url.query}
    # Pinged before use: connections of before a restart of the server are dead.
    return create_engine(url, pool_pre_ping=True, connect_args=options)


def _open_sqlite(url: URL) -> Engine:
    path = url.database
    if path and path != ":memory:":
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        # The driver's own BEGIN is deferred and can deadlock on upgrade; ours is below.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "busy_timeout=30000", "foreign_keys=ON", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def _migration_lock(engine: Engine, path: str | None) -> Iterator[None]:
    if engine.dialect.name == "sqlite":
        with Path(f"{path}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        return
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
        try:
            yield
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _MIGRATION_LOCK})


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    connection.commit()
