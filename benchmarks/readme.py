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
FIGURES = re.compile(r"^([A-G]  .+?) +([\d,.]+) +([\d.]+) +([\d.]+)", re.MULTILINE)
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


def serving(page: str) -> str:
    """The table of runs and ratios in SERVING.md, as README shows it."""
    rows = {found[1]: found.groups()[1:] for found in FIGURES.finditer(page)}

    def run(label: str, name: str, ratio: str = "") -> str:
        rate, p50, p99 = rows[label]
        return f"| {name} | {rate} | {float(p50):.2f} | {float(p99):.2f} | {spread(ratio) if ratio else ''} |"

    def spread(ratio: str) -> str:
        median, lowest, highest = map(float, rows[ratio])
        return f"{median:.2f} ({lowest:.2f} to {highest:.2f})"

    mlp, unique, slow = "mlp, 64 connections", "mlp, unique ids and tensors", "slow, 8 connections"
    ours, loop = rows[f"D  dlproxy: {slow}"][0], rows["D  ORT loop: slow"][0]
    return "\n".join(
        [
            "| medians of one run | requests/s | p50 ms | p99 ms | dlproxy's share, median of pairs |",
            "|---|---|---|---|---|",
            run(f"A  dlproxy: {mlp}", "dlproxy, small MLP, batch-1 requests, 64 connections"),
            run(f"A  bare: {mlp}", "bare server: the least that answers in Python", f"A  {mlp}: dlproxy / bare"),
            run(f"E  dlproxy: {unique}, 64 connections", "the same with a unique id in every request: dlproxy"),
            run(
                f"E  bare: {unique}, 64 connections",
                "the same with a unique id in every request: bare",
                f"E  {unique}: dlproxy / bare",
            ),
            run(
                "F  nginx: equal reply, 64 connections",
                "nginx, a constant reply of the same size",
                "F  mlp: dlproxy / nginx static",
            ),
            f"| ONNX Runtime in a loop, a slow model: dlproxy does | {ours} of {loop} | | "
            f"| {spread(f'D  {slow}: dlproxy / ORT loop')} |",
        ]
    )


SOURCES: Mapping[str, Callable[[str], str]] = {"benchmarks/SERVING.md": serving, "benchmarks/peers/RESULTS.md": peers}


def updated(readme: str, root: Path = ROOT) -> str:
    """README with the figures of its sources."""

    def block(found: re.Match[str]) -> str:
        begin, source, _, end = found.groups()
        text = SOURCES[source]((root / source).read_text())
        if text.startswith("|"):
            return f"{begin}{text}\n{end}"
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
