"""Which quality model an outcome was predicted by, and a step-back is from; which catalog each process goes by, and
what keeps it from the newest

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("outcome", "quality_model", sa.Text()),
    ("step_back", "quality_model", sa.Text()),
    ("worker", "catalog_version", sa.BigInteger()),
    ("worker", "catalog_fault", sa.Text()),
)
_PREDICTED = sa.text("predicted IS NOT NULL")


def upgrade() -> None:
    # Beside the fleet at work: see 0003. What is made here stands even if the rest fails, so an earlier attempt may
    # have left any of it.
    with op.get_context().autocommit_block():
        for table, name, kind in _COLUMNS:
            op.add_column(table, sa.Column(name, kind, nullable=True), if_not_exists=True)
        op.drop_index("outcome_by_model", "outcome", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            "outcome_by_model",
            "outcome",
            ["quality_model", "scored_at"],
            postgresql_where=_PREDICTED,
            postgresql_concurrently=True,
        )
        op.drop_index("outcome_predicted", "outcome", if_exists=True, postgresql_concurrently=True)


def downgrade() -> None:
    with op.get_context().autocommit_block():
        op.drop_index("outcome_predicted", "outcome", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            "outcome_predicted",
            "outcome",
            ["scored_at"],
            postgresql_where=_PREDICTED,
            postgresql_concurrently=True,
        )
        op.drop_index("outcome_by_model", "outcome", if_exists=True, postgresql_concurrently=True)
    for table, name, _ in reversed(_COLUMNS):
        op.drop_column(table, name)
