"""A trained model as a self-contained folder, to be kept, sent and read anywhere.

    model.safetensors   parameters, float32, and statistics of the data
    model.json          networks, shapes, facts and a digest of every file beside it
    config.json         what it was made with
    encoder.jax_export  compiled functions for `jax.export`: they run without this
    decoder.jax_export  package and without flax, on CPU, GPU and TPU
    README.md           the model card

Nothing in it is a pickle, and reading it runs no code of it: networks are rebuilt from
a list of known classes.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vhp_jax import networks, priors, storage
from vhp_jax.data import Standardisation
from vhp_jax.model import VAE
from vhp_jax.types import Latents, Params, PyTree

FORMAT = "vhp_jax model 1"
WEIGHTS, MODEL, CONFIG, CARD = (
    "model.safetensors",
    "model.json",
    "config.json",
    "README.md",
)
ENCODER, DECODER = "encoder.jax_export", "decoder.jax_export"
PLATFORMS = ("cpu", "cuda", "tpu")
UNITS = "statistics/x_mean", "statistics/x_scale"  # of the standardisation
_CLASSES = {
    kind.__name__: kind
    for kind in (
        VAE,
        networks.BernoulliDecoder,
        networks.ConvDecoder,
        networks.ConvEncoder,
        networks.Flat,
        networks.GatedConvDecoder,
        networks.GatedConvEncoder,
        networks.GaussianDecoder,
        networks.NormalMLP,
        priors.HierarchicalPrior,
        priors.MixturePrior,
        priors.StandardNormal,
        priors.VampPrior,
    )
}


class ExportError(ValueError):
    """A folder that cannot be written, or is not the whole of an export; one line."""


class SharedModel(NamedTuple):
    """All that an export holds.

    Attributes:
      model: the VAE.
      params: its parameters, NumPy float32.
      example_shape: of one example, without the batch axis.
      standardisation: None where the model takes the data as they are.
      config: what the model was made with, as JSON.
      facts: what is known of it (kappa, steps, data, ...), as JSON.
    """

    model: VAE
    params: Params
    example_shape: tuple[int, ...]
    standardisation: Standardisation | None
    config: Mapping[str, Any]
    facts: Mapping[str, Any]


def write(shared: SharedModel, folder: str | os.PathLike[str]) -> Path:
    """Writes an export in the place of an earlier one, if there is one.

    The earlier one stays whole until the new one is, and where that fails.

    Args:
      shared: the model.
      folder: made, or an export already.

    Returns:
      The folder.

    Raises:
      ExportError: something else is there, also beside an earlier export, or a
        parameter is not finite.
    """
    import safetensors.numpy

    folder = Path(folder)
    _check_place(folder)
    tensors = dict(_tensors(shared))
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ExportError(f"{folder}: not written, {name} is not finite")
    contents: dict[str, bytes] = {
        WEIGHTS: safetensors.numpy.save(tensors, {"format": FORMAT}),
        CONFIG: storage.json_text(shared.config).encode(),
        CARD: model_card(shared, folder.name).encode(),
    }
    for name, function in _functions(shared).items():
        contents[name] = function
    described = {
        "format": FORMAT,
        "networks": describe(shared.model),
        "example_shape": list(shared.example_shape),
        "facts": dict(shared.facts),
        "sha256": {name: _digest(content) for name, content in contents.items()},
    }
    contents[MODEL] = storage.json_text(described).encode()
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        for name, content in contents.items():
            (draft / name).write_bytes(content)
        _replace(folder, draft)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _replace(folder: Path, draft: Path) -> None:
    """Puts the draft in the folder's place; if that fails, the old one stays."""
    aside = draft.with_name(f"{draft.name}.old")
    try:
        if folder.exists():
            folder.rename(aside)
        draft.rename(folder)
    except BaseException:
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def is_export(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like an export."""
    return (Path(folder) / MODEL).is_file()


def read(folder: str | os.PathLike[str]) -> SharedModel:
    """Reads an export, bit for bit.

    Raises:
      ExportError: it is not there, not whole, changed, or of another version.
    """
    import safetensors
    import safetensors.numpy

    folder = Path(folder)
    described = _read_json(folder / MODEL)
    if described.get("format") != FORMAT:
        raise ExportError(
            f"{folder / MODEL}: format {described.get('format')!r}, wanted {FORMAT!r}"
        )
    try:
        model = rebuild(described["networks"])
        shape = tuple(int(side) for side in described["example_shape"])
        facts, digests = dict(described["facts"]), dict(described["sha256"])
        like = jax.eval_shape(lambda key: model.init(key, shape), jax.random.key(0))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"{folder / MODEL}: not the networks of an export: {_line(error)}"
        ) from None
    content = _read_bytes(folder / WEIGHTS)
    try:
        tensors = safetensors.numpy.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ExportError(
            f"{folder / WEIGHTS}: damaged, {len(content)} bytes: {_line(error)}"
        ) from None
    params = _params(folder / WEIGHTS, like, tensors)
    standardisation = None
    if all(name in tensors for name in UNITS):
        standardisation = Standardisation(*(tensors[name] for name in UNITS))
        for name, array in zip(UNITS, standardisation, strict=True):
            if array.shape != shape:
                raise ExportError(
                    f"{folder / WEIGHTS}: {name} has shape {list(array.shape)}, "
                    f"wanted {list(shape)}"
                )
    config = _read_json(folder / CONFIG)
    for name, digest in digests.items():
        if name != CARD and _digest(_read_bytes(folder / name)) != digest:
            raise ExportError(f"{folder / name}: changed since it was written")
    return SharedModel(model, params, shape, standardisation, config, facts)


def describe(value: Any) -> Any:
    """A model, network or prior as JSON: its class and what it was made with.

    Raises:
      ExportError: a class that is not of this package.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value).__name__
        if _CLASSES.get(kind) is not type(value):
            raise ExportError(f"cannot be exported: a network of class {kind}")
        names = [f.name for f in dataclasses.fields(value) if f.name not in _FLAX]
        return {"class": kind} | {n: describe(getattr(value, n)) for n in names}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ExportError(f"cannot be exported: {type(value).__name__} {value!r}")


