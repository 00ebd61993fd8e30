"""The TUN device (python-pytun): layer 3, no packet information header, non-blocking, kept across restarts."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

import pytun

MAX_DEVICES = 256
IFF_VNET_HDR = 0x4000
"""Each packet has a virtio_net_hdr in front, by which large packets cross the device whole (linux/if_tun.h)."""


class TunError(Exception):
    """The device can't be had; the message is one sentence for people."""

    def __init__(self, name: str, cause: OSError) -> None:
        super().__init__(name, cause)
        self.name = name
        self.cause = cause

    def __str__(self) -> str:
        match self.cause.errno:
            case errno.ENOENT | errno.ENODEV | errno.ENXIO:
                return "/dev/net/tun is missing; load the module (modprobe tun) or give the container the device"
            case errno.EPERM | errno.EACCES:
                return f"interface {self.name} cannot be made without CAP_NET_ADMIN; run meshvpnd as root"
            case errno.EBUSY:
                return f"interface {self.name} is used by another program; choose another --interface"
            case _:
                return f"interface {self.name} cannot be made ({os.strerror(self.cause.errno or 0)})"


@dataclass(slots=True)
class TunDevice:
    """An open device; `close` leaves a persistent one in place, `remove` does not."""

    name: str
    _device: pytun.TunTapDevice

    @property
    def fd(self) -> int:
        """For the engine."""
        return int(self._device.fileno())

    def remove(self) -> None:
        """Let the interface go with the last close."""
        self._device.persist(False)

    def close(self) -> None:
        """Close the descriptor."""
        self._device.close()


def open_device(
    name: str | None, *, taken: frozenset[str] = frozenset(), persist: bool = True, vnet_hdr: bool = True
) -> TunDevice:
    """Open `name`, or the first of mesh0, mesh1, … that is not in `taken`. Raises TunError.

    `vnet_hdr`: let large packets cross it whole, where the kernel can.
    """
    wanted = name or next(f"mesh{number}" for number in range(MAX_DEVICES) if f"mesh{number}" not in taken)
    try:
        device = _open(wanted, vnet_hdr=vnet_hdr)
        if persist:
            device.persist(True)
        os.set_blocking(device.fileno(), False)
    except pytun.Error as error:
        number, text = (*error.args, 0, "")[:2]
        raise TunError(wanted, OSError(number, text)) from error
    except OSError as error:
        raise TunError(wanted, error) from error
    return TunDevice(wanted, device)


def _open(name: str, *, vnet_hdr: bool) -> pytun.TunTapDevice:
    flags = pytun.IFF_TUN | pytun.IFF_NO_PI
    if vnet_hdr:
        try:
            return pytun.TunTapDevice(name=name, flags=flags | IFF_VNET_HDR)
        except pytun.Error as error:
            if error.args[0] != errno.EINVAL:
                raise  # else an old or foreign kernel: all packets are small ones
    return pytun.TunTapDevice(name=name, flags=flags)
