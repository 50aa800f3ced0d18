"""The README's table of methods, made from their cards: `python docs/tables.py` writes it, `--check` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- methods: made by docs/tables.py -->", "<!-- end of methods -->"


def table() -> str:
    """The methods by family, as a Markdown table."""
    from fedloom.method import catalogue

    lines = ["| method | family | what it changes | paper |", "| --- | --- | --- | --- |"]
    for cls in sorted(catalogue().values(), key=lambda c: (c.card.family, c.card.year, c.card.id)):
        card = cls.card
        if not cls.__module__.startswith("fedloom."):
            continue
        name = f"[{card.title}](src/{cls.__module__.replace('.', '/')}.py)"
        paper = f"[{card.venue} {card.year}]({card.url})" if card.url else f"{card.venue} {card.year}"
        lines.append(f"| {name} `{card.id}` | {card.family} | {card.summary} | {paper} |")
    return "\n".join(lines)


def current(text: str) -> str:
    """`text` with the table between the markers made anew."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"README.md lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> int:
    old = README.read_text()
    new = current(old)
    if "--check" in sys.argv[1:]:
        if old != new:
            print("the table of methods in README.md is not current: run python docs/tables.py")
        return int(old != new)
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
