"""A self-contained page: one file, no network, light and dark, sortable tables.

Every text that comes from outside (token texts, paths, model names) passes :func:`visible` and
:func:`html.escape`, so neither markup nor control characters of a model reach the page.
"""

import unicodedata
from collections.abc import Sequence
from html import escape
from pathlib import Path

from subspan.report.files import write_atomic

__all__ = ["Page", "visible"]

_NAMED = {"\n": "↵", "\t": "⇥", "\r": "␍", " ": "·"}


def visible(text: str, *, limit: int = 60) -> str:
    r"""Make every character of a text visible: spaces, line ends, control and format characters.

    Parameters
    ----------
    text
        Any text, for instance a token of a model.
    limit
        Longest result; the rest is cut and marked.

    Returns
    -------
    str
        Not yet escaped for HTML.

    Examples
    --------
    >>> visible("a\nb\x07")
    'a↵b␇'
    """
    shown = "".join(map(_visible_character, text[: limit + 1]))
    return shown if len(text) <= limit else shown[:limit] + "…"


def _visible_character(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)  # the block of control pictures
    if code == 0x7F:
        return "␡"
    if unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp"):
        return f"⟨U+{code:04X}⟩"
    return character


class Page:
    """Collects blocks in order and writes them as one HTML file."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self._parts = [f"<header><h1>{escape(title)}</h1>"]
        if subtitle:
            self._parts.append(f'<p class="subtitle">{escape(subtitle)}</p>')
        self._parts.append("</header>")
        self._style, self._script = _CSS, _SORT

    def section(self, title: str) -> None:
        """Start a section."""
        name = "".join(c if c.isalnum() else "-" for c in title.lower())
        self._parts.append(f'<h2 id="{escape(name)}">{escape(title)}</h2>')

    def paragraph(self, text: str, *, style: str = "") -> None:
        """Add a paragraph; ``style`` is ``"verdict"``, ``"note"`` or empty."""
        kind = f' class="{style}"' if style else ""
        self._parts.append(f"<p{kind}>{escape(text)}</p>")

    def verdict(self, paragraphs: Sequence[Sequence[str]]) -> None:
        """Add the findings in words: paragraphs of sentences, the very first one set off."""
        blocks = []
        for number, sentences in enumerate(paragraphs):
            text = [escape(sentence) for sentence in sentences]
            if number == 0 and text:
                text[0] = f"<strong>{text[0]}</strong>"
            blocks.append(f"<p>{' '.join(text)}</p>")
        self._parts.append(f'<div class="verdict">{"".join(blocks)}</div>')

    def cards(self, items: Sequence[tuple[str, str, str]]) -> None:
        """Add key numbers as ``(value, what it is, remark)``."""
        cells = "".join(
            f"<div><b>{escape(value)}</b><span>{escape(name)}</span><small>{escape(remark)}</small></div>"
            for value, name, remark in items
        )
        self._parts.append(f'<div class="cards">{cells}</div>')

    def figure(self, svg: str, caption: str, *, closed: str = "") -> None:
        """Add a figure (inline SVG from ``style.save``) with its caption.

        ``closed`` puts it behind a line of that text, for the many-panel pictures.
        """
        svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(caption)}"', 1)
        block = f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
        self._parts.append(_closed(block, closed))

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        caption: str = "",
        closed: str = "",
    ) -> None:
        """Add a table; a click on a head sorts it. Numbers are set right, texts left.

        Floats are shown with three significant figures (full precision stays in the JSON report).
        """
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        block = (
            f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )
        self._parts.append(_closed(block, closed))

    def definitions(self, items: Sequence[tuple[str, str]]) -> None:
        """Add a list of names and values, for run facts and notes."""
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in items)
        self._parts.append(f"<dl>{rows}</dl>")

    def block(self, markup: str, *, style: str = "", script: str = "") -> None:
        """Add markup that is escaped already, with the style and the script that it needs."""
        self._parts.append(markup)
        self._style += style
        self._script += script

    def html(self) -> str:
        """Return the whole page."""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{self._style}</style></head>\n<body><main>\n"
            + "\n".join(self._parts)
            + f"\n</main><script>{self._script}</script></body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the page, whole or not at all."""
        content = self.html().encode("utf-8", "replace")
        write_atomic(path, [content], n_bytes=len(content))


