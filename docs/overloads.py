"""Show methods that a stub has as overloads only: griffe keeps those aside and would leave them out of the site."""

from __future__ import annotations

from typing import Any

import griffe


class OverloadsInStubs(griffe.Extension):
    """Make the last overload, which has the docstring, the member, with all of them as its signatures."""

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        for name, overloads in cls.overloads.items():
            if overloads and name not in cls.members:
                cls.set_member(name, overloads[-1])
                overloads[-1].overloads = list(overloads[:-1])
