"""Python files of a model imported from memory, so that what runs is what was checked, and what was encrypted stays off disks.

Called by classes.py. Not aware of: which class is wanted.
"""

import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import decode_source, module_from_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType

from dlproxy.instance.integrity.files import CODE, ModelFiles
from dlproxy.instance.integrity.memory_folder import MemoryFolder


class MemoryModules(MetaPathFinder, InspectLoader):
    """What stands beside the model can be imported from memory, for as long as the process runs.

    As on a disk, what is installed comes before it; but never what lies beside the model, which nobody has checked. Other files
    of the model are opened below `__file__`'s folder, as they would be on a disk. Errors name the files where they lie; of
    those that are encrypted they show no lines.
    """

    def __init__(self, files: ModelFiles) -> None:
        self._files = files
        self._code = {name: bytes(data) for name, data in files.data.items() if name.endswith(CODE)}
        others = {name: data for name, data in files.data.items() if name not in self._code}
        self._folder = MemoryFolder(others) if others else None
        self._names: dict[str, str] = {}  # files by the modules that were found in them

    def executed(self, file: str, module_name: str) -> ModuleType:
        """The module in this file, under this name. Raises what its code raises."""
        self._names[module_name] = file
        spec = spec_from_loader(module_name, self)
        assert spec is not None
        module = module_from_spec(spec)
        sys.meta_path.insert(0, self)
        sys.modules[module_name] = module  # dataclasses and pickle look their module up
        try:
            self.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            self.close()
            raise
        return module

    def close(self) -> None:
        """Nothing more is imported, or opened, from here."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        if self._folder is not None:
            self._folder.close()

    # As importlib calls it

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        stem = fullname.replace(".", "/")
        file = next((name for name in (f"{stem}/__init__{CODE}", f"{stem}{CODE}") if name in self._code), None)
        if file is None or path or (path is None and self._is_installed(fullname)):  # our packages have no paths
            return None
        self._names[fullname] = file
        return spec_from_loader(fullname, self, is_package=file.endswith(f"/__init__{CODE}"))

    def _is_installed(self, name: str) -> bool:
        folder = self._files.folder.resolve()
        elsewhere = [one for one in sys.path if one and Path(one).resolve() != folder]
        found = PathFinder.find_spec(name, elsewhere)
        return name in sys.stdlib_module_names or (found is not None and found.origin is not None)

    def is_package(self, fullname: str) -> bool:
        return self._names[fullname].endswith(f"/__init__{CODE}")

    def get_source(self, fullname: str) -> str | None:
        file = self._names[fullname]
        return None if file in self._files.secret else decode_source(self._code[file])

    def get_code(self, fullname: str) -> CodeType:
        file = self._names[fullname]
        code: CodeType = compile(self._code[file], str(self._files.folder / file), "exec", dont_inherit=True)
        return code

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        folder = self._files.folder if self._folder is None else self._folder.path
        module.__file__ = str(Path(folder) / self._names[module.__spec__.name])
        exec(self.get_code(module.__spec__.name), module.__dict__)  # nosec B102 # the model's own code, checked where that is asked
