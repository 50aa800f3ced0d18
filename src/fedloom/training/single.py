"""A batch of one sample, from which batch normalisation cannot be computed: what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedloom.errors import DataError


@contextmanager
def singles_told(client: int, samples: int, batch_size: int, otherwise: str) -> Iterator[None]:
    """Work on so many samples of a client; a batch of one is refused in words that help, not in torch's.

    Args:
        otherwise: what helps where one sample of several was left over.

    Raises:
        DataError: in the place of torch's ValueError.
    """
    try:
        yield
    except ValueError as e:
        if "more than 1 value per channel" in str(e):  # torch's words
            raise DataError(_told(client, samples, min(samples, batch_size), otherwise)) from e
        raise


def _told(client: int, samples: int, batch: int, otherwise: str) -> str:
    cause = "has 1 sample" if samples == 1 else f"has {samples} samples, so in batches of {batch} one is left over"
    size = "leave out clients with one sample" if samples == 1 else otherwise
    return (
        f"client {client} {cause}, and batch normalisation cannot be computed from a batch of one. Choose "
        f"{size}, normalisation by statistics that stay as they are (buffers='frozen'), or a network that normalises "
        f"each sample by itself (nn.GroupNorm, nn.LayerNorm); on_failure='exclude' counts such clients and goes on"
    )
