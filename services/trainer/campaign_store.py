"""Campaigns in the database: every change is one transaction, and a worker's changes need its lease."""

import json
import time
from collections.abc import Collection, Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from services.common.errors import BadRequest, Conflict, NotFound, did_you_mean
from services.trainer.campaign import Campaign, CampaignState, Label, Lease, Pick, Progress, Round
from services.trainer.config import CampaignConfig, parse_config
from services.trainer.oracle import Answer
from services.trainer.pool import Pool
from services.trainer.tables import (
    MAX_DETAIL,
    CampaignRow,
    LabelRow,
    LeaseRow,
    NumberRow,
    PickRow,
    ProgressRow,
    RoundRow,
)
from services.trainer.transactions import Transactions, label_row, round_of

# Imported labels have no pick.
_PICK_OF_LABEL = (PickRow.campaign == LabelRow.campaign) & (PickRow.sample_id == LabelRow.sample_id)


class CampaignStore(Transactions):
    """Reads need nothing; writes about a round's work take the lease and check its fencing token."""

    # ---- campaigns -----------------------------------------------------------------------------------

    def create(
        self, config: CampaignConfig, source_id: str, classes: Sequence[str], taken: Collection[str] = ()
    ) -> Campaign:
        """A new campaign named `<config.name>-<next free number>`, with round 0 ready to run.

        `taken`: names that are in use elsewhere, as in a registry that has outlived its database.
        """
        while True:
            try:
                with self.writing() as session:
                    name = _next_name(session, config.name, taken)
                    session.add(
                        CampaignRow(
                            name=name,
                            config=config.model_dump_json(),
                            source_id=source_id,
                            classes=json.dumps(list(classes)),
                            state="running",
                            created_at=time.time(),
                        )
                    )
                    session.flush()
                    session.add(LeaseRow(campaign=name, owner="", token=0, expires_at=0.0))
                    session.add(RoundRow(campaign=name, round_no=0, state="training", strategy="none"))
                return self.campaign(name)
            except IntegrityError:
                continue  # another process took the number in between

    def campaign(self, name: str) -> Campaign:
        """Raises NotFound naming the nearest campaign."""
        with self.reading() as session:
            row = session.get(CampaignRow, name)
            if row is None:
                known = session.scalars(select(CampaignRow.name)).all()
                raise NotFound(f"no campaign {name!r}; {did_you_mean(name, known)}")
            return _campaign(row)

    def campaigns(self) -> list[Campaign]:
        """Oldest first."""
        with self.reading() as session:
            return [_campaign(r) for r in session.scalars(select(CampaignRow).order_by(CampaignRow.created_at))]

    def set_state(
        self,
        name: str,
        state: CampaignState,
        reason: str,
        only_from: Sequence[str] = (),
        lease: Lease | None = None,
    ) -> None:
        """Raises NotFound, or Conflict when the campaign is in none of the states of `only_from`."""
        with self.writing(lease) as session:
            row = session.get(CampaignRow, name)
            if row is None:
                raise NotFound(f"no campaign {name!r}; {did_you_mean(name, session.scalars(select(CampaignRow.name)))}")
            if only_from and row.state not in only_from:
                raise Conflict(
                    f"campaign {name!r} is {row.state}; this works only while it is {' or '.join(only_from)}"
                )
            row.state, row.reason = state, reason
            if state == "running":
                session.execute(update(RoundRow).where(RoundRow.campaign == name).values(failures=0, enqueued_at=0.0))

    def set_reason(self, lease: Lease, reason: str) -> None:
        """What a running campaign waits for; empty when it goes on."""
        with self.writing(lease) as session:
            row = session.get_one(CampaignRow, lease.campaign)
            if row.state == "running":
                row.reason = reason

    def delete(self, name: str) -> None:
        """Forget a campaign and everything about it."""
        with self.writing() as session:
            for table in (ProgressRow, LeaseRow, LabelRow, PickRow, RoundRow):
                session.execute(delete(table).where(table.campaign == name))
            session.execute(delete(CampaignRow).where(CampaignRow.name == name))

    # ---- rounds --------------------------------------------------------------------------------------

    def rounds(self, name: str) -> list[Round]:
        with self.reading() as session:
            rows = session.scalars(select(RoundRow).where(RoundRow.campaign == name).order_by(RoundRow.round_no))
            return [round_of(row) for row in rows]

    def finished_rounds(self, name: str) -> list[int]:
        """Their numbers only."""
        done = select(RoundRow.round_no).where(RoundRow.campaign == name, RoundRow.state == "done")
        with self.reading() as session:
            return list(session.scalars(done.order_by(RoundRow.round_no)))

    def newest_round(self, name: str) -> Round:
        """Raises NotFound."""
        newest = select(RoundRow).where(RoundRow.campaign == name).order_by(RoundRow.round_no.desc()).limit(1)
        with self.reading() as session:
            row = session.scalar(newest)
            if row is None:
                raise NotFound(f"campaign {name!r} has no rounds")
            return round_of(row)

    def round(self, name: str, round_no: int) -> Round:
        """Raises NotFound."""
        with self.reading() as session:
            row = session.get(RoundRow, (name, round_no))
            if row is None:
                raise NotFound(f"campaign {name!r} has no round {round_no}")
            return round_of(row)

    def begin_round(self, lease: Lease, round_no: int, strategy: str) -> None:
        """Nothing when the round is there already."""
        with self.writing(lease) as session:
            if session.get(RoundRow, (lease.campaign, round_no)) is None:
                session.add(RoundRow(campaign=lease.campaign, round_no=round_no, state="selecting", strategy=strategy))

    def save_picks(
        self,
        lease: Lease,
        round_no: int,
        picks: Sequence[Pick],
        seconds: dict[str, float],
        images_per_second: float | None,
        selection: Sequence[str] = (),
    ) -> None:
        """Record what the round asks for; the round then waits for labels.

        `selection`: what the strategy says about its choice; kept as the report's entry of that name.
        """
        scores = [p.score for p in picks if p.score is not None and not p.drawn_at_random]
        with self.writing(lease) as session:
            row = session.get_one(RoundRow, (lease.campaign, round_no))
            if row.state != "selecting":
                return
            for rank, pick in enumerate(picks):
                session.add(
                    PickRow(
                        campaign=lease.campaign,
                        sample_id=pick.sample_id,
                        round_no=round_no,
                        rank=rank,
                        score=pick.score,
                        drawn_at_random=pick.drawn_at_random,
                        predicted=pick.predicted,
                        confidence=pick.confidence,
                    )
                )
            row.state = "labelling"
            row.query_score = sum(scores) / len(scores) if scores else None
            row.images_per_second = images_per_second
            row.seconds = json.dumps(seconds)
            row.report = json.dumps({"selection": list(selection)} if selection else {})

    def picks(self, name: str, round_no: int) -> list[Pick]:
        with self.reading() as session:
            rows = session.scalars(
                select(PickRow).where(PickRow.campaign == name, PickRow.round_no == round_no).order_by(PickRow.rank)
            )
            return [Pick(r.sample_id, r.score, r.drawn_at_random, r.predicted, r.confidence) for r in rows]

    def save_labels(self, lease: Lease, round_no: int, answers: Sequence[Answer], class_count: int) -> None:
        """Write all answers of a round in one transaction; the round can then be trained.

        Raises BadRequest for an answer that names a class that is not there or a sample that was not asked
        for; nothing is written then.
        """
        with self.writing(lease) as session:
            row = session.get_one(RoundRow, (lease.campaign, round_no))
            if row.state != "labelling":
                return
            asked = {p.sample_id: p for p in self._asked(session, lease.campaign, round_no)}
            for answer in answers:
                if not 0 <= answer.class_index < class_count:
                    raise BadRequest(
                        f"sample {answer.sample_id}: class {answer.class_index} is not one of 0..{class_count - 1}"
                    )
                if answer.sample_id not in asked:
                    raise BadRequest(f"sample {answer.sample_id} was not asked for in round {round_no}")
                session.add(label_row(lease.campaign, round_no, answer, asked[answer.sample_id].drawn_at_random))
            row.state = "training"

    def _asked(self, session: Session, name: str, round_no: int) -> list[PickRow]:
        query = select(PickRow).where(PickRow.campaign == name, PickRow.round_no == round_no)
        return list(session.scalars(query))

    def labels(self, name: str, up_to_round: int | None = None) -> list[Label]:
        """Each round's in the order of its picks, then what was imported for it: the same order after any crash."""
        query = (
            select(LabelRow)
            .outerjoin(PickRow, _PICK_OF_LABEL)
            .where(LabelRow.campaign == name)
            .order_by(LabelRow.round_no, PickRow.rank.is_(None), PickRow.rank, LabelRow.id)
        )
        if up_to_round is not None:
            query = query.where(LabelRow.round_no <= up_to_round)
        with self.reading() as session:
            return [
                Label(r.sample_id, r.class_index, r.annotator, r.origin, r.round_no, r.drawn_at_random)
                for r in session.scalars(query)
            ]

    def pool(self, name: str, ids: Sequence[str]) -> Pool:
        """The pool with what has been asked for or imported so far counted as labelled."""
        picked = select(PickRow.sample_id, PickRow.round_no).where(PickRow.campaign == name)
        imported = (
            select(LabelRow.sample_id, LabelRow.round_no)
            .outerjoin(PickRow, _PICK_OF_LABEL)
            .where(LabelRow.campaign == name, PickRow.rank.is_(None))
        )
        with self.reading() as session:
            rows = [
                *session.execute(picked.order_by(PickRow.round_no, PickRow.rank)),
                *session.execute(imported.order_by(LabelRow.round_no, LabelRow.id)),
            ]
        return Pool(tuple(ids), {row.sample_id: row.round_no for row in sorted(rows, key=lambda row: row.round_no)})

    def save_round(self, lease: Lease, done: Round) -> None:
        """The round's last commit. A round that is done already stays as it is."""
        with self.writing(lease) as session:
            row = session.get_one(RoundRow, (lease.campaign, done.round_no))
            if row.state == "done":
                return
            row.state, row.version = "done", done.version
            row.promoted, row.promotion_reason = done.promoted, done.promotion_reason
            row.seconds = json.dumps({**json.loads(row.seconds), **done.seconds})
            row.report = json.dumps({**json.loads(row.report), **done.report})

    def count_failure(self, lease: Lease, round_no: int) -> int:
        """How often the round has failed, this time included."""
        with self.writing(lease) as session:
            row = session.get_one(RoundRow, (lease.campaign, round_no))
            row.failures += 1
            return row.failures

    def untrained(self, name: str, newest_round: int) -> bool:
        """Have labels been imported that are for a round after `newest_round`?"""
        with self.reading() as session:
            return _untrained(session, name, newest_round)

    def finish(self, lease: Lease, reason: str, newest_round: int) -> bool:
        """False, and nothing changes, when labels were imported just now that no round has trained on."""
        with self.writing(lease) as session:
            if _untrained(session, lease.campaign, newest_round):
                return False
            row = session.get_one(CampaignRow, lease.campaign)
            if row.state == "running":
                row.state, row.reason = "finished", reason
            session.execute(delete(ProgressRow).where(ProgressRow.campaign == lease.campaign))
            return True

    # ---- progress ------------------------------------------------------------------------------------

    def save_progress(self, name: str, round_no: int, phase: str, done: int, total: int, detail: str = "") -> None:
        now = time.time()
        with self.writing() as session:
            row = session.get(ProgressRow, name)
            if row is None:
                row = ProgressRow(campaign=name)
                session.add(row)
            if (row.round_no, row.phase) != (round_no, phase):
                row.started_at = now
            row.round_no, row.phase, row.done, row.total, row.updated_at = round_no, phase, done, total, now
            row.detail = detail[:MAX_DETAIL]

    def progress(self, name: str) -> Progress | None:
        with self.reading() as session:
            r = session.get(ProgressRow, name)
            if r is None:
                return None
            return Progress(r.campaign, r.round_no, r.phase, r.done, r.total, r.started_at, r.updated_at, r.detail)


def _untrained(session: Session, name: str, newest_round: int) -> bool:
    later = select(LabelRow.id).where(LabelRow.campaign == name, LabelRow.round_no > newest_round)
    return session.scalar(later.limit(1)) is not None


def _next_name(session: Session, base: str, taken: Collection[str]) -> str:
    """The base name with a number that was never given before, nor is in `taken`."""
    numbers = [n.removeprefix(f"{base}-") for n in taken if n.startswith(f"{base}-")]
    given = session.get(NumberRow, base, with_for_update=True)
    last = max((int(n) for n in numbers if n.isdecimal()), default=0)
    if given is None:
        given = NumberRow(base=base, last=0)
        session.add(given)
    given.last = max(last, given.last) + 1
    return f"{base}-{given.last}"


def _campaign(row: CampaignRow) -> Campaign:
    config = parse_config(json.loads(row.config), f"campaign {row.name}")
    classes = tuple(json.loads(row.classes))
    state: CampaignState = row.state  # type: ignore[assignment]
    return Campaign(row.name, config, row.source_id, classes, state, row.reason, row.created_at)
