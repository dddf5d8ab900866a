"""The processes of one run: process 0 leads, the others follow.

The leader alone decides (how many steps come next, when to stop, what is an error) and
alone touches the work directory. It tells the followers over a socket, so that nobody
waits in a collective for someone who will not come, and nobody waits there while the
leader validates or writes. Each process hears all the others' heart beat over the same
sockets: one that is killed is noticed at once, one that is silent (its host is gone, or
the network) after `HEARTBEAT_SECONDS`; the rest then end with one line and exit code 1.

JAX has heartbeats too, but what they end dies with a stack trace, later.
"""

import contextlib
import hmac
import json
import os
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NoReturn, Self

from experiments import cli
from vhp_jax.checkpoints import CheckpointError
from vhp_jax.data import DataError

HEARTBEAT_SECONDS = 20.0  # of silence, after which a process is given up
START_SECONDS = 120.0  # for all processes to find each other
GRACE_SECONDS = 3.0  # for a process to end by itself after another has
LEAVE_SECONDS = 10.0  # that the leader, who is the coordinator, stays for the others
OWN_ERRORS = (cli.UserError, cli.UsageError, CheckpointError, DataError, OSError)
RESUMABLE = (
    "the checkpoints stay: start all processes again, or another number, to go on"
)

Message = dict[str, Any]


