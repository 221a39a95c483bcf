import json
import pytest
from tests.integration.test_leaks import *
from tests.integration.test_batches_api import BAD, line, House
from tieryard.ids import internal

def show(label, a):
    print(label, a.status_code, a.text[:220].replace("\n"," "))

def test_probe(fleet):
    c = fleet.client; h = fleet.house
    for q in ("tier=%00","deployment=%00","batch=%00","after=%00","state=%00","tier=%ED%A0%80", "after=job_999999999999999999", "after=job_"+"9"*19):
        show(q, c.get("/v1/jobs?"+q))
    for q in ("purpose=%00","after=%00","purpose=%ED%A0%80"): show(q, c.get("/v1/files?"+q))
    more = {
      "custom_id 5": {**line("x"), "custom_id": 5},
      "metadata str": line("x1", metadata="x"),
      "metadata ints": line("x2", metadata={"a": 1}),
      "body 5": {**line("x3"), "body": 5},
      "no body": {"custom_id": "x4", "method": "POST", "url": CHAT},
      "body list": {**line("x5"), "body": [1]},
      "null": "null", "str": '"url"', "num": "5", "surrogate": '{"custom_id": "\\ud800"}', "bom": "\ufeff{bad",
      "long custom": line("x"*600),
      "url str only": '{"url": "body"}',
      "nan": '{"custom_id":"a","x":NaN}', "big": '{"custom_id":"b","x":1e999}', "bigint": '{"custom_id":"c","x":' + "9"*400 + '}',
      "deep": '{"custom_id": "d", "body": ' + "[" * 300 + "]" * 300 + "}",
    }
    for label, x in {**{k: v[0] for k, v in BAD.items()}, **more}.items():
        b = h.create(line("a"), x); h.expand(); h.answer(b); 
        a = c.get("/v1/jobs", params={"batch": b["id"]})
        n = internal("batch", b["id"])+2
        one = c.get(f"/v1/jobs/job_{n}"); s = c.get(f"/v1/jobs/job_{n}/story"); canc = c.post(f"/v1/jobs/job_{n}/cancel")
        d = h.close(b)
        out = [c.get(f"/v1/batches/{b['id']}/{w}").status_code for w in ("output","errors")]
        print(label, a.status_code, one.status_code, s.status_code, canc.status_code, d["status"], out, one.text[:120] if one.status_code!=200 else "")
    a = c.get("/v1/jobs", params={"limit": 1000}); show("all jobs", a)
