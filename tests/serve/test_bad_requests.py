"""Requests that cannot be answered: the right status in the right envelope, one line that says why, and a service that
answers the next one."""

import asyncio
import gzip
import json
import socket
import time

import pytest

from raybert.serve.app import application
from raybert.serve.front import Front
from raybert.serve.http import Application
from raybert.serve.model import Limits
from tests.serve.services import ask, listening, load_model, post, serve_settings

MOST_BYTES = 200_000


@pytest.fixture(scope="module")
def model(prompted):
    made = load_model(prompted, limits=Limits(max_inputs=50))
    yield made
    made.close()


@pytest.fixture(scope="module")
def app(model):
    return application({"tiny": model}, serve_settings(max_body_bytes=MOST_BYTES))


def envelope(reply):
    """(status, type, message) of either dialect."""
    body = reply.json()
    if set(body) == {"error"}:
        assert set(body["error"]) == {"message", "type", "param", "code"}
        found = body["error"]["type"], body["error"]["message"]
    else:
        assert set(body) == {"error", "error_type"}
        found = body["error_type"], body["error"]
    assert "\n" not in found[1]
    assert 0 < len(found[1]) < 400
    assert reply.headers["content-type"] == "application/json"
    return reply.status_code, *found


def works(app):
    reply = post(app, "/embed", inputs="the fox")
    assert (reply.status_code, len(reply.json()[0])) == (200, 32)


GOOD = b'{"model": "tiny", "input": "fox", "inputs": "fox"}'
NO_JSON = {
    "nothing": b"",
    "half": b'{"model": "tiny", "input": ["a", ',
    "more behind": GOOD + b"x",
    "two": GOOD + GOOD,
    "NaN": b'{"model": "tiny", "input": NaN, "inputs": NaN}',
    "infinity": b'{"model": "tiny", "input": "a", "inputs": "a", "dimensions": Infinity}',
    "deep lists": b'{"input": ' + b"[" * 90_000,
    "deep objects": b'{"input":' * 9_000 + b"1" + b"}" * 9_000,
    "no UTF-8": b'{"model": "tiny", "input": "\xff\xfe", "inputs": "\xff\xfe"}',
    "overlong UTF-8": b'{"model": "tiny", "input": "\xc0\x80", "inputs": "\xc0\x80"}',
    "UTF-16": GOOD.decode().encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "high surrogate": b'{"model": "tiny", "input": "\\ud800", "inputs": "\\ud800"}',
    "low surrogate": b'{"model": "tiny", "input": "a\\udc00b", "inputs": "a\\udc00b"}',
    "raw line break": b'{"model": "tiny", "input": "a\nb", "inputs": "a\nb"}',
    "null byte": b"\x00",
    "single quotes": b"{'model': 'tiny', 'input': 'a'}",
    "a form": b"model=tiny&input=fox",
    "compressed": gzip.compress(GOOD),
    "list": b'["fox"]',
    "text": b'"fox"',
    "number": b"1e5",
    "null": b"null",
}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/"])
@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON.keys())
def test_bodies_that_are_no_json_object(app, path, body):
    status, kind, message = envelope(ask(app, "POST", path, content=body))
    assert (status, kind) == (
        (400, "invalid_request_error") if path.startswith("/v1") else (422, "Validation")
    )
    assert message.startswith("the body ")
    works(app)


