"""Labels that no round asked for: how they join a campaign without a round losing its footing."""

from collections.abc import Callable, Sequence

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from services.common.errors import BadRequest, Conflict, NotFound
from services.trainer.campaign import Campaign, Standing
from services.trainer.oracle import Answer
from services.trainer.tables import CampaignRow, LabelRow, LeaseRow, PickRow, RoundRow
from services.trainer.transactions import Transactions, label_row

Choose = Callable[[Standing], Sequence[Answer]]


class LabelImports(Transactions):
    """Needs no lease: a worker may hold it for hours. Locking it keeps every commit of that worker out meanwhile."""

    def look(self, campaign: Campaign, choose: Choose) -> Standing:
        """What `add` would do now, without doing it."""
        with self.reading() as session:
            _, standing = _standing(session, campaign)
            _check(campaign, standing, choose(standing))
            return standing

    def add(self, campaign: Campaign, choose: Choose) -> Standing:
        """Add what `choose` picks, knowing where the campaign stands, as labels of the next round that can have them.

        All in one transaction. Raises NotFound, Conflict when no round will come, and BadRequest for a choice that is
        labelled or asked for already, names no class or is beyond the budget: nothing is written then.
        """
        with self.writing() as session:
            # Every commit of a worker locks this row first: no round moves on between what is read here and written.
            lease = session.get(LeaseRow, campaign.name, with_for_update=True)
            newest, standing = _standing(session, campaign)
            answers = choose(standing)
            _check(campaign, standing, answers)
            for answer in answers:
                session.add(label_row(campaign.name, standing.round_no, answer, drawn_at_random=False))
            if answers and newest.state == "selecting" and lease is not None:
                _begin_anew(session, lease)
            return standing


def _standing(session: Session, campaign: Campaign) -> tuple[RoundRow, Standing]:
    """The campaign's newest round, and what follows from it."""
    name, config = campaign.name, campaign.config
    row = session.get(CampaignRow, name)
    newest = session.scalar(
        select(RoundRow).where(RoundRow.campaign == name).order_by(RoundRow.round_no.desc()).limit(1)
    )
    if row is None or newest is None:
        raise NotFound(f"campaign {name!r} is gone")
    if row.state in ("finished", "cancelled"):
        raise Conflict(f"campaign {name!r} is {row.state}; no round will come that could train on more labels")
    labels = select(LabelRow.sample_id, LabelRow.class_index).where(LabelRow.campaign == name)
    labelled = {row.sample_id: row.class_index for row in session.execute(labels)}
    picked = set(session.scalars(select(PickRow.sample_id).where(PickRow.campaign == name)))
    # A round that has its picks also has its labels settled: its model must come out the same after any crash.
    round_no = newest.round_no if newest.state == "selecting" else newest.round_no + 1
    room = config.budget - len(picked | labelled.keys()) if round_no <= config.last_round else 0
    return newest, Standing(round_no, max(0, room), labelled, frozenset(picked - labelled.keys()))


def _check(campaign: Campaign, standing: Standing, answers: Sequence[Answer]) -> None:
    seen: set[str] = set()
    for answer in answers:
        sample, last_class = answer.sample_id, len(campaign.classes) - 1
        if sample in standing.labelled or sample in standing.asked or sample in seen:
            raise BadRequest(f"sample {sample} is labelled or asked for already; labels never change")
        if not 0 <= answer.class_index <= last_class:
            raise BadRequest(f"sample {sample}: class {answer.class_index} is not one of 0..{last_class}")
        seen.add(sample)
    if len(answers) > standing.room:
        raise BadRequest(f"{len(answers)} labels are more than the {standing.room} that the budget has left")


def _begin_anew(session: Session, lease: LeaseRow) -> None:
    """Whoever is choosing the round's batch knows neither these labels nor what they cost: the lease goes from them,
    and the round is due again at once.
    """
    lease.owner, lease.token, lease.expires_at = "", lease.token + 1, 0.0
    session.execute(update(RoundRow).where(RoundRow.campaign == lease.campaign).values(enqueued_at=0.0))
