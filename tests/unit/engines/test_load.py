"""What is read of a vLLM server's `/metrics`."""

import dataclasses

import orjson
import pytest

from tieryard.engines.load import Load, load_from, read_load

TEXT = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 7.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 7.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
# TYPE vllm:num_preemptions counter
vllm:num_preemptions_total{engine="0",model_name="m"} 4.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7953797618769565e+09
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 60.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1",model_name="m"} 90.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="1.0",model_name="m"} 98.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="m"} 100.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="m"} 100.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="128",engine="0",num_gpu_blocks="364"} 1.0
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 1000.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 900.0
vllm:generation_tokens_total{engine="0",model_name="m"} 234.0
process_start_time_seconds 1.79537972164e+09
python_gc_objects_collected_total{generation="0"} 15129.0
"""


def test_requests_and_counters_are_summed_over_engines_and_the_fullest_cache_counts():
    load = read_load(TEXT)
    assert load == Load(
        running=5,
        waiting=7,
        kv_usage=0.75,
        preemptions=4,
        prefix_queries=100,
        prefix_hits=60,
        tokens=1234,
        started_at=1795379721.64,
        kv_tokens=46_592,
        ttft_counts=((0.1, 90), (1.0, 98), (float("inf"), 100)),
    )


def test_a_text_that_is_not_vllms_is_no_load():
    assert read_load("llamacpp:requests_processing 1\n") is None
    assert read_load("") is None


def test_an_older_servers_name_of_the_cache_is_known():
    assert read_load(TEXT.replace("kv_cache_usage_perc", "gpu_cache_usage_perc")).kv_usage == 0.75


def test_what_a_server_does_not_say_is_unknown_and_not_nothing():
    bare = 'vllm:num_requests_running{engine="0"} 1.0\n'
    load = read_load(bare)
    assert (load.running, load.kv_tokens, load.ttft_counts) == (1, None, ())
    assert load.ttft_ms_since(None, 0.95) is None
    assert read_load(bare + 'vllm:cache_config_info{block_size="None",num_gpu_blocks="364"} 1.0\n').kv_tokens is None


@pytest.mark.parametrize(("quantile", "ms"), [(0.5, 100), (0.9, 100), (0.95, 1000), (0.99, 1000)])
def test_a_quantile_of_ttft_is_its_buckets_upper_bound(quantile, ms):
    assert read_load(TEXT).ttft_ms_since(None, quantile) == ms  # beyond the last bound: that bound


def test_a_quantile_is_of_what_began_between_two_looks():
    before = read_load(TEXT)
    later = read_load(TEXT.replace("} 98.0", "} 108.0").replace("} 100.0", "} 110.0"))
    assert later.ttft_ms_since(before, 0.5) == 1000
    assert before.ttft_ms_since(before, 0.5) is None


def test_a_look_survives_being_written_down_without_its_histogram():
    load = read_load(TEXT)
    stored = orjson.loads(orjson.dumps(load))
    assert load_from({**stored, "new": 1}) == dataclasses.replace(load, ttft_counts=())
