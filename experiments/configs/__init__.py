"""One module a result, each with a `get_config()`."""

from ml_collections import ConfigDict


def as_iwae(config: ConfigDict) -> None:
    """The IWAE bound in the place of VHP + REWO; the same encoder and decoder."""
    config.model.prior = "standard_normal"
    config.objective.name = "iwae"
    config.beta.scheme = "constant"