HUGE = 10**30
OPENAI = [
    ({"input": None}, "input"),
    ({"input": 5}, "input"),
    ({"input": True}, "input"),
    ({"input": {}}, "input"),
    ({"input": ["a", {}]}, "input[1]"),
    ({"input": [["a"]]}, "input[0]"),
    ({"input": [[1], "a"]}, "input[1]"),
    ({"input": ["a", 1]}, "input[1]"),
    ({"input": [1, "a"]}, "input[1]"),
    ({"input": [1.5]}, "input[0]"),
    ({"input": [[]]}, "input"),
    ({"input": [[1], []], "tokenizer": "tiny"}, "input[1]"),
    ({"input": [3, -1], "tokenizer": "tiny"}, "input[0]"),
    ({"input": [[3], [2**40]], "tokenizer": "tiny"}, "input[1]"),
    ({"input": [3, HUGE], "tokenizer": "tiny"}, "input[1]"),
    ({"input": [3] * 49, "tokenizer": "tiny"}, "input[0]"),
    ({"input": [3], "tokenizer": 5}, "tokenizer"),
    ({"input": [3]}, "input"),
    ({"input": " \t\n"}, "input"),
    ({"input": "a", "model": 5}, "model"),
    ({"input": "a", "model": ["tiny"]}, "model"),
    ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ({"input": "a", "encoding_format": 1}, "encoding_format"),
    ({"input": "a", "dimensions": 0}, "dimensions"),
    ({"input": "a", "dimensions": -3}, "dimensions"),
    ({"input": "a", "dimensions": 1.5}, "dimensions"),
    ({"input": "a", "dimensions": "8"}, "dimensions"),
    ({"input": "a", "dimensions": True}, "dimensions"),
    ({"input": "a", "dimensions": 33}, "dimensions"),
    ({"input": "a", "dimensions": HUGE}, "dimensions"),
    ({"input": "a", "prompt_name": 5}, "prompt_name"),
    ({"input": "a", "prompt_name": "x" * 9999}, "prompt_name"),
    ({"input": "a", "truncate": "yes"}, "truncate"),
    ({"input": "a", "user": 5}, "user"),
    ({"input": "fox " * 50}, "input"),
]


@pytest.mark.parametrize(("body", "where"), OPENAI, ids=lambda value: str(value)[:60])
def test_fields_of_openai(app, body, where):
    reply = post(app, "/v1/embeddings", **{"model": "tiny", **body})
    status, kind, message = envelope(reply)
    assert (status, kind) == (400, "invalid_request_error")
    assert message.startswith(where)
    assert reply.json()["error"]["param"] == where.partition("[")[0]
    works(app)


PAIR = {"source_sentence": "a", "sentences": ["b"]}
TEI = [
    ("/embed", {}, "inputs"),
    ("/embed", {"inputs": None}, "inputs"),
    ("/embed", {"inputs": {"a": "b"}}, "inputs"),
    ("/embed", {"inputs": [1, 2]}, "inputs[0]"),
    ("/embed", {"inputs": ["a", ["b"]]}, "inputs[1]"),
    ("/embed", {"inputs": "a", "normalize": "yes"}, "normalize"),
    ("/embed", {"inputs": "a", "truncate": 1}, "truncate"),
    ("/embed", {"inputs": "a", "truncation_direction": "up"}, "truncation_direction"),
    ("/embed", {"inputs": "a", "dimensions": -1}, "dimensions"),
    ("/embed", {"inputs": "a", "dimensions": 1.0}, "dimensions"),
    ("/embed", {"inputs": "a", "prompt_name": ["query"]}, "prompt_name"),
    ("/embed_all", {"inputs": 5}, "inputs"),
    ("/embed_all", {"inputs": "fox " * 50}, "inputs"),
    ("/tokenize", {"inputs": 5}, "inputs"),
    ("/tokenize", {"inputs": "a", "add_special_tokens": "no"}, "add_special_tokens"),
    ("/similarity", {"inputs": "a"}, "inputs"),
    ("/similarity", {"inputs": {"source_sentence": "a"}}, "inputs.sentences"),
    ("/similarity", {"inputs": {**PAIR, "source_sentence": ["a"]}}, "inputs.source_sentence"),
    ("/similarity", {"inputs": {**PAIR, "sentences": "b"}}, "inputs.sentences"),
    ("/similarity", {"inputs": PAIR, "parameters": {"truncate": "x"}}, "parameters.truncate"),
    ("/rerank", {"query": "a", "texts": "b"}, "texts"),
    ("/rerank", {"query": 5, "texts": ["b"]}, "query"),
    ("/rerank", {"query": "a"}, "texts"),
    ("/rerank", {"query": "a", "texts": ["b"], "raw_scores": "x"}, "raw_scores"),
    ("/rerank", {"query": "a", "texts": ["fox", "fox " * 50]}, "texts[1]"),
    ("/", {"query": "a", "texts": "b"}, "texts"),
    ("/", {"inputs": 5}, "inputs"),
]


