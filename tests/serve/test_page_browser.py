"""The page in a real browser: typed into, clicked, by keyboard, in words, in light and dark, on narrow and wide screens."""

import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from raybert.config import load
from raybert.config.serving import ServedModelSettings, ServeSettings
from raybert.config.tasks import EntitiesSettings
from raybert.serve.app import application
from raybert.serve.loading import load_engine
from raybert.serve.metrics import ModelMetrics
from raybert.serve.model import Limits, ServedModel
from raybert.serve.search import SearchIndex
from tests.conftest import sentences
from tests.heads import tiny_head, tiny_task
from tests.serve import services
from tests.serve.browser import CHROMIUM, DRIVER, Browser
from tests.vector_folders import make_folder

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver here")

TEXTS = ["the quick brown fox", "a lazy dog sleeps", "the quick red fox", "cities by the river"]
ROWS = sentences(50, seed=8)
PICTURES = os.environ.get("PAGE_PICTURES")  # a folder to keep pictures in


@contextmanager
def listening(models: dict[str, Any], **settings: Any) -> Iterator[str]:
    """The address of a service."""
    with services.listening(application(models, ServeSettings(**settings))) as address:
        yield f"{address}/"


@pytest.fixture(scope="module")
def index(engine, tmp_path_factory) -> str:
    """A folder of ROWS."""
    path = tmp_path_factory.mktemp("index") / "out"
    facts = {
        key: getattr(engine.encoder, key) for key in ("digest", "pooling", "layers", "normalized", "prompt")
    }
    kept = {"text": {"a": ROWS}, "year": {"a": [2000 + i for i in range(len(ROWS))]}}
    types = {"text": pa.string(), "year": pa.int64()}
    make_folder(path, {"a": engine.encoder.encode(ROWS)}, kept=kept, types=types, **facts)
    return str(path)


@pytest.fixture(scope="module")
def model(engine, index) -> Iterator[ServedModel]:
    made = ServedModel("tiny", engine, Limits(), ModelMetrics("tiny"), SearchIndex(index, engine.encoder))
    yield made
    made.close()


@pytest.fixture(scope="module")
def address(model) -> Iterator[str]:
    with listening({"tiny": model}) as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as one:
        yield one


@pytest.fixture
def browser(chromium, address) -> Browser:
    """The page, open."""
    show(chromium, address)
    return chromium


def show(browser: Browser, url: str) -> None:
    browser.window(1280)
    browser.open(url)
    browser.console()
    browser.requests()
    browser.open(url)
    browser.wait(lambda: browser.seen("#work") or browser.text("#trouble"))


def compared(browser: Browser, texts: list[str]) -> None:
    browser.type("#texts", "\n".join(texts))
    browser.click("#go")
    browser.wait(lambda: browser.text("#status") or browser.text("#work-error"))
    assert browser.text("#work-error") == ""


def numbers(rows: list[list[str]]) -> np.ndarray:
    return np.array([[float(cell.replace("−", "-")) for cell in row[1:]] for row in rows])


def test_texts_are_compared(browser, engine, address):
    compared(browser, TEXTS)
    vectors = engine.encoder.encode(TEXTS).astype(np.float64)
    table = browser.table(".heat")
    assert [row[0].replace("\n", " ") for row in table] == [f"{i + 1} {text}" for i, text in enumerate(TEXTS)]
    np.testing.assert_allclose(numbers(table), vectors @ vectors.T, atol=0.006)
    pairs = [(float(vectors[a] @ vectors[b]), a, b) for a, b in itertools.combinations(range(4), 2)]
    shown = browser.table(".pairs")
    assert [row[1:] for row in shown] == [
        [f"{place + 1}\n{TEXTS[place]}" for place in pair] for _, *pair in sorted(pairs, reverse=True)
    ]
    assert float(shown[0][0]) == pytest.approx(max(pairs)[0], abs=0.0006)
    assert browser.text("#status").startswith("4 texts in ")
    assert f"Nearest: {max(pairs)[1] + 1} and {max(pairs)[2] + 1}, at" in browser.text("#status")
    told = browser.text("#results .figures") + browser.text("#results .legend")
    assert all(word in told for word in ("round trip", "tokens", "tokenizing", "waiting", "model", "network"))
    heads = browser.script("return [...document.querySelectorAll('.heat th')].map(one => one.scope)")
    assert heads == ["col"] * 5 + ["row"] * 4
    assert browser.console() == []
    sent = browser.requests()
    assert f"{address}v1/embeddings" in sent
    assert all(url.startswith(address) for url in sent), sent


