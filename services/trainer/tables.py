"""The database schema. Changes come with a migration in migrations/versions."""

from sqlalchemy import BigInteger, Boolean, Float, ForeignKey, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Of a progress row's detail, in characters; what is longer is cut.
MAX_DETAIL = 255


class Base(DeclarativeBase): ...


def _campaign_key() -> Mapped[str]:
    return mapped_column(ForeignKey("campaigns.name", ondelete="CASCADE"), primary_key=True)


class CampaignRow(Base):
    __tablename__ = "campaigns"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    config: Mapped[str] = mapped_column(Text)
    source_id: Mapped[str] = mapped_column(String(64))
    classes: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16), index=True)
    reason: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[float] = mapped_column(Float)


class NumberRow(Base):
    """The last number given to a campaign of a base name: a deleted campaign's name never comes again."""

    __tablename__ = "numbers"

    base: Mapped[str] = mapped_column(String(63), primary_key=True)
    last: Mapped[int] = mapped_column(Integer)


class RoundRow(Base):
    __tablename__ = "rounds"

    campaign: Mapped[str] = _campaign_key()
    round_no: Mapped[int] = mapped_column(Integer, primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    strategy: Mapped[str] = mapped_column(String(64))
    version: Mapped[int | None] = mapped_column(Integer)
    promoted: Mapped[bool | None] = mapped_column(Boolean)
    promotion_reason: Mapped[str] = mapped_column(Text, default="")
    query_score: Mapped[float | None] = mapped_column(Float)
    images_per_second: Mapped[float | None] = mapped_column(Float)
    seconds: Mapped[str] = mapped_column(Text, default="{}")
    report: Mapped[str] = mapped_column(Text, default="{}")
    # When a worker last put the round's task into the broker, Unix time.
    enqueued_at: Mapped[float] = mapped_column(Float, default=0.0)
    failures: Mapped[int] = mapped_column(Integer, default=0)


class PickRow(Base):
    __tablename__ = "picks"

    campaign: Mapped[str] = _campaign_key()
    sample_id: Mapped[str] = mapped_column(String(48), primary_key=True)
    round_no: Mapped[int] = mapped_column(Integer, index=True)
    rank: Mapped[int] = mapped_column(Integer)
    score: Mapped[float | None] = mapped_column(Float)
    drawn_at_random: Mapped[bool] = mapped_column(Boolean)
    # Class index and probability by the newest model when the sample was asked for.
    predicted: Mapped[int | None] = mapped_column(Integer)
    confidence: Mapped[float | None] = mapped_column(Float)


class LabelRow(Base):
    """One annotator's answer about one sample. Rows are added and never changed."""

    __tablename__ = "labels"
    __table_args__ = (UniqueConstraint("campaign", "sample_id", "annotator"),)

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    campaign: Mapped[str] = mapped_column(ForeignKey("campaigns.name", ondelete="CASCADE"), index=True)
    sample_id: Mapped[str] = mapped_column(String(48))
    class_index: Mapped[int] = mapped_column(Integer)
    annotator: Mapped[str] = mapped_column(String(128))
    origin: Mapped[str] = mapped_column(String(32))
    round_no: Mapped[int] = mapped_column(Integer)
    drawn_at_random: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[float] = mapped_column(Float)


class LeaseRow(Base):
    __tablename__ = "leases"

    campaign: Mapped[str] = _campaign_key()
    # Empty while nobody owns the campaign.
    owner: Mapped[str] = mapped_column(String(255))
    token: Mapped[int] = mapped_column(Integer)
    expires_at: Mapped[float] = mapped_column(Float)


class ProgressRow(Base):
    __tablename__ = "progress"

    campaign: Mapped[str] = _campaign_key()
    round_no: Mapped[int] = mapped_column(Integer)
    phase: Mapped[str] = mapped_column(String(32))
    done: Mapped[int] = mapped_column(Integer)
    total: Mapped[int] = mapped_column(Integer)
    detail: Mapped[str] = mapped_column(String(MAX_DETAIL), default="", server_default="")
    started_at: Mapped[float] = mapped_column(Float)
    updated_at: Mapped[float] = mapped_column(Float)


class ComparisonRow(Base):
    __tablename__ = "comparisons"

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    config: Mapped[str] = mapped_column(Text)
    source_id: Mapped[str] = mapped_column(String(64))
    # JSON: backbone's name in the configuration -> embedding id.
    embedding_ids: Mapped[str] = mapped_column(Text)
    # "running" or "stopped"; whether it is finished follows from its cells.
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[float] = mapped_column(Float)


class CellRow(Base):
    """One cell of a comparison: due until it has a result."""

    __tablename__ = "cells"

    comparison: Mapped[str] = mapped_column(ForeignKey("comparisons.name", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    # Its place in the order of work.
    position: Mapped[int] = mapped_column(Integer)
    # JSON of the cell's parts.
    cell: Mapped[str] = mapped_column(Text)
    # Digest of everything that decides the result.
    recipe: Mapped[str] = mapped_column(String(16))
    # "due", "done" or "failed".
    state: Mapped[str] = mapped_column(String(16), index=True)
    result: Mapped[str] = mapped_column(Text, default="")
    reason: Mapped[str] = mapped_column(Text, default="")
    failures: Mapped[int] = mapped_column(Integer, default=0)
    # Who works on it until when; empty for nobody.
    owner: Mapped[str] = mapped_column(String(255), default="")
    expires_at: Mapped[float] = mapped_column(Float, default=0.0)
    enqueued_at: Mapped[float] = mapped_column(Float, default=0.0)
