#!/usr/bin/python3 -IS
"""The CNI plugin `nfportd-cni`: publishes a container's ports in a chain where `portmap` stood (spec 0.1.0 to 1.1.0).

Must import nothing but a little of the standard library: this file is copied alone into a CNI directory, and its start
is most of what an ADD costs. Hence the C halves of `json` and `socket`: the packages above them bring `re`, `enum` and
`selectors`, 10 ms of the 30 that a call took. The one idea: it keeps nothing. An attachment is an owner of the daemon;
ADD writes all that it has, DEL takes it away, CHECK compares, GC names those that are left.
"""

from __future__ import annotations

import _json
import _socket
import os
import sys
import time

TYPE_CHECKING = False  # importing `typing` takes 3 ms
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Json = dict[str, Any]
    #: Host address (empty: any), protocol, host port, container port.
    Port = tuple[str, str, int, int]

DEFAULT_SOCKET = "/run/nfportd/nfportd.sock"
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
OWNERS = "/v1/owners/"
#: Seconds for one answer of the daemon; a transaction of 65,000 elements takes one.
_TIMEVAL = (20).to_bytes(8, sys.byteorder) + bytes(8)
#: Seconds for which ADD waits for a port that another container holds, for that one may be going; and between tries.
PATIENCE, _PAUSE = 2.0, 0.05

# Error codes of the CNI specification, and from 100 on our own.
INCOMPATIBLE, UNSUPPORTED, ENVIRONMENT, UNREADABLE, UNDECODABLE, INVALID = 1, 2, 4, 5, 6, 7
TRY_AGAIN, NOT_AVAILABLE, LIMITED = 11, 50, 51
PORT_TAKEN, DENIED, REFUSED, NOT_IN_FORCE = 101, 102, 103, 104

#: What the daemon's problems mean here (docs/api.md); any other one says that the configuration is wrong.
_CODES = {"conflict": PORT_TAKEN, "port-in-use": PORT_TAKEN, "denied": DENIED, "not-found": NOT_IN_FORCE}
_CODES |= {"kernel-refused": REFUSED, "storage": REFUSED, "internal": REFUSED, "overloaded": TRY_AGAIN}

# What the verbs need of the environment, and the first version whose configurations may ask for them.
_ATTACHMENT = ("CNI_CONTAINERID", "CNI_IFNAME")
_NEEDS = {"ADD": (*_ATTACHMENT, "CNI_NETNS"), "CHECK": (*_ATTACHMENT, "CNI_NETNS"), "DEL": _ATTACHMENT}
_NEEDS |= {"GC": (), "STATUS": (), "VERSION": ()}
_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

#: Characters of the names that the specification lets networks and containers have, and that owners can have.
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_NAME, _INTERFACE = _PLAIN | frozenset("_.-"), _PLAIN | frozenset("_.-@+")


class Failure(Exception):
    """What ends a call, as the specification wants it told."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        self.code, self.message, self.details = code, message, details
        super().__init__(message)


class Away(Exception):
    """Nobody answers on the daemon's socket."""


def main() -> int:
    """Obey CNI_COMMAND; results and errors go to standard output, remarks to standard error."""
    version = VERSIONS[-1]
    try:
        verb = _verb()
        if verb == "VERSION":
            _print(_written({"cniVersion": version, "supportedVersions": VERSIONS}))
            return 0
        config = _config()
        version = _version(config, verb)
        try:
            _VERBS[verb](config)
        except Away as away:
            raise Failure(NOT_AVAILABLE if verb == "STATUS" else TRY_AGAIN, str(away)) from None
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise Failure(REFUSED, f"{verb} cannot go on with what it was told", repr(error)) from None
    except Failure as failure:
        told: Json = {"cniVersion": version, "code": failure.code, "msg": failure.message[:1000]}
        _print(_written(told | ({"details": failure.details[:1000]} if failure.details else {})))
        return 1
    return 0


