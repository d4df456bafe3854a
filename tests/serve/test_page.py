"""The files of the page: served as they are under a strict policy, without a key, and nothing beside them."""

import re
from importlib.resources import files
from typing import Any

import pytest

from tests.evaluate.pages import Page
from tests.serve.conftest import client, run

STATIC = files("raybert.serve") / "static"
NAMES = sorted(each.name for each in STATIC.iterdir())
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
OUTSIDE = [
    "/page/../page.py",
    "/page/..%2fpage.py",
    "/page/%2e%2e/%2e%2e/serve/page.py",
    "/page/..\\page.py",
    "/page//etc/passwd",
    "/page/static/index.html",
    "/page/INDEX.HTML",
    "/page/index.html%00.css",
    "/page/",
    "/page",
    "/page/page.py",
    "/favicon.ico",
]


def get(model: Any, *paths: str, method: str = "GET", **settings: Any) -> list[Any]:
    async def asking() -> list[Any]:
        async with client(model, **settings) as http:
            return [await http.request(method, path) for path in paths]

    return run(asking())


def test_files_are_served_as_they_are(served):
    replies = get(served(), *(f"/page/{name}" for name in NAMES))
    for name, reply in zip(NAMES, replies, strict=True):
        assert reply.status_code == 200
        assert reply.content == (STATIC / name).read_bytes()
        assert reply.headers["content-type"] == TYPES[name.rpartition(".")[2]]


def test_the_page_lies_at_the_root_under_a_strict_policy(served):
    (page,), (head,) = get(served(), "/"), get(served(), "/", method="HEAD")
    assert page.content == (STATIC / "index.html").read_bytes()
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_else_is_served(served, path):
    (reply,) = get(served(), path)
    assert reply.status_code == 404
    assert b"import" not in reply.content
    assert b"root:" not in reply.content


def test_the_page_needs_no_key_and_can_be_left_out(served, monkeypatch):
    monkeypatch.setenv("PAGE_KEYS", "secret")
    page, script, models = get(served(), "/", "/page/main.js", "/v1/models", keys_from="env:PAGE_KEYS")
    assert (page.status_code, script.status_code, models.status_code) == (200, 200, 401)
    root, script = get(served(), "/", "/page/main.js", page=False)
    assert (root.status_code, script.status_code) == (405, 404)  # / still takes POST


def test_the_page_is_whole_and_has_nothing_inline():
    text = (STATIC / "index.html").read_text()
    page = Page(text)
    assert page.all("html") == [{"lang": "en"}]
    assert "style" not in {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert "style" not in attributes, tag
        assert not any(name.startswith("on") for name in attributes), tag
    assert [each.get("src") for each in page.all("script")] == ["page/main.js"]
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    labelled = {each["for"] for each in page.all("label")}
    assert (
        {each["id"] for tag in ("input", "textarea", "select") for each in page.all(tag)} <= labelled <= ids
    )
    for _, attributes in page.tags:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert attributes.get(name) is None or attributes[name] in ids
        assert not (attributes.get("src") or "").startswith(("http", "//", "/"))


@pytest.mark.parametrize("name", NAMES)
def test_no_file_points_elsewhere_or_makes_html_of_strings(name):
    text = (STATIC / name).read_text()
    assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}  # the namespace of SVG
    assert not re.search(r"\burl\(", text)
    assert "@import" not in text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|localStorage", text)


def test_modules_import_what_is_there():
    for name in NAMES:
        if name.endswith(".js"):
            text = (STATIC / name).read_text()
            for names, source in re.findall(r'import \{(.+?)\} from "\./(.+?)"', text):
                exported = set(
                    re.findall(
                        r"export (?:async )?(?:function|class|const) (\w+)", (STATIC / source).read_text()
                    )
                )
                assert {each.strip() for each in names.split(",")} <= exported, (name, source)
