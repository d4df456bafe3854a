"""What a page must be, checked without a browser: balanced, self-contained, named for those who do not see it."""

import base64
import html.parser
import itertools

VOID = {"meta", "img", "br", "hr", "link", "input", "wbr"}


class Page(html.parser.HTMLParser):
    """A page that was read. Raises AssertionError for a tag that is not closed where it must be.

    Attributes:
        tags: (name, attributes) in order.
        texts: (path of open tags, text) in order.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(set(names)) == len(names), f"an attribute twice: {tag} {names}"
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open, f"</{tag}> closes nothing"
        last = self._open.pop()
        assert last == tag, f"</{tag}> where {last} is open"

    def handle_data(self, data):
        if data.strip():
            self.texts.append((tuple(self._open), data))

    def all(self, tag):
        """The attributes of every `tag`."""
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag):
        """The texts inside of every `tag`."""
        return [text for path, text in self.texts if tag in path]


def check_page(text: str) -> Page:
    """Assert what holds for every report."""
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.all("html") == [{"lang": "en"}]
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    _check_references(page, text)
    _check_headings(page)
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), f"a handler in <{tag}>"
        assert tag != "img" or len(attributes["alt"] or "") > 20
        assert tag != "th" or attributes.get("scope") in ("col", "row")
    assert len(page.all("table")) == len(page.text("caption"))
    assert "prefers-color-scheme: dark" in text
    return page


def _check_references(page: Page, text: str) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for _, attributes in page.tags:
        for name in ("src", "href", "aria-labelledby"):
            value = attributes.get(name)
            if name == "src" and value:
                assert value.startswith("data:image/png;base64,")
                assert base64.b64decode(value.partition(",")[2]).startswith(b"\x89PNG")
            elif value:
                assert value.removeprefix("#") in ids
    style = "".join(page.text("style"))
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in text


def _check_headings(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
