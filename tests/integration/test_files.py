"""Files: what goes up comes down byte for byte, in pieces, and what cannot be kept is refused with its line."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests import factories as make
from tests.integration.test_api import error_of, serving
from tieryard.errors import RequestError
from tieryard.settings import Settings
from tieryard.store import Store, files
from tieryard.store.files import NewFile, request_hash

Upload = Callable[..., dict[str, Any]]


@pytest.fixture
def small(settings: Settings) -> Settings:
    return settings.model_copy(update={"max_file_bytes": 200_000, "max_list_jobs": 20})


@pytest.fixture
def client(small: Settings, tenant: int) -> Iterator[TestClient]:
    with serving(small) as client:
        yield client


def post(client: TestClient, content: bytes, *, purpose: str = "batch", **kwargs: Any) -> Any:
    data = {"purpose": purpose, **kwargs.pop("data", {})}
    return client.post("/v1/files", files={"file": ("requests.jsonl", content)}, data=data, **kwargs)


@pytest.mark.parametrize(
    "content",
    [
        b'{"a": 1}\n',
        b'{"a": 1}',
        b'\xef\xbb\xbf{"a": 1}\r\n\r\n\n{"b": "\xe2\x80\xa8"}\r\n',
        b"\n\n",
        b"",
        b'{"custom_id": "x"}\n' * 20,
        b"{}\n" + b'"' + b"x" * 150_000 + b'"',
    ],
    ids=["one", "open end", "BOM, CRLF, blanks, U+2028", "blank", "empty", "twenty", "a long line"],
)
def test_what_goes_up_comes_down_byte_for_byte(client: TestClient, content: bytes) -> None:
    file = post(client, content)
    assert file.status_code == 200, file.text
    assert (file.json()["bytes"], file.json()["object"]) == (len(content), "file")
    answer = client.get(f"/v1/files/{file.json()['id']}/content")
    assert answer.content == content
    assert answer.headers["content-length"] == str(len(content))


def test_a_file_as_openai_shows_it(client: TestClient) -> None:
    file = post(client, b"{}\n", data={"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}).json()
    assert file == client.get(f"/v1/files/{file['id']}").json()
    assert set(file) == {"id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status"}
    assert file["expires_at"] - file["created_at"] == 3600
    assert (file["filename"], file["purpose"], file["status"]) == ("requests.jsonl", "batch", "processed")


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b"{}\n\xff{}\n", 2, "UTF-8"),
        (b"{}\n{}\n\x00\n", 3, "NUL"),
        (b"{}\n" * 21, 21, "20 requests"),
        (b"{}\n" + b"\n" * 2000, 1041, "blank lines"),
    ],
    ids=["not UTF-8", "NUL", "too many", "too many blank"],
)
def test_a_file_that_cannot_be_kept_leaves_nothing(
    client: TestClient, store: Store, content: bytes, line: int, says: str
) -> None:
    error = error_of(post(client, content), 400)
    assert error["line"] == line
    assert says in error["message"]
    assert make.count(store, "line") == make.count(store, "file") == 0


def test_a_line_of_any_length_is_not_read_into_memory(
    store: Store, tenant: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_MOST_LINE_BYTES", 1000)
    content = io.BytesIO(b"{}\n" + b"x" * 5000)
    with pytest.raises(RequestError, match="line 2, file: is longer than 1000 bytes"):
        files.save_file(store, NewFile(tenant, "batch", "x"), content, most_lines=10)
    assert make.count(store, "line") == 0


@pytest.mark.parametrize(
    ("kwargs", "param"),
    [
        ({"files": {"file": ("a", b"{}")}, "data": {"purpose": "fine-tune"}}, "purpose"),
        ({"files": {"file": ("a", b"{}")}}, "purpose"),
        ({"data": {"purpose": "batch"}}, "file"),
        ({"json": {"purpose": "batch"}}, "file"),
        (
            {"files": {"file": ("a", b"{}")}, "data": {"purpose": "batch", "expires_after[seconds]": "1"}},
            "expires_after.anchor",
        ),
    ],
    ids=["purpose", "no purpose", "no file", "JSON", "expiry"],
)
def test_a_form_that_is_refused(client: TestClient, store: Store, kwargs: dict[str, Any], param: str) -> None:
    assert error_of(client.post("/v1/files", **kwargs), 400)["param"] == param
    assert make.count(store, "file") == 0


def test_a_broken_form_is_refused(client: TestClient) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    error_of(client.post("/v1/files", content=b"--y\r\nnonsense", headers=headers), 400)
    error_of(client.post("/v1/files", content=b"x", headers={"content-type": "multipart/form-data"}), 400)


def test_more_than_a_file_may_have_is_refused_before_it_is_read(client: TestClient, store: Store) -> None:
    declared = client.post("/v1/files", content=b"", headers={"content-length": str(10**9)})
    assert error_of(declared, 413)["code"] == "body_too_large"
    long = b"x" * (200_000 + 2 * 2**20)
    assert error_of(post(client, long), 413)["code"] == "body_too_large"
    assert make.count(store, "line") == 0


def test_nobody_uploads_without_a_key(small: Settings) -> None:
    with serving(small) as client:
        answer = client.post("/v1/files", headers={"authorization": "Bearer no"}, content=b"x" * 1000)
        assert error_of(answer, 401)


def test_pages_of_files(client: TestClient) -> None:
    ids = [post(client, b"{}\n").json()["id"] for _ in range(5)]
    first = client.get("/v1/files", params={"limit": 2}).json()
    assert ([f["id"] for f in first["data"]], first["has_more"]) == (ids[:2:-1], True)
    assert (first["first_id"], first["last_id"]) == (ids[4], ids[3])
    rest = client.get("/v1/files", params={"after": first["last_id"]}).json()
    assert ([f["id"] for f in rest["data"]], rest["has_more"]) == (ids[2::-1], False)
    rising = client.get("/v1/files", params={"order": "asc", "after": ids[1]}).json()
    assert [f["id"] for f in rising["data"]] == ids[2:]
    assert client.get("/v1/files", params={"purpose": "batch_output"}).json()["data"] == []
    assert error_of(client.get("/v1/files", params={"after": "x"}), 400)["param"] == "after"


def test_a_deleted_file_is_gone_with_its_lines(client: TestClient, store: Store) -> None:
    file = post(client, b"{}\n").json()["id"]
    assert client.delete(f"/v1/files/{file}").json() == {"id": file, "object": "file", "deleted": True}
    for answer in (client.get(f"/v1/files/{file}"), client.get(f"/v1/files/{file}/content")):
        error_of(answer, 404)
    error_of(client.delete(f"/v1/files/{file}"), 404)
    assert client.get("/v1/files").json()["data"] == []
    assert make.count(store, "line") == 0


def test_an_expired_file_is_not_there(client: TestClient, store: Store) -> None:
    file = post(client, b"{}\n").json()["id"]
    store.fetch("UPDATE file SET expires_at = now() RETURNING id")
    error_of(client.get(f"/v1/files/{file}"), 404)


def test_one_key_makes_one_file(client: TestClient, store: Store) -> None:
    once = {"headers": {"idempotency-key": "upload 1"}}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(client, b"{}\n", **once), range(16)))
    assert {a.json()["id"] for a in answers} == {answers[0].json()["id"]}
    assert (make.count(store, "file"), make.count(store, "line")) == (1, 1)
    assert error_of(post(client, b"{ }\n", **once), 409)["code"] == "conflict"
    assert make.count(store, "line") == 1


def test_a_long_file_is_read_in_short_statements(store: Store, tenant: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each a couple of megabytes: neither a cursor held by a slow reader, nor a statement a line."""
    content = b"".join(json.dumps({"custom_id": str(i), "x": "y" * 4000}).encode() + b"\n" for i in range(2000))
    file_id = files.save_file(store, NewFile(tenant, "batch", "x"), io.BytesIO(content), most_lines=5000)
    file = files.get_file(store, file_id, tenant_id=tenant)
    with make.statements(monkeypatch) as seen:
        pieces = list(files.read_lines(store, file))
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) < 3 * 2**20
    assert len([s for s in seen if "FROM line" in s]) == len(pieces) + 1 < 12


