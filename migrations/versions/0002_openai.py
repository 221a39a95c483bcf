"""Files, batches in OpenAI's format, calls that wait, scopes and limits of keys, idempotency keys

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_JSON = postgresql.JSONB(astext_type=sa.Text())


def _when(name: str) -> sa.Column:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=True)


def upgrade() -> None:
    op.create_table(
        "file",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("lines", sa.Integer(), server_default="0", nullable=False),
        sa.Column("requests", sa.Integer(), server_default="0", nullable=False),
        sa.Column("ends_open", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("duplicates", postgresql.ARRAY(sa.Integer()), nullable=True),
        sa.Column("first_fault", sa.Text(), nullable=True),
        sa.Column("batch_id", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        _when("expires_at"),
        _when("deleted_at"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("file_by_tenant", "file", ["tenant_id", "id"])
    expiring = sa.text("deleted_at IS NULL AND expires_at IS NOT NULL")
    op.create_index("file_expiring", "file", ["expires_at"], postgresql_where=expiring)
    op.create_table(
        "idempotency",
        sa.Column("tenant_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("subject_id", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "key"),
    )
    op.create_index("idempotency_by_age", "idempotency", ["created_at"])

    op.add_column("tenant", sa.Column("max_enqueued_tokens", sa.BigInteger(), nullable=True))
    scopes = sa.text("'{infer,batch,read}'::text[]")
    op.add_column("api_key", sa.Column("scopes", postgresql.ARRAY(sa.Text()), server_default=scopes, nullable=False))
    op.add_column("api_key", sa.Column("requests_per_minute", sa.Integer(), nullable=True))
    op.add_column("api_key", sa.Column("tokens_per_minute", sa.Integer(), nullable=True))

    op.add_column("line", sa.Column("hash", sa.LargeBinary(), nullable=True))
    op.create_index("line_by_hash", "line", ["hash"], postgresql_where=sa.text("hash IS NOT NULL"))

    for column in (
        sa.Column("requests", sa.Integer(), nullable=True),
        sa.Column("endpoint", sa.Text(), nullable=True),
        sa.Column("window", sa.Text(), nullable=True),
        sa.Column("metadata", _JSON, nullable=True),
        sa.Column("reuse", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("enqueued_tokens", sa.BigInteger(), nullable=True),
        sa.Column("output_expires_s", sa.Integer(), nullable=True),
        _when("expanded_at"),
        _when("cancelling_at"),
        _when("finalizing_at"),
        sa.Column("counts", _JSON, nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.Column("fault", sa.Text(), nullable=True),
        sa.Column("output_file_id", sa.BigInteger(), nullable=True),
        sa.Column("error_file_id", sa.BigInteger(), nullable=True),
    ):
        op.add_column("batch", column)
    op.execute("UPDATE batch SET requests = total")
    op.execute("UPDATE batch SET expanded_at = created_at WHERE expanded_to = total")
    op.execute("UPDATE batch SET outcome = 'completed', finalizing_at = finished_at WHERE finished_at IS NOT NULL")
    op.alter_column("batch", "requests", nullable=False)
    op.create_check_constraint(
        "batch_finished_has_outcome", "batch", "(outcome IS NOT NULL) = (finished_at IS NOT NULL)"
    )
    op.create_index("batch_by_source", "batch", ["source_id"])

    attended = sa.Column("attended", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    op.add_column("job", attended)
    op.add_column("job", sa.Column("enqueued_tokens", sa.Integer(), nullable=True))
    op.add_column("result", sa.Column("extra", _JSON, nullable=True))
    op.add_column("result", sa.Column("reused_from", sa.BigInteger(), nullable=True))
    op.add_column("timing", sa.Column("revision", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("timing", "revision")
    op.drop_column("result", "reused_from")
    op.drop_column("result", "extra")
    op.drop_column("job", "enqueued_tokens")
    op.drop_column("job", "attended")
    op.drop_index("batch_by_source", table_name="batch")
    op.drop_constraint("batch_finished_has_outcome", "batch")
    for name in (
        "error_file_id", "output_file_id", "fault", "outcome", "counts", "finalizing_at", "cancelling_at",
        "expanded_at", "output_expires_s", "enqueued_tokens", "reuse", "metadata", "window", "endpoint", "requests",
    ):  # fmt: skip
        op.drop_column("batch", name)
    op.drop_index("line_by_hash", table_name="line", postgresql_where=sa.text("hash IS NOT NULL"))
    op.drop_column("line", "hash")
    for name in ("tokens_per_minute", "requests_per_minute", "scopes"):
        op.drop_column("api_key", name)
    op.drop_column("tenant", "max_enqueued_tokens")
    op.drop_index("idempotency_by_age", table_name="idempotency")
    op.drop_table("idempotency")
    op.drop_index("file_by_tenant", table_name="file")
    op.drop_table("file")
