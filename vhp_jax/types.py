"""Array aliases and dimension letters.

Shapes are written as jaxtyping annotations. They are documentation at run time and
are checked in the tests only. The letters:

    B  examples in a batch          N  examples in a data set, nodes in a graph
    K  importance samples of zeta   S  importance samples of (z, zeta)
    D  latent dimensions of z or zeta

All floating-point arrays are float32 unless a docstring says otherwise.
"""

from typing import Any, NamedTuple, TypeAlias

from jaxtyping import Array, Bool, Float, Int, Key

PyTree: TypeAlias = Any
PRNGKey: TypeAlias = Key[Array, ""]
Scalar: TypeAlias = Float[Array, ""]
Counter: TypeAlias = Int[Array, ""]
Flag: TypeAlias = Bool[Array, ""]
PerExample: TypeAlias = Float[Array, "B"]
Examples: TypeAlias = Float[Array, "B *example"]
Latents: TypeAlias = Float[Array, "B D"]
LogWeights: TypeAlias = Float[Array, "K B"]


class Params(NamedTuple):
    """Parameters of a VAE, split as the paper's optimisation problem splits them.

    Attributes:
      encoder: phi, of q(z|x).
      decoder: theta, of p(x|z).
      prior: (Theta, Phi), of p(z|zeta) and q(zeta|z); empty where nothing is learned.
    """

    encoder: PyTree
    decoder: PyTree
    prior: PyTree
