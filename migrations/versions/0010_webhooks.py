"""Registered webhook endpoints; an event and its deliveries are apart, and each attempt is kept

Revision ID: 0010
Revises: 0009
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_NOW = sa.text("now()")
_FALSE = sa.text("false")
_OF_DELIVERY = ("settled_at", "delivered_at", "last_error", "last_status", "attempts", "next_at")


def upgrade() -> None:
    _make_endpoints()
    # Keys that may do all that callers need may do this too; those that were given less keep to it.
    op.execute("UPDATE api_key SET scopes = scopes || '{webhooks}' WHERE scopes @> '{infer,batch,read}'")
    _make_deliveries()
    # In one transaction, since what is not settled must have no moment in which nobody owes it. It is fanned out anew,
    # to its own address and with all its attempts; what is settled takes the default of this very moment, which costs
    # no rewrite of the table.
    op.add_column("outbox", sa.Column("fanned_at", _TIME, server_default=_NOW, nullable=True))
    op.alter_column("outbox", "fanned_at", server_default=None)
    op.execute("UPDATE outbox SET fanned_at = NULL WHERE settled_at IS NULL")
    op.drop_index("outbox_due", "outbox")
    for name in _OF_DELIVERY:
        op.drop_column("outbox", name)
    op.create_index("outbox_unfanned", "outbox", ["tenant_id", "id"], postgresql_where=sa.text("fanned_at IS NULL"))


def _make_endpoints() -> None:
    op.create_table(
        "webhook_endpoint",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("events", ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("include_result", sa.Boolean(), server_default=_FALSE, nullable=False),
        sa.Column("fleet", sa.Boolean(), server_default=_FALSE, nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("previous_secret", sa.Text(), nullable=True),
        sa.Column("previous_secret_until", _TIME, nullable=True),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("failing_since", _TIME, nullable=True),
        sa.Column("disabled_at", _TIME, nullable=True),
        sa.Column("disabled_why", sa.Text(), nullable=True),
        sa.Column("deleted_at", _TIME, nullable=True),
        sa.CheckConstraint("(disabled_at IS NULL) = (disabled_why IS NULL)", name="webhook_endpoint_disabled_says_why"),
        sa.CheckConstraint(
            "(previous_secret IS NULL) = (previous_secret_until IS NULL)", name="webhook_endpoint_previous_ends"
        ),
        sa.PrimaryKeyConstraint("id"),
        postgresql_with={"fillfactor": 50},
    )
    op.create_index(
        "webhook_endpoint_enabled",
        "webhook_endpoint",
        ["tenant_id"],
        postgresql_where=sa.text("disabled_at IS NULL AND deleted_at IS NULL"),
    )
    op.create_index("webhook_endpoint_by_tenant", "webhook_endpoint", ["tenant_id", "id"])
    op.create_table(
        "delivery_lane",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("endpoint_id", sa.BigInteger(), nullable=True),
        sa.Column("origin", sa.Text(), nullable=True),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("steady", sa.Boolean(), server_default=_FALSE, nullable=False),
        sa.Column("resting_until", _TIME, nullable=True),
        sa.CheckConstraint("(endpoint_id IS NULL) <> (origin IS NULL)", name="delivery_lane_has_one_owner"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("endpoint_id", name="delivery_lane_of_endpoint"),
        sa.UniqueConstraint("tenant_id", "origin", name="delivery_lane_of_origin"),
        postgresql_with={"fillfactor": 50},
    )


def _make_deliveries() -> None:
    op.create_table(
        "delivery",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("outbox_id", sa.BigInteger(), nullable=False),
        sa.Column("lane_id", sa.BigInteger(), nullable=False),
        sa.Column("endpoint_id", sa.BigInteger(), nullable=True),
        sa.Column("url", sa.Text(), nullable=True),
        sa.Column("created_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("first_due_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("next_at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("delivered_at", _TIME, nullable=True),
        sa.Column("settled_at", _TIME, nullable=True),
        sa.CheckConstraint("(endpoint_id IS NULL) <> (url IS NULL)", name="delivery_has_one_receiver"),
        sa.CheckConstraint(
            "(delivered_at IS NOT NULL) <= (settled_at IS NOT NULL)", name="delivery_delivered_is_settled"
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("outbox_id", "endpoint_id", name="delivery_once", postgresql_nulls_not_distinct=True),
        postgresql_with={"fillfactor": 70},
    )
    op.create_index("delivery_due", "delivery", ["lane_id", "next_at"], postgresql_where=sa.text("settled_at IS NULL"))
    op.create_index("delivery_by_tenant", "delivery", ["tenant_id", "id"])
    op.create_index(
        "delivery_by_time", "delivery", ["created_at"], postgresql_using="brin", postgresql_with={"autosummarize": "on"}
    )
    op.create_index(
        "delivery_by_endpoint", "delivery", ["endpoint_id", "id"], postgresql_where=sa.text("endpoint_id IS NOT NULL")
    )
    op.create_index(
        "delivery_failed",
        "delivery",
        ["tenant_id", "id"],
        postgresql_where=sa.text("settled_at IS NOT NULL AND delivered_at IS NULL"),
    )
    op.create_table(
        "delivery_attempt",
        sa.Column("delivery_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at", _TIME, server_default=_NOW, nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("latency_ms", sa.REAL(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("address", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("delivery_id", "attempt"),
    )


def downgrade() -> None:
    op.execute("UPDATE api_key SET scopes = array_remove(scopes, 'webhooks')")
    op.drop_index("outbox_unfanned", "outbox")
    op.add_column("outbox", sa.Column("next_at", _TIME, server_default=_NOW, nullable=False))
    op.add_column("outbox", sa.Column("attempts", sa.Integer(), server_default="0", nullable=False))
    op.add_column("outbox", sa.Column("last_status", sa.Integer(), nullable=True))
    op.add_column("outbox", sa.Column("last_error", sa.Text(), nullable=True))
    op.add_column("outbox", sa.Column("delivered_at", _TIME, nullable=True))
    op.add_column("outbox", sa.Column("settled_at", _TIME, nullable=True))
    # What is still owed to its own address stays owed; the earlier version knows of no endpoints.
    op.execute(
        "UPDATE outbox SET settled_at = now() WHERE CASE WHEN fanned_at IS NULL "
        "THEN url IS NULL AND NOT EXISTS (SELECT FROM job WHERE job.id = outbox.subject_id AND wants_callback) "
        "ELSE NOT EXISTS (SELECT FROM delivery d "
        "WHERE d.outbox_id = outbox.id AND d.url IS NOT NULL AND d.settled_at IS NULL) END"
    )
    op.drop_column("outbox", "fanned_at")
    op.create_index("outbox_due", "outbox", ["next_at"], postgresql_where=sa.text("settled_at IS NULL"))
    for table in ("delivery_attempt", "delivery", "delivery_lane", "webhook_endpoint"):
        op.drop_table(table)