class Group:
    """This process among those of a run; alone where there is no other.

    A context manager: how the block ends, by an error, a signal or well, is told to
    the others.

    Attributes:
      index: of this process; 0 leads.
      size: how many there are.
      signum: the signal that a follower was sent, None without.
    """

    def __init__(self, index: int = 0, size: int = 1):
        self.index, self.size = index, size
        self.signum: int | None = None
        self._peers: dict[int, _Peer] = {}
        self._listeners: list[threading.Thread] = []
        self._closed = threading.Event()

    @property
    def leads(self) -> bool:
        """Whether this process decides and writes."""
        return self.index == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.size == 1:
            return
        if isinstance(error, Exception) and not isinstance(error, OWN_ERRORS):
            # A collective that broke off may be the first sign of another's end. If it
            # is, the thread that listens says so meanwhile, and ends this process.
            time.sleep(GRACE_SECONDS)
        self._closed.set()
        message: Message = {"end": 0}
        if isinstance(error, cli.InterruptedRunError):
            message = {"end": 128 + error.signum}
        elif error is not None:
            line = " ".join(str(error).split()) or type(error).__name__
            message = {"end": 1, "why": line}
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                peer.send(message)
        if not self.leads:
            _LEAVING.append(self)  # its connection ends with this process, not before
            return
        for peer in self._peers.values():
            peer.close()
        # A process aborts if JAX finds its coordinator gone while it leaves.
        deadline = time.monotonic() + LEAVE_SECONDS
        for listener in self._listeners:
            listener.join(max(0.0, deadline - time.monotonic()))

    # --- What is said --------------------------------------------------------------

    def tell(self, **message: object) -> None:
        """The leader's next order to all followers, or a follower's word to it."""
        for peer in self._peers.values():
            with contextlib.suppress(OSError):  # the listening thread knows better
                peer.send(message)

    def gather(self) -> dict[int, Message]:
        """The next word of each follower."""
        return {index: peer.said.get() for index, peer in self._peers.items()}

    def orders(self, stop: cli.StopSignal) -> Iterator[Message]:
        """The leader's orders, until it ends the run.

        Args:
          stop: a signal to this process is passed on to the leader.

        Raises:
          UserError: the leader ended with an error.
          InterruptedRunError: it was stopped by a signal, its own or one passed on.
        """
        leader, passed_on = self._peers[0], False
        while True:
            if stop.signum is not None and not passed_on:
                self.tell(signal=int(stop.signum))
                passed_on = True
            try:
                order = leader.said.get(timeout=0.1)
            except queue.Empty:
                continue
            if "end" not in order:
                yield order
                continue
            self._closed.set()
            if order["end"] > 128:
                raise cli.InterruptedRunError(order["end"] - 128)
            if order["end"]:
                raise cli.UserError(f"process 0 ended: {order['why']}")
            return

    # --- How they find each other --------------------------------------------------

    def listen(self) -> Message:
        """Opens the leader's door; returns what the others need to come in."""
        self._server = socket.create_server(("", 0))
        self._token = secrets.token_hex(16)
        return {"port": self._server.getsockname()[1], "token": self._token}

    def admit(self) -> None:
        """Waits for all followers.

        Raises:
          UserError: they did not come in time.
        """
        deadline = time.monotonic() + START_SECONDS
        with self._server as server:
            while len(self._peers) < self.size - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    missing = set(range(1, self.size)) - set(self._peers)
                    raise cli.UserError(
                        f"process(es) {', '.join(map(str, sorted(missing)))} did not "
                        f"connect within {START_SECONDS:g} s; is TCP between the hosts "
                        "open?"
                    ) from None
                connection.settimeout(5.0)
                peer = _Peer(connection)
                try:
                    hello = peer.receive()
                except (OSError, ValueError):  # TimeoutError is an OSError
                    peer.drop()
                    continue
                if hmac.compare_digest(str(hello.get("token")), self._token):
                    self._peers[int(hello["index"])] = peer
                else:
                    peer.drop()
        self._start()

    def connect(self, hosts: list[str], door: Message) -> None:
        """Goes to the leader, at the first of these hosts that answers.

        Raises:
          UserError: none did.
        """
        for host in hosts:
            try:
                connection = socket.create_connection((host, door["port"]), timeout=10)
            except OSError:
                continue
            peer = _Peer(connection)
            peer.send({"token": door["token"], "index": self.index})
            self._peers[0] = peer
            self._start()
            return
        raise cli.UserError(
            f"process {self.index} cannot reach process 0 at {' or '.join(hosts)}, "
            f"port {door['port']}; is TCP between the hosts open?"
        )

    # --- Threads -------------------------------------------------------------------

    def _start(self) -> None:
        for index, peer in self._peers.items():
            peer.set_timeout(HEARTBEAT_SECONDS)
            listener = threading.Thread(
                target=self._listen_to, args=(index, peer), daemon=True
            )
            self._listeners.append(listener)
            listener.start()
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._closed.wait(HEARTBEAT_SECONDS / 8):
            self.tell()

    def _listen_to(self, index: int, peer: "_Peer") -> None:
        """Notes what a process says; ends this one when that one has gone."""
        while True:
            try:
                message = peer.receive()
            except TimeoutError:
                self._leave(f"process {index} was silent for {HEARTBEAT_SECONDS:g} s")
                return
            except (OSError, ValueError):
                self._leave(f"process {index} is gone: killed, or its host is down")
                return
            if "signal" in message:
                self.signum = message["signal"]
            elif "end" in message:
                self._hear_end(index, peer, message)
                with contextlib.suppress(OSError, ValueError):
                    while True:  # until the process is gone
                        peer.receive()
                return
            elif message:
                peer.said.put(message)

    def _hear_end(self, index: int, peer: "_Peer", message: Message) -> None:
        """Lets this process end by itself, for a while; a follower is told why."""
        if index == 0:
            peer.said.put(message)
        code = int(message["end"])
        if code == 0 and not self.leads:
            return
        self._closed.wait(GRACE_SECONDS)
        self._leave(f"process {index} ended: {message.get('why', f'exit {code}')}")

    def _leave(self, why: str) -> None:
        """Ends this process, wherever its main thread is stuck."""
        if self._closed.is_set():
            return
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            print(f"error: {why}; {RESUMABLE}", file=sys.stderr, flush=True)
        _exit(1)


class _Peer:
    """A connection that carries one JSON object a line."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._lines = connection.makefile("rb")
        self._lock = threading.Lock()
        self.said: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def set_timeout(self, seconds: float) -> None:
        """Of silence."""
        self._connection.settimeout(seconds)

    def send(self, message: Message) -> None:
        """Sends one object."""
        with self._lock:
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> Message:
        """The next object; OSError or ValueError where there is none."""
        return dict(json.loads(self._lines.readline()))

    def close(self) -> None:
        """No more is said; what was said arrives."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def drop(self) -> None:
        """Nothing more is said or heard."""
        self._lines.close()
        self._connection.close()


def _exit(code: int) -> NoReturn:
    os._exit(code)


ALONE = Group()
_LEAVING: list[Group] = []
