"""Who asks for what, and what is answered without a model."""

import logging

import pytest

from raybert.serve.errors import ApiError
from tests.serve.conftest import client, run


def test_models_are_listed(served):
    async def go():
        async with client(served("one"), served("org/two")) as http:
            listed = (await http.get("/v1/models")).json()
            assert listed["object"] == "list"
            assert [each["id"] for each in listed["data"]] == ["one", "org/two"]
            assert (await http.get("/v1/models/org/two")).json()["id"] == "org/two"
            missing = await http.get("/v1/models/three")
            assert missing.status_code == 404
            assert missing.json()["error"]["code"] == "model_not_found"

    run(go())


def test_a_key_is_needed_but_for_page_and_health(served, tmp_path):
    (tmp_path / "keys").write_text("secret\n")

    async def go():
        async with client(served(), keys_from=str(tmp_path / "keys")) as http:
            for path in ("/", "/health", "/openapi.json"):
                assert (await http.get(path)).status_code == 200
            body = {"input": "a", "model": "tiny"}
            for path in ("/v1/models", "/info"):
                assert (await http.get(path)).status_code == 401
            refused = await http.post("/v1/embeddings", json=body)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error"]["type"] == "authentication_error"
            http.headers["authorization"] = "Bearer secret"
            assert (await http.post("/v1/embeddings", json=body)).status_code == 200

    run(go())


@pytest.mark.parametrize(
    ("method", "path", "status", "told"),
    [
        ("GET", "/v1/embeddings", 405, "takes POST"),
        ("POST", "/v1/models", 405, "takes GET"),
        ("DELETE", "/health", 405, "takes GET"),
        ("POST", "/v1/embedings", 404, "did you mean /v1/embeddings"),
        ("GET", "/nothing/at/all", 404, "there is no /nothing/at/all"),
    ],
)
def test_wrong_methods_and_paths(served, method, path, status, told):
    async def go():
        async with client(served()) as http:
            reply = await http.request(method, path, json={} if method == "POST" else None)
            assert reply.status_code == status
            assert told in reply.text
            if status == 405:
                assert reply.headers["allow"]

    run(go())


def test_health_runs_the_model_and_says_what_is_wrong(served, monkeypatch):
    async def go():
        model = served()
        asked = []
        check = model.check

        async def counted(deadline):
            asked.append(deadline)
            await check(deadline)

        async def broken(deadline):
            raise RuntimeError("of the driver")

        async with client(model) as http:
            monkeypatch.setattr(model, "check", counted)
            assert [(await http.get("/health")).status_code for _ in range(3)] == [200] * 3
            assert len(asked) == 1  # the answer is kept for a second
        async with client(model) as http:
            monkeypatch.setattr(model, "check", broken)
            sick = await http.get("/health")
            assert sick.status_code == 503
            assert sick.json() == {"error": "tiny: the model fails: RuntimeError", "error_type": "Unhealthy"}

    run(go())


def test_a_line_a_request_without_its_texts(served, caplog):
    async def go():
        async with client(served()) as http:
            body = {"input": "very private", "model": "tiny", "user": "somebody"}
            await http.post("/v1/embeddings", json=body, headers={"x-request-id": "number-7"})
            await http.post("/v1/embeddings", json={"input": "very private", "model": "very private"})

    with caplog.at_level(logging.INFO, "ray.serve"):
        run(go())
    first, second = caplog.records
    assert (first.request, first.status, first.tokens) == ("number-7", 200, first.tokens)
    assert first.tokens > 2
    assert second.status == 404
    assert not any("private" in str(vars(record)) for record in caplog.records)


def test_an_error_in_both_dialects():
    error = ApiError(429, "later", code="overloaded", retry_after=1.2)
    assert error.body("openai") == (
        429,
        {"error": {"message": "later", "type": "rate_limit_error", "param": None, "code": "overloaded"}},
    )
    assert error.body("tei") == (429, {"error": "later", "error_type": "Overloaded"})
    assert error.all_headers() == {"retry-after": "2"}
    assert ApiError(400, "no").body("tei") == (422, {"error": "no", "error_type": "Validation"})
    assert ApiError(500, "no").body("tei") == (424, {"error": "no", "error_type": "Backend"})
