"""The specification, verb by verb and version by version: what is printed, with which code, and what is never printed.

Must not know how the plugin is made. The one idea: a table of calls and the answers that the specification wants.
"""

from __future__ import annotations

import json

import pytest

from tests.cni.calling import LATEST, VERSIONS, Attachment, port, result
from tests.lab import ADDRESSES, Lab
from tests.netns import Namespace

WEB = port(8080, 80)
HOST4, HOST6 = "192.0.2.1", "2001:db8::1"


def answers(space: Namespace, address: str, number: int) -> str:
    answer = space.ask(address, number, timeout=1)
    return answer.target or answer.outcome


@pytest.mark.parametrize("version", VERSIONS)
def test_add_publishes_and_hands_on_the_result_unchanged(t1: Attachment, lab: Lab, version: str) -> None:
    before = result(version, ADDRESSES["t1"], sandbox=t1.netns)

    reply = t1.but(version=version).add(WEB, prevResult=before)

    assert reply.json == before
    assert (answers(lab.outside, HOST4, 8080), answers(lab.outside, HOST6, 8080)) == ("t1", "t1")


@pytest.mark.parametrize("version", VERSIONS)
def test_delete_withdraws_and_prints_nothing(t1: Attachment, lab: Lab, version: str) -> None:
    attached = t1.but(version=version)
    attached.add(WEB)

    attached.remove(WEB)

    assert answers(lab.outside, HOST4, 8080) == "refused"


@pytest.mark.parametrize("version", VERSIONS)
def test_check_gc_and_status_from_the_version_that_brought_them(t1: Attachment, version: str) -> None:
    attached = t1.but(version=version)
    attached.add(WEB)
    found = {}
    for verb in ("CHECK", "GC", "STATUS"):
        valid = [{"containerID": t1.container, "ifname": t1.ifname}]
        reply = attached.call(verb, WEB, **{"cni.dev/valid-attachments": valid})
        found[verb] = reply.status and reply.code
        assert (reply.output == "") == (reply.status == 0)

    old = VERSIONS.index(version)
    assert found == {"CHECK": 0 if old >= 4 else 1, "GC": 0 if old >= 6 else 1, "STATUS": 0 if old >= 6 else 1}


@pytest.mark.parametrize("content", [b"", b'{"cniVersion": "1.1.0"}', b"not JSON"])
def test_version_needs_nothing(t1: Attachment, content: bytes) -> None:
    reply = t1.say("VERSION", content, CNI_CONTAINERID=None, CNI_NETNS=None, CNI_IFNAME=None, CNI_PATH=None)

    assert (reply.status, reply.json) == (0, {"cniVersion": LATEST, "supportedVersions": list(VERSIONS)})


@pytest.mark.parametrize(
    ("verb", "missing"),
    [
        *(("ADD", f"CNI_{name}") for name in ("CONTAINERID", "NETNS", "IFNAME")),
        *(("CHECK", f"CNI_{name}") for name in ("CONTAINERID", "NETNS", "IFNAME")),
        *(("DEL", f"CNI_{name}") for name in ("CONTAINERID", "IFNAME")),
        ("ADD", "CNI_COMMAND"),
    ],
)
@pytest.mark.parametrize("how", [None, ""])
def test_a_variable_that_is_missing_is_named(t1: Attachment, verb: str, missing: str, how: str | None) -> None:
    reply = t1.say(verb, json.dumps(t1.configuration(WEB)).encode(), **{missing: how})

    assert (reply.code, missing in reply.message) == (4, True)


def test_several_missing_variables_are_named_together(t1: Attachment) -> None:
    reply = t1.say("ADD", b"{}", CNI_CONTAINERID=None, CNI_IFNAME=None)

    assert (reply.code, "CNI_CONTAINERID, CNI_IFNAME" in reply.message) == (4, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CNI_COMMAND", "add"),
        ("CNI_COMMAND", "PATCH"),
        ("CNI_CONTAINERID", "../x"),
        ("CNI_CONTAINERID", "-x"),
        ("CNI_CONTAINERID", "a/b"),
        ("CNI_CONTAINERID", "a\nb"),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "eth 0"),
        ("CNI_IFNAME", "longer-than-a-name"),
    ],
)
def test_a_variable_that_is_wrong_is_named(t1: Attachment, name: str, value: str) -> None:
    reply = t1.say("ADD", json.dumps(t1.configuration(WEB)).encode(), **{name: value})

    assert (reply.code, name in reply.message) == (4, True)


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"cniVersion": "1.1.0",}', b"[" * 100_000]
)
def test_what_is_no_configuration_is_not_decoded(t1: Attachment, verb: str, content: bytes) -> None:
    assert t1.say(verb, content).code == 6


@pytest.mark.parametrize("version", ["1.2.0", "0.5.0", "1", "", 1, None, {}])
def test_an_unknown_version_is_incompatible(t1: Attachment, version: object) -> None:
    config = {**t1.configuration(WEB), "cniVersion": version}

    reply = t1.say("ADD", json.dumps(config).encode())

    # What is empty is a configuration of the time before versions.
    assert reply.status == (0 if not version and version != {} else 1)
    if reply.status:
        assert (reply.code, reply.json["cniVersion"], LATEST in reply.json["details"]) == (1, LATEST, True)