def test_pieces_are_small_whatever_the_lines_are(store: Store, tenant: int) -> None:
    """Long lines after short ones: a chunk is bounded by its own bytes, not by what came before."""
    content = b"{}\n" * 3000 + (b'{"x": "' + b"y" * 300_000 + b'"}\n') * 40
    file_id = files.save_file(store, NewFile(tenant, "batch", "x"), io.BytesIO(content), most_lines=5000)
    pieces = list(files.read_lines(store, files.get_file(store, file_id, tenant_id=tenant)))
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) <= files.CHUNK_BYTES + 3000


def test_an_expired_file_is_deleted(store: Store, tenant: int) -> None:
    wanted = NewFile(tenant, "batch", "x", expires_after=timedelta(hours=1))
    ids = [files.save_file(store, wanted, io.BytesIO(b"{}\n"), most_lines=10) for _ in range(2)]
    store.fetch("UPDATE file SET expires_at = now() WHERE id = %(id)s RETURNING id", {"id": ids[0]})
    for _ in range(2):
        with store.transaction() as connection:
            files.purge_expired(connection)
    assert store.fetch("SELECT source_id FROM line") == [(ids[1],)]


def test_a_form_in_no_known_charset_is_refused(client: TestClient) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x; charset=undefined"}
    body = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n'
    error_of(client.post("/v1/files", content=body, headers=headers), 400)


def test_a_request_is_known_by_what_it_asks() -> None:
    asked = {"url": "/v1/chat/completions", "body": {"model": "auto", "seed": 1, "messages": []}}
    apart = {"metadata": {"a": "b"}, "prompt_cache_key": "session 1"}
    same = {"custom_id": "b", "body": {"messages": [], "seed": 1, "model": "auto", **apart}}
    known = request_hash(1, asked)
    assert known == request_hash(1, {**asked, **same})
    assert known is not None
    assert len(known) == 16
    assert known != request_hash(2, asked)
    assert known != request_hash(1, {**asked, "body": {**asked["body"], "seed": 2}})
    assert known != request_hash(1, {**asked, "url": "/v1/completions"})
    assert request_hash(1, {"body": 1}) is None
