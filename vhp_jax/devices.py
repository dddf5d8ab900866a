"""The mesh of devices that share a batch, and what lies where on it.

One axis. A batch is cut along it; parameters, moments, keys and metrics are whole on
every device, and so are training data that fit on one. Programs are written for the
whole batch and jitted: XLA cuts them, and adds up the gradients. Random numbers belong
to positions in the whole batch (`jax_threefry_partitionable`), so any number of devices
and of processes takes the same steps, but for the order in which floats are added.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vhp_jax.types import PyTree

BATCH = "batch"  # the axis of the mesh
T = TypeVar("T")


def make_mesh(num_devices: int = 0) -> Mesh:
    """A mesh over devices of all processes, as many of each.

    Args:
      num_devices: of all processes together; 0 takes all that there are.

    Raises:
      ValueError: there are fewer, or the processes cannot hold as many each.
    """
    devices, num_processes = jax.devices(), jax.process_count()
    if not 0 <= num_devices <= len(devices):
        raise ValueError(
            f"seen {num_devices}, wanted 0 (all) to {len(devices)}: there are no more "
            f"devices ({devices[0].platform})"
        )
    each, rest = divmod(num_devices or len(devices), num_processes)
    if rest or not each:
        raise ValueError(
            f"seen {num_devices}, wanted 0 (all) or a multiple of the {num_processes} "
            "processes"
        )
    chosen = []
    for process in range(num_processes):
        own = [device for device in devices if device.process_index == process]
        if len(own) < each:
            raise ValueError(
                f"seen {num_devices or 'all'}, wanted at most {len(own)} devices of "
                f"each process: process {process} has no more"
            )
        chosen += own[:each]
    return Mesh(np.array(chosen), (BATCH,))


def local_mesh() -> Mesh:
    """A mesh over all devices of this process."""
    return Mesh(np.array(jax.local_devices()), (BATCH,))


def check_batch(mesh: Mesh, batch_size: int) -> None:
    """Refuses a batch that does not divide.

    Raises:
      ValueError: the devices would hold unequal parts.
    """
    if rest := batch_size % mesh.size:
        near = (batch_size - rest, batch_size - rest + mesh.size)
        raise ValueError(
            f"a batch of {batch_size} cannot be shared out evenly over {mesh.size} "
            f"devices; {' or '.join(str(size) for size in near if size)} can"
        )


def whole(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def cut(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Cut along one axis, a part on each device."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH))


def constrain_batch(x: T, mesh: Mesh | None) -> T:
    """Says, inside a jitted program, that a batch is cut along its first axis."""
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, cut(mesh))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts process 0's values on every device; all processes must call it.

    Args:
      tree: arrays and typed PRNG keys on the host or on one device; other processes'
        have the same shapes and dtypes, and values that are not looked at.
      mesh: from `make_mesh`.

    Returns:
      The same tree with leaves of sharding `whole(mesh)`.
    """

    def put(leaf: jax.Array) -> jax.Array:
        if _is_key(leaf):
            data = put(jax.random.key_data(leaf))
            impl = jax.random.key_impl(leaf)
            return jax.random.wrap_key_data(data, impl=impl)
        host = np.asarray(leaf)
        if spans_processes(mesh):
            host = np.asarray(multihost_utils.broadcast_one_to_all(host), host.dtype)
        return _fill(host.shape, whole(mesh), lambda index: host[index])

    return jax.tree.map(put, tree)


def replicate_data(data: np.ndarray, mesh: Mesh) -> jax.Array:
    """Puts an array on every device; each process gives its own, equal copy."""
    return _fill(data.shape, whole(mesh), lambda index: data[index])


def place_batches(data: np.ndarray, indices: np.ndarray, mesh: Mesh) -> jax.Array:
    """Gathers batches on the host; each process only the parts of its own devices.

    Args:
      data: [N, *example], may be a memory map.
      indices: int [T, B], the same in every process.
      mesh: from `make_mesh`.

    Returns:
      [T, B, *example], cut along B.
    """
    shape = (*indices.shape, *data.shape[1:])
    return _fill(shape, cut(mesh, axis=1), lambda index: data[indices[index[:2]]])


def place(batch: np.ndarray, mesh: Mesh) -> jax.Array:
    """Cuts a batch along its first axis; each process gives the parts it holds."""
    return _fill(batch.shape, cut(mesh), lambda index: batch[index])


def _fill(
    shape: tuple[int, ...],
    sharding: NamedSharding,
    part: Callable[[Any], np.ndarray],
) -> jax.Array:
    """An array of that sharding, out of the parts that this process's devices hold."""
    return jax.make_array_from_callback(shape, sharding, part)


def local(tree: PyTree) -> PyTree:
    """This process's copy of a tree that is whole on every device, on one device."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def spans_processes(mesh: Mesh) -> bool:
    """Whether devices of several processes are in it."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def _is_key(leaf: jax.Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
