"""What /metrics shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, Metric

from meshvpn.proto.drops import DropReason


class Metrics:
    """Counters of the control connections; what others count already is read when it is asked for."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.joins = Counter("meshvpn_joins", "Members admitted or back", registry=self._registry)
        self.refusals = Counter("meshvpn_refusals", "Refused requests", ["code"], registry=self._registry)
        self.signals = Counter("meshvpn_signals", "Introductions forwarded", registry=self._registry)
        self.cut = Counter("meshvpn_connections_cut", "Slow readers that were cut", registry=self._registry)
        self.storage_failures = Counter("meshvpn_storage_failures", "Failed uses of storage", registry=self._registry)
        self.networks = Gauge("meshvpn_networks", "Networks stored", registry=self._registry)

    def watch_level(self, name: str, what: str, read: Callable[[], int]) -> None:
        """Show a number that goes up and down."""
        Gauge(name, what, registry=self._registry).set_function(read)

    def watch_count(self, name: str, what: str, read: Callable[[], int]) -> None:
        """Show a number that only grows."""
        self._registry.register(_Watched(lambda: [CounterMetricFamily(name, what, value=read())]))

    def watch_drops(self, name: str, what: str, read: Callable[[], Mapping[DropReason, int]]) -> None:
        """Show drops by their reason."""

        def collect() -> list[Metric]:
            family = CounterMetricFamily(name, what, labels=["reason"])
            for reason, count in read().items():
                family.add_metric([reason.value], count)
            return [family]

        self._registry.register(_Watched(collect))

    def render(self) -> bytes:
        """In Prometheus' text format."""
        return prometheus_client.generate_latest(self._registry)


class _Watched:
    def __init__(self, read: Callable[[], list[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        return self._read()
