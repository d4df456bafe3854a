"""The report in a real browser, headless: nothing is cut off or missing, nothing is fetched, nothing goes wrong."""

import html
import json
import re
import shutil
import struct
import subprocess

import pytest

from raybert.corpus.store import Store
from raybert.evaluate.report import PAGE, write_report
from raybert.evaluate.result import Evaluation
from tests.evaluate.test_report import CURVES, EVIL, pair, predictions

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")

PROBE = """
<title></title><pre></pre><iframe src="report.html"></iframe><script>
const frame = document.querySelector("iframe");
frame.style = "border:0;height:900px;width:" + WIDTH + "px";
frame.onload = () => {
  const page = frame.contentDocument, root = page.documentElement;
  for (const details of page.querySelectorAll("details")) details.open = true;
  const outside = [...page.body.querySelectorAll("*")].filter(element =>
    element.getBoundingClientRect().right > root.clientWidth + 1
    && !element.closest(".scroll, .skip, caption"));
  const scrolls = [...page.querySelectorAll(".scroll")];
  document.querySelector("pre").textContent = JSON.stringify({
    width: root.clientWidth,
    content: root.scrollWidth,
    outside: outside.map(element => element.outerHTML.slice(0, 80)),
    pictures: [...page.images].map(image => [image.naturalWidth, image.clientWidth]),
    reachable: scrolls.every(element => element.tabIndex === 0 && element.getAttribute("aria-label")),
    texts: [...page.querySelectorAll("td.text, tbody th.text")].map(cell => cell.clientWidth),
    paper: getComputedStyle(page.body).backgroundColor,
    fetched: frame.contentWindow.performance.getEntriesByType("resource")
      .map(entry => entry.name).filter(name => !name.startsWith("data:")),
    landmarks: ["header", "nav[aria-label]", "main", "h1"].filter(name => !page.querySelector(name)),
  });
};
</script>
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report with all that there is, long names and hostile ones."""
    made = tmp_path_factory.mktemp("report")
    labels = [f"label_number_{i}_with_a_name_that_goes_on_and_on" for i in range(75)]
    two = pair([*labels, EVIL, "x" * 90])
    long = {"model": "/runs/" + "m" * 90, "task": "t" * 90}
    before, after = (Evaluation(**{**vars(one), **long}) for one in two)
    write_report(Store(str(made)), before, after, curves=CURVES, changed_rows=predictions())
    return made


def chromium(folder, *options):
    """What Chromium writes on its two outputs."""
    profile = folder / "profile"
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    words += ["--disable-background-networking", f"--user-data-dir={profile}", *options]
    done = subprocess.run([CHROMIUM, *words], capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def look(folder, width, *options):
    """The page as laid out in a window of that width, and the lines of its console."""
    probe = folder / f"probe{width}.html"
    probe.write_text(PROBE.replace("WIDTH", str(width)))
    # a page from a file may look into another one; time runs ahead until nothing is left to do
    allowed = ["--allow-file-access-from-files", "--virtual-time-budget=20000", "--window-size=1400,1000"]
    out, err = chromium(folder, *allowed, *options, "--dump-dom", probe.as_uri())
    found = re.search(r"<pre>(.+?)</pre>", out, re.DOTALL)
    assert found, f"the page was not laid out: {err[-2000:]}"
    return json.loads(html.unescape(found[1])), [line for line in err.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize(
    ("width", "scheme", "paper"), [(400, 0, "rgb(22, 24, 27)"), (1280, 1, "rgb(255, 255, 255)")]
)
def test_nothing_is_cut_off_or_missing(folder, width, scheme, paper):
    found, console = look(folder, width, f"--blink-settings=preferredColorScheme={scheme}")
    assert console == []
    assert found["content"] <= found["width"] <= width
    assert found["outside"] == []
    assert len(found["pictures"]) == len(list(folder.glob("*.png"))) == 5
    for natural, shown in found["pictures"]:
        # two dots a pixel; a shrunken one is still at three quarters
        assert natural > 0
        assert 0.37 <= shown / natural <= 0.51
    if width == 1280:  # also the matrix of 77 labels is within the page, as it was drawn
        assert all(shown <= 1168 and natural - 2 * shown in (0, 1) for natural, shown in found["pictures"])
    assert min(found["texts"]) > 200
    assert found["reachable"]
    assert found["fetched"] == []
    assert found["landmarks"] == []
    assert found["paper"] == paper


def test_a_screenshot_is_taken(folder, tmp_path):
    picture = tmp_path / "shot.png"
    _, err = chromium(folder, f"--screenshot={picture}", "--window-size=1280,900", (folder / PAGE).as_uri())
    assert "CONSOLE" not in err
    assert struct.unpack(">II", picture.read_bytes()[16:24]) == (1280, 900)
