"""Ranks share their fate: where one fails or dies, the others end within a minute, and say why.

A rank that waits in an exchange cannot know that the other will never come: some backends notice,
some wait for half an hour. So every rank holds a connection to rank 0 on the side. A process that
dies, however it dies, closes it; a machine that is gone answers no probe; a rank that fails says
what happened before it ends, and rank 0 tells the others.
"""

import contextlib
import logging
import os
import secrets
import selectors
import socket
import sys
import threading
from types import TracebackType
from typing import cast

from robustpo_kit.errors import KitError
from robustpo_kit.training.ranks import gather_states, this_rank, world_size

CONNECT_S = 20.0  # to make the connections
HEAR_S = 1.0  # a failing rank listens for so long whether another one failed before it
LEAVE_S = 5.0  # a rank that hears of a failure may end by itself for so long
PROBES_S = (15, 10, 3)  # a silent machine: seconds idle, between probes, and their number
DONE, FAILED = "done", "failed"  # first words of a line

log = logging.getLogger(__name__)


class Lifeline:
    """While it is entered, the failure of any rank ends every rank; with one rank it does nothing.

    A rank whose main thread is stuck is ended by `os._exit`, with one line on standard error; one
    that fails by itself, because the other is gone, gets a KitError that says so.
    """

    def __init__(self) -> None:
        self._links: dict[socket.socket, int] = {}  # rank 0: to all others; others: to rank 0
        self._message = ""
        self._heard, self._leaving = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True, name="lifeline")

    def __enter__(self) -> "Lifeline":
        if world_size() > 1:
            self._links = connect_ranks()
        if self._links:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._links:
            return
        if error is None or isinstance(error, SystemExit):
            self._tell(DONE)
            self._close()
            return
        if self._heard.wait(HEAR_S):
            self._close()
            if isinstance(error, Exception) and not isinstance(error, KitError):
                raise KitError(self._message) from error
            return
        self._tell(f"{FAILED} rank {this_rank()} failed: {one_line(error)}")
        self._close()

    def _close(self) -> None:
        """End the thread, which closes the connections."""
        self._leaving.set()
        self._thread.join(CONNECT_S)

    def _tell(self, line: str, *, but: socket.socket | None = None) -> None:
        for link in self._links:
            if link is not but:
                with contextlib.suppress(OSError):
                    link.sendall(f"{line}\n".encode())

    def _listen(self) -> None:
        """The thread: waits until this rank leaves, or another one fails or is gone."""
        with selectors.DefaultSelector() as waiting:
            for link in self._links:
                waiting.register(link, selectors.EVENT_READ, bytearray())
            while not self._leaving.is_set() and waiting.get_map():
                for key, _ in waiting.select(timeout=0.2):
                    self._read_news(waiting, key)
                    if self._message:
                        return self._end_process()
        for link in self._links:
            link.close()

    def _read_news(self, waiting: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        """Read from a connection; keeps the message of a failure and passes it on."""
        link, line = cast(socket.socket, key.fileobj), key.data
        received = _receive(link)
        line += received
        word, _, text = line.decode(errors="replace").partition(" ")
        if word.startswith(DONE):
            waiting.unregister(link)
        elif word == FAILED and text.endswith("\n"):
            self._message = text.strip()
        elif not received:
            self._message = (
                f"rank {self._links[link]} is gone without a word (killed?); the run goes on from "
                "its last checkpoint, if it has one"
            )
        if self._message:
            self._tell(f"{FAILED} {self._message}", but=link)

    def _end_process(self) -> None:
        """End the process, unless its main thread ends the run by itself."""
        self._heard.set()
        if not self._leaving.wait(LEAVE_S):
            print(f"robustpo: {self._message}", file=sys.stderr, flush=True)
            os._exit(1)


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, KitError) else f"{type(error).__name__}: {text[:300]}"


def connect_ranks() -> dict[socket.socket, int]:
    """Connections by the rank at their other end: star-shaped around rank 0.

    Empty on every rank, with a warning, where one cannot reach rank 0.
    """
    host = os.environ.get("MASTER_ADDR") or socket.gethostname()
    server, port = None, 0
    if this_rank() == 0:
        server = _server()
        port = server.getsockname()[1]
    host, port, token = gather_states((host, port, secrets.token_hex(16)))[0]
    links: dict[socket.socket, int] = {}
    try:
        links = _call(host, port, token) if server is None else _accept_all(server, token)
    except OSError as error:
        log.warning("rank %d: no connection to rank 0 (%s)", this_rank(), error)
    if all(gather_states(bool(links))):
        return links
    log.warning("ranks: a dead rank will be noticed by the exchanges' own time limit only")
    for link in links:
        link.close()
    return {}


def _server() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _accept_all(server: socket.socket, token: str) -> dict[socket.socket, int]:
    """Rank 0's side: a connection of every other rank that knows the token."""
    links: dict[socket.socket, int] = {}
    server.settimeout(CONNECT_S)
    with server:
        while len(links) < world_size() - 1:
            link, _ = server.accept()
            link.settimeout(CONNECT_S)
            said, _, rank = _read_line(link).partition(" ")
            if secrets.compare_digest(said, token):
                links[_kept_alive(link)] = int(rank)
            else:
                link.close()
    return links


def _call(host: str, port: int, token: str) -> dict[socket.socket, int]:
    """Another rank's side: its connection to rank 0."""
    link = socket.create_connection((host, port), timeout=CONNECT_S)
    link.sendall(f"{token} {this_rank()}\n".encode())
    return {_kept_alive(link): 0}


def _read_line(link: socket.socket) -> str:
    with link.makefile("rb", buffering=0) as stream:
        return stream.readline(200).decode(errors="replace").strip()


def _kept_alive(link: socket.socket) -> socket.socket:
    """The kernel asks a silent peer whether it is there, and closes where no answer comes."""
    link.settimeout(None)
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
    for name, value in zip(names, PROBES_S, strict=True):
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return link


def _receive(link: socket.socket) -> bytes:
    try:
        return link.recv(4096)
    except OSError:
        return b""