def test_everything_is_done_with_the_keyboard(browser):
    def focused() -> str:
        return browser.script("return document.activeElement.id || document.activeElement.innerText")

    browser.press("Tab")
    assert focused() == "Skip to the results"
    assert browser.script("return document.activeElement.getBoundingClientRect().top >= 0")
    browser.press("Tab")
    assert focused() == "texts"
    outline = "return getComputedStyle(document.activeElement).outlineStyle + getComputedStyle(document.activeElement).outlineWidth"
    assert browser.script(outline) == "solid3px"
    browser.press("Control", "a")
    for key in "fox":
        browser.press(key)
    browser.press("Enter")
    for key in "dog":
        browser.press(key)
    browser.press("Control", "Enter")
    assert browser.wait(lambda: browser.text("#status")).startswith("2 texts in ")
    visited = []
    for _ in range(3):
        browser.press("Tab")
        visited.append(focused())
    assert visited[:2] == ["truncate", "go"]
    browser.press("Shift", "Tab")
    browser.press("Enter")
    browser.wait(lambda: browser.text("#status"))
    order = [focused()]
    while order[-1] not in ("openapi.json", ""):
        browser.press("Tab")
        order.append(focused())
        assert len(order) < 30
    assert [name for name in order if name in ("go", "query", "filter", "hits", "find")] == [
        *("go", "query", "filter", "hits", "find")
    ]
    assert order.count("Copy") == 3


def test_what_goes_wrong_is_said_in_words(browser):
    compared_texts = ["fox", "dog " * 100]
    browser.type("#texts", "\n".join(compared_texts))
    browser.click("#go")
    said = browser.wait(lambda: browser.text("#work-error"))
    assert said == "Text 2 has more than 48 tokens; shorten it, or let texts be cut."
    assert browser.script("return document.getElementById('work-error').getAttribute('role')") == "alert"
    browser.click("#truncate")
    browser.click("#go")
    assert browser.wait(lambda: browser.text("#status")).startswith("2 texts in")
    assert browser.text("#work-error") == ""
    browser.type("#texts", " ")
    browser.click("#go")
    assert browser.wait(lambda: browser.text("#work-error")) == "Give a text."
    browser.type("#texts", "\n".join(["fox"] * 501))
    browser.click("#go")
    assert "500 texts at most" in browser.wait(lambda: browser.text("#work-error"))
    browser.devtools("Network.enable")
    conditions = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.devtools("Network.emulateNetworkConditions", offline=True, **conditions)
    browser.type("#texts", "fox")
    browser.click("#go")
    said = browser.wait(lambda: "answer" in browser.text("#work-error") and browser.text("#work-error"))
    browser.devtools("Network.emulateNetworkConditions", offline=False, **conditions)
    assert said == "The service does not answer. Is it still running?"
    assert browser.text("#go") == "Compare"


def test_hostile_texts_are_texts(browser):
    evil = "<img src=x onerror=alert(1)><b>bold</b> ' \" $HOME `id` \\ \u2028 €"
    browser.click("#truncate")
    compared(browser, [evil, "fox"])
    assert browser.table(".pairs")[0][1] == f"1\n{evil}"
    assert browser.script("return document.querySelectorAll('main img, main b').length") == 0
    assert browser.console() == []


def test_the_index_is_searched(browser, address):
    assert "of 50" in browser.text("#search-about")
    browser.type("#query", "a lazy dog")
    browser.type("#filter", "year >= 2010")
    browser.press("Enter")
    browser.wait(lambda: browser.text("#search-status"))
    body = {"query": "a lazy dog", "filter": "year >= 2010", "k": 10}
    hits = httpx.post(f"{address}search", json=body).json()["hits"]
    shown = browser.table(".hits")
    assert [[f"{hit['score']:.3f}", *map(str, hit["row"].values())] for hit in hits] == [
        [row[0].replace("−", "-"), *row[1:]] for row in shown
    ]
    assert browser.console() == []
    browser.type("#filter", "yaer == 1")
    browser.click("#find")
    said = browser.wait(lambda: browser.text("#search-error"))
    assert said == "Filter: there is no column 'yaer'; there are id, text, year, num_tokens, truncated."


