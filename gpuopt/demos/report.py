"""A report as one HTML file that needs nothing else: styles inside, pictures as data, no script, no address of any network.

Called by `search.py`. Knows sections and figures; nothing of what they are about.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from gpuopt import drawing

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #222; background: #fff; }
body { max-width: 58rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.9rem; margin-bottom: 0.2rem; }
h2 { font-size: 1.3rem; margin-top: 2.6rem; border-top: 1px solid #ddd; padding-top: 1.4rem; }
.lead { color: #555; margin-top: 0; }
.found { background: #eef4fb; border-left: 4px solid #0047AB; padding: 0.6rem 1rem; }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
pre { background: #f6f6f6; padding: 0.8rem 1rem; overflow-x: auto; font-size: 0.85rem; line-height: 1.45; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.9rem 0.25rem 0; text-align: right; border-bottom: 1px solid #e6e6e6; }
th:first-child, td:first-child { text-align: left; }
nav ol { columns: 2; padding-left: 1.4rem; }
footer { margin-top: 3rem; color: #767676; font-size: 0.9rem; }
@media (max-width: 40rem) { nav ol { columns: 1; } }
""".strip()


@dataclass(frozen=True)
class Section:
    """One chapter. why: the question it answers. found: the answer, with its numbers. code: what a reader would write. figures:
    (words for who cannot see it, matplotlib Figure). table: a row of titles, then the others, all text.
    """

    title: str
    why: str
    found: str
    code: str
    figures: Sequence[tuple[str, Any]] = ()
    table: Sequence[Sequence[str]] = ()
    seconds: float = field(default=0.0, compare=False)


def html(title: str, lead: str, sections: Sequence[Section], foot: str) -> str:
    """The page as text."""
    listed = "\n".join(f'<li><a href="#s{k}">{escape(s.title)}</a></li>' for k, s in enumerate(sections, 1))
    short = "\n".join(f"<li><strong>{escape(s.title)}</strong>: {escape(s.found)}</li>" for s in sections)
    body = "\n".join(part(k, section) for k, section in enumerate(sections, 1))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{STYLE}
</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
<nav aria-label="Contents">
<ol>
{listed}
</ol>
</nav>
<h2 id="short">In short</h2>
<ul>
{short}
</ul>
{body}
<footer>{escape(foot)}</footer>
</body>
</html>
"""


def part(number: int, section: Section) -> str:
    """One section."""
    pictures = "\n".join(
        f'<img alt="{escape(words)}" width="{width(made)}" src="{embedded(made)}">' for words, made in section.figures
    )
    return f"""<section id="s{number}">
<h2>{number}. {escape(section.title)}</h2>
<p>{escape(section.why)}</p>
<p class="found">{escape(section.found)}</p>
{pictures}
{table(section.table)}
<pre><code>{escape(section.code.strip())}</code></pre>
</section>"""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first one their titles; nothing for none."""
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def width(made: Any) -> int:
    """Of a figure in pixels, 96 to an inch, so that letters have one size in all pictures."""
    return round(96 * float(made.get_figwidth()))


def embedded(made: Any) -> str:
    """A figure as the address of an image that holds it."""
    return f"data:image/png;base64,{base64.b64encode(drawing.png(made)).decode()}"


def save(page: str, path: Path) -> Path:
    """Write the page and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path