def add(config: Json) -> None:
    """Publish the container's ports, then hand on the result of the plugins before."""
    result = _result(config)
    owner, mappings = _owner(config), _mappings(config, result)
    answer = _written({"cniVersion": config["cniVersion"], **result})  # fails before anything is published
    if mappings:
        _publish(config, owner, {"mappings": mappings, "netns": os.environ["CNI_NETNS"]})
    _print(answer)


def delete(config: Json) -> None:
    """Withdraw the container's ports. Fails for nothing that is not there, a daemon included: GC comes later."""
    owner = _owner(config)
    try:
        status, answer = _ask(config, "DELETE", OWNERS + owner)
    except Away as away:
        _remark(f"{owner}: {away}; its ports end with its network namespace, or by GC")
        return
    if status not in (200, 404):
        _remark(f"{owner}: {_detail(answer)}")


def check(config: Json) -> None:
    """Fail where the daemon or the kernel has not what ADD published."""
    if not (wanted := _mappings(config, _result(config))):
        return
    owner = _owner(config)
    status, answer = _ask(config, "GET", f"{OWNERS}{owner}?verify=true")
    if status != 200:
        raise _refusal(answer)
    found = {_essence(mapping): mapping for mapping in answer["mappings"]}
    for each in map(_essence, wanted):
        if each not in found:
            raise Failure(NOT_IN_FORCE, f"{owner} has no mapping of {each[0]}/{each[1]} to {', '.join(each[2])}")
        state, reason = found[each]["state"], found[each]["reason"]
        if state != "active":
            raise Failure(NOT_IN_FORCE, f"{owner}: {each[0]}/{each[1]} is not in force ({state})", str(reason))


def collect(config: Json) -> None:
    """Withdraw the ports of this network's containers that are gone."""
    if "cni.dev/valid-attachments" not in config:
        raise Failure(INVALID, "cni.dev/valid-attachments is missing; without it every container would be gone")
    prefix = f"cni:{config['name']}/"
    try:
        attachments = _typed(config["cni.dev/valid-attachments"], list, "cni.dev/valid-attachments")
        valid = [prefix + each["containerID"] + "/" + each["ifname"] for each in attachments]
    except (TypeError, KeyError, AttributeError):
        raise Failure(INVALID, "cni.dev/valid-attachments is no list of containerID and ifname") from None
    status, answer = _ask(config, "POST", "/v1/gc", {"prefix": prefix, "valid": valid})
    if status != 200:
        raise _refusal(answer)


def status(config: Json) -> None:
    """Fail where ADD could not be served, or what it did is not in force."""
    code, answer = _ask(config, "GET", "/v1/status")
    if code != 200:
        raise Failure(NOT_AVAILABLE, _detail(answer))
    if answer["table"] != "intact":
        raise Failure(LIMITED, f"the table inet nfportd is {answer['table']}; published ports may not work")


_VERBS = {"ADD": add, "DEL": delete, "CHECK": check, "GC": collect, "STATUS": status}


def _print(answer: str) -> None:
    sys.stdout.write(answer + "\n")


def _remark(text: str) -> None:
    sys.stderr.write(f"nfportd-cni: {text}\n")


def _verb() -> str:
    verb = os.environ.get("CNI_COMMAND", "")
    if verb not in _NEEDS:
        found = f"CNI_COMMAND={verb}" if verb else "CNI_COMMAND is missing"
        raise Failure(ENVIRONMENT, f"{found}; verbs are {', '.join(_NEEDS)}")
    if missing := [name for name in _NEEDS[verb] if not os.environ.get(name)]:
        raise Failure(ENVIRONMENT, f"{verb} needs {', '.join(missing)} in the environment")
    if verb in ("ADD", "DEL", "CHECK"):
        _check_name("CNI_CONTAINERID", os.environ["CNI_CONTAINERID"], ENVIRONMENT)
        interface = os.environ["CNI_IFNAME"]
        if len(interface) > 15 or interface in (".", "..") or not _INTERFACE.issuperset(interface):
            known = "names of interfaces here are up to 15 letters, digits, dots and _-@+"
            raise Failure(ENVIRONMENT, f"CNI_IFNAME is {interface[:80]!r}; {known}")
    return verb