def test_the_requests_to_copy_work(browser, engine, tmp_path):
    evil = 'it\'s "quoted" $HOME `id` \\n é'
    browser.type("#texts", f"{evil}\nfox")
    browser.type("#query", "a 'lazy' dog")
    snippets = browser.script(
        "return [...document.querySelectorAll('.snippet code')].map(one => one.textContent)"
    )
    curl, python, search = snippets
    expected = engine.encoder.encode([evil, "fox"])
    if shutil.which("curl"):
        answers = [
            subprocess.run(["bash", "-c", f"{each} -s"], capture_output=True) for each in (curl, search)
        ]
        data = httpx.Response(200, content=answers[0].stdout).json()["data"]
        np.testing.assert_allclose([each["embedding"] for each in data], expected, atol=1e-5)
        assert len(httpx.Response(200, content=answers[1].stdout).json()["hits"]) == 10
    (tmp_path / "ask.py").write_text(f"{python}\nimport json\nprint(json.dumps(vectors))\n")
    done = subprocess.run([sys.executable, tmp_path / "ask.py"], capture_output=True, check=True)
    np.testing.assert_allclose(httpx.Response(200, content=done.stdout).json(), expected, atol=1e-5)


def test_a_request_is_copied(browser, address):
    browser.devtools(
        "Browser.grantPermissions",
        origin=address.rstrip("/"),
        permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
    )
    browser.click(".snippet:nth-of-type(2) button")
    browser.wait(lambda: browser.text("#copied") == "Copied: Python, openai")
    assert browser.text(".snippet:nth-of-type(2) button") == "Copied"
    copied = browser.script("return navigator.clipboard.readText()")
    assert copied == browser.script("return document.querySelectorAll('.snippet code')[1].textContent")


def test_a_key_is_asked_for_and_kept_in_memory_only(chromium, model, monkeypatch):
    monkeypatch.setenv("PAGE_KEYS", "open-sesame")
    with listening({"tiny": model}, keys_from="env:PAGE_KEYS") as url:
        chromium.window(1280)
        chromium.open(url)
        chromium.wait(lambda: chromium.seen("#key-form"))
        assert chromium.text("#trouble") == "The service asks for a key."
        assert chromium.script("return document.activeElement.id") == "key"
        picture(chromium, "key-1280-light")
        chromium.type("#key", "wrong")
        chromium.press("Enter")
        chromium.wait(lambda: chromium.text("#trouble") == "The service does not know this key.")
        chromium.type("#key", "open-sesame")
        chromium.press("Enter")
        chromium.wait(lambda: chromium.seen("#work"))
        assert not chromium.seen("#key-form")
        assert chromium.script("return document.activeElement.id") == "texts"
        compared(chromium, TEXTS)
        code = chromium.text("#snippets")
        assert "$RAYBERT_API_KEY" in code
        assert "open-sesame" not in chromium.script("return document.documentElement.outerHTML")
        kept = (
            "return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
        )
        assert "open-sesame" not in chromium.script(kept)


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> Iterator[dict[str, ServedModel]]:
    """Models of nine classes, of entities, and one that scores pairs."""
    at = tmp_path_factory.mktemp("heads")
    folders = {
        "classes": tiny_head(at / "classes", [f"class {i}" for i in range(9)]),
        "entities": tiny_task(at / "entities", EntitiesSettings(), ["O", "B-city", "I-city"], seed=3),
        "reranker": tiny_head(at / "reranker", ["LABEL_0"], problem="regression"),
    }
    made = {}
    for name, folder in folders.items():
        settings = {"model.name": folder, "model.dtype": "float32", "workers.cpus": 1}
        engine = load_engine(load(ServedModelSettings, settings=settings))
        made[name] = ServedModel(name, engine, Limits(), ModelMetrics(name))
    yield made
    for model in made.values():
        model.close()


