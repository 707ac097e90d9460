"""A report's page without scripts or anything from elsewhere, and the parts that it is made of, as HTML.

Called by html.py and lab/evaluate. Not aware of: what is reported.
"""

from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path

from dlproxy import __version__
from dlproxy.lab.report import wording
from dlproxy.lab.report.figures import Figure
from dlproxy.lab.report.result import ResultError

_LONGEST = 2000  # letters of any one text


def write(whole: str, path: Path) -> None:
    """Raises ResultError if the file cannot be written."""
    try:
        path.write_bytes(whole.encode("utf-8", errors="replace"))
    except (OSError, ValueError) as error:
        raise ResultError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None


def page(title: str, body: Iterable[str]) -> str:
    """The whole of it; parts that are empty are left out."""
    style = files("dlproxy.lab.report").joinpath("page.css").read_text("utf-8")
    parts = [*body, f"<footer>dlproxy {text(__version__)}</footer>"]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def text(said: object) -> str:
    """Escaped, and with numbers kept beside their units."""
    return wording.with_units(escape(wording.plain(said, _LONGEST)))


def header(what: str, headline: str) -> str:
    """What ran, and what came of it in one sentence."""
    return f"<header>\n<p>{text(what)}</p>\n<h1>{text(headline)}</h1>\n</header>"


def section(title: str, content: str, *, style: str = "") -> str:
    """A card with a heading."""
    return f'<section class="{style or "plain"}">\n<h2>{text(title)}</h2>\n{content}\n</section>'


def table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table whose cells are HTML; the first of each row names it."""
    head = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    body = []
    for row in rows:
        first, *rest = row
        body.append(f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>\n")
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{"".join(body)}</tbody>\n</table></div>'


def bullets(said: Iterable[str]) -> str:
    """Sentences as a list."""
    return "<ul>" + "".join(f"<li>{text(one)}</li>" for one in said) + "</ul>"


def tiles(shown: Iterable[tuple[str, str, str]]) -> str:
    """Key figures: what it is, its value, and a remark."""
    cells = "".join(
        f"<div><dt>{text(name)}</dt><dd><b>{text(value)}</b> <span>{text(said)}</span></dd></div>"
        for name, value, said in shown
    )
    return f'<dl class="tiles">{cells}</dl>'


def charts(drawn: list[Figure]) -> str:
    """Figures with their titles, side by side where there is room."""
    parts = [
        f"<figure>\n<h2>{text(figure.title)}</h2>\n{figure.svg}\n"
        + (f"<figcaption>{text(figure.caption)}</figcaption>\n" if figure.caption else "")
        + "</figure>"
        for figure in drawn
    ]
    return grid(parts)


def column(content: str) -> str:
    """One of the parts of a grid."""
    return f"<div>{content}</div>" if content else ""


def grid(parts: list[str]) -> str:
    """Side by side where there is room."""
    known = [part for part in parts if part]
    return '<div class="grid-of">\n' + "\n".join(known) + "\n</div>" if known else ""
