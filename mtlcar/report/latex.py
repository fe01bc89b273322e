"""A table for a paper: LaTeX with booktabs' rules."""

from mtlcar.report.section import Sheet, is_number

SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "[": "{[}",  # at the beginning of a row it would be an option of the line break before it
    "]": "{]}",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{MINUS SIGN}": "$-$",
    "·": r"$\cdot$",
    "²": r"$^2$",
    "Δ": r"$\Delta$",
    "→": r"$\to$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "…": r"\dots{}",
}


def latex_table(sheet: Sheet) -> str:
    r"""A `table` environment as the sheet is shown, best values bold; needs `\usepackage{booktabs}`."""
    numbers = [all(is_number(row[i][0]) for row in sheet.rows) for i in range(len(sheet.heads))]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(sheet.title)}}}",
        rf"\label{{tab:{sheet.name.replace('_', '-')}}}",
        rf"\begin{{tabular}}{{{''.join('r' if number else 'l' for number in numbers)}}}",
        r"\toprule",
        " & ".join(escaped(head) for head in sheet.heads) + r" \\",
        r"\midrule",
    ]
    for row in sheet.rows:
        cells = [rf"\textbf{{{escaped(text)}}}" if best and text else escaped(text) for text, best in row]
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    note = "".join(f"% {line}\n" for line in sheet.note.splitlines())
    return note + "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is, on one line."""
    return "".join(SPECIAL.get(letter, letter) for letter in " ".join(text.split()))
