"""The address at which the other machines of a job reach this one, and free ports."""

from __future__ import annotations

import errno
import ipaddress
import os
import random
import socket
from pathlib import Path
from urllib.parse import urlsplit

import psutil

LOOPBACK = "127.0.0.1"
KERNELS_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"  # gloo reads it too; the network between the nodes


def own_address() -> str:
    """The IPv4 address of ``GLOO_SOCKET_IFNAME``, else of this machine's own host name.

    Raises OSError naming the variable if that is loopback or does not exist.
    """
    interface = os.environ.get(INTERFACE_VARIABLE)
    if interface:
        for entry in psutil.net_if_addrs().get(interface, ()):
            if entry.family == socket.AF_INET:
                return entry.address
        raise OSError(f"{INTERFACE_VARIABLE}={interface}: no such interface with an IPv4 address")
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        address = f"nothing ({error})"
    if not _is_address(address) or ipaddress.ip_address(address).is_loopback:
        raise OSError(
            f"the host name {name} resolves to {address}, which other machines cannot reach: set "
            f"{INTERFACE_VARIABLE} to the interface between the nodes"
        )
    return address


def port_problem(host: str, port: int) -> str | None:
    """Why a server cannot listen on this port, as the end of a sentence; None if it can."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return f"of {host} is taken by another server"
            return f"of {host} cannot be used ({error.strerror})"
    return None


def held_port(host: str = LOOPBACK) -> socket.socket:
    """A socket bound to a free TCP port of ``host``. As long as it is open, nobody else is given
    the port; a server that asks for it by number, with SO_REUSEADDR, can listen there.

    A server imports for seconds before it listens; another process could take the port meanwhile.
    If possible, it is a port that the kernel only gives to processes that ask for it by number.
    Raises OSError if no port is free.
    """
    first, last = map(int, KERNELS_PORTS.read_text().split())
    all_ports = range(10_000, 65_536)
    ports = [port for port in all_ports if not first <= port <= last] or all_ports
    holder = socket.socket()
    for port in random.SystemRandom().sample(ports, len(ports)):
        try:
            holder.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:  # only now: with it, two processes could bind the same port
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return holder
    raise OSError(f"no port of {host} is free")


def is_local(url: str) -> bool:
    """Whether a URL names this machine's loopback."""
    host = urlsplit(url).hostname or ""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
