"""Drop-ins read a second time, by PyYAML's own composer and a few lines: what must be seen of every accepted file.

It must not use the code under test but for the type of its answer. The one idea: each text in the file is looked for
in the result, so nothing can be passed over in silence.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

import yaml

from nfportd.model import Mapping

_NULLS = ("", "~", "null", "Null", "NULL")


class Key(NamedTuple):
    """A key as it stands in the text: from 1, and the number of its first character."""

    text: str
    line: int
    column: int
    start: int


class Item(NamedTuple):
    """One mapping of a file: values by key, and the keys that stand in it themselves."""

    values: dict[str, yaml.Node]
    keys: list[Key]


def items(text: str) -> list[Item] | None:
    """The list under `mappings`; None where PyYAML cannot read the text."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    if root is None or (isinstance(root, yaml.ScalarNode) and root.value in _NULLS):
        return []
    assert isinstance(root, yaml.MappingNode)
    ((key, value),) = root.value or [(None, None)]
    if key is None or isinstance(value, yaml.ScalarNode):
        return []
    assert key.value == "mappings"
    assert isinstance(value, yaml.SequenceNode)
    return [_item(each) for each in value.value]


def _item(node: yaml.Node) -> Item:
    assert isinstance(node, yaml.MappingNode)
    found = dict[str, yaml.Node]()
    keys = []
    for key, value in node.value:
        mark = key.start_mark
        keys.append(Key(key.value, mark.line + 1, mark.column + 1, mark.index))
        if key.value == "<<" and key.tag == "tag:yaml.org,2002:merge":
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                found = {**_item(source).values, **found}
    found |= {key.value: value for key, value in node.value if key.tag != "tag:yaml.org,2002:merge"}
    return Item(found, keys)


def assert_seen(item: Item, mapping: Mapping) -> None:
    """Every value of the item is in the mapping, and nothing else is."""
    values = item.values
    assert values.keys() <= set(Mapping.__dataclass_fields__), values
    for name in ("name", "comment"):
        assert _same_text(values.get(name), getattr(mapping, name)), (name, values.get(name), mapping)
    for name, default in (("masquerade", "auto"), ("on_change", "keep")):
        assert getattr(mapping, name) == (values[name].value if name in values else default)
    for name in ("shadow_listener", "reserve", "isolate"):
        written = values[name].value.lower() if name in values else "false"
        assert written == str(getattr(mapping, name)).lower()
    protocols = [each.value for each in _listed(values["protocol"])] if "protocol" in values else ["tcp"]
    assert sorted(protocols) == sorted(mapping.protocol)
    assert _end(values["listen"].value) == _end(str(mapping.listen))
    targets = sorted((_end(each.value) for each in _listed(values["targets"])), key=str)
    assert targets == sorted((_end(str(target)) for target in mapping.targets), key=str)
    assert _prefixes(values.get("sources")) == set(mapping.sources)


def _same_text(node: yaml.Node | None, found: str | None) -> bool:
    if node is None:
        return found is None
    assert isinstance(node, yaml.ScalarNode), node
    plain = node.style is None and node.tag != "tag:yaml.org,2002:str"
    if plain and node.value in _NULLS:
        return found is None
    return found == node.value or (found is not None and node.style is None and found == str(int(node.value)))


def _listed(node: yaml.Node) -> list[yaml.ScalarNode]:
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    assert all(isinstance(each, yaml.ScalarNode) for each in nodes), nodes
    return list(nodes)


def _end(text: str) -> tuple[str, list[int]]:
    """An address (or none) and its first and last port."""
    address, _, ports = text.strip().rpartition(":")
    numbers = [int(port) for port in ports.split("-")] if not ports.startswith("+") else [int(ports)]
    return str(ipaddress.ip_address(address.strip("[]"))) if address else "", [numbers[0], numbers[-1]]


def _prefixes(node: yaml.Node | None) -> set[str]:
    """What a list of sources covers, each family by the fewest prefixes."""
    if node is None or (isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULLS):
        return set()
    nets = [ipaddress.ip_network(each.value.strip()) for each in _listed(node)]
    four = ipaddress.collapse_addresses(net for net in nets if isinstance(net, ipaddress.IPv4Network))
    six = ipaddress.collapse_addresses(net for net in nets if isinstance(net, ipaddress.IPv6Network))
    return {*map(str, four), *map(str, six)}