def _check_name(what: str, name: object, code: int) -> None:
    if not isinstance(name, str) or name[:1] not in _PLAIN or not _NAME.issuperset(name):
        known = "names are letters, digits, dots, _ and -, and begin with a letter or digit"
        raise Failure(code, f"{what} is {str(name)[:80]!r}; {known}")


def _config() -> Json:
    try:
        text = sys.stdin.buffer.read()
    except OSError as error:
        raise Failure(UNREADABLE, f"standard input cannot be read: {error.strerror}") from None
    try:
        config = _read(text)
    except (ValueError, RecursionError) as error:
        raise Failure(UNDECODABLE, "standard input holds no JSON", str(error)) from None
    if not isinstance(config, dict):
        raise Failure(UNDECODABLE, "standard input holds JSON that is no object")
    return config


def _version(config: Json, verb: str) -> str:
    # Configurations of the first version did not say so.
    if config.get("cniVersion") in (None, ""):
        config["cniVersion"] = VERSIONS[0]
    version = config["cniVersion"]
    if version not in VERSIONS:
        known = f"config is {version!r}, plugin supports {', '.join(VERSIONS)}"
        raise Failure(INCOMPATIBLE, "incompatible CNI versions", known)
    if VERSIONS.index(version) < VERSIONS.index(_SINCE.get(verb, VERSIONS[0])):
        raise Failure(INCOMPATIBLE, f"config version {version} does not know {verb}, which came with {_SINCE[verb]}")
    _check_name("the network's name", config.get("name"), INVALID)
    return str(version)


def _owner(config: Json) -> str:
    return f"cni:{config['name']}/{os.environ['CNI_CONTAINERID']}/{os.environ['CNI_IFNAME']}"


def _result(config: Json) -> Json:
    result = config.get("prevResult")
    if not isinstance(result, dict):
        raise Failure(INVALID, "prevResult is missing; nfportd-cni stands after the plugin that makes the interface")
    return result


def _mappings(config: Json, result: Json) -> list[Json]:
    """The mappings that a configuration asks for, neighbouring ports as ranges."""
    asked = _typed(config.get("runtimeConfig"), dict, "runtimeConfig").get("portMappings")
    ports = sorted({_port(each) for each in _typed(asked, list, "runtimeConfig.portMappings")})
    if not ports:
        return []
    masquerade = _masquerade(config)
    if not (addresses := _addresses(result)):
        raise Failure(INVALID, f"prevResult has no address of {os.environ['CNI_IFNAME']} to publish ports of")
    named = {"name": pod} if (pod := _pod()) else {}
    found = []
    for (host, protocol, first, to), count in _ranges(ports):
        if targets := _targets(host, addresses, count, to):
            listen = _place(host, first, count)
            found.append({**named, "listen": listen, "protocol": [protocol], "targets": targets, **masquerade})
    return found


def _typed(value: Any, kind: type, name: str) -> Any:
    if value is not None and not isinstance(value, kind):
        raise Failure(INVALID, f"{name} is not of the type {kind.__name__}")
    return kind() if value is None else value


def _port(asked: object) -> Port:
    """One entry of portMappings. A hostIP of 0.0.0.0 or :: is every address of its family."""
    # containerd writes HostPort, as Go reads it: names count in any case.
    entry = {name.lower(): value for name, value in _typed(asked, dict, "an entry of portMappings").items()}
    if len(entry) < len(asked):  # type: ignore[arg-type]
        raise Failure(INVALID, "an entry of portMappings has a key twice, in two spellings")
    numbers = []
    for name in ("hostPort", "containerPort"):
        number = entry.get(name.lower())
        if type(number) is not int or not 0 < number < 65536:
            raise Failure(INVALID, f"{name} is {number!r}; ports are 1 to 65535")
        numbers.append(number)
    wanted, host = (None if entry.get(name) == "" else entry.get(name) for name in ("protocol", "hostip"))
    protocol = "tcp" if wanted is None else str(wanted).lower()
    if protocol not in ("tcp", "udp", "sctp"):
        raise Failure(INVALID, f"protocol is {wanted!r}; protocols are tcp, udp and sctp")
    return "" if host is None else _address(host), protocol, numbers[0], numbers[1]


