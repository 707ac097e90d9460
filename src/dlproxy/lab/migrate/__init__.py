"""The configuration of another server as a dlproxy.toml: which server it was for, and what becomes of each of its settings.

Called by cli/migrate.py. A file for each server; draft.py is what they fill. Files are read, never executed.
"""

from collections.abc import Callable
from pathlib import Path

from dlproxy.config import ConfigError, load
from dlproxy.lab.migrate.archive import is_archive
from dlproxy.lab.migrate.bentoml import BENTOFILES, SERVICE, add_bentoml, names_services
from dlproxy.lab.migrate.draft import HAND, Draft
from dlproxy.lab.migrate.reading import read, yaml_of
from dlproxy.lab.migrate.tensorflow_serving import add_tensorflow_serving
from dlproxy.lab.migrate.torchserve import MODEL_CONFIG, PROPERTIES, add_torchserve
from dlproxy.lab.migrate.triton import add_triton

TRITON, TENSORFLOW_SERVING, TORCHSERVE, BENTOML = "Triton", "TensorFlow Serving", "TorchServe", "BentoML"
_KNOWN = (
    "Triton's config.pbtxt or a repository of them, TensorFlow Serving's models.config, TorchServe's config.properties, "
    "model-config.yaml or .mar, BentoML's bentofile.yaml or service.py"
)

Way = tuple[str, Path]  # the server, and the file or folder to begin with


def migrated(place: Path, out: Path, batching: Path | None = None) -> Draft:
    """What to write to `out`. `batching`: TensorFlow Serving's batching parameters. Raises ConfigError, OSError."""
    server, begin = recognised(place)
    draft = Draft(out.parent)
    if batching is not None and server != TENSORFLOW_SERVING:
        raise ConfigError(f"--batching is for TensorFlow Serving, and {place} is {server}'s")
    draft.heading.append(f"What {place} says to {server}, for dlproxy: by dlproxy migrate")
    add: dict[str, Callable[[], None]] = {
        TRITON: lambda: add_triton(draft, begin),
        TENSORFLOW_SERVING: lambda: add_tensorflow_serving(draft, begin, batching),
        TORCHSERVE: lambda: add_torchserve(draft, begin),
        BENTOML: lambda: add_bentoml(draft, begin),
    }
    add[server]()
    if draft.hands:
        draft.heading.append(f"What needs a hand is marked '{HAND}': {draft.hands}")
    try:
        load(out, draft.text())
    except UnicodeEncodeError:
        raise ConfigError(f"{place}: a name in it is in another encoding than UTF-8") from None
    except ConfigError as error:
        raise ConfigError(f"{place}: what came of it is refused, so nothing is written: {error}") from None
    return draft


def recognised(place: Path) -> Way:
    """Raises ConfigError for what is none of them, or more than one."""
    if not place.exists():
        raise ConfigError(f"{place} is not there")
    ways = list(dict.fromkeys(_in_folder(place) if place.is_dir() else _by_file(place)))
    servers = dict.fromkeys(server for server, _ in ways)
    if not ways:
        raise ConfigError(f"{place} is nothing that is known; it takes {_KNOWN}")
    if len(servers) > 1:
        names = ", ".join(str(begin) for _, begin in ways)
        raise ConfigError(f"{place} holds what is for {' and for '.join(servers)}; name one of {names}")
    return ways[0]


def _in_folder(folder: Path) -> list[Way]:
    if is_archive(folder):
        return [(TORCHSERVE, folder)]
    ways = [(TORCHSERVE, folder / PROPERTIES)] if (folder / PROPERTIES).is_file() else []
    if any((one / "config.pbtxt").is_file() for one in (folder, *folder.iterdir())):
        ways.append((TRITON, folder))
    if (folder / "models.config").is_file():
        ways.append((TENSORFLOW_SERVING, folder / "models.config"))
    if any((folder / name).is_file() for name in BENTOFILES) or names_services(folder / SERVICE):
        ways.append((BENTOML, folder))
    if not ways and any(is_archive(one) for one in folder.iterdir()):
        ways.append((TORCHSERVE, folder))
    if not ways and (folder / MODEL_CONFIG).is_file():
        ways.append((TORCHSERVE, folder / MODEL_CONFIG))
    return ways


def _by_file(file: Path) -> list[Way]:
    if is_archive(file) or file.suffix == ".properties":
        return [(TORCHSERVE, file)]
    if file.suffix == ".gz" or file.suffix == ".tgz":
        raise ConfigError(f"{file}: unpack it first (tar xzf), and name the folder")
    if file.suffix == ".pbtxt":
        return [(TRITON, file.absolute().parent)] if file.name == "config.pbtxt" else []
    if file.suffix == ".py" or file.name in (*BENTOFILES, "pyproject.toml"):
        return [(BENTOML, file)]
    text = read(file)
    if file.suffix in (".yaml", ".yml"):
        return [(BENTOML if "service" in yaml_of(text, str(file)) else TORCHSERVE, file)]
    if "model_config_list" in text or "custom_model_config" in text:
        return [(TENSORFLOW_SERVING, file)]
    return []
