"""The metrics as Prometheus reads them, and the alerts and dashboard that ask for them.

It must not start a daemon. The one idea: what is rendered is parsed back by Prometheus' own parser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from nfportd.metrics import CONTENT_TYPE, SERIES_LIMIT, Connections, Metrics, Readings

DOCS = Path(__file__).parents[2] / "docs" / "metrics"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(
        Readings(
            mappings=lambda: {"file": 3, "api": 2},
            elements=lambda: {"any4": 5, "onlink4": 1},
            conflicts=lambda: 1,
            refused=lambda: 0,
            relayed=lambda: {"tcp": 2, "udp": 0},
            not_relayed=lambda: 4,
        )
    )


def samples(metrics: Metrics) -> dict[str, float]:
    """Every sample by its name and labels, as they are written."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def connections(port: int, accepted: int = 1, **more: Any) -> Connections:
    labels = {"owner": "api:me", "mapping": "web", "protocol": "tcp", "family": 4, **more}
    return Connections(port=port, accepted=accepted, **labels)


def test_what_is_asked_at_each_scrape(metrics: Metrics) -> None:
    found = samples(metrics)

    assert {name: found[name] for name in found if name.startswith(("nfportd_mapp", "nfportd_el", "nfportd_conf"))} == {
        "nfportd_mappings{source=file}": 3,
        "nfportd_mappings{source=api}": 2,
        "nfportd_elements{map=any4}": 5,
        "nfportd_elements{map=onlink4}": 1,
        "nfportd_conflicts": 1,
    }
    assert found["nfportd_refused"] == 0


def test_transactions(metrics: Metrics) -> None:
    metrics.transaction(0.0003, ok=True)
    metrics.transaction(0.7, ok=True)
    metrics.transaction(0.001, ok=False)

    found = samples(metrics)

    assert found["nfportd_transactions_total{result=ok}"] == 2
    assert found["nfportd_transactions_total{result=failed}"] == 1
    assert found["nfportd_transaction_seconds_count"] == 3
    assert found["nfportd_transaction_seconds_bucket{le=0.0005}"] == 1
    assert found["nfportd_transaction_seconds_bucket{le=0.001}"] == 2


def test_both_results_are_there_before_the_first_transaction(metrics: Metrics) -> None:
    found = samples(metrics)

    assert [found[f"nfportd_transactions_total{{result={result}}}"] for result in ("ok", "failed")] == [0, 0]


def test_repairs_flushes_and_dropped_packets(metrics: Metrics) -> None:
    metrics.repair()
    metrics.flush(2)
    metrics.flush(3)
    metrics.blocked({4: 7, 6: 1})
    metrics.bypassed({4: 0, 6: 5})

    found = samples(metrics)

    assert found["nfportd_repairs_total"] == 1
    assert found["nfportd_conntrack_flushes_total"] == 5
    assert found["nfportd_blocked_packets_total{family=ipv4}"] == 7
    assert found["nfportd_blocked_packets_total{family=ipv6}"] == 1
    assert found["nfportd_bypassed_packets_total{family=ipv6}"] == 5


def test_a_drop_in_that_is_right_again_has_no_errors(metrics: Metrics) -> None:
    metrics.reload_errors({"a.yaml": 2, "b.yaml": 1})
    metrics.reload_errors({"b.yaml": 3})

    assert {name: value for name, value in samples(metrics).items() if "reload" in name} == {
        "nfportd_reload_errors{file=b.yaml}": 3
    }


def test_connections_by_mapping(metrics: Metrics) -> None:
    metrics.connections([connections(80, 5), connections(443, 6, family=6, mapping='a "b"\n')])

    found = samples(metrics)

    assert found["nfportd_connections_total{family=ipv4,mapping=web,owner=api:me,port=80,protocol=tcp}"] == 5
    assert found['nfportd_connections_total{family=ipv6,mapping=a "b"\n,owner=api:me,port=443,protocol=tcp}'] == 6
    assert found["nfportd_connections_series_dropped"] == 0


def test_two_listen_addresses_of_one_mapping_are_one_series(metrics: Metrics) -> None:
    metrics.connections([connections(80, 5), connections(80, 6)])

    counted = [value for name, value in samples(metrics).items() if name.startswith("nfportd_connections_total")]

    assert counted == [11]


@pytest.mark.parametrize(("count", "exposed", "dropped"), [(SERIES_LIMIT, SERIES_LIMIT, 0), (SERIES_LIMIT + 1, 0, 1)])
def test_connections_are_counted_up_to_a_limit(metrics: Metrics, count: int, exposed: int, dropped: int) -> None:
    metrics.connections(connections(port) for port in range(1, count + 1))

    found = samples(metrics)

    assert sum(name.startswith("nfportd_connections_total") for name in found) == exposed
    assert found["nfportd_connections_series_dropped"] == dropped


def test_too_many_to_be_read(metrics: Metrics) -> None:
    metrics.connections([connections(80)])
    metrics.connections(None)

    found = samples(metrics)

    assert (any("connections_total" in name for name in found), found["nfportd_connections_series_dropped"]) == (
        False,
        1,
    )


def test_two_daemons_of_one_process_count_apart(metrics: Metrics) -> None:
    none = {"conflicts": int, "refused": int, "not_relayed": int}
    other = Metrics(Readings(mappings=dict, elements=dict, relayed=dict, **none))
    other.repair()

    assert samples(metrics)["nfportd_repairs_total"] == 0


def test_every_metric_is_ours_and_says_what_it_is(metrics: Metrics) -> None:
    text = metrics.render().decode()
    helped, typed = ({line.split()[2] for line in text.splitlines() if line.startswith(f"# {word} ")} for word in HEADS)

    assert (helped, {name for name in helped if not name.startswith("nfportd_")}) == (typed, set())
    assert not re.search(r"_created\b", text)
    assert "version=0.0.4" in CONTENT_TYPE


HEADS = ("HELP", "TYPE")


def names(text: str) -> set[str]:
    """The metrics that expressions ask for."""
    return set(re.findall(r"\bnfportd_[a-z_]+\b", text))


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression that the docs ship, with where it stands."""
    for group in yaml.safe_load((DOCS / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in json.loads((DOCS / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


@pytest.fixture
def there(metrics: Metrics) -> set[str]:
    """The names of the samples of a daemon at which everything has happened."""
    metrics.reload_errors({"a.yaml": 1})
    metrics.connections([connections(80)])
    return {name.partition("{")[0] for name in samples(metrics)}


@pytest.mark.parametrize(("place", "expression"), list(expressions()))
def test_the_docs_ask_for_metrics_that_exist(there: set[str], place: str, expression: str) -> None:
    assert names(expression) - there == set(), place


@pytest.mark.parametrize(("place", "expression"), list(expressions()))
def test_parentheses_of_expressions_match(place: str, expression: str) -> None:
    assert [expression.count(each) for each in "({["] == [expression.count(each) for each in ")}]"], place


def test_the_dashboard_shows_every_metric(there: set[str]) -> None:
    shown = names((DOCS / "dashboard.json").read_text())
    families = {re.sub(r"_(bucket|count|sum)$", "", name) for name in there}

    assert families - {re.sub(r"_(bucket|count|sum)$", "", name) for name in shown} == set()


def test_every_alert_says_what_to_do() -> None:
    rules = [rule for group in yaml.safe_load((DOCS / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]

    assert [rule["alert"] for rule in rules if set(rule["annotations"]) != {"summary", "description"}] == []
