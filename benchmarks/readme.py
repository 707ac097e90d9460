"""Writes README.md's figures from the result pages in the repository: `python -m benchmarks.readme [--check]`.

With --check, a part of `make check`, it ends with 1 if README says something else. Figures whose results are not kept here
are marked in README, and stay as they are.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
WIDTH = 128
BLOCK = re.compile(r"(<!-- figures from ([\w/.]+) -->\n)(.*?)(<!-- end of figures -->)", re.DOTALL)


def peers(page: str) -> str:
    """From the table of ratios in peers/RESULTS.md."""
    section = page.partition("## dlproxy against each peer")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines]
    ratios = {
        name: {load: float(cell.split()[0]) for load, cell in zip(head[1:], cells, strict=True) if " x" in cell}
        for name, *cells in rows
    }
    best = {load: cell.partition("x** ")[2] for load, cell in zip(head, rows[-1], strict=True)}
    _, busy, calm, most, cnn, resnet = head
    others = [ratios[name] for name in ("PyTriton (NVIDIA Triton)", "Ray Serve (HAProxy)")]
    triton_and_ray = [found[load] for found in others for load in (busy, most) if load in found]
    of_resnet = [row[resnet] for row in ratios.values() if resnet in row]
    return (
        "Beside other servers of models (`make bench-peers`, [all figures](benchmarks/peers/RESULTS.md)): "
        f"{ratios['the best peer'][busy]:.1f} times the best peer, {best[busy]}, for the MLP at 64 connections, "
        f"{ratios['the best peer'][cnn]:.1f} times for a small CNN, {min(triton_and_ray):.0f} times Triton and Ray Serve or "
        f"more for the MLP under load; at one connection the median latency of the best, {best[calm]}, is "
        f"{ratios['the best peer'][calm]:.1f} times dlproxy's. For a net of ResNet-50's size, where the engine is all, "
        f"{min(of_resnet):.2f} to {max(of_resnet):.2f} times."
    )


SOURCES: Mapping[str, Callable[[str], str]] = {"benchmarks/peers/RESULTS.md": peers}


def updated(readme: str, root: Path = ROOT) -> str:
    """README with the figures of its sources."""

    def block(found: re.Match[str]) -> str:
        begin, source, _, end = found.groups()
        text = SOURCES[source]((root / source).read_text())
        return begin + textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False) + "\n" + end

    return BLOCK.sub(block, readme)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if README is out of date")
    options = parser.parse_args(arguments)
    before = README.read_text()
    after = updated(before)
    if not options.check:
        README.write_text(after)
    elif before != after:
        print("README.md's figures are not those of its sources; run: python -m benchmarks.readme", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
