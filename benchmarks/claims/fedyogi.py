"""FedYogi on sparse features (Reddi et al. 2021, section 5)."""

from __future__ import annotations

from _sparse import claim_of

import fedloom as fl

claim = claim_of(fl.FedYogi)