def _address(text: object) -> str:
    """An address as the daemon writes it, with IPv4 inside IPv6 as what it is."""
    family = _socket.AF_INET6 if ":" in str(text) else _socket.AF_INET
    try:
        packed = _socket.inet_pton(family, str(text))
    except (OSError, ValueError):
        raise Failure(INVALID, f"hostIP is {text!r}, which is no IP address") from None
    if packed.startswith(bytes(10) + b"\xff\xff"):
        return _socket.inet_ntop(_socket.AF_INET, packed[12:])
    return _socket.inet_ntop(family, packed)


def _ranges(ports: list[Port]) -> Iterator[tuple[Port, int]]:
    """Each run of ports that count up together, by its first and its length. Wants them sorted."""
    start, count = ports[0], 1
    for each in ports[1:]:
        if each == (*start[:2], start[2] + count, start[3] + count):
            count += 1
        else:
            yield start, count
            start, count = each, 1
    yield start, count


def _addresses(result: Json) -> list[str]:
    """The container's first IPv4 and first IPv6 address, by the rules of each version of results."""
    found: list[str] = []
    try:
        found += [result[name]["ip"] for name in ("ip4", "ip6") if result.get(name)]
        interfaces = result.get("interfaces") or []
        for each in result.get("ips") or []:
            place = each.get("interface")
            of = interfaces[place] if place is not None and 0 <= place < len(interfaces) else None
            if of is None or (of["name"] == os.environ["CNI_IFNAME"] and of.get("sandbox")):
                found.append(each["address"])
        found = [each.partition("/")[0] for each in found]
    except (TypeError, KeyError, AttributeError) as error:
        raise Failure(INVALID, "prevResult is not as the specification has it", repr(error)) from None
    by_family = {":" in each: each for each in reversed(found)}
    return [by_family[key] for key in sorted(by_family)]


def _targets(host: str, addresses: list[str], count: int, to: int) -> list[str]:
    targets = [_place(each, to, count) for each in addresses if not host or (":" in each) == (":" in host)]
    if not targets and host not in ("0.0.0.0", "::"):
        raise Failure(INVALID, f"hostIP is {host}, and the container has no IPv{6 if ':' in host else 4} address")
    return targets


def _place(address: str, first: int, count: int) -> str:
    ports = f"{first}-{first + count - 1}" if count > 1 else f"{first}"
    return f"[{address}]:{ports}" if ":" in address else f"{address}:{ports}" if address else ports


def _masquerade(config: Json) -> Json:
    """What the configuration's keys that `portmap` knows mean here; what they cannot mean is said."""
    for name in ("conditionsV4", "conditionsV6"):
        if config.get(name):
            raise Failure(UNSUPPORTED, f"{name}={_written(config[name])}: nfportd has no conditions for a network")
    for name in ("backend", "externalSetMarkChain", "markMasqBit"):
        if config.get(name) is not None:
            _remark(f"{name}={_written(config[name])} is ignored: nfportd has its own table and mark (mark_bit)")
    if config.get("snat") is not None and not _typed(config["snat"], bool, "snat"):
        return {"masquerade": "never"}
    return {"masquerade": "always" if _typed(config.get("masqAll"), bool, "masqAll") else "auto"}


def _pod() -> str:
    """The pod's name where Kubernetes' runtimes tell it, for people who read the daemon's messages."""
    told = dict(each.split("=", 1) for each in os.environ.get("CNI_ARGS", "").split(";") if "=" in each)
    pod = f"{told.get('K8S_POD_NAMESPACE', '')}/{told.get('K8S_POD_NAME', '')}"
    return pod if pod.isprintable() and not pod.startswith("/") and not pod.endswith("/") else ""


