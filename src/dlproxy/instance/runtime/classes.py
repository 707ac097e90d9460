"""Finds and imports the Python class that a path names: `my_module:MyModel` or `path/to/file.py:MyModel`.

Called by runtime/python.py and by compress. Not aware of: what a model must be able to do, beyond having a `predict`.
"""

import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from zlib import crc32

from dlproxy.instance.integrity.files import ModelFiles
from dlproxy.instance.runtime import ModelError
from dlproxy.instance.runtime.declared import one_line
from dlproxy.instance.runtime.memory_modules import MemoryModules

_TARGET = re.compile(r"(?P<place>.+):(?P<name>[A-Za-z_]\w*)")


def find_class(path: str, files: ModelFiles | None = None) -> type[Any]:
    """Import what the path names. `files`: of the model, to be imported from memory. Raises ModelError."""
    match = _TARGET.fullmatch(path)
    if match is None:
        classes = _predicting(imported(path, files)) if Path(path).is_file() else []
        example = f"{path}:{classes[0]}" if classes else "my_module:MyModel or path/to/file.py:MyModel"
        raise ModelError(f"{path!r} names no class; write {example}")
    module = imported(match["place"], files)
    found = getattr(module, match["name"], None)
    if found is None:
        classes = _predicting(module) or [name for name, one in vars(module).items() if inspect.isclass(one)]
        near = difflib.get_close_matches(match["name"], classes, n=1) or classes[:1]
        hint = f"; did you mean {near[0]}?" if near else ", nor any other class"
        raise ModelError(f"{match['place']} has no class {match['name']}{hint}")
    if not inspect.isclass(found):
        raise ModelError(
            f"{path}: {match['name']} is a {type(found).__name__}; dlproxy wants a class with predict(self, batch)"
        )
    return found


def located(error: BaseException, file: str | None) -> str:
    """The error in a line, with the last line of the model's own file that it passed through."""
    where, step = "", error.__traceback__
    while step is not None:
        if file and step.tb_frame.f_code.co_filename == file:
            where = f" ({Path(file).name}, line {step.tb_lineno})"
        step = step.tb_next
    if not where and isinstance(error, SyntaxError) and error.lineno:
        where = f" (line {error.lineno})"
    return f"{one_line(error)}{where}"


def sources(file: str | None) -> list[str]:
    """This file, and those of the modules that were imported from its folder and below, without installed packages."""
    if file is None or not os.path.isfile(file):
        return []
    folder = Path(file).parent
    found = {one for module in list(sys.modules.values()) if isinstance(one := getattr(module, "__file__", None), str)}
    near = [one for one in found if Path(one).is_relative_to(folder) and os.path.isfile(one)]
    others = sorted(one for one in near if "site-packages" not in Path(one).relative_to(folder).parts and one != file)
    return [file, *others]


def imported(place: str, files: ModelFiles | None = None) -> ModuleType:
    """The module of that name, or of that file. What stands beside the file, or in the working folder, can be imported.

    `files`: of the model, to be imported from memory. Raises ModelError.
    """
    is_file = place.endswith(".py") or os.sep in place
    file = Path(place).resolve()
    if is_file and not file.is_file():
        near = _near(file.stem, file.parent)
        hint = f"; did you mean {Path(place).with_name(near)}.py?" if near else ""
        raise ModelError(f"model file {place} does not exist{hint}")
    folder = str(file.parent if is_file else Path.cwd())
    if files is None and folder not in sys.path:
        sys.path.append(folder)  # at the end: a neighbour called queue.py must not replace the library's
    try:
        return _executed(file, files) if is_file else importlib.import_module(place)
    except ModuleNotFoundError as error:
        if not is_file and error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            near = _near(place, Path(folder))
            hint = f"; did you mean {near}?" if near else ""
            raise ModelError(f"there is no module {place} in {folder} or among the installed packages{hint}") from None
        signed = "" if files is None else ", or if it stands beside the model, have it signed with it"
        raise ModelError(f"importing {place} raised {one_line(error)}; install it where dlproxy runs{signed}") from error
    except (Exception, SystemExit) as error:
        raise ModelError(f"importing {place} raised {located(error, str(file))}") from error


def _near(name: str, folder: Path) -> str:
    """The module in the folder that was probably meant, empty if none is like it."""
    return next(iter(difflib.get_close_matches(name, [file.stem for file in folder.glob("*.py")], n=1)), "")


def _executed(file: Path, files: ModelFiles | None) -> ModuleType:
    name = f"dlproxy_model_{file.stem}_{crc32(str(file).encode()):08x}"  # two files may have one name
    if files is not None:
        return MemoryModules(files).executed(files.main, name)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ModelError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _predicting(module: ModuleType) -> list[str]:
    classes = ((name, one) for name, one in vars(module).items() if inspect.isclass(one))
    return [name for name, one in classes if hasattr(one, "predict")]
