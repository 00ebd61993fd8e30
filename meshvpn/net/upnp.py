"""A port mapping by UPnP (WANIPConnection:1 and :2, WANPPPConnection:1), at the router of our default route alone.

Whoever is in the LAN may answer a search and name any URL. So an answer counts only from the router's own address,
nothing is fetched from anywhere else, and what is fetched is limited in number, size and time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from async_upnp_client.client import UpnpRequester, UpnpService
from async_upnp_client.client_factory import UpnpFactory
from async_upnp_client.const import HttpRequest, HttpResponse
from async_upnp_client.exceptions import UpnpActionError, UpnpCommunicationError
from async_upnp_client.search import async_search

from ..proto.portmap import Router, UpnpWanted
from .randomness import entropy

log = logging.getLogger(__name__)

SEARCH_TIME = 1
"""Seconds for which answers to a search are awaited (the protocol counts in whole ones)."""
TIME_LIMIT = 15.0
"""Seconds for one attempt in all."""
REQUEST_TIME_LIMIT = 5.0
MAX_REQUESTS = 48
"""In one attempt: a router has a dozen services, each with a description."""
MAX_BODY = 256 << 10
"""Bytes of one answer; the largest descriptions in use have 50 KiB."""
MAX_CONFLICTS = 3
"""External ports that are tried."""

_SEARCH_TARGET = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
"""Routers of version 2 answer it too (UPnP Device Architecture 1.1 §1.3.2)."""
_SERVICES = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)
_CONFLICT = frozenset({718, 724, 729})
"""The external port is somebody else's, or may not differ from ours (WANIPConnection §2.4.16)."""
_ONLY_PERMANENT = 725
_DESCRIPTION = "meshvpn"


@dataclass(frozen=True, slots=True)
class UpnpMapping:
    """What was mapped, and what is needed to end it."""

    external_port: int
    host: str | None
    service: UpnpService


@dataclass(frozen=True, slots=True)
class UpnpRouter:
    """A router that maps ports, and what it believes to be its outer address."""

    host: str | None


async def find_router(router: Router) -> UpnpRouter | None:
    """Whether it maps ports by UPnP; nothing is mapped."""
    try:
        async with asyncio.timeout(TIME_LIMIT):
            location = await _search(router)
            service = None if location is None else await _find_service(router, location)
            return None if service is None else UpnpRouter(await _external_host(service))
    except Exception as error:  # noqa: BLE001 what a router sends makes the library raise whatever it likes
        log.debug("no upnp router=%s error=%s", router.host, type(error).__name__)
        return None


async def add_mapping(wanted: UpnpWanted) -> UpnpMapping | None:
    """Map the port; None, with the reason in the log, if the router does not."""
    try:
        async with asyncio.timeout(TIME_LIMIT):
            location = await _search(wanted.router)
            if location is None:
                return None
            service = await _find_service(wanted.router, location)
            return None if service is None else await _map(service, wanted)
    except Exception as error:  # noqa: BLE001 what a router sends makes the library raise whatever it likes
        log.debug("no mapping by upnp router=%s error=%s", wanted.router.host, type(error).__name__)
        return None


async def delete_mapping(mapping: UpnpMapping) -> None:
    """End it, if the router does that within a moment."""
    try:
        async with asyncio.timeout(REQUEST_TIME_LIMIT):
            await mapping.service.action("DeletePortMapping").async_call(
                NewRemoteHost="", NewExternalPort=mapping.external_port, NewProtocol="UDP"
            )
    except Exception as error:  # noqa: BLE001 as above
        log.debug("mapping by upnp not ended error=%s", type(error).__name__)


async def _search(router: Router) -> str | None:
    """The URL of the router's description."""
    found: list[str] = []

    async def note(headers: Mapping[str, Any]) -> None:
        location = str(headers.get("location", ""))
        if headers.get("_host") == router.host and is_at_router(location, router) and not found:
            found.append(location)

    await async_search(note, SEARCH_TIME, _SEARCH_TARGET, source=(router.local, 0))
    return found[0] if found else None


async def _find_service(router: Router, location: str) -> UpnpService | None:
    device = await UpnpFactory(RouterRequester(router), non_strict=True).async_create_device(location)
    services = {service.service_type: service for service in device.all_services}
    known = (services[name] for name in _SERVICES if name in services)
    return next((service for service in known if service.has_action("AddPortMapping")), None)


async def _map(service: UpnpService, wanted: UpnpWanted) -> UpnpMapping | None:
    port, lifetime = wanted.external_port, wanted.lifetime
    for _ in range(MAX_CONFLICTS + 1):
        try:
            await service.action("AddPortMapping").async_call(
                NewRemoteHost="",
                NewExternalPort=port,
                NewProtocol="UDP",
                NewInternalPort=wanted.port,
                NewInternalClient=wanted.router.local,
                NewEnabled=True,
                NewPortMappingDescription=_DESCRIPTION,
                NewLeaseDuration=lifetime,
            )
        except UpnpActionError as error:
            if error.error_code == _ONLY_PERMANENT and lifetime:
                lifetime = 0
            elif error.error_code in _CONFLICT:
                port = 1024 + int.from_bytes(entropy(2), "big") % (65536 - 1024)
            else:
                raise
        else:
            return UpnpMapping(port, await _external_host(service), service)
    return None


async def _external_host(service: UpnpService) -> str | None:
    """What the router believes to be its address."""
    try:
        answer = await service.action("GetExternalIPAddress").async_call()
        return str(ip_address(str(answer["NewExternalIPAddress"])))
    except (UpnpActionError, LookupError, ValueError):
        return None


def is_at_router(url: str, router: Router) -> bool:
    """True for plain HTTP at the router's own address, written as a number."""
    try:
        parts = urlsplit(url)
        return parts.scheme == "http" and parts.hostname == router.host and parts.username is None and parts.port != 0
    except ValueError:
        return False


class RouterRequester(UpnpRequester):
    """HTTP to one router, within limits."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._left = MAX_REQUESTS

    async def async_http_request(self, http_request: HttpRequest) -> HttpResponse:
        """As the library wants it. Raises UpnpCommunicationError."""
        if not is_at_router(http_request.url, self._router):
            raise UpnpCommunicationError(f"not at the router: {http_request.url[:100]}")
        self._left -= 1
        if self._left < 0:
            raise UpnpCommunicationError("too many requests")
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIME_LIMIT)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session,
                session.request(
                    http_request.method,
                    http_request.url,
                    headers={**http_request.headers, "Accept-Encoding": "identity"},
                    data=http_request.body,
                    allow_redirects=False,
                ) as response,
            ):
                body = await _read(response)
                return HttpResponse(response.status, dict(response.headers), body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpnpCommunicationError(repr(error)) from error


async def _read(response: aiohttp.ClientResponse) -> str:
    chunks: list[bytes] = []
    left = MAX_BODY
    async for chunk in response.content.iter_chunked(16384):
        left -= len(chunk)
        if left < 0:
            raise UpnpCommunicationError("too long an answer")
        chunks.append(chunk)
    return b"".join(chunks).decode(errors="replace")
