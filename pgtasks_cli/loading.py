"""Finds the app that ``-A`` names: ``module``, ``package.module:attribute``."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from types import ModuleType

import click

from pgtasks import App

ATTRIBUTES = ("app", "celery")
SUBMODULES = ("celery", "tasks", "app")


def find_app(path: str) -> App:
    """Return the app; the current folder is searched first.

    A module without ``:attribute`` is asked for ``app``, then ``celery``, then for the only app in it,
    then its submodules.

    Raises:
        UsageError: there is no such module, or no app in it.
        ClickException: the module raised.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise click.UsageError(f"-A takes module or module:attribute, found {path!r}")
    module = import_module(module_name)
    if module is None and module_name.endswith(".py"):
        raise click.UsageError(f"-A takes a module, not a file: say -A {module_name[:-3]}")
    if module is None:
        raise click.UsageError(
            f"no module is named {module_name!r} in {os.getcwd()} or on sys.path"
        )
    if attribute:
        return named(module, attribute)
    found = search(module)
    if found is None:
        raise click.UsageError(
            f"no app is in module {module_name!r}: say -A {module_name}:attribute"
        )
    return found


def import_module(name: str) -> ModuleType | None:
    """Import a module; None if there is none of that name."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Of the module itself or of a package above it; one that it imports is its own mistake.
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise failed(name, error) from error
    except Exception as error:  # a user's module may raise anything
        raise failed(name, error) from error
    except SystemExit as error:
        raise failed(name, error) from error


def failed(name: str, error: BaseException) -> click.ClickException:
    """Say in one line where a module raised, and what."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({error.filename}:{error.lineno})"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return click.ClickException(f"cannot import {name!r}: {what}{where}")


def named(module: ModuleType, attribute: str) -> App:
    """Return the app under a (dotted) attribute."""
    found: object = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise click.UsageError(
                f"module {module.__name__!r} has no attribute {attribute!r}"
            ) from None
    if not isinstance(found, App):
        raise click.UsageError(
            f"expected a pgtasks.App at {module.__name__}:{attribute}, found {type(found).__name__}"
        )
    return found


def search(module: ModuleType) -> App | None:
    """Return the app of a module that was named without attribute, or None."""
    for attribute in ATTRIBUTES:
        found = getattr(module, attribute, None)
        if isinstance(found, App):
            return found
    apps = {id(value): value for value in vars(module).values() if isinstance(value, App)}
    if len(apps) > 1:
        names = sorted(name for name, value in vars(module).items() if isinstance(value, App))
        raise click.UsageError(
            f"module {module.__name__!r} has several apps ({', '.join(names)}): "
            f"say -A {module.__name__}:{names[0]}"
        )
    if apps:
        return next(iter(apps.values()))
    if hasattr(module, "__path__"):
        for name in SUBMODULES:
            below = import_module(f"{module.__name__}.{name}")
            app = search(below) if below is not None else None
            if app is not None:
                return app
    return None
