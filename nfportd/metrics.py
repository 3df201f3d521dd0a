"""What the daemon counts, as Prometheus reads it.

Must not know where the numbers come from: it is told, or handed functions to ask. The one idea: what cannot be
bounded is not exposed; beyond SERIES_LIMIT connections are not counted by mapping at all, rather than in part.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping as AbstractMapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

#: What `render` writes.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: A Prometheus server keeps every series in memory, one for each port of a range.
SERIES_LIMIT = 1_000
#: Seconds. One element takes 0.2 ms, 65,000 take 0.9 s.
_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Readings(NamedTuple):
    """What is asked at each scrape. The functions must be quick and must not fail: they read memory, not the kernel."""

    mappings: Callable[[], AbstractMapping[str, int]]  # by source: file, api
    elements: Callable[[], AbstractMapping[str, int]]  # by set or map of the table
    conflicts: Callable[[], int]  # mappings that wait for keys which others hold
    refused: Callable[[], int]  # mappings that the kernel refuses
    relayed: Callable[[], AbstractMapping[str, int]]  # connections by protocol: tcp, udp
    not_relayed: Callable[[], int]  # connections, since the start


class Connections(NamedTuple):
    """How many connections one key has accepted, by its element's counter. `mapping` is its name or its listen."""

    owner: str
    mapping: str
    protocol: str
    family: int
    port: int
    accepted: int


class Metrics:
    """All metrics of one daemon, in a registry of their own."""

    def __init__(self, readings: Readings) -> None:
        # A series beside each counter with the time of its making: nobody reads them, and they double the text.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry(auto_describe=False)
        self._transactions = Counter(
            "nfportd_transactions_total", "Transactions sent to the kernel.", ["result"], registry=self._registry
        )
        for result in ("ok", "failed"):
            # Present from the start: a rate over a series that appears misses its first step.
            self._transactions.labels(result)
        self._seconds = Histogram(
            "nfportd_transaction_seconds",
            "Time that a transaction took in nft and the kernel.",
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._repairs = Counter(
            "nfportd_repairs_total", "Changes by others to the table that were undone.", registry=self._registry
        )
        self._flushes = Counter(
            "nfportd_conntrack_flushes_total", "Requests to delete stale conntrack entries.", registry=self._registry
        )
        self._reload_errors = Gauge(
            "nfportd_reload_errors", "Errors in a drop-in as it was last read.", ["file"], registry=self._registry
        )
        self._scrape = _Scrape(readings)
        self._registry.register(self._scrape)

    def transaction(self, seconds: float, ok: bool) -> None:
        """Count a transaction that the kernel took or refused."""
        self._transactions.labels("ok" if ok else "failed").inc()
        self._seconds.observe(seconds)

    def repair(self) -> None:
        """Count the undoing of a change that somebody else made to the table."""
        self._repairs.inc()

    def flush(self, count: int) -> None:
        """Count conntrack entries that were deleted."""
        self._flushes.inc(count)

    def reload_errors(self, files: AbstractMapping[str, int]) -> None:
        """Set how many errors each broken drop-in has; a file that is not named has none."""
        self._reload_errors.clear()
        for file, count in files.items():
            self._reload_errors.labels(file).set(count)

    def connections(self, series: Iterable[Connections] | None) -> None:
        """Set what the elements' counters say now. None: there are too many to be read, or to be exposed."""
        self._scrape.series, self._scrape.dropped = _bounded(series)

    def blocked(self, packets: AbstractMapping[int, int]) -> None:
        """Set how many packets the admission chain has dropped so far, by family."""
        self._scrape.blocked = dict(packets)

    def bypassed(self, packets: AbstractMapping[int, int]) -> None:
        """Set how many packets the isolation chain has dropped so far, by family."""
        self._scrape.bypassed = dict(packets)

    def render(self) -> bytes:
        """The text of a scrape."""
        return generate_latest(self._registry)


def _bounded(series: Iterable[Connections] | None) -> tuple[Tally[tuple[str, ...]], bool]:
    """The counts by labels, and whether there are too many. Keys that differ by listen address alone are one series."""
    counts: Tally[tuple[str, ...]] = Tally()
    if series is None:
        return counts, True
    for each in series:
        counts[each.owner, each.mapping, each.protocol, f"ipv{each.family}", str(each.port)] += each.accepted
        if len(counts) > SERIES_LIMIT:
            return Tally(), True
    return counts, False


class _Scrape(Collector):
    """What is not counted here, but read when somebody asks."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings
        self.series: Tally[tuple[str, ...]] = Tally()
        self.dropped = False
        self.blocked: dict[int, int] = {4: 0, 6: 0}
        self.bypassed: dict[int, int] = {4: 0, 6: 0}

    def collect(self) -> Iterator[Metric]:
        yield _by("nfportd_mappings", "Mappings that owners wish for.", "source", self._readings.mappings())
        yield _by("nfportd_elements", "Elements in the table.", "map", self._readings.elements())
        yield _one("nfportd_conflicts", "Mappings that wait for keys which others hold.", self._readings.conflicts())
        yield _one("nfportd_refused", "Mappings that the kernel refuses.", self._readings.refused())
        text = "Connections to [::1] that the relay carries now."
        yield _by("nfportd_relay_connections", text, "protocol", self._readings.relayed())
        text = "TCP connections to [::1] that the relay refused because it carried as many as it may."
        yield CounterMetricFamily("nfportd_relay_refused_total", text, value=self._readings.not_relayed())
        text = "Packets dropped because their source is not allowed."
        yield _by_family("nfportd_blocked_packets_total", text, self.blocked)
        text = "Packets dropped because they went past the mappings of an isolated target."
        yield _by_family("nfportd_bypassed_packets_total", text, self.bypassed)
        accepted = CounterMetricFamily(
            "nfportd_connections_total",
            "Connections accepted, since the element was made.",
            labels=["owner", "mapping", "protocol", "family", "port"],
        )
        for labels, count in self.series.items():
            accepted.add_metric(labels, count)
        yield accepted
        help_text = f"1 where more than {SERIES_LIMIT:,} series keep nfportd_connections_total from being exposed."
        yield _one("nfportd_connections_series_dropped", help_text, self.dropped)

    def describe(self) -> Iterator[Metric]:
        """Nothing: else the registry would collect once before there is anything to read."""
        return iter(())


def _by(name: str, text: str, label: str, values: AbstractMapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _by_family(name: str, text: str, packets: AbstractMapping[int, int]) -> CounterMetricFamily:
    counter = CounterMetricFamily(name, text, labels=["family"])
    for family, count in packets.items():
        counter.add_metric([f"ipv{family}"], count)
    return counter


def _one(name: str, text: str, value: int) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
