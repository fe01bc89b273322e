"""A report's pages: the same content as Markdown and as one self-contained HTML file."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field

Row = Sequence[tuple[str, bool]]


@dataclass
class Table:
    """A table with a heading, and a note below it."""

    title: str
    heads: list[str]
    rows: Sequence[Row]
    note: str = ""


@dataclass
class Page:
    """One comparison: paragraphs, warnings, main table, sections, figures, then the tables and lists folded away.

    `figures` are (file name, caption, PNG bytes); `lists` are (summary, lines).
    """

    title: str
    paragraphs: list[str]
    warnings: list[str]
    heads: list[str]
    rows: Sequence[Row]
    notes: list[str]
    figures: list[tuple[str, str, bytes]] = field(default_factory=list)
    sections: list[Table] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    lists: list[tuple[str, list[str]]] = field(default_factory=list)


def markdown(title: str, pages: Sequence[Page]) -> str:
    """The report as Markdown; figures are links to `figures/`."""
    out = [f"# {title}", ""]
    for page in pages:
        out += [f"## {page.title}", ""]
        for paragraph in page.paragraphs:
            out += [_plain(paragraph), ""]
        if page.warnings:
            out += ["**Not matched:**", "", *(f"- {_plain(w)}" for w in page.warnings), ""]
        if page.rows:
            out += [*_markdown_table(page.heads, page.rows), ""]
        for note in page.notes:
            out += [_plain(note), ""]
        for table in page.sections:
            out += _markdown_section(table)
        for name, caption, _ in page.figures:
            out += [f"![{_plain(caption)}](figures/{name})", "", f"*{_plain(caption)}*", ""]
        for table in page.tables:
            out += _markdown_section(table)
        for summary, lines in page.lists:
            out += [f"### {summary}", "", *(f"- {_plain(line)}" for line in lines), ""]
    return "\n".join(out).rstrip() + "\n"


def _markdown_section(table: Table) -> list[str]:
    note = [_plain(table.note), ""] if table.note else []
    return [f"### {_plain(table.title)}", "", *_markdown_table(table.heads, table.rows), "", *note]


def _markdown_table(heads: Sequence[str], rows: Sequence[Row]) -> list[str]:
    lines = ["| " + " | ".join(_plain(h) for h in heads) + " |", "|" + " --- |" * len(heads)]
    cells = [[f"**{_plain(t)}**" if bold else _plain(t) for t, bold in row] for row in rows]
    return [*lines, *("| " + " | ".join(row) + " |" for row in cells)]


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = " ".join(text.split())
    for special in ("\\", "|", "*", "`", "<", ">"):
        text = text.replace(special, f"\\{special}")
    return text.replace("](", "]\\(")


STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 80rem;
       margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #999; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ccc; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #111; vertical-align: bottom; white-space: normal; min-width: 3.5rem; }
th.text, td.text { text-align: left; }
td.best { font-weight: 700; }
.warning { border-left: .3rem solid #111; background: #eee; padding: .5rem 1rem; margin: 1rem 0; }
.note { font-size: .875rem; color: #444; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; } figcaption { font-size: .875rem; color: #444; }
@media (max-width: 46rem) { figure img { max-width: none; width: 46rem; } }
details { margin: 1rem 0; } summary { cursor: pointer; } li { overflow-wrap: anywhere; }
"""


def page_html(title: str, pages: Sequence[Page]) -> str:
    """The report as one HTML file: inline style, figures as data, no script, nothing from elsewhere."""
    body = [f"<h1>{_safe(title)}</h1>"]
    for page in pages:
        body.append(f"<h2>{_safe(page.title)}</h2>")
        body += [f"<p>{_safe(p)}</p>" for p in page.paragraphs]
        if page.warnings:
            items = "".join(f"<li>{_safe(w)}</li>" for w in page.warnings)
            body.append(f'<div class="warning"><strong>Not matched:</strong><ul>{items}</ul></div>')
        if page.rows:
            body.append(_html_table(page.heads, page.rows))
        body += [f'<p class="note">{_safe(n)}</p>' for n in page.notes]
        body += [f"<h3>{_safe(table.title)}</h3>{_html_section(table)}" for table in page.sections]
        for _, caption, png in page.figures:
            data = base64.b64encode(png).decode()
            body.append(
                f'<figure><div class="scroll"><img alt="{_safe(caption)}" src="data:image/png;base64,{data}"></div>'
                f"<figcaption>{_safe(caption)}</figcaption></figure>"
            )
        for table in page.tables:
            body.append(f"<details><summary>{_safe(table.title)}</summary>{_html_section(table)}</details>")
        for summary, lines in page.lists:
            items = "".join(f"<li>{_safe(line)}</li>" for line in lines)
            body.append(f"<details><summary>{_safe(summary)}</summary><ul>{items}</ul></details>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_safe(title)}</title><style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _html_section(table: Table) -> str:
    note = f'<p class="note">{_safe(table.note)}</p>' if table.note else ""
    return _html_table(table.heads, table.rows) + note


KIND = {True: "number", False: "text"}


def _html_table(heads: Sequence[str], rows: Sequence[Row]) -> str:
    numeric = [all(_is_number(row[i][0]) for row in rows) for i in range(len(heads))]
    head = "".join(f'<th class="{KIND[n]}">{_safe(h)}</th>' for h, n in zip(heads, numeric, strict=True))
    lines = []
    for row in rows:
        cells = [
            f'<td class="{KIND[number]}{" best" if bold else ""}">{_safe(text)}</td>'
            for (text, bold), number in zip(row, numeric, strict=True)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text[:1] in ("-", "+") or text == "nan"


def _safe(text: str) -> str:
    return html.escape(text)
