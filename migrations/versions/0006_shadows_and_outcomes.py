"""Copies of jobs for other deployments, how good answers were, and when the router went by its rules for it

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "shadow",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("of_job_id", sa.BigInteger(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("copied_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index("shadow_by_original", "shadow", ["of_job_id", "deployment"], unique=True)
    op.create_index(
        "shadow_by_time", "shadow", ["copied_at"], postgresql_using="brin", postgresql_with={"autosummarize": "on"}
    )
    op.create_table(
        "outcome",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("score", sa.REAL(), nullable=False),
        sa.Column("predicted", sa.REAL(), nullable=True),
        sa.Column("rules_predicted", sa.REAL(), nullable=True),
        sa.Column("scored_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=True),
        sa.Column("category", sa.Text(), nullable=True),
        sa.CheckConstraint("score BETWEEN 0 AND 1", name="outcome_score_is_a_share"),
        sa.PrimaryKeyConstraint("job_id", "source"),
    )
    op.create_index("outcome_predicted", "outcome", ["scored_at"], postgresql_where=sa.text("predicted IS NOT NULL"))
    op.create_table(
        "step_back",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("since", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("until", _TIME, nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def downgrade() -> None:
    op.drop_table("step_back")
    op.drop_table("outcome")
    op.drop_table("shadow")
