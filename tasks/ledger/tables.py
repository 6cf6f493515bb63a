"""The ledger's tables: portable types, append-only, and on SQLite guarded by triggers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    event,
)
from sqlalchemy.types import TypeEngine

FORMAT = 1


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware time, kept as UTC without zone so that every database sorts it alike.

    SQLite, which has no type for times, keeps `YYYY-MM-DD HH:MM:SS.ffffff`.
    """

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:  # noqa: D102 (SQLAlchemy's)
        return dialect.type_descriptor(String(26) if dialect.name == "sqlite" else DateTime())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:  # noqa: D102 (SQLAlchemy's)
        if value is None:
            return None
        plain = value.astimezone(UTC).replace(tzinfo=None)
        return plain.isoformat(" ", "microseconds") if dialect.name == "sqlite" else plain

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: D102 (SQLAlchemy's)
        if value is None:
            return None
        return (datetime.fromisoformat(value) if isinstance(value, str) else value).replace(tzinfo=UTC)


metadata = MetaData()


def _sequence() -> Column[int]:
    return Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)


formats = Table("formats", metadata, Column("format", Integer, primary_key=True))

files = Table(
    "files",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("accepted", BigInteger, nullable=False),
    Column("quarantined", BigInteger, nullable=False),
    Column("reason", String(32)),
    Column("sentence", Text),
    Column("curated", Text),
    Column("quarantine", Text),
    Column("run_id", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
)

facts = Table(
    "facts",
    metadata,
    Column("fact_id", String(32), primary_key=True),
    Column("subject_key", Text, nullable=False),
    Column("relation_key", Text, nullable=False),
    Column("effective_at", UtcDateTime, nullable=False),
    Column("observed_at", UtcDateTime, nullable=False),
    Column("canonical", Text, nullable=False),
    Column("file_digest", String(64), nullable=False),
    Column("row", BigInteger, nullable=False),
    Index("facts_by_key", "subject_key", "relation_key"),
)

observations = Table(
    "observations",
    metadata,
    _sequence(),
    Column("fact_id", String(32), nullable=False, index=True),
    Column("observed_at", UtcDateTime, nullable=False),
    Column("file_digest", String(64), nullable=False),
)

quarantined_rows = Table(
    "quarantined_rows",
    metadata,
    Column("file_digest", String(64), primary_key=True),
    Column("row", BigInteger, primary_key=True),
    Column("reason", String(32), nullable=False),
    Column("sentence", Text, nullable=False),
    Column("fact_id", String(32)),
)

events = Table(
    "events",
    metadata,
    _sequence(),
    Column("fact_id", String(32), nullable=False, index=True),
    Column("kind", String(24), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("state_digest", String(64)),
    Column("detail", JSON, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("state_digest", String(64), nullable=False, index=True),
    Column("parent_digest", String(64)),
    Column("base_fingerprint", String(64), nullable=False),
    Column("method", Text, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("night", UtcDateTime, nullable=False),
    Column("report", Text),
    Column("run_id", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
)

alias_moves = Table(
    "alias_moves",
    metadata,
    _sequence(),
    Column("alias", Text, nullable=False),
    Column("from_version", Integer),
    Column("to_version", Integer),
    Column("who", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("report", Text),
    Column("at", UtcDateTime, nullable=False),
)

answers = Table(
    "answers",
    metadata,
    Column("state_digest", String(64), primary_key=True),
    Column("suite", String(64), primary_key=True),
    Column("item_id", Text, primary_key=True),
    Column("prompt", Text, nullable=False),
    Column("answer", Text, nullable=False),
)

batch_commits = Table(
    "batch_commits",
    metadata,
    Column("night", Text, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("batch_id", String(64), nullable=False),
    Column("parent_digest", String(64)),
    Column("state_digest", String(64), nullable=False),
    Column("path", Text, nullable=False),
    Column("detail", JSON, nullable=False),
    Column("run_id", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    _sequence(),
    Column("run_id", Text, nullable=False, index=True),
    Column("kind", Text, nullable=False),
    Column("phase", String(16), nullable=False),
    Column("as_of", UtcDateTime),
    Column("detail", JSON, nullable=False),
    Column("at", UtcDateTime, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    _sequence(),
    Column("name", Text, nullable=False),
    Column("position", Integer, nullable=False),
    Column("token", String(32), nullable=False),
    Column("owner", Text, nullable=False),
    Column("host", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    UniqueConstraint("name", "position"),
)

for _table in metadata.sorted_tables:
    for _verb in ("UPDATE", "DELETE"):
        event.listen(
            _table,
            "after_create",
            DDL(
                f"CREATE TRIGGER {_table.name}_refuses_{_verb.lower()} BEFORE {_verb} ON {_table.name} "
                f"BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: {_table.name} refuses {_verb}'); END"
            ).execute_if(dialect="sqlite"),
        )
