"""Far more requests than vLLM's KV cache holds: every job succeeds, and the worker learns to send no more than fit.

The cache has 24 blocks of 128 tokens, and a job grows to two of them: twelve fit. Without the worker's limit as many as
24 would begin, to be preempted and computed again.
"""

from __future__ import annotations

from tests.vllm.fleet import Running, run_fleet

JOBS = 64
BLOCKS = 24


def preemptions_of_a_batch(running: Running, about: str) -> int:
    """As vLLM counts them, while JOBS jobs run, all of which succeed."""
    before = running.load().preemptions
    asked = (f"Write about {about} {i}." for i in range(JOBS))
    batch = running.until_over(running.submit(asked, max_tokens=160, ignore_eos=True))
    assert (batch.status, batch.request_counts.completed) == ("completed", JOBS)
    return running.load().preemptions - before


def test_every_job_succeeds_and_preemptions_become_few() -> None:
    with run_fleet(in_flight=JOBS, max_num_seqs=JOBS, num_gpu_blocks_override=BLOCKS) as running:
        assert running.load().kv_tokens == BLOCKS * 128
        first = preemptions_of_a_batch(running, "ships")
        assert first > 0, "nothing was preempted, so this proves nothing"
        later = preemptions_of_a_batch(running, "trains")
        assert later < min(first, JOBS / 3), (first, later)
        assert running.limit <= BLOCKS, "more than could even begin"
        assert running.rows("SELECT count(*), count(DISTINCT job_id) FROM result") == [(2 * JOBS, 2 * JOBS)]
        assert running.rows("SELECT count(*), count(DISTINCT job_id) FROM ledger") == [(2 * JOBS, 2 * JOBS)]