def test_several_models_and_their_heads(chromium, model, heads):
    with listening({"tiny": model, **heads}) as url:
        show(chromium, url)
        options = chromium.script(
            "return [...document.getElementById('model').options].map(one => one.value)"
        )
        assert options == ["tiny", *heads]
        compared(chromium, TEXTS)
        choose(chromium, "classes")
        compared(chromium, TEXTS[:2])
        said = httpx.post(f"{url}predict", json={"model": "classes", "inputs": TEXTS[0]}).json()
        chromium.script("for (const one of document.querySelectorAll('details')) one.open = true")
        shown = chromium.table("#results section:nth-of-type(2)")
        assert shown == [[one["label"], f"{100 * one['score']:.1f} %"] for one in said]
        assert chromium.script("return document.querySelectorAll('#results table').length") == 4
        code = chromium.script(
            "return [...document.querySelectorAll('.snippet code')].map(one => one.textContent)"
        )
        if shutil.which("curl"):
            done = subprocess.run(["bash", "-c", f"{code[0]} -s"], capture_output=True, check=True)
            assert httpx.Response(200, content=done.stdout).json()[0][0]["label"] == said[0]["label"]
        done = subprocess.run([sys.executable, "-c", code[1]], capture_output=True, check=True, text=True)
        assert said[0]["label"] in done.stdout
        assert chromium.script(LAYOUT)["pale"] == []
        picture(chromium, "classes-1280-light")
        choose(chromium, "entities")
        text = "😀 cities by the river, 東京 and other fox"
        compared(chromium, [text])
        said = httpx.post(f"{url}predict", json={"model": "entities", "inputs": text}).json()
        assert said
        shown = chromium.table("#results")
        assert shown == [[one["entity_group"], one["word"], f"{100 * one['score']:.1f} %"] for one in said]
        marks = chromium.script(
            "return [...document.querySelectorAll('mark')].map(one => one.firstChild.data)"
        )
        assert marks == [one["word"] for one in said]
        picture(chromium, "entities-1280-light")
        choose(chromium, "reranker")
        chromium.type("#against", "quick fox")
        compared(chromium, TEXTS)
        body = {"model": "reranker", "query": "quick fox", "texts": TEXTS}
        said = httpx.post(f"{url}rerank", json=body).json()
        shown = chromium.table("#results")
        assert [row[1] for row in shown] == [f"{one['index'] + 1}\n{TEXTS[one['index']]}" for one in said]
        picture(chromium, "reranker-1280-light")
        assert chromium.console() == []


def choose(browser: Browser, name: str) -> None:
    browser.script("document.getElementById('model').value = arguments[0]", name)
    browser.script("document.getElementById('model').dispatchEvent(new Event('change'))")


def picture(browser: Browser, name: str) -> None:
    if PICTURES:
        browser.script("scrollTo(0, 0)")
        browser.picture(Path(PICTURES) / f"{name}.png")


LAYOUT = """
const root = document.documentElement;
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
function rgba(colour) {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
}
function paper(element) {
  for (let at = element; at; at = at.parentElement) {
    const found = rgba(getComputedStyle(at).backgroundColor);
    if (found[3] === 255) return found;
  }
  return [255, 255, 255, 255];
}
function light([r, g, b]) {
  const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
}
const texts = [...document.body.querySelectorAll("*")].filter(element => element.offsetParent
  && !element.closest(".unseen, .skip") && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
return {
  width: root.clientWidth,
  content: root.scrollWidth,
  outside: [...document.body.querySelectorAll("*")].filter(element =>
    element.getBoundingClientRect().right > root.clientWidth + 1 && !element.closest(".scroll, pre, .skip, .unseen"))
    .map(element => element.outerHTML.slice(0, 90)),
  small: [...document.querySelectorAll("button, select, input")].filter(one => one.offsetParent
    && Math.min(one.offsetWidth, one.offsetHeight) < (one.type === "checkbox" ? 18 : 24)).map(one => one.outerHTML),
  pale: texts.map(element => {
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(paper(element))].sort();
    return [(b + 0.05) / (a + 0.05), element.outerHTML.slice(0, 90)];
  }).filter(([contrast]) => contrast < 4.5),
  texts: texts.length,
  paper: getComputedStyle(document.body).backgroundColor,
};
"""


def test_nothing_is_cut_off_or_pale(browser):
    browser.click("#truncate")
    compared(browser, ["word" * 40, *sentences(11, seed=3)])
    browser.type("#query", "dog")
    browser.click("#find")
    browser.wait(lambda: browser.text("#search-status"))
    browser.script("for (const one of document.querySelectorAll('details')) one.open = true")
    browser.type("#filter", "x")
    browser.click("#find")
    browser.wait(lambda: browser.text("#search-error"))
    for width, dark in itertools.product((1280, 400, 320), (False, True)):
        browser.window(width, dark=dark)
        time.sleep(0.3)  # colours come slowly
        found = browser.script(LAYOUT)
        assert found["content"] <= found["width"] <= width
        assert (width, found["outside"]) == (width, [])
        assert (width, found["small"]) == (width, [])
        assert found["texts"] > 200
        assert (width, dark, found["pale"]) == (width, dark, [])
        assert (sum(map(int, found["paper"][4:-1].split(","))) < 150) == dark
        picture(browser, f"long-{width}-{'dark' if dark else 'light'}")


def test_reading_on_a_screen_that_is_still(browser):
    browser.devtools(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}]
    )
    moving = "return [...document.querySelectorAll('*')].filter(one => getComputedStyle(one).transitionDuration !== '0s').length"
    assert browser.script(moving) == 0