_FLAX = ("parent", "name")  # fields that flax adds


def rebuild(described: Any) -> Any:
    """The inverse of `describe`; lists become tuples.

    Raises:
      KeyError: a class that is not of this package.
      TypeError: arguments that the class does not take.
    """
    if isinstance(described, Mapping):
        kind = _CLASSES[described["class"]]
        return kind(**{k: rebuild(v) for k, v in described.items() if k != "class"})
    if isinstance(described, list):
        return tuple(rebuild(item) for item in described)
    return described


def encoder_function(
    shared: SharedModel,
) -> Callable[[Array], tuple[Array, Array]]:
    """Examples in the units of the data -> mean and scale of q(z|x), [B, D] each."""
    params = jax.tree.map(jnp.asarray, shared.params)
    units = shared.standardisation

    def encode(x: Float[Array, "B *example"]) -> tuple[Array, Array]:
        if units is not None:
            x = (x - units.mean[None]) / units.scale[None]
        q_z = shared.model.encode(params, x)
        return q_z.mean, jnp.broadcast_to(q_z.scale, q_z.mean.shape)

    return encode


def decoder_function(shared: SharedModel) -> Callable[[Latents], Array]:
    """Latents z [B, D] -> E[x|z] in the units and the shape of the data."""
    params = jax.tree.map(jnp.asarray, shared.params)
    units = shared.standardisation

    def decode(z: Latents) -> Float[Array, "B *example"]:
        mean = shared.model.decode(params, z).mean
        mean = mean.reshape(z.shape[0], *shared.example_shape)
        return mean if units is None else mean * units.scale[None] + units.mean[None]

    return decode


def _functions(shared: SharedModel) -> dict[str, bytes]:
    """Both functions, compiled for any batch size and serialised."""
    from jax import export

    (batch,) = export.symbolic_shape("b")
    example = jax.ShapeDtypeStruct((batch, *shared.example_shape), jnp.float32)
    latent = jax.ShapeDtypeStruct((batch, shared.model.latent_dim), jnp.float32)
    with jax.default_matmul_precision("highest"):
        encoder = jax.jit(encoder_function(shared))
        decoder = jax.jit(decoder_function(shared))
        return {
            name: bytes(export.export(jitted, platforms=PLATFORMS)(shape).serialize())
            for name, jitted, shape in (
                (ENCODER, encoder, example),
                (DECODER, decoder, latent),
            )
        }


