"""Every registered method keeps the contract. `pytest tests/test_contract.py -k fedavg-resume` is one check."""

from __future__ import annotations

import fedloom as fl
from fedloom.testing import parametrize_with_checks


@parametrize_with_checks(fl.catalogue().values())
def test_contract(check):
    check()
