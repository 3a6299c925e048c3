"""The address under which other machines of a job reach this one, and free ports."""

import socket

import pytest
import torch.distributed as dist

from aent.runtime import network
from wording import naming


def test_a_named_interface_wins_and_a_wrong_one_is_named(monkeypatch):
    monkeypatch.setenv(network.INTERFACE_VARIABLE, "lo")
    assert network.own_address() == "127.0.0.1"  # asked for by name
    monkeypatch.setenv(network.INTERFACE_VARIABLE, "nothing0")
    with pytest.raises(OSError, match="GLOO_SOCKET_IFNAME=nothing0"):
        network.own_address()


def test_a_host_name_that_stands_for_loopback_is_refused(monkeypatch):
    monkeypatch.delenv(network.INTERFACE_VARIABLE, raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    with pytest.raises(OSError, match=naming("localhost", "127.0.0.1", "GLOO_SOCKET_IFNAME")):
        network.own_address()


def test_loopback_urls_are_local():
    assert network.is_local("http://127.0.0.1:8000")
    assert network.is_local("http://localhost:8000")
    assert not network.is_local("http://10.77.0.10:8000")
    assert not network.is_local("http://node1:8000")


def test_a_held_port_is_nobody_elses_until_the_server_listens():
    first, last = map(int, network.KERNELS_PORTS.read_text().split())
    with network.held_port() as held:
        address = held.getsockname()
        assert not first <= address[1] <= last or (first, last) == (1024, 65535)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(address)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        with socket.create_server(address), socket.create_connection(address):  # SO_REUSEADDR
            pass
        dist.TCPStore(*address, is_master=True, wait_for_workers=False).set("rank 0", "too")


def test_where_every_port_may_be_anybodys_it_is_one_of_them(tmp_path, monkeypatch):
    (tmp_path / "range").write_text("1024\t65535\n")
    monkeypatch.setattr(network, "KERNELS_PORTS", tmp_path / "range")
    with network.held_port() as held:
        assert held.getsockname()[1] >= 10_000
