"""`dlproxy keys`: creates, lists and revokes the API keys of a file, which a server follows. Not aware of: servers."""

import argparse
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from dlproxy.cli.terminal import OK, USER_ERROR, Commands, complain, say

if TYPE_CHECKING:
    from dlproxy.wire.identity.key_file import Key

SCOPES = ("infer", "read", "metrics", "admin")
DEFAULT_FILE = Path("keys.toml")


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    keys = commands.add_parser("keys", help="API keys of clients", description="Create, list and revoke API keys.")
    actions = keys.add_subparsers(metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make a key and print it, once")
    create.add_argument("name", metavar="NAME", help="whose key it is")
    create.add_argument(
        "--scope",
        action="append",
        choices=SCOPES,
        metavar="SCOPE",
        help="what it may do: infer (default), read, metrics or admin; may be given several times",
    )
    create.add_argument(
        "--model", action="append", metavar="NAME", help="a model that it is for, or a pattern such as 'ocr-*' (default: all)"
    )
    create.add_argument("--tenant", default="", metavar="NAME", help="whose quota and share its requests use")
    create.add_argument("--days", type=float, metavar="N", help="days after which it expires (default: never)")
    create.add_argument("--rate", type=float, default=0.0, metavar="N", help="requests per second (default: no limit)")
    create.add_argument("--rows", type=float, default=0.0, metavar="N", help="rows per second (default: no limit)")
    create.add_argument(
        "--burst", type=float, default=1.0, metavar="S", help="seconds' worth of both that may come at once (default: 1)"
    )
    create.add_argument("--concurrent", type=int, default=0, metavar="N", help="requests at a time (default: no limit)")
    create.set_defaults(command=_told(_create))
    list_ = actions.add_parser("list", help="the keys that there are, without the keys themselves")
    list_.set_defaults(command=_told(_list))
    revoke = actions.add_parser("revoke", help="have a key refused from now on")
    revoke.add_argument("name", metavar="NAME")
    revoke.set_defaults(command=_told(_revoke))
    for action in (create, list_, revoke):
        action.add_argument("--file", type=Path, default=DEFAULT_FILE, metavar="FILE", help="default: keys.toml")


def _told(act: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """The same, but what cannot be used of a file or an option is told."""

    def command(args: argparse.Namespace) -> int:
        from dlproxy.config import ConfigError

        try:
            return act(args)
        except ConfigError as error:
            complain(str(error))
            return USER_ERROR

    return command


def _create(args: argparse.Namespace) -> int:
    from dlproxy.wire.identity import key_file

    expires = None
    if args.days is not None:
        if not 0 < args.days < 36500:
            complain(f"--days {args.days:g} is no time in the future; leave it out for a key that does not expire")
            return USER_ERROR
        expires = (datetime.now(UTC) + timedelta(days=args.days)).replace(microsecond=0)
    key = key_file.create(
        args.file,
        args.name,
        scopes=args.scope or ["infer"],
        models=args.model or ["*"],
        tenant=args.tenant,
        expires=expires,
        requests_per_s=args.rate,
        rows_per_s=args.rows,
        burst_s=args.burst,
        concurrent=args.concurrent,
    )
    say(key)
    complain(f"this is the only time that it is shown; clients send it as 'Authorization: Bearer {key_file.PREFIX}_…'")
    return OK


def _list(args: argparse.Namespace) -> int:
    from dlproxy.wire.identity import key_file

    keys = key_file.read(args.file)
    rows = [("name", "id", "scopes", "models", "tenant", "quota", "state")]
    rows += [
        (name, key.id, ",".join(key.scopes), ",".join(key.models), key.tenant or "-", _quota(key), _state(key))
        for name, key in keys.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return OK


def _quota(key: "Key") -> str:
    parts = ((key.requests_per_s, "requests/s"), (key.rows_per_s, "rows/s"), (key.concurrent, "at a time"))
    return ", ".join(f"{most:g} {what}" for most, what in parts if most) or "-"


def _state(key: "Key") -> str:
    if key.revoked is not None:
        return f"revoked {key.revoked:%Y-%m-%d}"
    if key.expires is not None:
        return f"{'expired' if key.expires <= datetime.now(UTC) else 'until'} {key.expires:%Y-%m-%d}"
    return "valid"


def _revoke(args: argparse.Namespace) -> int:
    from dlproxy.wire.identity import key_file

    key_file.revoke(args.file, args.name)
    say(f"'{args.name}' is refused from now on by servers that use {args.file}, within a second")
    return OK
