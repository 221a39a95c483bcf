"""Benchmarks, profiles, golden sets and their scores, promotions and canaries

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    # Beside the fleet at work: see 0003 and 0007. Every job has a decision. Answers are asked for by their time each
    # minute now, so the ranges of timings are summarised as they fill, as those of decisions are (0005).
    with op.get_context().autocommit_block():
        op.execute("ALTER INDEX timing_by_end SET (autosummarize = on)")
        op.execute("SELECT brin_summarize_new_values('timing_by_end')")
        op.add_column("decision", sa.Column("canary", sa.Text(), nullable=True), if_not_exists=True)
        op.drop_index("decision_by_canary", "decision", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            "decision_by_canary",
            "decision",
            ["canary", "deployment", "decided_at"],
            postgresql_where=sa.text("canary IS NOT NULL"),
            postgresql_concurrently=True,
        )
        op.drop_index("outcome_by_deployment", "outcome", if_exists=True, postgresql_concurrently=True)
        op.create_index("outcome_by_deployment", "outcome", ["deployment", "scored_at"], postgresql_concurrently=True)
    op.create_table(
        "benchmark",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("spec", JSONB(), nullable=False),
        sa.Column("state", sa.Text(), server_default="queued", nullable=False),
        sa.Column("fence", sa.Integer(), server_default="0", nullable=False),
        sa.Column("worker_id", sa.BigInteger(), nullable=True),
        sa.Column("schedule", sa.Text(), nullable=True),
        sa.Column("slot", _TIME, nullable=True),
        sa.Column("golden_set_id", sa.BigInteger(), nullable=True),
        sa.Column("batch_id", sa.BigInteger(), nullable=True),
        sa.Column("callback_url", sa.Text(), nullable=True),
        sa.Column("created_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("not_before", _TIME, nullable=True),
        sa.Column("started_at", _TIME, nullable=True),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.Column("cancelling_at", _TIME, nullable=True),
        sa.Column("why", sa.Text(), nullable=True),
        sa.Column("pinned", sa.Text(), nullable=True),
        sa.Column("fingerprint", JSONB(), nullable=True),
        sa.Column("regressed", sa.Text(), nullable=True),
        sa.Column("report", JSONB(), nullable=True),
        sa.CheckConstraint(
            "(state IN ('queued', 'running')) = (finished_at IS NULL)", name="benchmark_final_is_finished"
        ),
        sa.CheckConstraint("kind IN ('speed', 'capacity', 'quality', 'pairwise')", name="benchmark_kind_known"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("benchmark_by_deployment", "benchmark", ["deployment", "id"])
    op.create_index(
        "benchmark_by_slot",
        "benchmark",
        ["schedule", "slot", "deployment", "golden_set_id"],
        unique=True,
        postgresql_where=sa.text("schedule IS NOT NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.create_index("benchmark_open", "benchmark", ["id"], postgresql_where=sa.text("finished_at IS NULL"))
    op.create_table(
        "canary",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("candidate", sa.Text(), nullable=False),
        sa.Column("serving", sa.Text(), nullable=False),
        sa.Column("pinned", sa.Text(), nullable=False),
        sa.Column("categories", ARRAY(sa.Text()), nullable=True),
        sa.Column("share", sa.REAL(), nullable=False),
        sa.Column("started_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", _TIME, nullable=True),
        sa.Column("ended_why", sa.Text(), nullable=True),
        sa.Column("breached", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("report", JSONB(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "canary_in_force", "canary", ["candidate"], unique=True, postgresql_where=sa.text("ended_at IS NULL")
    )
    op.create_table(
        "golden_item",
        sa.Column("set_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("set_id", "position"),
    )
    op.create_index("golden_item_by_name", "golden_item", ["set_id", "item_id"], unique=True)
    op.create_table(
        "golden_score",
        sa.Column("benchmark_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("input_hash", sa.Text(), nullable=False),
        sa.Column("job_id", sa.BigInteger(), nullable=True),
        sa.Column("score", sa.REAL(), nullable=True),
        sa.Column("why", sa.Text(), server_default="", nullable=False),
        sa.Column("judge", sa.Text(), nullable=True),
        sa.Column("counts", ARRAY(sa.Integer()), nullable=True),
        sa.Column("latency_ms", sa.REAL(), nullable=True),
        sa.Column("cost_usd", sa.Numeric(), nullable=True),
        sa.CheckConstraint("score BETWEEN 0 AND 1", name="golden_score_is_a_share"),
        sa.PrimaryKeyConstraint("benchmark_id", "item_id"),
    )
    op.create_table(
        "golden_set",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("counts", JSONB(), nullable=False),
        sa.Column("imported_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("golden_set_by_name", "golden_set", ["name", "hash"], unique=True)
    op.create_table(
        "human_label",
        sa.Column("benchmark_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("reviewer", sa.Text(), nullable=False),
        sa.Column("score", sa.REAL(), nullable=False),
        sa.Column("labelled_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("score BETWEEN 0 AND 1", name="human_label_is_a_share"),
        sa.PrimaryKeyConstraint("benchmark_id", "item_id", "reviewer"),
    )
    op.create_table(
        "live_verdict",
        sa.Column("job_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("judge", sa.Text(), nullable=False),
        sa.Column("question_id", sa.BigInteger(), nullable=False),
        sa.Column("asked_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("settled_at", _TIME, nullable=True),
        sa.Column("why", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index(
        "live_verdict_open", "live_verdict", ["question_id"], postgresql_where=sa.text("settled_at IS NULL")
    )
    op.create_table(
        "preference",
        sa.Column("benchmark_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("forward", sa.Text(), nullable=True),
        sa.Column("swapped", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("benchmark_id", "item_id"),
    )
    op.create_table(
        "profile",
        sa.Column("benchmark_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("deployment", sa.Text(), nullable=False),
        sa.Column("measured_at", _TIME, nullable=False),
        sa.Column("figures", JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("benchmark_id", "category"),
    )
    op.create_index("profile_by_deployment", "profile", ["deployment", "category", "measured_at"])
    op.create_table(
        "promotion",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("candidate", sa.Text(), nullable=False),
        sa.Column("serving", sa.Text(), nullable=False),
        sa.Column("pinned", sa.Text(), nullable=False),
        sa.Column("categories", ARRAY(sa.Text()), nullable=False),
        sa.Column("verdict", JSONB(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("promoted_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", _TIME, nullable=True),
        sa.Column("ended_why", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "promotion_in_force", "promotion", ["candidate"], unique=True, postgresql_where=sa.text("ended_at IS NULL")
    )


def downgrade() -> None:
    op.drop_table("promotion")
    op.drop_table("profile")
    op.drop_table("preference")
    op.drop_table("live_verdict")
    op.drop_table("human_label")
    op.drop_table("golden_set")
    op.drop_table("golden_score")
    op.drop_table("golden_item")
    op.drop_table("canary")
    op.drop_table("benchmark")
    with op.get_context().autocommit_block():
        op.execute("ALTER INDEX timing_by_end RESET (autosummarize)")
        op.drop_index("outcome_by_deployment", "outcome", if_exists=True, postgresql_concurrently=True)
        op.drop_index("decision_by_canary", "decision", if_exists=True, postgresql_concurrently=True)
    op.drop_column("decision", "canary")
