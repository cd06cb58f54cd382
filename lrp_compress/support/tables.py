"""Tables of figures for the terminal: where that is narrow they lose whole columns, never a part of a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

AS_WIDE_AS_IT_IS = 10_000  # characters


@dataclass(frozen=True)
class FigureTable:
    """Labels in the first column and figures in the others, as many of them as fit.

    Attributes
    ----------
    title : str
        Stands above the table.
    heads : sequence of (str, str)
        For each column what it belongs to, which is said once above neighbours that have it in common, and its name.
    sections : sequence of sequence of sequence of str
        Rows with a cell for each column; a rule stands between sections.
    dispensable : sequence of int
        Columns that may be left out, counted from 0; the first of them goes first.
    """

    title: str
    heads: Sequence[tuple[str, str]]
    sections: Sequence[Sequence[Sequence[str]]]
    dispensable: Sequence[int]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Lay out the columns that fit, and name the others in a line below."""
        kept = list(range(len(self.heads)))
        for column in self.dispensable:
            natural = console.measure(self._table(kept), options=options.update_width(AS_WIDE_AS_IT_IS))
            if natural.maximum <= options.max_width:
                break
            kept.remove(column)
        yield self._table(kept)
        if left_out := [" ".join(head).strip() for column, head in enumerate(self.heads) if column not in kept]:
            yield Text(f"no room for: {', '.join(left_out)}")

    def _table(self, kept: Sequence[int]) -> Table:
        table = Table(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        above = ""
        for column in kept:
            group, name = self.heads[column]
            said = "" if group == above else group
            lines = [said, name] if any(group for group, _ in self.heads) else [name]
            number = column > 0  # a label may be wrapped
            table.add_column("\n".join(lines), justify="right" if number else "left", no_wrap=number)
            above = group
        for section in self.sections:
            for row in section:
                table.add_row(*(row[column] for column in kept))
            table.add_section()
        return table
