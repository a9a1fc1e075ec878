"""Who works on what: leases with fencing tokens, and the rounds that are due."""

import time
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.orm import Mapped, Session

from services.trainer.campaign import CampaignState, Lease, Round
from services.trainer.tables import CampaignRow, CellRow, ComparisonRow, LeaseRow, RoundRow
from services.trainer.transactions import Transactions, round_of


@dataclass(frozen=True)
class Workload:
    """Tasks of running campaigns and comparisons."""

    # What a worker could begin now, or try again.
    queued: int
    # What a worker works on.
    running: int


class LeaseStore(Transactions):
    # ---- how much there is to do ---------------------------------------------------------------------

    def workload(self) -> Workload:
        """By the database and not by the broker, which may have lost everything; a campaign has one task at a time."""
        now = time.time()
        campaigns = (
            select(_taken(LeaseRow.owner, LeaseRow.expires_at, now), func.count())
            .join(CampaignRow, CampaignRow.name == LeaseRow.campaign)
            .where(CampaignRow.state == "running")
        )
        cells = (
            select(_taken(CellRow.owner, CellRow.expires_at, now), func.count())
            .join(ComparisonRow, ComparisonRow.name == CellRow.comparison)
            .where(ComparisonRow.state == "running", CellRow.state == "due")
        )
        counts = {True: 0, False: 0}
        with self.reading() as session:
            for query in (campaigns, cells):
                for taken, count in session.execute(query.group_by("taken")):
                    counts[bool(taken)] += count
        return Workload(queued=counts[False], running=counts[True])

    # ---- what is due ---------------------------------------------------------------------------------

    def due_rounds(self, again_after_s: float) -> list[Round]:
        """The newest round of each running campaign that nobody works on and nobody lately enqueued.

        They count as enqueued from now on.
        """
        now = time.time()
        newest = (
            select(RoundRow.campaign, func.max(RoundRow.round_no).label("round_no"))
            .group_by(RoundRow.campaign)
            .subquery()
        )
        query = (
            select(RoundRow)
            .join(newest, (newest.c.campaign == RoundRow.campaign) & (newest.c.round_no == RoundRow.round_no))
            .join(CampaignRow, CampaignRow.name == RoundRow.campaign)
            .join(LeaseRow, LeaseRow.campaign == RoundRow.campaign)
            .where(CampaignRow.state == "running")
            .where((LeaseRow.owner == "") | (LeaseRow.expires_at < now))
            .where(RoundRow.enqueued_at < now - again_after_s)
        )
        with self.writing() as session:
            rows = list(session.scalars(query))
            for row in rows:
                row.enqueued_at = now
            return [round_of(row) for row in rows]

    # ---- leases --------------------------------------------------------------------------------------

    def take_lease(self, name: str, owner: str, seconds: float) -> Lease | None:
        """None while another worker holds the campaign, or when it is gone or at rest."""
        now = time.time()
        with self.writing() as session:
            # Locked first: on PostgreSQL two workers would otherwise both read the old token and both add one to it.
            row, campaign = session.get(LeaseRow, name, with_for_update=True), session.get(CampaignRow, name)
            if campaign is None or row is None or campaign.state != "running":
                return None
            if row.owner and row.expires_at > now:
                return None
            row.owner, row.token, row.expires_at = owner, row.token + 1, now + seconds
            # Claimed: whatever message led here is used up, and if this worker dies the round is due at once.
            self._stamp(session, name, 0.0)
            return Lease(name, owner, row.token)

    def renew_lease(self, lease: Lease, seconds: float) -> CampaignState:
        """The campaign's state, so that its owner sees a pause or a cancellation. Raises LeaseLost."""
        with self.writing(lease) as session:
            session.get_one(LeaseRow, lease.campaign).expires_at = time.time() + seconds
            return session.get_one(CampaignRow, lease.campaign).state  # type: ignore[return-value]

    def give_back(self, lease: Lease) -> None:
        """Let the next worker begin at once. Nothing when the lease is lost already."""
        with self.writing() as session:
            session.execute(
                update(LeaseRow)
                .where(LeaseRow.campaign == lease.campaign, LeaseRow.token == lease.token)
                .values(owner="", expires_at=0.0)
            )

    def mark_enqueued(self, name: str, enqueued: bool = True) -> None:
        """A message about the campaign's newest round is on its way, or could not be sent after all."""
        with self.writing() as session:
            self._stamp(session, name, time.time() if enqueued else 0.0)

    def owner(self, name: str) -> str:
        """Who works on the campaign now; empty for nobody."""
        with self.reading() as session:
            row = session.get(LeaseRow, name)
            return row.owner if row is not None and row.expires_at > time.time() else ""

    def _stamp(self, session: Session, name: str, when: float) -> None:
        session.execute(update(RoundRow).where(RoundRow.campaign == name).values(enqueued_at=when))


def _taken(owner: Mapped[str], expires_at: Mapped[float], now: float) -> ColumnElement[bool]:
    return and_(owner != "", expires_at > now).label("taken")
