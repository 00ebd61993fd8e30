"""The daemon's configuration file: TOML, all of it optional, read once at start.

    mtu = 1400                    at the top: for every network
    duplicate = "signalling"
    [network.piaf-vpn]            for this one; goes before what is said at the top
    duplicate = "voice"
    endpoints = ["203.0.113.5:40000"]

systemd/meshvpn.toml has every key with its meaning. What is not understood is refused and never ignored: a daemon that
starts does what its file says.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from tun.engine import FEATURES

from .proto.errors import ConfigError
from .proto.keys import normalise_name
from .proto.options import DEFAULT_MTU, Duplicate, Options
from .proto.transport import Address

DEFAULT_FILE = Path("/etc/meshvpn/meshvpn.toml")
MAX_FILE = 1 << 20
"""Bytes."""
MTU_RANGE = range(1280, 9001)
"""From what IPv6 asks for (RFC 8200 §5) to what the engine takes."""
MIN_RATE = 1000
"""Bytes a second: less than one call is no relay."""
MAX_ENDPOINTS = 8

_RATE = re.compile(r"(\d{1,6}(?:\.\d{1,3})?) ([kMG])bit/s")
_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}
_KEY = re.compile(r" - at `\$\.?(\w+)")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`")
T = TypeVar("T")
_SWITCH = "true or false"
_WANTED = {
    "mtu": f"a number from {MTU_RANGE[0]} to {MTU_RANGE[-1]}",
    "duplicate": '"off", "signalling" or "voice"',
    "port_guessing": _SWITCH,
    "port_mapping": _SWITCH,
    "lan_discovery": _SWITCH,
    "relay": _SWITCH,
    "relay_rate": 'a number and kbit/s, Mbit/s or Gbit/s, such as "8 Mbit/s"',
    "port": "a number from 1 to 65535",
    "endpoints": 'a list of addresses in digits, such as ["203.0.113.5:40000", "[2001:db8::5]:40000"]',
    "engine_without": f"a list of kernel features to leave out, of {', '.join(FEATURES)}",
    "log_level": '"DEBUG", "INFO", "WARNING" or "ERROR"',
    "log_format": '"text" or "json"',
    "network": "a table for each network, such as [network.piaf-vpn]",
}
"""What may stand at a key."""

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
LogFormat = Literal["text", "json"]


class _Everywhere(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may be said for every network and for one; None: not said."""

    mtu: int | None = None
    duplicate: Duplicate | None = None
    port_guessing: bool | None = None
    port_mapping: bool | None = None
    lan_discovery: bool | None = None
    relay: bool | None = None
    relay_rate: str | None = None
    engine_without: tuple[str, ...] | None = None


class _Table(_Everywhere, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[network.NAME]."""

    port: int | None = None
    endpoints: tuple[str, ...] | None = None


class _File(_Everywhere, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The top."""

    log_level: LogLevel | None = None
    log_format: LogFormat | None = None
    network: dict[str, object] = {}


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """One network's. `port`: its UDP port, None: a random one that is kept. `engine_without`: see tun.engine.Engine."""

    options: Options = field(default_factory=Options)
    mtu: int = DEFAULT_MTU
    port: int | None = None
    engine_without: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Config:
    """The file's content. `networks` by normalised name: those that have a table."""

    file: Path | None = None
    log_level: str | None = None
    log_format: str | None = None
    default: NetworkConfig = field(default_factory=NetworkConfig)
    networks: Mapping[str, NetworkConfig] = field(default_factory=dict)

    def of(self, name: str) -> NetworkConfig:
        """Of the network that is called so."""
        return self.networks.get(normalise_name(name), self.default)


def load(file: Path | None) -> Config:
    """Read a file; None: the default one, if it is there. Raises ConfigError."""
    if file is None and not DEFAULT_FILE.exists():
        return Config()
    file = file or DEFAULT_FILE
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE + 1)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ConfigError(str(file), f"it cannot be read ({why})", "mend it, or give another --config") from error
    return parse(data, file)


