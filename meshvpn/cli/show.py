"""How networks and peers are printed: Hamachi's layout, with what Hamachi did not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .. import ipc

MARKERS = {"direct": "*", "relay": "*", "connecting": "x", "offline": " ", "pending": "?"}
PROBLEM = "!"
MAX_NICK = 20
ALL = 0.99
"""The share from which on marks are said to be kept; below the rest, to be lost."""


def network_lines(network: ipc.NetworkView) -> list[str]:
    """A network and its members; column 2 and column 6 hold the markers."""
    marker = "*" if network.state in ("online", "connecting") else PROBLEM if network.state != "offline" else " "
    count = sum(member.state != "pending" for member in network.members) + (not network.is_pending)
    access = "" if network.access == "open" else f", access: {network.access}"
    head = (
        f" {marker} [{network.network}]  {network.pool}   members: {count}/{network.capacity}, "
        f"owner: {network.owner}{access}"
    )
    you = f"       you: {network.nick} {network.address} on {network.interface or '-'}"
    role = ", admin" if network.role == "admin" else ""
    lines = [head, f"{you} ({network.state}{role})"]
    if not network.has_password and network.state == "online":
        lines.append(
            f"       the password is retired, nobody can join: set one with `meshvpn passwd {network.network}`"
        )
    waiting = [member.nick for member in network.members if member.state == "pending"]
    if waiting and network.role != "member":
        lines.append(f"       ? waits for you: `meshvpn approve {network.network} {waiting[0]}`, or `meshvpn reject …`")
    if network.note:
        lines.append(f"       {PROBLEM} {network.note}")
    return lines + [_member_line(member) for member in network.members]


def peer_lines(peers: Sequence[ipc.PeerView]) -> list[str]:
    """The table of `peers`, and under each member's row where its path leads and why. Rows have 100 columns at most."""
    rows = [["address", "nick", "path", "rtt", "loss to/from", "jitter", "R", "MOS", "EF"]]
    for peer in peers:
        rows.append(
            [
                peer.address,
                peer.nick if len(peer.nick) <= MAX_NICK else f"{peer.nick[: MAX_NICK - 1]}…",
                peer.state,
                _figure(peer.rtt_ms, "{:.1f} ms"),
                _pair(peer.loss, peer.rx_loss, 100, "%"),
                _pair(peer.jitter_ms, peer.rx_jitter_ms, 1, "ms"),
                _pair(peer.r, peer.rx_r, 1, "", digits=0),
                _figure(_worse(peer.mos, peer.rx_mos), "{:.2f}"),
                _kept(peer.kept_marks),
            ]
        )
    header, *lines = columns(rows)
    told = [header]
    for peer, line in zip(peers, lines, strict=True):
        where = f"via {peer.relay}" if peer.relay else peer.endpoint
        amounts = f"received {amount(peer.rx_bytes)}, sent {amount(peer.tx_bytes)}"
        told += [line, f"    {'; '.join(part for part in (where, peer.why, _mtu(peer), amounts) if part)}"]
    return told


def _mtu(peer: ipc.PeerView) -> str | None:
    """What fits on the way to a member, once it is known."""
    if peer.mtu is None or peer.path_mtu is None:
        return None
    return f"MTU {peer.mtu}" + (", larger IPv6 is lost" if peer.fragments is False else "")


def path_rows(paths: Sequence[ipc.PathRow]) -> list[list[str]]:
    """The table of `ping --paths`, header first."""
    rows = [["path", "address", "rtt", "loss", "jitter", "R", "MOS", "state"]]
    for path in paths:
        rows.append(
            [
                path.kind if path.relay is None else f"relay via {path.relay}",
                path.address,
                _figure(path.rtt_ms, "{:.1f} ms"),
                _percent(path.loss),
                _figure(path.jitter_ms, "{:.1f} ms"),
                _figure(path.r, "{:.0f}"),
                _figure(path.mos, "{:.2f}"),
                path.state,
            ]
        )
    return rows


def settings(config: ipc.ConfigView) -> str:
    """What holds for a network, in one line."""
    switches = ("port_guessing", "port_mapping", "lan_discovery", "relay")
    off = [name for name in switches if not getattr(config, name)]
    rate = f", relays up to {8 * config.relay_rate / 1e6:g} Mbit/s" if config.relay else ""
    endpoints = f", endpoints {' '.join(config.endpoints)}" if config.endpoints else ""
    without = f", off: {' '.join(off)}" if off else ""
    without += f", engine without {' '.join(config.engine_without)}" if config.engine_without else ""
    return f"duplicate {config.duplicate}, mtu {config.mtu}, udp port {config.port or '-'}{rate}{endpoints}{without}"


def features(found: Mapping[str, bool]) -> str:
    """Which kernel features the engine uses, and which it does without."""
    used, unused = ([name for name, is_used in found.items() if is_used is wanted] for wanted in (True, False))
    return " ".join(used or ["none"]) + (f", without {' '.join(unused)}" if unused else "")


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with aligned columns."""
    widths = [max(len(row[number]) for row in rows) for number in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _member_line(member: ipc.PeerView) -> str:
    where = {"direct": "direct", "relay": "via relay"}.get(member.state, "")
    endpoint = f"UDP {member.endpoint}" if member.endpoint else ""
    quality = "" if member.rtt_ms is None or member.mos is None else f"{member.rtt_ms:.1f} ms  MOS {member.mos:.1f}"
    text = (
        f"     {MARKERS[member.state]} {member.identity[:8]}   {member.nick:<25} {member.address:<15}   "
        f"{where:<9}  {endpoint:<25}  {quality}"
    )
    return text.rstrip()


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _pair(first: float | None, second: float | None, scale: int, unit: str, *, digits: int = 1) -> str:
    if first is None and second is None:
        return "-"
    shown = "/".join("-" if value is None else f"{scale * value:.{digits}f}" for value in (first, second))
    return f"{shown} {unit}".rstrip()


def _worse(*scores: float | None) -> float | None:
    """A call is as good as its worse direction."""
    return min((score for score in scores if score is not None), default=None)


def _kept(share: float | None) -> str:
    """Whether marks survive the network, of late."""
    if share is None:
        return "-"
    return "kept" if share >= ALL else "lost" if share <= 1 - ALL else f"{100 * share:.0f} %"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def amount(count: int) -> str:
    """Bytes, for people."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
