"""Mistakes are collected, and told together."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from mtlcar.errors import UserError

LINES = 22
"""Of a message about several mistakes; those beyond are counted."""


class Found:
    """What is wrong, in the order in which it was found, each once."""

    def __init__(self, problems: Iterable[str] = ()) -> None:
        self.problems: list[str] = []
        self.add(problems)

    def add(self, problems: Iterable[str]) -> None:
        self.problems += [p for p in dict.fromkeys(problems) if p not in self.problems]

    @contextmanager
    def trying(self) -> Iterator[None]:
        """A UserError within the block is noted, and what comes after the block goes on."""
        try:
            yield
        except JointUserError as several:
            self.add(several.problems)
        except UserError as error:
            self.add([str(error)])

    def refuse(self, end: str = "") -> None:
        """Raises a UserError with everything that was found, if anything was; `end` is its last line."""
        if self.problems:
            raise JointUserError(self.problems, end)


class JointUserError(UserError):
    """One mistake or several; `problems` has each with all its words."""

    def __init__(self, problems: list[str], end: str = "") -> None:
        self.problems = list(problems)
        words = told(self.problems) if len(self.problems) > 1 else self.problems[0]
        super().__init__(f"{words}\n{end}" if end else words)


def told(problems: list[str]) -> str:
    """A numbered list of at most `LINES` lines."""
    lines, shown = [f"{len(problems)} mistakes:"], 0
    for number, problem in enumerate(problems, start=1):
        first, *more = problem.splitlines() or [""]
        block = [f"{number:3d}. {first}", *(f"     {line}" for line in more)]
        if len(lines) + len(block) > LINES - 1:
            if shown:
                break
            block = [*block[: LINES - 3], "     ..."]
        lines += block
        shown = number
    if shown < len(problems):
        lines.append(f"     ... and {len(problems) - shown} more, which the next attempt shows")
    return "\n".join(lines)