def parse(data: bytes, file: Path) -> Config:
    """The content of a file that is called so. Raises ConfigError, which names the file and the key."""
    if len(data) > MAX_FILE:
        raise ConfigError(str(file), f"it is larger than {MAX_FILE >> 20} MiB", "is it the right file?")
    try:
        content = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(str(file), f"it is no TOML ({str(error).lower()})", "mend that line") from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(file), "it is not valid UTF-8", "check its encoding") from error
    top = _convert(content, _File, f"{file}: ")
    default = _network(NetworkConfig(), top, f"{file}: ")
    networks: dict[str, NetworkConfig] = {}
    for name, inner in top.network.items():
        where = f'{file}: network "{name}": '
        table = _convert(inner, _Table, where)
        try:
            normal = normalise_name(name)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error.what}", error.problem, error.remedy) from error
        if normal in networks:
            raise ConfigError(where[:-2], "there are two tables for it", "leave one of them")
        networks[normal] = _network(default, table, where)
    return Config(file, top.log_level, top.log_format, default, networks)


def _network(base: NetworkConfig, said: _Everywhere, where: str) -> NetworkConfig:
    """What is said, else what holds anyway."""
    old, table = base.options, said if isinstance(said, _Table) else _Table()
    options = Options(
        duplicate=_or(said.duplicate, old.duplicate),
        port_guessing=_or(said.port_guessing, old.port_guessing),
        port_mapping=_or(said.port_mapping, old.port_mapping),
        lan_discovery=_or(said.lan_discovery, old.lan_discovery),
        relay=_or(said.relay, old.relay),
        relay_rate=old.relay_rate if said.relay_rate is None else _rate(said.relay_rate, where),
        endpoints=_endpoints(table.endpoints or (), where),
    )
    mtu = _or(said.mtu, base.mtu)
    if mtu not in MTU_RANGE:
        raise _not_wanted(where, "mtu", f"{mtu} is out of range")
    if table.port is not None and not 0 < table.port < 65536:
        raise _not_wanted(where, "port", f"{table.port} is no UDP port")
    without = base.engine_without if said.engine_without is None else frozenset(said.engine_without)
    if unknown := sorted(without.difference(FEATURES)):
        raise _not_wanted(where, "engine_without", f'"{unknown[0]}" is none that the engine uses')
    return NetworkConfig(options, mtu, table.port, without)


def _or(said: T | None, base: T) -> T:
    return base if said is None else said


def _rate(text: str, where: str) -> int:
    """Bytes a second."""
    match = _RATE.fullmatch(text)
    rate = 0 if match is None else int(float(match[1]) * _UNITS[match[2]] / 8)
    if rate < MIN_RATE:
        raise _not_wanted(where, "relay_rate", f'"{text}" is ' + ("no rate" if match is None else "less than a call"))
    return rate


def _endpoints(texts: tuple[str, ...], where: str) -> tuple[Address, ...]:
    if len(texts) > MAX_ENDPOINTS:
        raise ConfigError(f"{where}endpoints", f"there are {len(texts)}", f"write {MAX_ENDPOINTS} at most")
    return tuple(dict.fromkeys(_endpoint(text, where) for text in texts))


def _endpoint(text: str, where: str) -> Address:
    """An address that others can send to."""
    host, _, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if is_bracketed else host)
        is_usable = port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536
        is_usable &= is_bracketed == (address.version == 6) and "%" not in host and _is_reachable(address)
    except ValueError:
        is_usable = False
    if not is_usable:
        raise _not_wanted(where, "endpoints", f'"{text}" is no address at which others reach this host')
    return Address(str(address), int(port))


def _is_reachable(address: IPv4Address | IPv6Address) -> bool:
    is_mapped = isinstance(address, IPv6Address) and address.ipv4_mapped is not None
    is_no_host = address.is_unspecified or address.is_loopback or address.is_multicast or address.is_link_local
    return not (is_mapped or is_no_host)


def _convert(content: object, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        if (unknown := _UNKNOWN.match(str(error))) is not None:
            raise _unknown(where, unknown[1], kind) from error
        if (at := _KEY.search(str(error))) is None:
            raise ConfigError(where[:-2], "it is not understood", f"write {_WANTED['network']}") from error
        raise _not_wanted(where, at[1], "it is not understood") from error


def _unknown(where: str, key: str, kind: type[object]) -> ConfigError:
    if kind is _File and key in _Table.__struct_fields__:
        return ConfigError(f"{where}{key}", "it is of one network", "write it under [network.NAME]")
    known = [name for name in _WANTED if name in kind.__struct_fields__ and name != "network"]  # type: ignore[attr-defined]
    return ConfigError(f"{where}{key}", "there is no such key here", f"there are {', '.join(known)}")


def _not_wanted(where: str, key: str, problem: str) -> ConfigError:
    return ConfigError(f"{where}{key}", problem, f"write {_WANTED[key]}")
