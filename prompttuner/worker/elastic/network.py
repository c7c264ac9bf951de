"""Which network interface the members of a job talk over (no torch)."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import socket
import struct

from prompttuner.errors import ConfigError, HostError

__all__ = ["address_of", "default_address", "interface_of", "interfaces", "listen_on", "resolve"]

SIOCGIFADDR = 0x8915


def interfaces() -> dict[str, str]:
    """Interface name -> its IPv4 address, of those that have one."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[name] = socket.inet_ntoa(answer[20:24])
    return found


def resolve(address: str) -> str:
    """The IPv4 address of a host name or address.

    Raises:
        HostError: it has none here.
    """
    try:
        return socket.gethostbyname(address)
    except OSError as error:
        raise HostError(f"the address {address!r} of a lease can not be resolved: {error}") from error


def interface_of(address: str) -> str:
    """The name of the interface that has ``address``.

    Raises:
        HostError: no interface of this host has it.
    """
    ip = resolve(address)
    known = interfaces()
    for name, own in known.items():
        if own == ip:
            return name
    for name, own in known.items():
        if ipaddress.ip_address(ip).is_loopback and ipaddress.ip_address(own).is_loopback:
            return name  # a host's own name is often 127.0.1.1, which no interface lists
    listed = ", ".join(f"{name} {own}" for name, own in known.items())
    raise HostError(f"no network interface of this host has the address {address} (there are: {listed})")


def address_of(interface: str) -> str:
    """The IPv4 address of an interface.

    Raises:
        ConfigError: no such interface, or it has no IPv4 address.
    """
    known = interfaces()
    if interface not in known:
        raise ConfigError(f"no network interface {interface!r} with an IPv4 address; there are {', '.join(known)}")
    return known[interface]


def default_address() -> str:
    """The address that others reach this host by: its name's, unless that is a loopback one and another exists.

    A name may also resolve to an address that this host does not have (any more): one that it has is taken then.
    """
    here = list(interfaces().values())
    try:
        own = resolve(socket.gethostname())
    except ConfigError:
        own = "127.0.0.1"
    loopback = ipaddress.ip_address(own).is_loopback
    if own in here and not loopback:
        return own
    others = [address for address in here if not ipaddress.ip_address(address).is_loopback]
    return others[0] if others else (own if loopback else "127.0.0.1")


def listen_on(address: str) -> socket.socket:
    """A listening socket on a free port of this one address.

    Raises:
        HostError: the address is not one of this host's.
    """
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        server.bind((resolve(address), 0))
        server.listen(256)
    except OSError as error:
        server.close()
        raise HostError(f"can not listen on {address}: {error}; is it an address of this host?") from error
    return server
