"""`dlproxy why`: which requests of a running server were slow or failed, and what the time of one of them went into.

Not aware of: HTTP (control_port.py), how causes are found.
"""

import argparse
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dlproxy.cli.models import add_options, shown, table
from dlproxy.cli.terminal import Commands

if TYPE_CHECKING:
    from dlproxy.cli.control_port import ControlPort
    from dlproxy.cli.told import ExemplarState

HEADINGS = ("request", "model", "when", "took", "outcome", "first cause")
KINDS = ("slow", "failed", "noted", "sample", "all")
BAR = 40  # characters of the longest phase


def add_to(commands: Commands) -> None:
    """Declare the command."""
    about = (
        "Say why a request was slow, or failed: what its time went into beside what is usual, and what explains it. Without a "
        "request, list those that are known: of every model the slowest of each ten seconds, and those that failed."
    )
    why = commands.add_parser("why", help="say why a request of a running server was slow or failed", description=about)
    why.add_argument(
        "request", metavar="ID", nargs="?", default="", help="its x-request-id, its id, or the server's number of it"
    )
    why.add_argument("--model", metavar="NAME", default="", help="only requests of this model")
    why.add_argument("--kind", choices=KINDS, default="", help="list only these (default: all but samples)")
    why.add_argument("--limit", metavar="N", type=int, default=20, help="list so many, the newest (default 20)")
    add_options(why, control="http://127.0.0.1:8002", json=False)
    why.set_defaults(command=_why, ask=_ask)


def _why(args: argparse.Namespace) -> int:
    def lines(port: "ControlPort", told: Any) -> Iterator[str]:
        return _page(port.exemplars([told])[0]) if args.request else _list(port.exemplars(told), args)

    return shown(args, lines)


def _ask(port: "ControlPort", args: argparse.Namespace) -> Any:
    if args.request:
        return port.why(args.request, model=args.model)
    return port.slow_requests(model=args.model, kind=args.kind, limit=str(args.limit))


def _list(found: "list[ExemplarState]", args: argparse.Namespace) -> Iterator[str]:
    if not found:
        of = f" of model {args.model}" if args.model else ""
        return iter([f"no request{of} is known that was slow or failed; --kind sample lists others"])
    return table([HEADINGS, *map(_row, found)])


def _row(one: "ExemplarState") -> tuple[str, ...]:
    from dlproxy.policy.why import in_words  # brings msgspec, which help needs not

    outcome = one.outcome if one.failure is None else one.failure.kind
    cause = f"{one.causes[0].kind}: {one.causes[0].words}" if one.causes else "as usual"
    return one.request_id or one.id, one.model, _when(one), in_words(one.seconds), outcome, _brief(cause)


def _page(one: "ExemplarState") -> Iterator[str]:
    from dlproxy.policy.why import in_words  # brings msgspec, which help needs not

    name = f"{one.request_id} (number {one.id})" if one.request_id else one.id
    yield f"request {name} to model {one.model} version {one.version}"
    outcome = f"failed ({one.failure.kind}: {one.failure.message})" if one.failure is not None else "answered"
    yield f"  {outcome} after {in_words(one.seconds)}; it came at {_when(one)}"
    batch = one.batch
    if batch is not None:
        rows = f"{batch.rows} row{'s' * (batch.rows != 1)}"
        yield f"  in batch {batch.number}: {rows} of {batch.requests} request{'s' * (batch.requests != 1)}, on {batch.instance}"
    if one.phases:
        yield ""
    longest_s = max(one.phases.values(), default=0.0)
    for phase, seconds in one.phases.items():
        usual = f"usually {in_words(one.usual[phase])}" if one.usual.get(phase) else ""
        bar = "█" * round(BAR * seconds / longest_s) if longest_s else ""
        yield f"  {phase.replace('_', ' '):<11}  {in_words(seconds):>8}  {bar:<{BAR}}  {usual}".rstrip()
    yield ""
    if not one.causes:
        yield "It took no longer than is usual."
    for number, cause in enumerate(one.causes):
        took = in_words(cause.seconds) if cause.seconds else ""
        yield f"{'because' if not number else 'and':<7}  {took:>8}  {cause.words}  [{cause.kind}]"
    if one.meanwhile:
        yield ""
    for happening in one.meanwhile:
        yield f"meanwhile: {happening.words}"


def _when(one: "ExemplarState") -> str:
    return datetime.fromtimestamp(one.at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _brief(text: str) -> str:
    return text if len(text) <= 90 else f"{text[:89]}…"
