"""Values of every kind that JSON has, for fields that expect one."""

from typing import Any

OF_EACH_KIND: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 10**400, 1e308, "", "x", "\ud800", [], ["x"], [[]], {}, {"x": 1}, {"type": 1}, [10**400],
    ["\ud800"],
)  # fmt: skip