def model_card(shared: SharedModel, name: str) -> str:
    """What a reader has to know of the model, in Markdown."""
    latent_dim = shared.model.latent_dim
    shape = " x ".join(map(str, shared.example_shape))
    num = sum(leaf.size for leaf in jax.tree.leaves(shared.params))
    prior = type(shared.model.prior).__name__
    decoder = type(shared.model.decoder).__name__
    facts = "\n".join(f"- {key}: {value}" for key, value in shared.facts.items())
    units = (
        "as the data set's loader gives them (`config.json`)"
        if shared.standardisation is None
        else "in their own units: what they are standardised with is inside"
    )
    return f"""# {name}

A variational autoencoder with a learned prior (Klushyn et al., 2019, "Learning
Hierarchical Priors in VAEs"): examples of shape {shape}, {latent_dim} latent
dimensions, prior `{prior}`, decoder `{decoder}`, {num:,} parameters.

{facts}

## Use

With vhp_jax, examples {units}:

```python
from vhp_jax import VHP

model = VHP.load("{name}")
z = model.transform(x)
```

Without it, JAX alone is enough:

```python
from pathlib import Path

from jax import export

encoder = export.deserialize(bytearray(Path("{name}/{ENCODER}").read_bytes()))
decoder = export.deserialize(bytearray(Path("{name}/{DECODER}").read_bytes()))
mean, scale = encoder.call(x)  # x: float32 [B, {shape.replace(" x ", ", ")}]
reconstruction = decoder.call(mean)
```

## Limits

It describes the data that it was trained on and no others. Likelihoods of examples of
another kind mean little: a VAE may give them high ones.
"""


def _tensors(shared: SharedModel) -> Iterator[tuple[str, np.ndarray]]:
    """Everything that model.safetensors holds, by name."""
    for name, leaf in _named(shared.params):
        yield name, np.asarray(leaf, np.float32, order="C")
    if shared.standardisation is not None:
        for name, array in zip(UNITS, shared.standardisation, strict=True):
            yield name, np.asarray(array, order="C")


def _named(params: PyTree) -> list[tuple[str, Any]]:
    """Leaves with names such as encoder/params/MLP_0/Dense_0/kernel."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(params)
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in pairs
    ]


def _params(path: Path, like: Params, tensors: Mapping[str, np.ndarray]) -> Params:
    """Puts tensors in the places of `like`, or says which one does not fit."""
    wanted = dict(_named(like))
    found = {name for name in tensors if not name.startswith("statistics/")}
    for name in sorted(wanted.keys() ^ found):
        side = "is missing" if name in wanted else "belongs to no network"
        raise ExportError(f"{path}: {name} {side}")
    for name, leaf in wanted.items():
        tensor = tensors[name]
        if (tensor.shape, tensor.dtype) != (leaf.shape, leaf.dtype):
            raise ExportError(
                f"{path}: {name} is {tensor.dtype} {list(tensor.shape)}, wanted "
                f"{leaf.dtype} {list(leaf.shape)}"
            )
        if not np.isfinite(tensor).all():
            raise ExportError(f"{path}: {name} is not finite")
    leaves = [tensors[name] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _check_place(folder: Path) -> None:
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not folder.is_dir() or (names and not is_export(folder)):
        raise ExportError(f"{folder}: something else is there, wanted a new folder")
    others = sorted(names - {WEIGHTS, MODEL, CONFIG, CARD, ENCODER, DECODER})
    if others:
        raise ExportError(
            f"{folder}: what was measured of the export that is there would be lost "
            f"({', '.join(others)}); move it, or take a new folder"
        )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from None


def _read_json(path: Path) -> dict[str, Any]:
    content = _read_bytes(path)
    try:
        value = json.loads(content)
    except ValueError as error:
        raise ExportError(f"{path}: damaged, not JSON: {_line(error)}") from None
    if not isinstance(value, dict):
        raise ExportError(f"{path}: holds {type(value).__name__}, wanted an object")
    return value


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