def _essence(mapping: Json) -> tuple[str, str, tuple[str, ...], str]:
    """What CHECK compares of a mapping."""
    masquerade = mapping.get("masquerade", "auto")
    return str(mapping["listen"]), mapping["protocol"][0], tuple(mapping["targets"]), masquerade


def _publish(config: Json, owner: str, body: Json) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        status, answer = _ask(config, "PUT", OWNERS + owner, body)
        if status == 200:
            return
        holder = str((answer.get("holder") or {}).get("owner", ""))
        if holder.startswith("cni:"):
            if time.monotonic() > deadline:
                raise Failure(TRY_AGAIN, f"another container has the port: {_detail(answer)}")
            time.sleep(_PAUSE)
        elif _problem(answer) == "port-in-use" and _is_reserved(answer.get("process")):
            body = {**body, "mappings": [{**each, "shadow_listener": True} for each in body["mappings"]]}
        else:
            raise _refusal(answer)


def _is_reserved(process: Json | None) -> bool:
    """Whether podman's conmon listens for this very container, to keep its ports from others; it never answers."""
    container = os.environ["CNI_CONTAINERID"].encode()
    for pid in [str(process["pid"])] if process else filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                program, *arguments = file.read().split(b"\0")
        except OSError:
            continue
        if program.endswith(b"conmon") and container in arguments:
            return True
    return False


def _refusal(answer: Json) -> Failure:
    return Failure(_CODES.get(_problem(answer), INVALID), _detail(answer), str(answer.get("title", "")))


def _problem(answer: Json) -> str:
    return str(answer.get("type", "")).rpartition(":")[2]


def _detail(answer: Json) -> str:
    return str(answer.get("detail") or answer)


def _ask(config: Json, method: str, path: str, body: Json | None = None) -> tuple[int, Json]:
    """One request over the daemon's socket: the status and the object of its answer. Raises Away."""
    place = config.get("socket") or os.environ.get("NFPORTD_SOCKET") or DEFAULT_SOCKET
    content = b"" if body is None else _written(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: nfportd", "Connection: close", f"Content-Length: {len(content)}"]
    head = "\r\n".join([*lines, "Content-Type: application/json", "", ""])
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, _TIMEVAL)
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, _TIMEVAL)
        sock.connect(place)  # waits in line where the backlog is full; with settimeout() it would fail at once
        sock.sendall(head.encode() + content)
        received = b"".join(iter(lambda: sock.recv(65536), b""))
        first, _, text = received.partition(b"\r\n\r\n")
        return int(first.split(None, 2)[1]), dict(_read(text))
    except (OSError, TypeError) as error:
        raise Away(f"nfportd does not answer on {place}: {error}") from None
    except (ValueError, IndexError, RecursionError):
        raise Away(f"nfportd went away before it answered on {place}") from None
    finally:
        sock.close()


class _Rules:
    """How JSON is read: as `json` reads it, but no key twice, of which others take another one."""

    strict, object_hook = True, None
    parse_int, parse_float, parse_constant = int, float, float

    @staticmethod
    def object_pairs_hook(pairs: list[tuple[str, Any]]) -> Json:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError(f"one of the keys {', '.join(found)[:80]} stands twice")
        return found


def _read(content: bytes) -> Any:
    """What JSON says. Raises ValueError, and RecursionError where it is too deep."""
    text = content.decode().strip(" \t\r\n")
    try:
        found, end = _json.make_scanner(_Rules)(text, 0)  # type: ignore[arg-type]
        if end == len(text):
            return found
    except Exception:  # nosec B110
        pass
    import json  # noqa: PLC0415 the whole package says what is wrong, or knows how this Python does it

    return json.loads(text, object_pairs_hook=_Rules.object_pairs_hook)


def _written(value: Any) -> str:
    encode = _json.make_encoder(None, str, _json.encode_basestring_ascii, None, ": ", ", ", False, False, False)
    return "".join(encode(value, 0))


if __name__ == "__main__":
    ended = main()
    sys.stdout.flush()
    os._exit(ended)  # taking the interpreter apart takes 2 ms
