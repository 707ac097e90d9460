"""`dlproxy migrate`: another server's configuration as a dlproxy.toml.

Not aware of: which servers there are, what becomes of which setting (lab/migrate/).
"""

import argparse
from pathlib import Path

from dlproxy.cli.terminal import FAILED, OK, USER_ERROR, Commands, complain, say


def add_to(commands: Commands) -> None:
    """Declare the command and its options."""
    migrate = commands.add_parser(
        "migrate",
        help="write a dlproxy.toml from the configuration of another server",
        description="Translate the configuration of Triton, TensorFlow Serving, TorchServe or BentoML into a dlproxy.toml, "
        "with a comment for each setting: where it went, why it is not needed, or what to do by hand. Nothing is executed. "
        "Exit code 1: something needs a hand.",
    )
    migrate.add_argument(
        "path",
        metavar="PATH",
        type=Path,
        help="a model folder or repository of Triton's; models.config; config.properties, model-config.yaml, a .mar or a "
        "folder of them; bentofile.yaml, service.py or their folder",
    )
    migrate.add_argument("-o", "--output", type=Path, metavar="FILE", help="write to this file (default: to standard output)")
    migrate.add_argument("--force", action="store_true", help="write over a file that is there")
    migrate.add_argument(
        "--batching",
        type=Path,
        metavar="FILE",
        help="TensorFlow Serving's batching parameters (default: batching_parameters.txt beside models.config)",
    )
    migrate.set_defaults(command=_migrate)


def _migrate(args: argparse.Namespace) -> int:
    from dlproxy.config import ConfigError
    from dlproxy.lab.migrate import migrated

    out = args.output or Path("dlproxy.toml")
    try:
        draft = migrated(args.path, out, args.batching)
        if args.output is None:
            say(draft.text().rstrip("\n"))
        else:
            with out.open("w" if args.force else "x", encoding="utf-8") as file:
                file.write(draft.text())
            say(f"written: {out}   (dlproxy check --config {out}, then dlproxy serve --config {out})")
    except FileExistsError:
        complain(f"{out} is there already, and is not overwritten without --force")
        return USER_ERROR
    except ConfigError as error:
        complain(str(error))
        return USER_ERROR
    except OSError as error:
        complain(f"{error.filename}: {error.strerror or error}" if error.filename else str(error))
        return USER_ERROR
    if draft.hands:
        complain(
            f"{draft.hands} settings need a hand; they are marked 'by hand'" if draft.hands > 1 else "1 setting needs a hand"
        )
        return FAILED
    return OK
