"""Which component an error comes from: one line in place of a traceback, which names it."""

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from invem.config.catalog import Component, one_line
from invem.errors import InvemError, NumericalError, PluginError, out_of_memory

__all__ = ["Origins"]


class Origins:
    """The components of a plan, by the module that each was defined in."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, str]] = {}

    def add(self, component: Component, factory: Callable[..., Any]) -> None:
        """Adds a component, and what builds it."""
        made: Any = getattr(factory, "func", factory)
        inside = self._names.setdefault(getattr(made, "__module__", ""), {})
        inside[getattr(made, "__qualname__", component.name)] = component.label

    def add_built(self, component: Component, built: object) -> None:
        """Adds the class of what a factory of the same module has built."""
        kind = type(built)
        inside = self._names.get(kind.__module__)
        if inside is not None and component.label in inside.values():
            known = inside.setdefault(kind.__qualname__, component.label)
            if component.label not in known.split(" or "):
                inside[kind.__qualname__] = f"{known} or {component.label}"

    def of(self, built: object) -> str:
        """Returns the component that an object is, in words."""
        kind = built if isinstance(built, type) else type(built)
        found = self._find(kind.__module__, kind.__qualname__)
        return found or f"{kind.__qualname__} of {kind.__module__}"

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Turns an error that a component raises into one line that names the component.

        Errors of invem itself pass as they are, and so do a lack of memory and an interrupt.

        Raises:
            PluginError: If a component raises anything else, SystemExit included.
            NumericalError: If linear algebra fails in a component.
        """
        try:
            yield
        except (InvemError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            found = self._raised_by(error)
            exits = isinstance(error, SystemExit)
            if out_of_memory(error) or (found is None and not exits):
                raise
            name, where = found or ("a component", "")
            kind = type(error).__name__
            words = f"{name}: {kind}: {one_line(error).removeprefix(f'{kind}: ')}{where}"
            # PyTorch and NumPy have one each.
            numerical = kind == "LinAlgError"
            raise (NumericalError if numerical else PluginError)(words) from error

    def _raised_by(self, error: BaseException) -> tuple[str, str] | None:
        """Returns the component that is nearest to where an error was raised, and the place."""
        for frame, number in reversed(list(traceback.walk_tb(error.__traceback__))):
            module = frame.f_globals.get("__name__", "")
            name = self._find(module, frame.f_code.co_qualname)
            if name is not None:
                return name, f" ({Path(frame.f_code.co_filename).name}, line {number})"
        return None

    def _find(self, module: str, qualified: str) -> str | None:
        inside: Mapping[str, str] = self._names.get(module, {})
        head = qualified.partition(".")[0]
        return inside.get(head) or (" or ".join(dict.fromkeys(inside.values())) or None)
