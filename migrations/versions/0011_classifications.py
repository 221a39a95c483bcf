"""Classification runs: their rows, distinct texts, questions and answers

Revision ID: 0011
Revises: 0010
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION, JSONB, REAL

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_COUNTERS = (
    "received", "texts", "asked_to", "settled_to", "final_rows", "failed", "asked", "answered", "escalated", "forgiven",
)  # fmt: skip


def _counter(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), server_default="0", nullable=False)


def _of_run() -> sa.Column[int]:
    return sa.Column("classification_id", sa.BigInteger(), autoincrement=False, nullable=False)


def _number(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), autoincrement=False, nullable=False)


def upgrade() -> None:
    op.create_table(
        "classification",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("api_key_id", sa.BigInteger(), nullable=True),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("max_cost_usd", sa.Numeric(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("ending", sa.Text(), nullable=True),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column("created_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("started_at", _TIME, nullable=True),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.Column("total", sa.Integer(), nullable=True),
        *map(_counter, _COUNTERS),
        sa.Column("cost_usd", sa.Numeric(), server_default="0", nullable=False),
        sa.Column("models", JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("gate", JSONB(), nullable=True),
        sa.Column("threshold", DOUBLE_PRECISION(), nullable=True),
        sa.Column("calibration", JSONB(), nullable=True),
        sa.Column("rate", REAL(), server_default="0", nullable=False),
        sa.Column("paced_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "(state IN ('receiving', 'running')) = (finished_at IS NULL)", name="classification_final_is_finished"
        ),
        sa.CheckConstraint(
            "state IN ('receiving', 'running', 'completed', 'stopped', 'failed', 'cancelled')",
            name="classification_state_known",
        ),
        sa.PrimaryKeyConstraint("id"),
        postgresql_with={"fillfactor": 50},
    )
    op.create_index("classification_open", "classification", ["id"], postgresql_where=sa.text("finished_at IS NULL"))
    op.create_index("classification_by_tenant", "classification", ["tenant_id", "id"])
    op.create_table(
        "classification_text",
        _of_run(),
        _number("text_no"),
        sa.Column("first_row", sa.Integer(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("truth", ARRAY(sa.Text()), nullable=True),
        sa.PrimaryKeyConstraint("classification_id", "text_no"),
    )
    op.create_index(
        "classification_text_by_digest", "classification_text", ["digest", "classification_id"], unique=True
    )
    op.create_index(
        "classification_text_with_truth",
        "classification_text",
        ["classification_id", "text_no"],
        postgresql_where=sa.text("truth IS NOT NULL"),
    )
    op.create_table(
        "classification_row",
        _of_run(),
        _number("row_no"),
        sa.Column("text_no", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("classification_id", "row_no"),
    )
    op.create_table(
        "classification_part",
        _of_run(),
        _number("part_no"),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.BigInteger(), nullable=False),
        sa.Column("text_nos", ARRAY(sa.Integer()), nullable=False),
        sa.Column("texts", sa.Integer(), nullable=False),
        sa.Column("worst_usd", ARRAY(sa.Numeric()), nullable=True),
        _counter("collected"),
        sa.Column("followed", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("collected <= texts", name="classification_part_not_more_than_all"),
        sa.PrimaryKeyConstraint("classification_id", "part_no"),
    )
    op.create_table(
        "classification_answer",
        _of_run(),
        _number("text_no"),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=False),
        sa.Column("labels", ARRAY(sa.Text()), nullable=True),
        sa.Column("confidence", DOUBLE_PRECISION(), nullable=True),
        sa.Column("model", sa.Text(), nullable=True),
        sa.Column("cost_usd", sa.Numeric(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("classification_id", "text_no", "stage"),
    )


def downgrade() -> None:
    for table in ("answer", "part", "row", "text"):
        op.drop_table(f"classification_{table}")
    op.drop_table("classification")
