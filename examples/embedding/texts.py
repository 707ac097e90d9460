"""Real texts to embed: what the modules of the Python library, and what is in them, say of themselves.

Called by run.py and by benchmarks/pipelines. Not aware of: what becomes of them.
"""

import importlib
import inspect

MODULES = (
    "argparse ast asyncio bisect calendar cmd codecs collections colorsys configparser contextlib copy csv dataclasses decimal "
    "difflib doctest email enum fileinput fnmatch fractions functools getpass glob gzip heapq hmac html imaplib inspect io "
    "ipaddress json keyword linecache locale logging mailbox mimetypes multiprocessing numbers operator os pathlib pdb pickle "
    "platform poplib pprint profile queue random re sched secrets shelve shutil smtplib socket sqlite3 stat statistics string "
    "struct subprocess tarfile tempfile textwrap threading timeit tokenize traceback unittest urllib uuid warnings wave "
    "weakref zipfile"
)


def of_modules():
    """The first paragraph of each module's docstring, by the module's name."""
    return {name: _first(importlib.import_module(name)) for name in MODULES.split() if _first(importlib.import_module(name))}


def of_functions():
    """The first paragraphs of the docstrings of their functions and classes, some three to two hundred tokens each."""
    found = {}
    for name in MODULES.split():
        for member, value in inspect.getmembers(importlib.import_module(name), callable):
            if getattr(value, "__module__", "") == name and not member.startswith("_") and _first(value):
                found[f"{name}.{member}"] = _first(value)
    return found


def _first(documented):
    return " ".join((inspect.getdoc(documented) or "").partition("\n\n")[0].split())
