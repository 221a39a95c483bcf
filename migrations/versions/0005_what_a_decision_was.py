"""Decisions say whether they were a fallback, explored, or had waited; and are found by when they were made, for
reports and replays: a BRIN, since rows come in that order

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_FLAGS = ("fallback", "explored", "deferred")


def upgrade() -> None:
    # Beside the fleet at work: see 0003. Ranges are summarised as they fill, or a report would read all that is new.
    with op.get_context().autocommit_block():
        op.drop_index("decision_by_time", "decision", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            "decision_by_time",
            "decision",
            ["decided_at"],
            postgresql_using="brin",
            postgresql_with={"autosummarize": "on"},
            postgresql_concurrently=True,
        )
    for flag in _FLAGS:
        op.add_column("decision", sa.Column(flag, sa.Boolean(), server_default=sa.text("false"), nullable=False))


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index("decision_by_time", "decision", if_exists=True, postgresql_concurrently=True)
    for flag in reversed(_FLAGS):
        op.drop_column("decision", flag)
