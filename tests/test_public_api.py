"""The names that users import: they are there, they are documented, and getting at them is cheap."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
import types

import pytest

import neve

HEAVY = [
    "lmdb",
    "google.protobuf",
    "blake3",
    "zstandard",
    "cryptography",
    "fsspec",
    "pyfastcdc",
    "click",
    "rich",
]


SIGNALS = {
    "neve.bigtable.client._EntryError",
    "neve.bigtable.client._SilenceError",
    "neve.fs.fuse.answers.Failed",
    "neve.fs.fuse.request.Overtaken",
    "neve.fs.loads.NotAtHand",
    "neve.http_cache.connection._AmbiguousError",
    "neve.http_cache.connection._HeadTooLongError",
    "neve.http_cache.connection._TooManyError",
    "neve.http_cache.exchange.ClientGoneError",
    "neve.packstore.index.MapFull",
    "neve.server.long_work.StoppedError",
}
"""Exceptions between two modules, which no caller of either ever sees."""


def loaded_by(code: str) -> set[str]:
    """The modules that a new interpreter has loaded after ``code``."""
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_every_public_name_can_be_imported() -> None:
    for name in neve.__all__:
        assert getattr(neve, name) is not None
    assert set(neve.__all__) <= set(dir(neve))
    assert len(set(neve.__all__)) == len(neve.__all__)


def test_there_are_no_others() -> None:
    with pytest.raises(AttributeError, match="module 'neve' has no attribute 'nonsense'"):
        neve.nonsense  # noqa: B018
    assert set(neve._HOMES) | {"__version__"} == set(neve.__all__)


def test_names_are_what_they_say() -> None:
    for name, home in neve._HOMES.items():
        module, _, attribute = home.partition(":")
        assert getattr(neve, name) is getattr(importlib.import_module(module), attribute)


def test_importing_neve_is_cheap() -> None:
    loaded = loaded_by("import neve")
    assert not loaded & set(HEAVY)
    assert {name for name in loaded if name.startswith("neve.")} == set()


def test_importing_errors_is_cheap() -> None:
    loaded = loaded_by("import neve; neve.NeveError")
    assert not loaded & set(HEAVY)


def test_asking_for_the_names_loads_nothing() -> None:
    assert not loaded_by("import neve; dir(neve); neve.__version__; hasattr(neve, 'x')") & set(HEAVY)


def test_the_memory_store_needs_no_engine_for_messages() -> None:
    """Opening loads what it uses; whatever only other backends need stays away."""
    loaded = loaded_by("import neve; neve.open('memory://').close()")
    assert not loaded & {"cryptography", "fsspec", "click", "rich"}


def public_objects() -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name in neve.__all__:
        value = getattr(neve, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            found.append((f"neve.{name}", value))
        if inspect.isclass(value):
            for attribute, member in vars(value).items():
                is_code = isinstance(member, types.FunctionType | property | classmethod | staticmethod)
                if is_code and not attribute.startswith("_"):
                    found.append((f"neve.{name}.{attribute}", member))
    return found


@pytest.mark.parametrize(
    ("name", "value"), public_objects(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_public_name_is_documented(name: str, value: object) -> None:
    documentation = inspect.getdoc(value)
    assert documentation, name
    # What dataclasses and named tuples write themselves does not count.
    assert not documentation.startswith(f"{name.rpartition('.')[2]}("), name


def test_every_module_says_what_it_is() -> None:
    for module in pkgutil.walk_packages(neve.__path__, "neve."):
        if ".proto." in module.name or module.name.endswith("__main__"):
            continue
        assert importlib.import_module(module.name).__doc__, module.name


def test_errors_are_one_hierarchy() -> None:
    from neve import errors

    for name in errors.__all__:
        error = getattr(errors, name)
        assert issubclass(error, errors.NeveError)
        assert error.__doc__
    for module in pkgutil.walk_packages(neve.__path__, "neve."):
        if ".proto." in module.name or module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == module.name:
                full_name = f"{module.name}.{name}"
                assert issubclass(value, errors.NeveError) or full_name in SIGNALS, full_name
