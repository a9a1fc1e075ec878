"""Comparisons in the database: which cells are due, who works on them, and what came of them.

A cell has a claim of its own and not a campaign's lease: several workers share a comparison, and the result of a
worker whose claim has run out is the same as that of the one who took over.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.orm import Session

from services.common.errors import Conflict, NotFound, did_you_mean
from services.common.files import digest
from services.trainer.comparison.cells import Cell, CellResult
from services.trainer.comparison.plans import Plan, read_plan
from services.trainer.tables import CellRow, ComparisonRow
from services.trainer.transactions import Transactions

_MAX_FAILURES = 3


@dataclass(frozen=True)
class Comparison:
    name: str
    config: Plan
    source_id: str
    # Backbone's name in the configuration -> embedding id.
    embedding_ids: Mapping[str, str]
    state: str


@dataclass(frozen=True)
class Tally:
    """How far a comparison or a grid search is, counted from what its configuration asks for."""

    done: int
    total: int
    # Cells that somebody works on now.
    running: int
    # Key -> why it has no result.
    failed: Mapping[str, str]

    @property
    def over(self) -> bool:
        return self.done + len(self.failed) == self.total


class ComparisonStore(Transactions):
    # ---- comparisons ---------------------------------------------------------------------------------

    def begin(self, config: Plan, source_id: str, embedding_ids: Mapping[str, str]) -> Comparison:
        """Make the comparison, or go on with it: cells that are done stay, failed ones are due again.

        Strategies, seeds, backbones and heads may be added or left out. Raises Conflict when what decides an
        existing cell's result has changed.
        """
        recipes = {cell: _recipe(config, cell, source_id, embedding_ids) for cell in config.cells()}
        with self.writing() as session:
            row = session.get(ComparisonRow, config.name)
            if row is None:
                row = ComparisonRow(name=config.name, created_at=time.time())
                session.add(row)
            elif read_plan(row.config).kind != config.kind:
                raise Conflict(f"{config.name!r} is the name of another kind of study here; give this one another name")
            row.config, row.source_id = config.model_dump_json(), source_id
            row.embedding_ids, row.state = json.dumps(dict(embedding_ids)), "running"
            session.flush()
            known = {r.key: r for r in session.scalars(select(CellRow).where(CellRow.comparison == config.name))}
            for position, (cell, recipe) in enumerate(recipes.items()):
                there = known.get(cell.key)
                if there is None:
                    session.add(_new_row(config.name, position, cell, recipe))
                    continue
                if there.recipe != recipe:
                    raise Conflict(
                        f"comparison {config.name!r} has results of another configuration (cell {cell.key}); "
                        "give this one another name"
                    )
                there.position, there.enqueued_at = position, 0.0
                if there.state == "failed":
                    there.state, there.failures, there.reason = "due", 0, ""
                    there.owner, there.expires_at = "", 0.0
        return self.comparison(config.name)

    def comparison(self, name: str) -> Comparison:
        """Raises NotFound naming the nearest one."""
        with self.reading() as session:
            row = session.get(ComparisonRow, name)
            if row is None:
                known = session.scalars(select(ComparisonRow.name)).all()
                raise NotFound(f"no comparison {name!r}; {did_you_mean(name, known)}")
            config = read_plan(row.config)
            return Comparison(row.name, config, row.source_id, json.loads(row.embedding_ids), row.state)

    def has(self, name: str) -> bool:
        with self.reading() as session:
            return session.get(ComparisonRow, name) is not None

    def stop(self, name: str) -> None:
        """Cells that run end without a result, the others are not begun. `begin` goes on."""
        with self.writing() as session:
            row = session.get(ComparisonRow, name)
            if row is None:
                raise NotFound(
                    f"no comparison {name!r}; {did_you_mean(name, session.scalars(select(ComparisonRow.name)))}"
                )
            row.state = "stopped"

    def tally(self, comparison: Comparison) -> Tally:
        wanted = {cell.key for cell in comparison.config.cells()}
        now = time.time()
        with self.reading() as session:
            columns = (CellRow.key, CellRow.state, CellRow.reason, CellRow.owner, CellRow.expires_at)
            rows = session.execute(select(*columns).where(CellRow.comparison == comparison.name)).all()
        rows = [r for r in rows if r.key in wanted]
        return Tally(
            done=sum(r.state == "done" for r in rows),
            total=len(wanted),
            running=sum(r.state == "due" and r.owner != "" and r.expires_at > now for r in rows),
            failed={r.key: r.reason for r in rows if r.state == "failed"},
        )

    def tallies(self, comparisons: Sequence[Comparison]) -> dict[str, Tally]:
        """By name."""
        return {comparison.name: self.tally(comparison) for comparison in comparisons}

    def results(self, comparison: Comparison) -> list[CellResult]:
        """Of the cells that are done and that the configuration asks for, in its order."""
        wanted = {cell.key for cell in comparison.config.cells()}
        query = select(CellRow).where(CellRow.comparison == comparison.name, CellRow.state == "done")
        with self.reading() as session:
            rows = session.scalars(query.order_by(CellRow.position)).all()
            return [CellResult.of_json(json.loads(r.result)) for r in rows if r.key in wanted]

    # ---- what is due ---------------------------------------------------------------------------------

    def next_due(self, name: str) -> str | None:
        """The key of the first cell that nobody works on."""
        query = select(CellRow.key).where(CellRow.comparison == name, _due(time.time()), _running())
        with self.reading() as session:
            return session.scalar(query.order_by(CellRow.position).limit(1))

    def due_cells(self, again_after_s: float, waiting: int) -> list[tuple[str, str]]:
        """(comparison, key) of cells to enqueue, so many that `waiting` are on their way. They count as enqueued."""
        now = time.time()
        lately = CellRow.enqueued_at >= now - again_after_s
        with self.writing() as session:
            on_their_way = session.scalar(select(func.count()).where(_due(now), lately, _running())) or 0
            if on_their_way >= waiting:
                return []
            query = select(CellRow).where(_due(now), ~lately, _running())
            rows = list(session.scalars(query.order_by(CellRow.position).limit(waiting - on_their_way)))
            for row in rows:
                row.enqueued_at = now
            return [(row.comparison, row.key) for row in rows]

    # ---- work on one cell ----------------------------------------------------------------------------

    def claim(self, name: str, key: str, owner: str, seconds: float) -> Cell | None:
        """None when it is done, failed, stopped or somebody else's."""
        now = time.time()
        its = (CellRow.comparison == name) & (CellRow.key == key)
        with self.writing() as session:
            taken = session.execute(
                update(CellRow)
                .where(its, _due(now), _running())
                .values(owner=owner, expires_at=now + seconds, enqueued_at=0.0)
                .returning(CellRow.cell)
            ).first()
            return Cell(**json.loads(taken[0])) if taken else None

    def renew(self, name: str, key: str, owner: str, seconds: float) -> bool:
        """False when the work must end: the claim is lost, or the comparison is stopped."""
        with self.writing() as session:
            row = _owned(session, name, key, owner)
            if row is None or session.get_one(ComparisonRow, name).state != "running":
                return False
            row.expires_at = time.time() + seconds
            return True

    def give_back(self, name: str, key: str, owner: str) -> None:
        with self.writing() as session:
            if (row := _owned(session, name, key, owner)) is not None:
                row.owner, row.expires_at = "", 0.0

    def save(self, name: str, owner: str, result: CellResult) -> None:
        """Nothing when the claim is lost: whoever has it now finds the same."""
        with self.writing() as session:
            if (row := _owned(session, name, result.cell.key, owner)) is not None:
                row.state, row.result = "done", json.dumps(result.as_json())

    def fail(self, name: str, key: str, owner: str, reason: str, for_good: bool) -> None:
        """Try again, unless it is `for_good` or was tried often enough."""
        with self.writing() as session:
            if (row := _owned(session, name, key, owner)) is not None:
                row.failures, row.reason = row.failures + 1, reason
                if for_good or row.failures >= _MAX_FAILURES:
                    row.state = "failed"


def _recipe(config: Plan, cell: Cell, source_id: str, embedding_ids: Mapping[str, str]) -> str:
    campaign = config.campaign(cell).model_dump(mode="json", exclude={"name", "source"})
    return digest([campaign, source_id, embedding_ids[cell.backbone], cell.is_ceiling])


def _new_row(name: str, position: int, cell: Cell, recipe: str) -> CellRow:
    return CellRow(
        comparison=name, key=cell.key, position=position, cell=json.dumps(asdict(cell)), recipe=recipe, state="due"
    )


def _due(now: float) -> ColumnElement[bool]:
    return (CellRow.state == "due") & or_(CellRow.owner == "", CellRow.expires_at < now)


def _running() -> ColumnElement[bool]:
    return CellRow.comparison.in_(select(ComparisonRow.name).where(ComparisonRow.state == "running"))


def _owned(session: Session, name: str, key: str, owner: str) -> CellRow | None:
    row = session.get(CellRow, (name, key), with_for_update=True)
    return row if row is not None and row.owner == owner and row.state == "due" else None
