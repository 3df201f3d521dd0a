"""The Container Runtime Interface from the kubelet's side: the few calls that make and remove pods.

It must not know containerd. The one idea: messages are tables of names, types and field numbers, which are the
interface's facts; protobuf makes classes of them at run time, so no file of another project is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

PACKAGE = "runtime.v1"
SERVICE = f"{PACKAGE}.RuntimeService"
#: Types that are no messages, with protobuf's number for them.
PLAIN = {"int32": 5, "bool": 8, "string": 9, "uint32": 13, "enum": 5}
REPEATED = "repeated "
#: message -> field -> (number, type); the interface has more, which is skipped when it comes.
MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "StatusRequest": {},
    "StatusResponse": {"status": (1, "RuntimeStatus")},
    "RuntimeStatus": {"conditions": (1, "repeated RuntimeCondition")},
    "RuntimeCondition": {"type": (1, "string"), "status": (2, "bool"), "message": (4, "string")},
    "RunPodSandboxRequest": {"config": (1, "PodSandboxConfig")},
    "RunPodSandboxResponse": {"pod_sandbox_id": (1, "string")},
    "PodSandboxConfig": {
        "metadata": (1, "PodSandboxMetadata"),
        "hostname": (2, "string"),
        "port_mappings": (5, "repeated PortMapping"),
        "linux": (8, "LinuxPodSandboxConfig"),
    },
    "PodSandboxMetadata": {"name": (1, "string"), "uid": (2, "string"), "namespace": (3, "string")},
    "PortMapping": {
        "protocol": (1, "enum"),
        "container_port": (2, "int32"),
        "host_port": (3, "int32"),
        "host_ip": (4, "string"),
    },
    "LinuxPodSandboxConfig": {"security_context": (2, "LinuxSandboxSecurityContext")},
    "LinuxSandboxSecurityContext": {"namespace_options": (1, "NamespaceOption")},
    "NamespaceOption": {"network": (1, "enum")},
    "StopPodSandboxRequest": {"pod_sandbox_id": (1, "string")},
    "StopPodSandboxResponse": {},
    "RemovePodSandboxRequest": {"pod_sandbox_id": (1, "string")},
    "RemovePodSandboxResponse": {},
    "PodSandboxStatusRequest": {"pod_sandbox_id": (1, "string"), "verbose": (2, "bool")},
    "PodSandboxStatusResponse": {"status": (1, "PodSandboxStatus"), "info": (2, "repeated Info")},
    "Info": {"key": (1, "string"), "value": (2, "string")},  # on the wire, a map is a list of these
    "PodSandboxStatus": {"id": (1, "string"), "state": (3, "enum"), "network": (5, "PodSandboxNetworkStatus")},
    "PodSandboxNetworkStatus": {"ip": (1, "string"), "additional_ips": (2, "repeated PodIP")},
    "PodIP": {"ip": (1, "string")},
    "ListPodSandboxRequest": {},
    "ListPodSandboxResponse": {"items": (1, "repeated PodSandbox")},
    "PodSandbox": {"id": (1, "string"), "metadata": (2, "PodSandboxMetadata"), "state": (3, "enum")},
}
#: enum Protocol
PROTOCOLS = {"tcp": 0, "udp": 1, "sctp": 2}
#: enum NamespaceMode
NODE = 2


def _classes() -> dict[str, Any]:
    """A class for every message."""
    file = descriptor_pb2.FileDescriptorProto(name="nfportd/cri.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            single = kind.removeprefix(REPEATED)
            added = message.field.add(name=field, number=number, label=1 if single == kind else 3)
            if single in PLAIN:
                added.type = PLAIN[single]
            else:
                added.type, added.type_name = 11, f".{PACKAGE}.{single}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES}


CLASSES = _classes()


class Refused(Exception):
    """The runtime could not do it, and said why."""


class Runtime:
    """Calls to a runtime's socket."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.enable_http_proxy", 0)])

    def call(self, name: str, timeout: float = 30, **content: Any) -> dict[str, Any]:
        """One call, with and to plain values; waits until the runtime is there."""
        ask = self._channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=CLASSES[f"{name}Request"].SerializeToString,
            response_deserializer=CLASSES[f"{name}Response"].FromString,
        )
        request = json_format.ParseDict(content, CLASSES[f"{name}Request"]())
        try:
            answer = ask(request, timeout=timeout, wait_for_ready=True)
        except grpc.RpcError as error:
            raise Refused(error.details()) from error
        return dict(json_format.MessageToDict(answer, preserving_proto_field_name=True))

    def close(self) -> None:
        self._channel.close()


def port(host: int, container: int = 80, protocol: str = "tcp", address: str = "") -> dict[str, Any]:
    """A port of a pod, as the kubelet asks for it."""
    return {"protocol": PROTOCOLS[protocol], "container_port": container, "host_port": host, "host_ip": address}


def pod(name: str, ports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "namespace": "default"},
        "hostname": name,
        "port_mappings": list(ports),
        "linux": {},
    }


def on_the_host(name: str) -> dict[str, Any]:
    """A pod in the network of the host, whose name it has."""
    return pod(name, []) | {"hostname": "", "linux": {"security_context": {"namespace_options": {"network": NODE}}}}
