"""Starts `jax.distributed` from flags or from what the cluster says.

Slurm, Open MPI, Kubernetes and TPU are recognised by JAX (`--distributed`); elsewhere
each process is told where process 0 is, how many there are and which one it is.
"""

import json
import socket

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils

from experiments import cli
from experiments.processes import ALONE, START_SECONDS, Group

FLAGS = flags.FLAGS
flags.DEFINE_bool(
    "distributed", False, "One of several processes, of Slurm, Open MPI, Kubernetes..."
)
flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0.")
flags.DEFINE_integer("num_processes", None, "How many there are.")
flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")

EXPLICIT = ("coordinator_address", "num_processes", "process_id")
DOOR_BYTES = 1_024  # of the message that says where process 0 listens


def join() -> Group:
    """Joins the other processes as the flags say; before anything uses a device.

    Raises:
      UsageError: the flags do not fit together.
      UserError: the others were not found.
    """
    given = [name for name in EXPLICIT if FLAGS[name].value is not None]
    if not given and not FLAGS.distributed:
        return ALONE
    check_flags(given)
    # Another process's end is ours to tell, in one line: see `processes`.
    jax.config.update("jax_enable_recoverability", True)
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            FLAGS.coordinator_address,
            FLAGS.num_processes,
            FLAGS.process_id,
            initialization_timeout=int(START_SECONDS),
        )
    except (ValueError, RuntimeError) as error:
        if given:
            raise cli.UserError(
                f"process {FLAGS.process_id} found no {FLAGS.num_processes} processes "
                f"at {FLAGS.coordinator_address} within {START_SECONDS:g} s: {error}"
            ) from None
        raise cli.UserError(
            "--distributed found neither Slurm, Open MPI, Kubernetes nor a TPU slice "
            f"({error}); give --coordinator_address, --num_processes and --process_id"
        ) from None
    group = Group(jax.process_index(), jax.process_count())
    if group.size > 1:
        meet(group)
    return group


def check_flags(given: list[str]) -> None:
    """Refuses flags that do not fit together.

    Args:
      given: those of `EXPLICIT` that are.

    Raises:
      UsageError: names the first.
    """
    if not given:
        return
    for name in EXPLICIT:
        if name not in given:
            raise cli.UsageError(f"--{given[0]} wants --{name} beside it")
    address, size, index = (FLAGS[name].value for name in EXPLICIT)
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 2**16):
        raise cli.UsageError(
            f"--coordinator_address wants HOST:PORT of process 0, got {address!r}"
        )
    if size < 1:
        raise cli.UsageError(f"--num_processes must be >= 1, got {size}")
    if not 0 <= index < size:
        raise cli.UsageError(
            f"--process_id must be from 0 to {size - 1} (--num_processes={size}), "
            f"got {index}"
        )


def meet(group: Group) -> None:
    """Opens the sockets between the processes; where to, a broadcast says."""
    door = {**group.listen(), "hosts": own_hosts()} if group.leads else {}
    letter = np.zeros(DOOR_BYTES, np.uint8)
    text = json.dumps(door).encode()
    letter[: len(text)] = np.frombuffer(text, np.uint8)
    letter = np.asarray(multihost_utils.broadcast_one_to_all(letter), np.uint8)
    if group.leads:
        group.admit()
        return
    door = json.loads(letter.tobytes().rstrip(b"\0"))
    known = (FLAGS.coordinator_address or "").rpartition(":")[0].strip("[]")
    group.connect([known] * bool(known) + door["hosts"], door)


def own_hosts() -> list[str]:
    """Where other hosts may find this one: its outward address, then its name."""
    hosts = [socket.gethostname()]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # no packet is sent
            hosts.insert(0, probe.getsockname()[0])
        except OSError:
            pass  # no route out of this host
    return hosts
