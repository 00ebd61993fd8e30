"""UPnP at the router alone: hostile answers to a search, hostile descriptions, limits. A server on loopback answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from async_upnp_client.const import HttpRequest
from async_upnp_client.exceptions import UpnpCommunicationError

from meshvpn.net import upnp
from meshvpn.net.upnp import RouterRequester, UpnpMapping, add_mapping, is_at_router
from meshvpn.proto.portmap import Router, UpnpWanted

ROUTER = Router("127.0.0.1", "127.0.0.1")
WANTED = UpnpWanted(ROUTER, 41000, 41000, 7200)

DEVICE = """<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><device>
<deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType><friendlyName>r</friendlyName>
<manufacturer>m</manufacturer><modelName>n</modelName><UDN>uuid:1</UDN><serviceList><service>
<serviceType>urn:schemas-upnp-org:service:SERVICE</serviceType><serviceId>urn:upnp-org:serviceId:1</serviceId>
<SCPDURL>/scpd.xml</SCPDURL><controlURL>CONTROL</controlURL><eventSubURL>/event</eventSubURL>
</service></serviceList></device></root>"""

_ARGUMENTS = {
    "AddPortMapping": (
        ("NewRemoteHost", "string"),
        ("NewExternalPort", "ui2"),
        ("NewProtocol", "string"),
        ("NewInternalPort", "ui2"),
        ("NewInternalClient", "string"),
        ("NewEnabled", "boolean"),
        ("NewPortMappingDescription", "string"),
        ("NewLeaseDuration", "ui4"),
    ),
    "DeletePortMapping": (("NewRemoteHost", "string"), ("NewExternalPort", "ui2"), ("NewProtocol", "string")),
}


def _scpd() -> str:
    actions, variables = "", ""
    for name, arguments in _ARGUMENTS.items():
        listed = "".join(
            f"<argument><name>{argument}</name><direction>in</direction>"
            f"<relatedStateVariable>{argument}</relatedStateVariable></argument>"
            for argument, _ in arguments
        )
        actions += f"<action><name>{name}</name><argumentList>{listed}</argumentList></action>"
    for argument, kind in _ARGUMENTS["AddPortMapping"]:
        variables += f"<stateVariable><name>{argument}</name><dataType>{kind}</dataType></stateVariable>"
    return (
        '<?xml version="1.0"?><scpd xmlns="urn:schemas-upnp-org:service-1-0">'
        "<specVersion><major>1</major><minor>0</minor></specVersion>"
        f"<actionList>{actions}</actionList><serviceStateTable>{variables}</serviceStateTable></scpd>"
    )


class FakeIgd:
    """A router on loopback. `faults` are the error codes that AddPortMapping gives, one after the other."""

    def __init__(self) -> None:
        self.service = "WANIPConnection:1"
        self.control = "/control"
        self.faults: list[int] = []
        self.calls: list[str] = []
        self.base = ""

    async def description(self, request: web.Request) -> web.Response:
        text = DEVICE.replace("SERVICE", self.service).replace("CONTROL", self.control)
        return web.Response(text=text, content_type="text/xml")

    async def scpd(self, request: web.Request) -> web.Response:
        return web.Response(text=_scpd(), content_type="text/xml")

    async def act(self, request: web.Request) -> web.Response:
        self.calls.append(await request.text())
        action = request.headers["SOAPAction"].strip('"').partition("#")[2]
        envelope = '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>{}</s:Body></s:Envelope>'
        if self.faults:
            detail = f"<errorCode>{self.faults.pop(0)}</errorCode><errorDescription>no</errorDescription>"
            fault = (
                "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
                f'<UPnPError xmlns="urn:schemas-upnp-org:control-1-0">{detail}</UPnPError></detail></s:Fault>'
            )
            return web.Response(status=500, text=envelope.format(fault), content_type="text/xml")
        kind = f"urn:schemas-upnp-org:service:{self.service}"
        answer = f'<u:{action}Response xmlns:u="{kind}"></u:{action}Response>'
        return web.Response(text=envelope.format(answer), content_type="text/xml")


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def igd(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeIgd]:
    fake = FakeIgd()
    async with Serving({"/root.xml": fake.description, "/scpd.xml": fake.scpd}, {"/control": fake.act}) as base:
        fake.base = base
        answer_search(monkeypatch, "127.0.0.1", f"{base}/root.xml")
        yield fake


class Serving:
    """An HTTP server on loopback; gives its URL."""

    def __init__(self, gets: dict[str, Any], posts: dict[str, Any] | None = None) -> None:
        app = web.Application()
        app.add_routes([web.get(path, handler) for path, handler in gets.items()])
        app.add_routes([web.post(path, handler) for path, handler in (posts or {}).items()])
        self._runner = web.AppRunner(app)

    async def __aenter__(self) -> str:
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


def answer_search(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    """The search's answers: source address, location, …"""

    async def search(note: Any, *_: object, **__: object) -> None:
        for host, location in zip(answers[::2], answers[1::2], strict=True):
            await note({"_host": host, "location": location})

    monkeypatch.setattr(upnp, "async_search", search)


