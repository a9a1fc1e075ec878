"""Transactions on the campaign database: reads need nothing, a worker's writes need its lease."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session

from services.common.errors import LeaseLost, Unavailable
from services.trainer.campaign import Lease, Round
from services.trainer.oracle import Answer
from services.trainer.tables import LabelRow, LeaseRow, RoundRow


class Transactions:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @contextmanager
    def reading(self) -> Iterator[Session]:
        with _away_is_unavailable(), Session(self._engine.execution_options(read_only=True)) as session:
            yield session

    @contextmanager
    def writing(self, lease: Lease | None = None) -> Iterator[Session]:
        """Commits at the end. Raises LeaseLost when `lease` is not the newest: then nothing is written."""
        with _away_is_unavailable(), Session(self._engine) as session, session.begin():
            if lease is not None:
                _check(session, lease)
            yield session


@contextmanager
def _away_is_unavailable() -> Iterator[None]:
    """A database that is locked or restarting may answer the next time."""
    try:
        yield
    except DBAPIError as error:
        # A connection that broke in the middle of a transaction comes as other errors too.
        if not (isinstance(error, OperationalError) or error.connection_invalidated):
            raise
        raise Unavailable(f"the database does not answer: {error.orig}") from error


def _check(session: Session, lease: Lease) -> None:
    row = session.get(LeaseRow, lease.campaign, with_for_update=True)
    if row is None or (row.token, row.owner) != (lease.token, lease.owner):
        raise LeaseLost(f"another worker owns campaign {lease.campaign!r} now")


def round_of(row: RoundRow) -> Round:
    return Round(
        campaign=row.campaign,
        round_no=row.round_no,
        state=row.state,  # type: ignore[arg-type] # written by this module only
        strategy=row.strategy,
        version=row.version,
        promoted=row.promoted,
        promotion_reason=row.promotion_reason,
        query_score=row.query_score,
        images_per_second=row.images_per_second,
        seconds=json.loads(row.seconds),
        report=json.loads(row.report),
    )


def label_row(name: str, round_no: int, answer: Answer, drawn_at_random: bool) -> LabelRow:
    return LabelRow(
        campaign=name,
        sample_id=answer.sample_id,
        class_index=answer.class_index,
        annotator=answer.annotator,
        origin=answer.origin,
        round_no=round_no,
        drawn_at_random=drawn_at_random,
        created_at=time.time(),
    )
