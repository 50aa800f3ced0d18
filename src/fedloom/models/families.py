"""Several architectures for one task, as lists of specs."""

from __future__ import annotations

from fedloom.errors import ConfigError, unknown

_DIFFERENT = ("mlp:", "mlp:64,", "cnn:", "cnn:depth=1,")


def family(name: str, dim: int = 32) -> tuple[str, ...]:
    """The specs of a family; client i takes `specs[i % len(specs)]`.

    different: four architectures on images, two dense and two convolutional, all with features of size `dim`.
    widths: one CNN at width 1, 1/2, 1/4 and 1/8.
    depths: dense networks of one to four layers of features, all with features of size `dim`.
    """
    families = {
        "different": tuple(f"{spec}dim={dim}" for spec in _DIFFERENT),
        "widths": tuple(f"cnn:width={width}" for width in (1.0, 0.5, 0.25, 0.125)),
        "depths": tuple(f"mlp:hidden={'x'.join(['64'] * depth)},dim={dim}" for depth in (1, 2, 3, 4)),
    }
    if dim < 1:
        raise ConfigError(f"dim must be at least 1, not {dim!r}")
    if name not in families:
        raise unknown("family of models", name, families)
    return families[name]
