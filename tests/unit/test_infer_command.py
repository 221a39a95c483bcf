"""`python -m workers infer` is for deployments that have an engine of their own."""

import pytest

from tests.unit.test_catalog import VLLM
from tieryard.errors import UserError
from workers.__main__ import infer


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("legal", "'legal' is a LoRA adapter: the infer process of its host 'base' serves it"),
        ("none", "'none' is not a deployment of the catalog in force; it has base, legal, plain"),
    ],
)
def test_it_is_refused_for_an_adapter_and_for_what_is_no_deployment(tmp_path, monkeypatch, name, said):
    path = tmp_path / "tieryard.yaml"
    path.write_text(VLLM)
    for variable, value in (
        ("DATABASE_URL", "postgresql://127.0.0.1:9/none"),
        ("REDIS_URL", "redis://nowhere"),
        ("CATALOG", path),
    ):
        monkeypatch.setenv(f"TIERYARD_{variable}", str(value))
    with pytest.raises(UserError, match=said):
        infer(name)