def _closed(block: str, title: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{block}</details>" if title else block


def _cell(value: object) -> str:
    if value is None:
        return '<td class="n">–</td>'
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td>{escape(str(value))}</td>"
    text = f"{value:,}" if isinstance(value, int) else number(value)
    return f'<td class="n" data-v="{value!r}">{text}</td>'


def number(value: float) -> str:
    """Return a float with three significant figures, without exponents where they can be spared.

    Examples
    --------
    >>> number(0.98765), number(25428.3), number(1.5e-7)
    ('0.988', '25,428', '1.5e-07')
    """
    size = abs(value)
    if value == 0 or size >= 1e7 or size < 1e-3:
        return f"{value:.3g}"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


_CSS = """
:root{color-scheme:light dark;--page:#fbfaf7;--card:#fff;--ink:#1f2329;--muted:#5e6773;
--grid:#d9dee5;--accent:#0072b2;--blue:#0072b2;--mark:#eaf3f9}
@media(prefers-color-scheme:dark){:root{--page:#14171b;--card:#1b1f25;--ink:#e6e9ed;
--muted:#a0a9b4;--grid:#343b44;--accent:#56b4e9;--blue:#409ae0;--mark:#1d2c38}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1060px;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:2rem;line-height:1.15;margin:0;letter-spacing:-.015em}
h2{font-size:1.3rem;margin:2.75rem 0 .75rem;padding-top:.9rem;border-top:1px solid var(--grid)}
.subtitle{margin:.4rem 0 0;color:var(--muted);overflow-wrap:anywhere}
p{max-width:46rem}
.verdict{font-size:1.06rem;background:var(--mark);border-left:4px solid var(--accent);
padding:.1rem 1.25rem;margin:1.5rem 0;border-radius:0 6px 6px 0}
.verdict p{max-width:none;margin:.85rem 0}
.note,figcaption,caption{color:var(--muted);font-size:.9rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));
gap:.75rem;margin:1.5rem 0}
.cards div{background:var(--card);border:1px solid var(--grid);border-radius:6px;
padding:.8rem .9rem}
.cards b{display:block;font-size:1.5rem;line-height:1.2;font-variant-numeric:tabular-nums}
.cards span{display:block;font-size:.88rem}.cards small{color:var(--muted)}
figure{margin:1.25rem 0;background:var(--card);border:1px solid var(--grid);border-radius:6px;
padding:.75rem;overflow-x:auto}
figure svg{display:block;width:100%;height:auto;min-width:620px;font-family:inherit}
figcaption{margin-top:.6rem;max-width:52rem}
caption{text-align:left;padding:.5rem .6rem;caption-side:top}
.scroll{overflow:auto;max-height:34rem;border:1px solid var(--grid);border-radius:6px;
background:var(--card);margin:1rem 0}
table{border-collapse:collapse;width:100%;font-size:.86rem}
th,td{padding:.32rem .6rem;text-align:left;white-space:nowrap;border-bottom:1px solid var(--grid)}
td:last-child:not(.n){white-space:normal;min-width:12rem}
thead th{position:sticky;top:0;background:var(--card);cursor:pointer;font-weight:600;
box-shadow:inset 0 -1px var(--grid)}
th[aria-sort=ascending]::after{content:" \\25b2";font-size:.7em}
th[aria-sort=descending]::after{content:" \\25bc";font-size:.7em}
.n{text-align:right;font-variant-numeric:tabular-nums}
details{margin:1rem 0}summary{cursor:pointer;color:var(--accent)}
dl{display:grid;grid-template-columns:minmax(9rem,max-content) 1fr;
gap:.35rem 1.25rem;font-size:.9rem}
dt{color:var(--muted)}dd{margin:0;overflow-wrap:anywhere}
@media print{.scroll{max-height:none}figure,.cards div{break-inside:avoid}}
"""

_SORT = """
document.querySelectorAll("thead th").forEach(function(head){head.onclick=function(){
var row=head.parentNode,place=[].indexOf.call(row.children,head),
body=head.closest("table").tBodies[0],down=head.getAttribute("aria-sort")!=="descending";
[].forEach.call(row.children,function(h){h.removeAttribute("aria-sort")});
head.setAttribute("aria-sort",down?"descending":"ascending");
function key(line){var cell=line.cells[place];
return cell.dataset.v!==undefined?+cell.dataset.v:cell.textContent}
[].slice.call(body.rows).sort(function(a,b){var x=key(a),y=key(b),
c=typeof x==="number"&&typeof y==="number"?x-y:(""+x).localeCompare(""+y);
return down?-c:c}).forEach(function(line){body.appendChild(line)})}});
"""