@pytest.mark.parametrize(("path", "body", "where"), TEI, ids=lambda value: str(value)[:60])
def test_fields_of_tei(app, path, body, where):
    status, kind, message = envelope(post(app, path, **body))
    assert (status, kind) == (422, "Validation")
    assert message.startswith((f"{where}:", f"{where} "))
    works(app)


ELSEWHERE = [
    ("GET", "/v1/embeddings", 405, "invalid_request_error"),
    ("PUT", "/embed", 405, "Validation"),
    ("OPTIONS", "/rerank", 405, "Validation"),
    ("DELETE", "/", 405, "Validation"),
    ("POST", "/v1/models", 405, "invalid_request_error"),
    ("POST", "/health", 405, "Validation"),
    ("POST", "/v1/embedding", 404, "invalid_request_error"),
    ("GET", "/v1/models/other", 404, "invalid_request_error"),
    ("POST", "/v1/chat/completions", 404, "invalid_request_error"),
    ("POST", "/models/other/embed", 404, "Validation"),
    ("POST", "/models/other/v1/embeddings", 404, "invalid_request_error"),
    ("POST", "/models/tiny/nowhere", 404, "Validation"),
    ("GET", "/page/../front.py", 404, "Validation"),
    ("GET", "/" + "x" * 5000, 404, "Validation"),
    ("GET", "/%ff%00%0a", 404, "Validation"),
    ("POST", "/predict", 404, "Validation"),
]


@pytest.mark.parametrize(("method", "path", "status", "kind"), ELSEWHERE, ids=lambda value: str(value)[:40])
def test_other_methods_and_paths(app, method, path, status, kind):
    reply = ask(app, method, path, content=GOOD)
    assert envelope(reply)[:2] == (status, kind)
    assert ("allow" in reply.headers) == (status == 405)
    works(app)


def test_a_path_that_is_nearly_right(app):
    assert envelope(post(app, "/v1/embedding"))[2] == (
        "there is no /v1/embedding; did you mean /v1/embeddings?"
    )


@pytest.mark.parametrize("name", ["other", "", "tiny/", "Tiny", "x" * 9999, "other:query"])
def test_unknown_models(app, name):
    reply = post(app, "/v1/embeddings", input="a", model=name)
    assert envelope(reply)[:2] == (404, "invalid_request_error")
    assert reply.json()["error"]["code"] == "model_not_found"
    assert envelope(post(app, "/embed", inputs="a", model=name or "other"))[:2] == (404, "Validation")
    works(app)


def test_too_many_inputs(app):
    assert envelope(post(app, "/v1/embeddings", input=["a"] * 51, model="tiny"))[0] == 413
    assert envelope(post(app, "/rerank", query="a", texts=["a"] * 51))[:2] == (413, "Validation")
    assert post(app, "/embed", inputs=["a"] * 50).status_code == 200


def test_unusual_texts_are_texts(app, model):
    texts = ["\x00", "a\x00b", "\u202e\u200b", "\U0010ffff", "😀" * 20, "\ufffe", "ａ", "a" * 500]
    reply = post(app, "/v1/embeddings", input=texts, model="tiny")
    assert reply.status_code == 200
    found = [one["embedding"] for one in reply.json()["data"]]
    expected = model.engine.encoder.encode(texts)
    assert abs(found - expected).max() < 1e-5


def test_of_keys_that_come_twice_the_last_holds(app):
    twice = b'{"inputs": 5, "model": "other", "inputs": "fox", "model": "tiny"}'
    reply = ask(app, "POST", "/embed", content=twice)
    assert reply.json() == post(app, "/embed", inputs="fox").json()


# --- keys


