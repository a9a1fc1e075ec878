"""Who works on what: leases with fencing tokens, and the rounds that are due."""

import time

from sqlalchemy import func, select, update

from services.trainer.campaign import CampaignState, Lease, Round
from services.trainer.tables import CampaignRow, LeaseRow, RoundRow
from services.trainer.transactions import Transactions, round_of


class LeaseStore(Transactions):
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
            campaign, row = session.get(CampaignRow, name), session.get(LeaseRow, name)
            if campaign is None or row is None or campaign.state != "running":
                return None
            if row.owner and row.expires_at > now:
                return None
            row.owner, row.token, row.expires_at = owner, row.token + 1, now + seconds
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
            session.execute(update(RoundRow).where(RoundRow.campaign == lease.campaign).values(enqueued_at=0.0))
