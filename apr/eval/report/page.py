"""The page: one HTML file that needs nothing else, for light and dark screens and for paper."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from apr.eval import paper
from apr.eval.report import style
from apr.eval.report.style import Drawn, Number
from apr.eval.report.tables import Table

_CSS = """
:root { color-scheme: light dark; LIGHT }
@media (prefers-color-scheme: dark) { :root { DARK } }
@media print { :root { LIGHT } }
body { margin: 0 auto; max-width: 71rem; padding: 2rem 1.25rem 4rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 3rem 0 .6rem; }
p { max-width: 46rem; }
a { color: inherit; }
.muted, figcaption, caption, summary { color: var(--muted); font-size: .9rem; }
figure { margin: 0; }
figure svg { width: 100%; max-width: 60rem; min-width: 34rem; height: auto; display: block; }
figcaption { max-width: 46rem; margin-top: .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .5rem .28rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; white-space: normal; min-width: 3rem; }
th:first-child, td:first-child, .commands td { text-align: left; }
.theirs td { color: var(--paper); }
code { font-size: .82rem; overflow-wrap: anywhere; white-space: normal; }
details { margin: .6rem 0 0; }
summary { cursor: pointer; }
.missing { border-left: 3px solid var(--line); padding-left: .9rem; color: var(--muted); }
nav ul { padding: 0; list-style: none; columns: 2; font-size: .92rem; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; }
  section { break-inside: avoid; } details, nav { display: none; } .wide { overflow: visible; }
  table { font-size: 7.5pt; } th, td { padding-right: .35rem; } }
"""


def page(
    about: Sequence[str],
    drawn: Sequence[Drawn],
    before: Sequence[Table],
    after: Sequence[Table],
    command: str,
) -> str:
    """The whole page.

    Args:
        about: paragraphs of what was run, as plain text.
        before: tables that come before the figures.
        after: tables that come after them.
        command: what fills the grid.
    """
    light, dark = style.css_variables()
    css = _CSS.replace("LIGHT", light).replace("DARK", dark)
    sections = [*map(_table, before), *(_figure(d, command) for d in drawn), *map(_table, after)]
    titles = [t.title for t in before] + [d.title for d in drawn] + [t.title for t in after]
    links = "".join(f'<li><a href="#{_anchor(t)}">{escape(t)}</a></li>' for t in titles)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_TITLE}</title>\n<style>{css}</style>\n</head>\n<body>\n<h1>{_TITLE}</h1>\n"
        + "".join(f"<p>{_text(text)}</p>\n" for text in about)
        + f"<p>All of it again: <code>{escape(command)}</code></p>\n"
        f'<p class="muted">Grey is the paper: <a href="{paper.URL}">{escape(paper.SOURCE)}</a>. '
        f"{escape(_SCALES)}</p>\n<nav><ul>{links}</ul></nav>\n" + "\n".join(sections) + "\n"
        "</body>\n</html>\n"
    )


_TITLE = "Does it pay to reason in parallel?"
_SCALES = (
    "Its task is Countdown with four numbers up to 99, its model has 228M parameters and a context "
    "of 4,096 tokens; ours are far smaller. Shapes are to be compared, not heights."
)


def _figure(drawn: Drawn, command: str) -> str:
    if drawn.figure is None:
        body = (
            f'<p class="missing">Not drawn. {_text(drawn.caption)} '
            f"With that in the grid: <code>{escape(command)}</code></p>"
        )
    else:
        body = (
            f'<figure><div class="wide">{style.inline_svg(drawn)}</div>'
            f"<figcaption>{_text(drawn.caption)}</figcaption></figure>{_numbers(drawn.numbers)}"
        )
    return _section(drawn.title, body)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.head)
    rows = "".join(
        f"<tr{_class_of(row)}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    body = (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<p class="muted">{_text(table.caption)}</p>{_numbers(table.numbers)}'
    )
    return _section(table.title, body)


def _class_of(row: Sequence[str]) -> str:
    return ' class="theirs"' if row[0].endswith(", paper") else ""


def _numbers(numbers: Sequence[Number]) -> str:
    if not numbers:
        return ""
    rows = "".join(
        f"<tr><td>{escape(n.label)}</td><td>{escape(n.value)}</td>"
        f"<td><code>{escape(n.command)}</code></td></tr>"
        for n in numbers
    )
    return (
        "<details><summary>Numbers and the commands that make them</summary>"
        f'<div class="wide"><table class="commands"><tbody>{rows}</tbody></table></div></details>'
    )


def _text(text: str) -> str:
    """Prose, with no line break before a per cent sign."""
    return escape(text).replace(" %", "&nbsp;%")


def _section(title: str, body: str) -> str:
    return f'<section id="{_anchor(title)}">\n<h2>{escape(title)}</h2>\n{body}\n</section>'


def _anchor(title: str) -> str:
    kept = "".join(c if c.isalnum() else "-" for c in title.split(":")[0].lower())
    return "s-" + "-".join(filter(None, kept.split("-")))
