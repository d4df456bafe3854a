"""The pieces of a self-contained HTML page: every text is escaped, nothing is fetched, no script is run."""

import base64
import html
import re
from collections.abc import Sequence

# what HTML may not hold, and lone surrogates, which UTF-8 cannot
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

DENSITY = 2
"""Dots of a picture for one of the page's pixels: sharp on dense screens, on paper and when enlarged."""

_PAGE_WIDTH = 1168  # pixels, the 76rem below less the padding
# a name may be broken behind these, and in the middle of a word only where nothing else helps
_BREAKS = re.compile(r"(?<=[_/.:])(?=\w)")
_LIGHT = """--ink: #1a1a1a; --paper: #fff; --line: #c4c4c4; --soft: #f3f5f7; --link: #0b57a4;
  --good: #00664b; --bad: #a63c00;"""
_STYLE = f"""
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8e8e8; --paper: #16181b; --line: #4a4e54; --soft: #22262b; --link: #8cc4ff; --good: #5fd3ac;
    --bad: #ffa366; }}
  img {{ filter: brightness(.88); }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 76rem; padding: 1rem 1.5rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }}
a {{ color: var(--link); }}
:focus-visible {{ outline: 3px solid var(--link); outline-offset: 2px; }}
main:focus {{ outline: none; }}
.skip {{ position: absolute; left: -99rem; }}
.skip:focus {{ position: static; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }}
header ul {{ padding: 0; list-style: none; overflow-wrap: anywhere; }}
nav ul {{ display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }}
dl.figures {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; margin: 0; }}
dl.figures div {{ background: var(--soft); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem; }}
dl.figures dt {{ font-weight: 600; }}
dl.figures dd {{ margin: 0; font-variant-numeric: tabular-nums; text-wrap: balance; }}
dl.figures .now {{ font-size: 1.7rem; line-height: 1.3; }}
.better {{ color: var(--good); font-weight: 600; }}
.worse {{ color: var(--bad); font-weight: 600; }}
.scroll {{ overflow-x: auto; margin-bottom: 1rem; }}
.tall {{ max-height: 40rem; overflow-y: auto; border-bottom: 1px solid var(--line); }}
table {{ border-collapse: collapse; }}
caption {{ text-align: left; padding: .25rem 0 .5rem; color: inherit; position: sticky; left: 0;
  max-width: calc(100vw - 3rem); }}
th, td {{ padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }}
thead th {{ background: var(--soft); }}
.tall thead th {{ position: sticky; top: 0; }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
td, th {{ overflow-wrap: break-word; max-width: 40rem; }}
td.text, th.text {{ min-width: 16rem; }}
tbody th {{ font-weight: 400; }}
tbody.total tr:first-child > * {{ border-top: 2px solid var(--ink); }}
figure {{ margin: 1rem 0; }}
figure .scroll {{ margin: 0; }}
img {{ display: block; max-width: 100%; height: auto; background: #fff; border-radius: .25rem; }}
summary {{ cursor: pointer; font-weight: 600; }}
details caption {{ position: absolute; clip-path: inset(50%); }}
@media print {{
  :root {{ color-scheme: light; {_LIGHT} }}
  body {{ padding: 0; max-width: none; font-size: 11px; }}
  nav, .skip {{ display: none; }}
  .scroll, .tall {{ max-height: none; overflow: visible; }}
  .tall thead th {{ position: static; }}
  th, td {{ padding: .15rem .4rem; overflow-wrap: anywhere; }}
  td.text, th.text {{ min-width: 12rem; }}
  img {{ filter: none; min-width: 0 !important; max-height: 95vh; object-fit: contain; object-position: left; }}
  h2, tr, figure {{ break-inside: avoid; }}
  h2, caption {{ break-after: avoid; }} }}
"""


class Cell:
    """A cell of a table. `kind`: number, text, name, better, worse or nothing."""

    def __init__(self, text: str, kind: str = "name") -> None:
        self.text, self.kind = text, kind


def escape(text: str) -> str:
    """A text from anywhere, for an element or an attribute."""
    return html.escape(_UNFIT.sub("\ufffd", text), quote=True)


