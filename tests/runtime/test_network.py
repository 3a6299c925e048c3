"""The address under which other machines of a job reach this one."""

import socket

import pytest

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