@pytest.mark.parametrize("service", ["WANIPConnection:1", "WANIPConnection:2", "WANPPPConnection:1"])
async def test_a_port_is_mapped_and_the_mapping_ended(igd: FakeIgd, service: str) -> None:
    igd.service = service
    mapping = await add_mapping(WANTED)
    assert isinstance(mapping, UpnpMapping)
    assert mapping.external_port == 41000
    for part in ("NewInternalClient>127.0.0.1", "NewLeaseDuration>7200", "NewProtocol>UDP", "<NewRemoteHost></"):
        assert part in igd.calls[0]
    await upnp.delete_mapping(mapping)
    assert "DeletePortMapping" in igd.calls[-1]
    assert "<NewExternalPort>41000<" in igd.calls[-1]


async def test_another_port_is_tried_where_ours_is_taken_and_a_lasting_lease_where_no_other_is_given(
    igd: FakeIgd,
) -> None:
    igd.faults = [718, 725]
    mapping = await add_mapping(WANTED)
    assert mapping is not None
    assert mapping.external_port != 41000
    assert f"<NewExternalPort>{mapping.external_port}<" in igd.calls[-1]
    assert "<NewLeaseDuration>0<" in igd.calls[-1]


@pytest.mark.parametrize("faults", [[501], [606], [718] * 9, [725, 725]])
async def test_a_refusal_is_no_mapping(igd: FakeIgd, faults: list[int]) -> None:
    igd.faults = faults
    assert await add_mapping(WANTED) is None
    assert len(igd.calls) <= upnp.MAX_CONFLICTS + 1


async def test_an_answer_that_leads_elsewhere_or_comes_from_elsewhere_is_not_followed(
    igd: FakeIgd, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def note(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(text="")

    async with Serving({"/secret": note}) as elsewhere:
        target = elsewhere.replace("127.0.0.1", "localhost")
        answer_search(monkeypatch, "127.0.0.66", f"{elsewhere}/secret", "127.0.0.1", f"{target}/secret")
        assert await add_mapping(WANTED) is None
        igd.control = f"{target}/secret"
        answer_search(monkeypatch, "127.0.0.1", f"{igd.base}/root.xml")
        assert await add_mapping(WANTED) is None
    assert asked == []


@pytest.mark.parametrize(
    ("url", "is_good"),
    [
        ("http://127.0.0.1/", True),
        ("http://127.0.0.1:5000/root.xml", True),
        ("https://127.0.0.1/", False),
        ("file:///etc/passwd", False),
        ("http://127.0.0.1@10.0.0.1/", False),
        ("http://user@127.0.0.1/", False),
        ("http://127.0.0.1.example.net/", False),
        ("http://2130706433/", False),
        ("http://127.1/", False),
        ("http://localhost/", False),
        ("http://[::ffff:127.0.0.1]/", False),
        ("http://127.0.0.1:99999/", False),
        ("http://[/", False),
        ("", False),
    ],
)
def test_only_plain_http_at_the_routers_address_is_fetched(url: str, is_good: bool) -> None:
    assert is_at_router(url, ROUTER) is is_good


async def test_what_is_fetched_is_limited_in_size_and_number_and_redirects_are_not_followed() -> None:
    async def huge(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(2 * upnp.MAX_BODY // 65536):
            await response.write(bytes(65536))
        return response

    async def moved(request: web.Request) -> web.Response:
        raise web.HTTPFound("http://10.99.99.99/")

    async def small(request: web.Request) -> web.Response:
        return web.Response(text="x")

    async with Serving({"/huge": huge, "/moved": moved, "/small": small}) as base:
        requester = RouterRequester(ROUTER)
        with pytest.raises(UpnpCommunicationError):
            await requester.async_http_request(HttpRequest("GET", f"{base}/huge", {}, None))
        answer = await requester.async_http_request(HttpRequest("GET", f"{base}/moved", {}, None))
        assert answer.status_code == 302
        for _ in range(upnp.MAX_REQUESTS - 2):
            await requester.async_http_request(HttpRequest("GET", f"{base}/small", {}, None))
        with pytest.raises(UpnpCommunicationError):
            await requester.async_http_request(HttpRequest("GET", f"{base}/small", {}, None))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<root/>",
        "\0\1\2",
        DEVICE[:300],
        DEVICE.replace("/scpd.xml", "http://10.99.99.99/scpd.xml"),
        DEVICE.replace("<serviceId>", "<iconList><icon><width>x</width></icon></iconList><serviceId>"),
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><root>&b;</root>',
        "<root xmlns='urn:schemas-upnp-org:device-1-0'>" + "<device><deviceList>" * 5000,
    ],
)
async def test_a_hostile_description_is_no_mapping_and_no_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    async def describe(request: web.Request) -> web.Response:
        return web.Response(text=text)

    async with Serving({"/root.xml": describe}) as base:
        answer_search(monkeypatch, "127.0.0.1", f"{base}/root.xml")
        assert await add_mapping(WANTED) is None


async def test_a_router_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upnp, "TIME_LIMIT", 0.05)
    release = asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    async with Serving({"/root.xml": hang}) as base:
        answer_search(monkeypatch, "127.0.0.1", f"{base}/root.xml")
        assert await add_mapping(WANTED) is None
        release.set()