def page(title: str, facts: Sequence[tuple[str, str]], sections: Sequence[tuple[str, str, str]]) -> str:
    """The whole page.

    Args:
        title: a text.
        facts: (name, value) below the title, texts.
        sections: (id, heading, HTML) in order; the id is ours, the heading a text.
    """
    links = "".join(f'<li><a href="#{key}">{escape(heading)}</a></li>' for key, heading, _ in sections)
    lines = "".join(f"<li>{escape(name)}: <strong>{escape(value)}</strong></li>" for name, value in facts)
    parts = "".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{escape(heading)}</h2>{body}</section>\n'
        for key, heading, body in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the figures</a>\n'
        f"<header><h1>{escape(title)}</h1><ul>{lines}</ul>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f'<main id="main" tabindex="-1">\n{parts}</main>\n</body>\n</html>\n'
    )


def figures(items: Sequence[tuple[str, str, str, str]]) -> str:
    """Large figures: (name, value, what it was and the difference, verdict)."""
    cards = "".join(
        f'<div><dt>{escape(name)}</dt><dd class="now">{escape(value)}</dd>'
        + (f"<dd>{escape(change)}</dd>" if change else "")
        + (f"<dd>{_verdict(verdict)}</dd>" if verdict else "")
        + "</div>"
        for name, value, change, verdict in items
    )
    return f'<dl class="figures">{cards}</dl>'


def table(caption: str, header: Sequence[Cell], *bodies: Sequence[Sequence[Cell]], tall: bool = False) -> str:
    """A table whose first column names the rows; each further body is set apart. A tall one scrolls."""
    head = "".join(f'<th scope="col"{_class(cell)}>{escape(cell.text)}</th>' for cell in header)
    parts = "".join(
        f'<tbody class="{"total" if i else "rows"}">{"".join(map(_row, rows))}</tbody>\n'
        for i, rows in enumerate(bodies)
    )
    label = escape(caption)
    return (
        f'<div class="scroll{" tall" if tall else ""}" tabindex="0" role="region" aria-label="{label}"><table>'
        f"<caption>{label}</caption>\n<thead><tr>{head}</tr></thead>\n{parts}</table></div>\n"
    )


def picture(png: bytes, alt: str, caption: str) -> str:
    """A picture that is inside the page, of DENSITY dots a pixel. `alt` says what it shows to those who do not see it.

    On a narrow screen it shrinks to three quarters, one that is wider than the page not at all: it scrolls. Made to fit,
    its smallest letters could not be read.
    """
    # of the PNG's header
    width, height = (int.from_bytes(png[at : at + 4], "big") // DENSITY for at in (16, 20))
    data, words, name = base64.b64encode(png).decode(), escape(alt), escape(caption)
    least = width if width > _PAGE_WIDTH else width * 3 // 4
    image = (
        f'<img src="data:image/png;base64,{data}" alt="{words}" width="{width}" height="{height}" '
        f'style="min-width:{least}px">'
    )
    image = f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">{image}</div>'
    return f"<figure>{image}<figcaption>{name}</figcaption></figure>\n"


def paragraph(text: str) -> str:
    """A text of ours or of the data."""
    return f"<p>{escape(text)}</p>\n"


def folded(summary: str, body: str, *, opened: bool) -> str:
    """HTML that opens and closes, by key too."""
    return f"<details{' open' if opened else ''}><summary>{escape(summary)}</summary>{body}</details>\n"


def _row(cells: Sequence[Cell]) -> str:
    first, *others = cells
    # dir=auto: a text in Arabic or Hebrew reads from the right, whatever its neighbours do
    head = f'<th scope="row" dir="auto"{_class(first)}>{_breakable(first)}</th>'
    return f"<tr>{head}{''.join(map(_data, others))}</tr>\n"


def _data(cell: Cell) -> str:
    if cell.kind in ("better", "worse"):
        return f"<td>{_verdict(cell.text)}</td>"
    return f'<td dir="auto"{_class(cell)}>{_breakable(cell)}</td>'


def _breakable(cell: Cell) -> str:
    """A long name may go on in another line behind _ and the like."""
    if cell.kind != "name":
        return escape(cell.text)
    return "<wbr>".join(map(escape, _BREAKS.split(cell.text)))


def _class(cell: Cell) -> str:
    return f' class="{cell.kind}"' if cell.kind else ""


def _verdict(verdict: str) -> str:
    kind = f' class="{verdict}"' if verdict in ("better", "worse") else ""
    return f"<span{kind}>{escape(verdict)}</span>" if verdict else ""
