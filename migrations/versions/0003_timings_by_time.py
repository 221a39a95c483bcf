"""Starts by when they ended, for reports: a BRIN, since rows come in that order, costs a few kilobytes

Revision ID: 0003
Revises: 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("timing_by_end", "timing", ["ended_at"], postgresql_using="brin")


def downgrade() -> None:
    op.drop_index("timing_by_end", "timing")
