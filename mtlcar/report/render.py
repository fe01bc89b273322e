"""A report's pages: the same content as Markdown and as one self-contained HTML file."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from mtlcar.report.section import Row, Section, Sheet, is_number


@dataclass
class Page:
    """One comparison: paragraphs, warnings and the sections; then lists folded away, as (summary, lines).

    Attributes:
        images: name of a drawing -> its PNG.
        prefix: put before the names of drawings and sheets, so that those of several comparisons differ.
    """

    title: str
    paragraphs: list[str]
    warnings: list[str]
    sections: list[Section] = field(default_factory=list)
    lists: list[tuple[str, list[str]]] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)
    prefix: str = ""

    def stem(self, name: str) -> str:
        """The file of a drawing or sheet, without its ending. Names come from runs, which may be somebody else's: none
        leads to another folder."""
        return re.sub(r"[^\w.+=-]+", "-", f"{self.prefix}{name}").lstrip(".-") or "unnamed"

    def anchor(self, title: str) -> str:
        """What a link to one of its headings points at."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.title} {title}".lower()).strip("-")


NOT_MATCHED = "Not matched, so that differences between the cells may have other reasons than what is compared:"


def markdown(title: str, pages: Sequence[Page]) -> str:
    """The report as Markdown; figures are links to `figures/`."""
    out = [f"# {_plain(title)}", ""]
    for page in pages:
        out += [f"## {_plain(page.title)}", ""]
        for paragraph in page.paragraphs:
            out += [_plain(paragraph), ""]
        if page.warnings:
            out += [f"**{NOT_MATCHED}**", "", *(f"- {_plain(w)}" for w in page.warnings), ""]
        for section in page.sections:
            out += [f"### {_plain(section.title)}", ""]
            for paragraph in section.paragraphs:
                out += [_plain(paragraph), ""]
            for sheet in section.sheets:
                out += _markdown_sheet(sheet, alone=sheet.title == section.title)
            for drawing in section.drawings:
                name, caption = f"figures/{page.stem(drawing.name)}.png", _plain(drawing.caption)
                out += [f"![{caption}]({name})", "", f"*{caption}*", ""]
        for summary, lines in page.lists:
            out += [f"### {_plain(summary)}", "", *(f"- {_plain(line)}" for line in lines), ""]
    return "\n".join(out).rstrip() + "\n"


def _markdown_sheet(sheet: Sheet, *, alone: bool) -> list[str]:
    head = [] if alone else [f"#### {_plain(sheet.title)}", ""]
    return [*head, *markdown_table(sheet.heads, sheet.rows), "", *([_plain(sheet.note), ""] if sheet.note else [])]


def markdown_table(heads: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """The lines of a table; best values bold."""
    lines = ["| " + " | ".join(_plain(h) for h in heads) + " |", "|" + " --- |" * len(heads)]
    cells = [[f"**{_plain(t)}**" if bold and t else _plain(t) for t, bold in row] for row in rows]
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
h1 { font-size: 1.5rem; } h3 { font-size: 1.1rem; margin: 2.25rem 0 .5rem; }
h4 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #999; }
p { max-width: 60rem; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: .5rem 0; }
a { color: inherit; text-underline-offset: .2em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ccc; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #111; vertical-align: bottom; white-space: normal; min-width: 3.5rem; }
th.text, td.text { text-align: left; } td.text { white-space: normal; min-width: 6rem; max-width: 24rem; }
td.best { font-weight: 700; }
.warning { border-left: .3rem solid #111; background: #eee; padding: .5rem 1rem; margin: 1rem 0; }
.note { font-size: .875rem; color: #444; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; }
figcaption { font-size: .875rem; color: #444; max-width: 60rem; }
@media (max-width: 46rem) { figure img { max-width: none; width: 46rem; } }
details { margin: 1rem 0; } summary { cursor: pointer; } summary h3 { display: inline; } li { overflow-wrap: anywhere; }
@media print { nav { display: none; } figure, tr { break-inside: avoid; } }
"""


def page_html(title: str, pages: Sequence[Page], *, refresh: float | None = None) -> str:
    """The report as one HTML file: inline style, figures as data, no script, nothing from elsewhere.

    Args:
        refresh: the browser loads it again after so many seconds.
    """
    body = [f"<h1>{_safe(title)}</h1>"]
    for page in pages:
        body.append(f"<h2>{_safe(page.title)}</h2>")
        body += [f"<p>{_safe(p)}</p>" for p in page.paragraphs]
        if page.warnings:
            items = "".join(f"<li>{_safe(w)}</li>" for w in page.warnings)
            body.append(f'<div class="warning"><strong>{NOT_MATCHED}</strong><ul>{items}</ul></div>')
        links = (f'<li><a href="#{page.anchor(s.title)}">{_safe(s.title)}</a></li>' for s in page.sections)
        body.append(f"<nav><ul>{''.join(links)}</ul></nav>")
        body += [_html_section(page, section) for section in page.sections]
        for summary, lines in page.lists:
            items = "".join(f"<li>{_safe(line)}</li>" for line in lines)
            body.append(f"<details><summary>{_safe(summary)}</summary><ul>{items}</ul></details>")
    again = "" if refresh is None else f'<meta http-equiv="refresh" content="{max(1, round(refresh))}">'
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">{again}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_safe(title)}</title><style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _html_section(page: Page, section: Section) -> str:
    body = [f"<p>{_safe(p)}</p>" for p in section.paragraphs]
    for sheet in section.sheets:
        if sheet.title != section.title:
            body.append(f"<h4>{_safe(sheet.title)}</h4>")
        body.append(_html_table(sheet.heads, sheet.rows))
        body += [f'<p class="note">{_safe(sheet.note)}</p>'] if sheet.note else []
    for drawing in section.drawings:
        data = base64.b64encode(page.images[drawing.name]).decode()
        body.append(
            f'<figure><div class="scroll"><img alt="{_safe(drawing.caption)}" src="data:image/png;base64,{data}"></div>'
            f"<figcaption>{_safe(drawing.caption)}</figcaption></figure>"
        )
    head = f'<h3 id="{page.anchor(section.title)}">{_safe(section.title)}</h3>'
    inside = "\n".join(body)
    return f"<details><summary>{head}</summary>\n{inside}</details>" if section.folded else f"{head}\n{inside}"


KIND = {True: "number", False: "text"}


def _html_table(heads: Sequence[str], rows: Sequence[Row]) -> str:
    numeric = [all(is_number(row[i][0]) for row in rows) for i in range(len(heads))]
    head = "".join(f'<th class="{KIND[n]}">{_safe(h)}</th>' for h, n in zip(heads, numeric, strict=True))
    lines = []
    for row in rows:
        cells = [
            f'<td class="{KIND[number]}{" best" if bold else ""}">{_safe(text)}</td>'
            for (text, bold), number in zip(row, numeric, strict=True)
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _safe(text: str) -> str:
    return html.escape(text)