def test_the_error_has_the_version_of_the_configuration(t1: Attachment) -> None:
    reply = t1.but(version="0.4.0").call("ADD", port(0, 80))

    assert (reply.code, reply.json["cniVersion"]) == (7, "0.4.0")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": None}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": ["x"]}, "name"),
        ({"prevResult": None}, "prevResult is missing"),
        ({"prevResult": []}, "prevResult is missing"),
        ({"prevResult": {"ips": 1}}, "prevResult"),
        ({"prevResult": {"ips": [1]}}, "prevResult"),
        ({"prevResult": {"ips": [{}]}}, "prevResult"),
        ({"prevResult": {"ips": []}}, "no address of eth0"),
        ({"prevResult": {"ips": [{"address": "nonsense"}]}}, "nonsense"),
        ({"runtimeConfig": []}, "runtimeConfig"),
        ({"runtimeConfig": {"portMappings": {}}}, "portMappings"),
        ({"runtimeConfig": {"portMappings": [8080]}}, "portMappings"),
        ({"snat": "no"}, "snat"),
        ({"snat": 0}, "snat"),
        ({"masqAll": 1}, "masqAll"),
    ],
)
def test_an_invalid_configuration_says_what_is_wrong(t1: Attachment, change: dict[str, object], says: str) -> None:
    config = {**t1.configuration(WEB), **change}

    reply = t1.say("ADD", json.dumps(config).encode())

    assert (reply.code, says in reply.message) == (7, True), reply


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (port(0, 80), "hostPort is 0"),
        (port(-1, 80), "hostPort is -1"),
        (port(65536, 80), "hostPort is 65536"),
        (port(8080, 0), "containerPort is 0"),
        ({"hostPort": "8080", "containerPort": 80}, "hostPort is '8080'"),
        ({"hostPort": True, "containerPort": 80}, "hostPort is True"),
        ({"hostPort": 8080.0, "containerPort": 80}, "hostPort is 8080.0"),
        ({"containerPort": 80}, "hostPort is None"),
        (port(8080, 80, "icmp"), "protocol is 'icmp'"),
        (port(8080, 80, "tcp; drop"), "protocol"),
        (port(8080, 80, hostIP="nonsense"), "hostIP is 'nonsense'"),
        (port(8080, 80, hostIP="192.0.2.1/24"), "hostIP"),
        (port(8080, 80, hostIP=["192.0.2.1"]), "hostIP"),
        (port(8080, 80, hostIP="192.0.2.1\x00"), "hostIP"),
    ],
)
@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_an_invalid_port_says_what_is_wrong(t1: Attachment, verb: str, entry: dict[str, object], says: str) -> None:
    reply = t1.call(verb, entry)

    assert (reply.code, says in reply.message) == (7, True), reply


def test_names_count_in_any_case_as_containerd_writes_them(t1: Attachment, lab: Lab) -> None:
    entry = {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": HOST4}
    t1.add(entry)

    assert answers(lab.outside, HOST4, 8080) == "t1"
    assert t1.call("CHECK", entry).status == 0


def test_two_entries_for_one_key_are_refused_as_a_whole(t1: Attachment, lab: Lab) -> None:
    reply = t1.call("ADD", port(9090, 90), port(8080, 80), port(8080, 81))

    assert (reply.code, "8080" in reply.message) == (7, True)
    assert answers(lab.outside, HOST4, 9090) == "refused"


def test_the_same_entry_twice_is_one(t1: Attachment, lab: Lab) -> None:
    t1.add(WEB, WEB)

    assert answers(lab.outside, HOST4, 8080) == "t1"


@pytest.mark.parametrize("ports", [(), None])
def test_without_ports_nobody_is_asked(t1: Attachment, ports: tuple[()] | None) -> None:
    lonely = t1.but(more={"socket": "/nonexistent/nfportd.sock", "runtimeConfig": {"portMappings": ports}})

    assert lonely.add().json == result(LATEST, t1.addresses, sandbox=t1.netns)
    assert lonely.call("CHECK").status == 0


def test_what_the_plugin_does_not_know_is_left_alone(t1: Attachment) -> None:
    more = {"args": {"x": 1}, "capabilities": {"portMappings": True}, "ipMasq": True, "bandwidth": None}
    before = {**result(LATEST, t1.addresses, sandbox=t1.netns), "future": {"a": [1.5, None, "ä"]}}

    assert t1.add(WEB, prevResult=before, **more).json == before


@pytest.mark.parametrize("name", ["snat", "masqAll", "conditionsV4", "backend", "socket", "runtimeConfig"])
def test_null_is_the_default(t1: Attachment, lab: Lab, name: str) -> None:
    reply = t1.say("ADD", json.dumps({**t1.configuration(WEB), name: None}).encode())

    assert (reply.status, reply.remarks) == (0, "")
    own = ADDRESSES["outside"][0]
    assert name == "runtimeConfig" or lab.outside.ask(HOST4, 8080).source == own


def test_the_socket_of_the_configuration_goes_before_the_environments(t1: Attachment) -> None:
    config = t1.configuration(WEB, socket=str(t1.socket))

    assert t1.say("ADD", json.dumps(config).encode(), NFPORTD_SOCKET="/nonexistent").status == 0


@pytest.mark.parametrize(
    ("interfaces", "places", "published"),
    [
        ([{"name": "eth0", "sandbox": "/x"}], [0], True),
        ([{"name": "eth0", "sandbox": "/x"}], [None], True),
        ([], [7], True),
        ([{"name": "eth0", "sandbox": ""}], [0], False),
        ([{"name": "eth1", "sandbox": "/x"}], [0], False),
        ([{"name": "br0"}], [0], False),
    ],
)
def test_addresses_are_those_of_the_containers_interface(
    t1: Attachment, interfaces: list[dict[str, str]], places: list[int | None], published: bool
) -> None:
    ips = [{"address": "10.88.0.11/24"} | ({"interface": p} if p is not None else {}) for p in places]

    reply = t1.call("ADD", WEB, prevResult={"cniVersion": LATEST, "interfaces": interfaces, "ips": ips})

    assert (reply.status == 0) == published, reply
    if not published:
        assert "no address of eth0" in reply.message
