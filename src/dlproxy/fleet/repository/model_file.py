"""Which of the files in a folder is the model, where nobody has said so, and how its path is written.

Called by model_folder.py. Not aware of: versions, configurations, object stores.
"""

import ast
from collections.abc import Collection
from pathlib import Path

from dlproxy.config import ConfigError
from dlproxy.fleet.repository.tree import is_visible
from dlproxy.instance.integrity.encryption import starts_encrypted
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.formats import format_of

MODEL = "model"  # the stem that Triton gives a model's file


def model_in(folder: Path, suffixes: Collection[str], missing: str = "model") -> str:
    """The path of the one model in a folder. `missing`: what to call it if there is none. Raises ConfigError, OSError."""
    if (folder / "saved_model.pb").exists():
        return str(folder)
    files = sorted(file for file in folder.iterdir() if is_visible(file.name))
    models = [file for file in files if is_model(file.name, suffixes) or (file / "saved_model.pb").exists()]
    for preferred in (
        [file for file in models if file.stem == MODEL],
        [file for file in models if file.suffix != ".py"],  # the others help it
        models,
    ):
        if len(preferred) == 1:
            return model_path(preferred[0])
    if models:
        names = ", ".join(file.name for file in models)
        raise ConfigError(f'{folder} holds several models: {names}; say which in dlproxy.toml: path = "{models[0].name}"')
    for file in files:
        if file.stem == MODEL:
            _must_be_known(file)
    inside = f"nothing but {', '.join(file.name for file in files[:5])}" if files else "nothing"
    raise ConfigError(f"{folder} holds no {missing}: {inside}")


def is_model(name: str, suffixes: Collection[str]) -> bool:
    """Whether something of that name is one, as far as the name tells."""
    return Path(name).suffix.lower() in suffixes and not name.startswith("__")


def model_path(file: Path) -> str:
    """What a model's `path` knob says of this file, or folder. Raises ConfigError, OSError."""
    if file.suffix == ".py":
        return f"{file}:{_class_in(file)}"
    if file.is_dir() and file.suffix == ".onnx":  # with the files that hold its weights
        inside = [one for one in sorted(file.iterdir()) if one.suffix == ".onnx"]
        if len(inside) != 1:
            raise ConfigError(f"{file} is a folder with {len(inside) or 'no'} ONNX models; one is needed")
        file = inside[0]
    if file.stat().st_size == 0 and file.is_file():
        raise ConfigError(f"{file} is empty")
    return str(file)


def _class_in(file: Path) -> str:
    if starts_encrypted(file):
        raise ConfigError(f'{file} is encrypted: say in dlproxy.toml which class it holds, as path = "{file.name}:MyModel"')
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{file} is not Python: {error}") from None
    classes = [one for one in tree.body if isinstance(one, ast.ClassDef)]
    methods = {
        one.name: [part.name for part in one.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
        for one in classes
    }
    fitting = [name for name, own in methods.items() if "predict" in own]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        example = f'path = "{file.name}:{fitting[0]}"'
        raise ConfigError(
            f"{file} has several classes with predict: {', '.join(fitting)}; say which in dlproxy.toml: {example}"
        )
    hint = "; TritonPythonModel has another interface" if "TritonPythonModel" in methods else ""
    raise ConfigError(f"{file} has no class with predict(self, batch){hint}")


def _must_be_known(file: Path) -> None:
    """Raises ConfigError for a model of a kind that does not run here, with what to do instead."""
    try:
        format_of(str(file))
    except ModelError as error:
        raise ConfigError(str(error)) from None
