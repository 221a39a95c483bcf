"""Prices, rent windows, budgets and quotes; the ledger says of which window and key a row is, and what else it could
have cost

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_COLUMNS = (
    ("job", "api_key_id", sa.BigInteger()),
    ("batch", "api_key_id", sa.BigInteger()),
    ("ledger", "api_key_id", sa.BigInteger()),
    ("ledger", "window_id", sa.BigInteger()),
    ("ledger", "large_usd", sa.Numeric()),
    ("ledger", "hosted_usd", sa.Numeric()),
    ("ledger", "note", sa.Text()),
    ("outbox", "data", JSONB()),
    ("worker", "place", sa.Text()),
    ("benchmark", "posting_ids", ARRAY(sa.BigInteger())),
)
_CHECK = "ledger_cost_not_negative"
_STANDING = sa.text("stopped_at IS NULL")


def upgrade() -> None:
    # Beside the fleet at work: see 0003 and 0007. The new check is weaker than the old one, so all rows keep it.
    with op.get_context().autocommit_block():
        for table, name, kind in _COLUMNS:
            op.add_column(table, sa.Column(name, kind, nullable=True), if_not_exists=True)
        op.add_column(
            "ledger",
            sa.Column("cached_tokens", sa.Integer(), server_default="0", nullable=False),
            if_not_exists=True,
        )
        op.alter_column("ledger", "tier", nullable=True)
        op.alter_column("ledger", "deployment", nullable=True)
        op.execute(f"ALTER TABLE ledger DROP CONSTRAINT IF EXISTS {_CHECK}")
        op.execute(
            f"ALTER TABLE ledger ADD CONSTRAINT {_CHECK} "
            "CHECK (cost_usd >= 0 OR kind IN ('idle', 'adjustment')) NOT VALID"
        )
        op.execute(f"ALTER TABLE ledger VALIDATE CONSTRAINT {_CHECK}")
        op.drop_index("ledger_by_window", "ledger", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            "ledger_by_window",
            "ledger",
            ["window_id"],
            postgresql_where=sa.text("window_id IS NOT NULL"),
            postgresql_concurrently=True,
        )
        op.drop_index("ledger_by_day", "ledger", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            "ledger_by_day",
            "ledger",
            ["posted_at"],
            postgresql_using="brin",
            postgresql_with={"autosummarize": "on"},
            postgresql_concurrently=True,
        )
    op.create_table(
        "price",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), server_default="", nullable=False),
        sa.Column("purchase", sa.Text(), server_default="", nullable=False),
        sa.Column("valid_from", sa.Date(), nullable=False),
        sa.Column("input_usd_per_1m", sa.Numeric(), nullable=True),
        sa.Column("output_usd_per_1m", sa.Numeric(), nullable=True),
        sa.Column("cached_input_usd_per_1m", sa.Numeric(), nullable=True),
        sa.Column("usd_per_hour", sa.Numeric(), nullable=True),
        sa.Column("gpus", sa.Integer(), nullable=True),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("read_on", sa.Date(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("loaded_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("kind", "provider", "name", "region", "purchase", "valid_from", name="price_one_a_day"),
    )
    op.create_table(
        "rent_window",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.BigInteger(), nullable=True),
        sa.Column("deployment", sa.Text(), nullable=True),
        sa.Column("started_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("served_at", _TIME, nullable=True),
        sa.Column("stopped_at", _TIME, nullable=True),
        sa.Column("closed_at", _TIME, nullable=True),
        sa.Column("usd_per_hour", sa.Numeric(), nullable=False),
        sa.Column("gpus", sa.Integer(), server_default="0", nullable=False),
        sa.Column("purchase", sa.Text(), nullable=False),
        sa.Column("price_id", sa.BigInteger(), nullable=True),
        sa.Column("input_usd_per_1m", sa.Numeric(), server_default="0", nullable=False),
        sa.Column("output_usd_per_1m", sa.Numeric(), server_default="0", nullable=False),
        sa.Column("measured_by", ARRAY(sa.BigInteger()), nullable=True),
        sa.Column("catalog", sa.Text(), nullable=False),
        sa.CheckConstraint("stopped_at >= started_at", name="rent_window_stops_after_its_start"),
        sa.CheckConstraint(
            "(closed_at IS NOT NULL) <= (stopped_at IS NOT NULL)", name="rent_window_closed_has_stopped"
        ),
        sa.CheckConstraint("usd_per_hour >= 0", name="rent_window_rent_not_negative"),
        sa.PrimaryKeyConstraint("id"),
        postgresql_with={"fillfactor": 50},
    )
    op.create_index("rent_window_standing", "rent_window", ["place"], unique=True, postgresql_where=_STANDING)
    op.create_index("rent_window_by_worker", "rent_window", ["worker_id"], postgresql_where=_STANDING)
    op.create_index(
        "rent_window_unclosed", "rent_window", ["stopped_at"], postgresql_where=sa.text("closed_at IS NULL")
    )
    op.create_index("rent_window_by_time", "rent_window", ["started_at"])
    op.create_table(
        "budget",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("api_key_id", sa.BigInteger(), nullable=True),
        sa.Column("period", sa.Text(), nullable=False),
        sa.Column("limit_usd", sa.Numeric(), nullable=False),
        sa.Column("hard", sa.Boolean(), nullable=False),
        sa.Column("alert_url", sa.Text(), nullable=True),
        sa.Column("created_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("period IN ('day', 'month')", name="budget_period_known"),
        sa.CheckConstraint("limit_usd >= 0", name="budget_limit_not_negative"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint(
            "tenant_id", "api_key_id", "period", name="budget_one_a_period", postgresql_nulls_not_distinct=True
        ),
    )
    op.create_table(
        "budget_period",
        sa.Column("budget_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("starts_on", sa.Date(), nullable=False),
        sa.Column("reserved_usd", sa.Numeric(), server_default="0", nullable=False),
        sa.Column("spent_usd", sa.Numeric(), server_default="0", nullable=False),
        sa.Column("told", sa.SmallInteger(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("budget_id", "starts_on"),
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "reservation",
        sa.Column("first_job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("budget_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("starts_on", sa.Date(), nullable=False),
        sa.Column("usd", sa.Numeric(), nullable=False),
        sa.PrimaryKeyConstraint("first_job_id", "budget_id"),
    )
    op.create_table(
        "quote",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("file_id", sa.BigInteger(), nullable=True),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("offers", JSONB(), nullable=False),
        sa.Column("created_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("batch_id", sa.BigInteger(), nullable=True),
        sa.Column("tier", sa.Text(), nullable=True),
        sa.Column("actual", JSONB(), nullable=True),
        sa.Column("settled_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "quote_unsettled",
        "quote",
        ["batch_id"],
        postgresql_where=sa.text("batch_id IS NOT NULL AND settled_at IS NULL"),
    )
    op.create_index("quote_by_tenant", "quote", ["tenant_id", "id"])
    op.create_index(
        "quote_of_file",
        "quote",
        ["file_id", "id"],
        postgresql_where=sa.text("file_id IS NOT NULL AND batch_id IS NULL"),
    )
    op.create_index("quote_settled", "quote", ["settled_at"], postgresql_where=sa.text("settled_at IS NOT NULL"))


def downgrade() -> None:
    for table in ("quote", "reservation", "budget_period", "budget", "rent_window", "price"):
        op.drop_table(table)
    with op.get_context().autocommit_block():
        op.drop_index("ledger_by_day", "ledger", if_exists=True, postgresql_concurrently=True)
        op.drop_index("ledger_by_window", "ledger", if_exists=True, postgresql_concurrently=True)
    # What the earlier version has no place for: it takes every row of a job for a charge.
    op.execute("DELETE FROM ledger WHERE kind NOT IN ('inference', 'benchmark')")
    op.drop_constraint(_CHECK, "ledger")
    op.create_check_constraint(_CHECK, "ledger", "cost_usd >= 0")
    op.alter_column("ledger", "deployment", nullable=False)
    op.alter_column("ledger", "tier", nullable=False)
    op.drop_column("ledger", "cached_tokens")
    for table, name, _ in reversed(_COLUMNS):
        op.drop_column(table, name)
