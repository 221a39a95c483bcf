"""Jobs keep the key of what they begin with, for their home; and starts are found by when they ended, for reports: a
BRIN, since rows come in that order, costs a few kilobytes

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Beside the fleet at work: every ending writes a timing, and would wait for all of a plain index. What is made here
    # stands even if the rest fails, so this comes first, and begins with what an earlier attempt may have left.
    with op.get_context().autocommit_block():
        op.drop_index("timing_by_end", "timing", if_exists=True, postgresql_concurrently=True)
        op.create_index("timing_by_end", "timing", ["ended_at"], postgresql_using="brin", postgresql_concurrently=True)
    op.add_column("job", sa.Column("prefix_key", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index("timing_by_end", "timing", if_exists=True, postgresql_concurrently=True)
    op.drop_column("job", "prefix_key")
