"""`python -m fedloom.claims`: the names of all claims."""

from .files import available

print("\n".join(available()))
