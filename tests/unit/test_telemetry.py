"""Logs name faults and never quote them."""

import psycopg

from tieryard.telemetry import fault


def test_a_fault_is_named_by_its_place_and_never_by_its_message() -> None:
    try:
        raise psycopg.errors.InvalidTextRepresentation('invalid input: {"prompt": "my secret"}')
    except psycopg.Error as error:
        named = fault(error)
    assert named["error"] == "InvalidTextRepresentation 22P02"
    assert named["where"].endswith("test_a_fault_is_named_by_its_place_and_never_by_its_message")
    assert "secret" not in str(named)