@pytest.fixture(scope="module")
def locked(model, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("# ours\nfirst-key\nsecond-key\n")
    return application({"tiny": model}, serve_settings(keys_from=str(keys)))


@pytest.mark.parametrize(
    "given",
    [
        *(
            None,
            "",
            "Bearer",
            "Bearer ",
            "Bearer wrong",
            "first-key",
            "Basic first-key",
            "Bearer first-key x",
        ),
        *("Bearer # ours", "Bearer \xe9\xff", "Bearer " + "x" * 9000, "Bearer first-keysecond-key"),
    ],
)
def test_wrong_keys(locked, given):
    headers = {} if given is None else {"authorization": given.encode("latin-1")}
    for path, kind in {"/v1/embeddings": "authentication_error", "/embed": "Unauthorized"}.items():
        reply = ask(locked, "POST", path, content=GOOD, headers=headers)
        assert envelope(reply)[:2] == (401, kind)
        assert reply.headers["www-authenticate"] == "Bearer"
    for path in ("/info", "/v1/models", "/nowhere"):
        assert ask(locked, "GET", path, headers=headers).status_code == 401
    assert ask(locked, "GET", "/health").status_code == 200
    for key in ("first-key", "second-key"):
        good = ask(locked, "POST", "/embed", content=GOOD, headers={"authorization": f"bearer {key}"})
        assert good.status_code == 200


# --- bodies that do not come as they should


@pytest.fixture(scope="module")
def address(model):
    front = Front({"tiny": model}, keys=None)
    app = Application(front, front.refuse, max_body_bytes=MOST_BYTES, body_seconds=0.5)
    with listening(app) as url:
        yield "127.0.0.1", int(url.rpartition(":")[2])


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def read_reply(connection):
    """(status, JSON) of what comes until the server closes, or the body is whole."""
    content = b""
    while b"\r\n\r\n" not in content:
        part = connection.recv(65536)
        assert part, "closed without an answer"
        content += part
    head, _, body = content.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(headers[b"content-length"]):
        body += connection.recv(65536)
    return int(head.split()[1]), json.loads(body), headers


def good(address):
    with socket.create_connection(address, 10) as connection:
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(GOOD) + GOOD)
        assert read_reply(connection)[0] == 200


def test_a_huge_body_is_refused_before_it_is_read(address):
    with socket.create_connection(address, 10) as connection:
        connection.sendall(HEAD + b"content-length: 1000000000000\r\n\r\n{")
        status, body, headers = read_reply(connection)
    assert (status, body["error"]["code"]) == (413, "body_too_large")
    assert headers[b"connection"] == b"close"
    good(address)


def test_a_body_of_no_given_length_is_read_as_far_as_it_is_allowed(app):
    read, sent = [], []

    async def receive():
        read.append(10_000)
        return {"type": "http.request", "body": b" " * 10_000, "more_body": True}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": []}
    asyncio.run(app(scope, receive, send))
    assert (sent[0]["status"], sum(read)) == (413, MOST_BYTES + 10_000)
    assert (b"connection", b"close") in sent[0]["headers"]
    works(app)


def test_a_body_that_does_not_end(address):
    with socket.create_connection(address, 10) as connection:
        connection.sendall(HEAD + b"content-length: 1000\r\n\r\n" + GOOD)
        started = time.monotonic()
        status, body, _ = read_reply(connection)
        assert 0.4 < time.monotonic() - started < 5
    assert (status, body["error"]["type"]) == (408, "invalid_request_error")
    with socket.create_connection(address, 10) as connection:  # a byte now and then does not help
        connection.sendall(HEAD + b"content-length: 1000\r\n\r\n")
        started = time.monotonic()
        for byte in GOOD[:4]:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)
        assert read_reply(connection)[0] == 408
        assert time.monotonic() - started < 5
    good(address)


def test_clients_that_leave_early(address):
    for sent in (
        b"",
        HEAD,
        HEAD + b"content-length: 100\r\n\r\n{",
        HEAD + b"content-length: %d\r\n\r\n" % len(GOOD) + GOOD,
    ):
        for _ in range(5):
            with socket.create_connection(address, 10) as connection:
                connection.sendall(sent)
    good(address)


def test_what_is_no_http(address):
    for sent in (b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", HEAD + b"content-length: -5\r\n\r\n"):
        with socket.create_connection(address, 10) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65536)
            assert not answer or answer.startswith(b"HTTP/1.1 400")
    good(address)
