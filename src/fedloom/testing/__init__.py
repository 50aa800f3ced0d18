"""The contract suite, for Fedloom's methods and for yours.

from fedloom.testing import check_method, parametrize_with_checks

check_method(MyMethod)                       # raises ContractBroken with every promise that was not kept

@parametrize_with_checks([MyMethod])         # in a test file: pytest -k mymethod-resume
def test_contract(check):
    check()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fedloom.method import Method

from .checks import Check, ContractBroken, checks, names
from .compare import difference, outcome
from .tiny import Example, example_of, tiny_federation, tiny_task
from .trial import Spy, Trial


def check_method(
    method: Method | type[Method], *, expected: Mapping[str, str] | None = None, **overrides: Any
) -> list[str]:
    """Ask everything of a method.

    Args:
        method: a class, or an instance with the hyperparameters to check.
        expected: checks known to fail, and why: `{"bytes-as-on-the-card": "sends a set of unknown size"}`.
        overrides: hyperparameters that replace those of its example.

    Returns:
        the names of the checks that passed.

    Raises:
        ContractBroken: every promise that was not kept, with what was seen; also an expected failure that passed.
    """
    expected = dict(expected or {})
    passed, broken = [], []
    for check in checks(method, **overrides):
        try:
            check()
        except Exception as e:
            if check.name not in expected:
                broken.append(f"{check.name}: {type(e).__name__}: {e}")
        else:
            passed.append(check.name)
            if check.name in expected:
                broken.append(f"{check.name}: passed, though expected to fail ({expected[check.name]})")
    if broken:
        listed = "\n  ".join(broken)
        raise ContractBroken(f"{len(broken)} of {len(passed) + len(broken)} checks failed:\n  {listed}")
    return passed


def parametrize_with_checks(
    methods: Iterable[Method | type[Method]], expected: Mapping[str, Mapping[str, str]] | None = None
) -> Any:
    """A pytest decorator: one test per method and check, with ids such as `fedavg-resume`.

    Args:
        expected: method id -> {check: reason}; these are marked as expected to fail, strictly.
    """
    import pytest

    expected = expected or {}
    rows = []
    for method in methods:
        for check in checks(method):
            reason = expected.get(method.card.id, {}).get(check.name)
            marks = (pytest.mark.xfail(reason=reason, strict=True),) if reason else ()
            rows.append(pytest.param(check, id=check.id, marks=marks))
    return pytest.mark.parametrize("check", rows)


__all__ = [
    "Check", "ContractBroken", "Example", "Spy", "Trial", "check_method", "checks", "difference", "example_of",
    "names", "outcome", "parametrize_with_checks", "tiny_federation", "tiny_task",
]  # fmt: skip
