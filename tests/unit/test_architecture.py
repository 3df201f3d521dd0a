"""The order of the modules: imports run downward, what is pure stays pure, files stay small.

It must not import what it looks at. The one idea: each module's imports as its source says them, against a list.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "nfportd"

#: From the ground up; modules of one line may not import each other, but for those of kernel and sources.
ORDER = (
    ("cni", "kernel.nft_worker"),
    ("errors", "messages", "netlink"),
    ("notation", "trust", "journal", "unit"),
    ("model",),
    ("document", "traffic"),
    ("validation",),
    ("desired",),
    ("ruleset",),
    ("listing", "elements"),
    ("topology", "drift", "pace"),
    ("flows", "loopback", "origins"),
    ("matches",),
    ("forwarding",),
    ("firewalls", "translation"),
    ("trace.facts",),
    ("trace.near", "trace.others", "trace.watch"),
    ("trace.telling", "trace.seen"),
    ("trace.delivery",),
    ("trace.story",),
    ("wishes", "access"),
    ("register",),
    ("settings", "open_forward", "doctor.facts"),
    ("events", "metrics", "limits", "shared"),
    ("kernel.sysctl", "kernel.netlink"),
    ("kernel.nft_flags", "kernel.nft_elements", "kernel.nft_batch", "kernel.bridges", "kernel.meant"),
    ("kernel.routes", "kernel.entries"),
    ("kernel.nft", "kernel.nft_rules", "kernel.conntrack", "kernel.network", "kernel.nft_monitor"),
    ("kernel.processes", "kernel.netns_paths", "kernel.listeners", "kernel.reservations", "kernel.only_one"),
    ("kernel.host", "kernel.lifetimes", "kernel.ports", "kernel.counters", "kernel.path", "kernel.nft_trace"),
    ("kernel.others", "kernel.reach", "kernel.doors"),
    ("trace.reading", "trace.live"),
    ("trace.session",),
    ("counts",),
    ("turns",),
    ("streams", "datagrams"),
    ("relay",),
    ("table",),
    ("enforcer",),
    ("reconciler",),
    ("notices", "obstacles"),
    ("sources.store", "sources.kept", "sources.watch"),
    ("sources.dropins",),
    ("sources.recovery",),
    ("service",),
    ("api.bodies", "api.problems"),
    ("api.openapi", "api.door", "api.views"),
    ("api.server",),
    ("api.routes",),
    ("check", "daemon"),
    ("__main__",),
    ("client", "columns"),
    ("printing", "naming", "report.markup", "report.style", "doctor.findings"),
    ("doctor.asking", "doctor.daemon", "doctor.rules", "doctor.host"),
    ("doctor.targets", "doctor.gathering"),
    ("doctor.judgement",),
    ("doctor.examination",),
    ("doctor.command",),
    ("changes", "oci_hook", "top", "report.page", "trace.command"),
    ("report.command",),
    ("cli",),
)
LEVEL = {f"nfportd.{name}": level for level, names in enumerate(ORDER) for name in names}

PURE = (
    *("errors", "notation", "model", "document", "validation", "desired", "ruleset", "topology", "flows"),
    *(
        "listing",
        "netlink",
        "elements",
        "drift",
        "pace",
        "loopback",
        "origins",
        "traffic",
        "wishes",
        "access",
        "register",
    ),
    *("messages", "matches", "forwarding", "firewalls"),
    *("translation", "trace.facts", "trace.near", "trace.others", "trace.watch", "trace.story", "trace.seen"),
    *("trace.telling", "trace.delivery"),
    *("doctor.facts", "doctor.findings"),
)
IMPURE = {
    "asyncio",
    "ctypes",
    "logging",
    "nftables",
    "os",
    "pathlib",
    "pyroute2",
    "random",
    "select",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "sys",
    "systemd",
    "tempfile",
    "threading",
    "time",
}


def module(path: Path) -> str:
    """`nfportd.kernel.nft` for nfportd/kernel/nft.py; a package is called by its folder."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


FILES = {module(path): path for path in sorted(PACKAGE.rglob("*.py"))}
PACKAGES = {"nfportd", *(f"nfportd.{name}" for name in ("api", "doctor", "kernel", "report", "sources", "trace"))}
MODULES = sorted(set(FILES) - PACKAGES)


def imports(name: str) -> set[str]:
    """Every module that this one imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                found.add(inside if inside in FILES else str(node.module))
    return found


def outside(name: str) -> set[str]:
    """The packages other than ours that a module imports."""
    return {found.partition(".")[0] for found in imports(name)} - {"nfportd"}


def test_every_module_has_its_place() -> None:
    assert set(LEVEL) == set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_imports_run_downward(name: str) -> None:
    upward = {each for each in imports(name) & set(MODULES) if LEVEL[each] >= LEVEL[name]}

    assert upward == set()


@pytest.mark.parametrize("name", [f"nfportd.{each}" for each in PURE])
def test_what_is_pure_knows_no_clock_no_files_and_no_kernel(name: str) -> None:
    assert outside(name) & IMPURE == set()


@pytest.mark.parametrize("name", [f"nfportd.{each}" for each in PURE])
def test_what_is_pure_imports_only_what_is_pure(name: str) -> None:
    assert imports(name) & set(MODULES) <= {f"nfportd.{each}" for each in PURE}


@pytest.mark.parametrize("name", [each for each in MODULES if each.startswith("nfportd.kernel.")])
def test_the_kernel_knows_no_yaml_no_sources_and_no_wiring(name: str) -> None:
    ours = {"nfportd.document", "nfportd.validation", "nfportd.settings", "nfportd.desired", "nfportd.reconciler"}

    assert (imports(name) & ours, "yaml" in outside(name)) == (set(), False)


@pytest.mark.parametrize("name", [each for each in MODULES if each.startswith("nfportd.sources.")])
def test_sources_know_no_nft_and_no_kernel(name: str) -> None:
    ours = {each for each in MODULES if each.startswith("nfportd.kernel")} | {"nfportd.ruleset", "nfportd.table"}

    assert (imports(name) & ours, outside(name) & {"nftables", "pyroute2"}) == (set(), set())


@pytest.mark.parametrize(
    ("package", "users"),
    [
        ("yaml", {"nfportd.document"}),
        ("nftables", {"nfportd.kernel.nft_worker"}),
        ("asyncinotify", {"nfportd.sources.watch", "nfportd.kernel.netns_paths"}),
        ("systemd", {"nfportd.journal", "nfportd.unit"}),
        (
            "click",
            {
                *(f"nfportd.{each}" for each in ("__main__", "changes", "cli", "naming", "top")),
                *(f"nfportd.{each}.command" for each in ("doctor", "report", "trace")),
            },
        ),
        ("jeepney", {"nfportd.open_forward"}),
        ("pyroute2", {"nfportd.kernel.path", "nfportd.kernel.reach"}),
    ],
)
def test_a_library_has_one_door(package: str, users: set[str]) -> None:
    assert {name for name in FILES if package in outside(name)} == users


def test_the_cni_plugin_stands_alone() -> None:
    quick = {"__future__", "_json", "_socket", "json", "os", "sys", "time"}
    only_for_types = {"collections", "typing"}

    assert imports("nfportd.cni") - {"collections.abc", "typing"} == quick
    assert outside("nfportd.cni") == quick | only_for_types
    assert [name for name in FILES if "nfportd.cni" in imports(name)] == []


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_is_under_450_lines(name: str) -> None:
    assert len(FILES[name].read_text().splitlines()) < 450


@pytest.mark.parametrize("name", MODULES)
def test_a_file_opens_with_its_job_and_its_one_idea(name: str) -> None:
    docstring = ast.get_docstring(ast.parse(FILES[name].read_text())) or ""

    assert ("one idea: " in docstring.replace("\n", " "), len(docstring.splitlines()) >= 3) == (True, True)


VAGUE = ("Manager", "Handler", "Helper", "Util", "Base", "Impl")


@pytest.mark.parametrize("name", MODULES)
def test_names_say_the_words_of_the_field(name: str) -> None:
    named = [
        node.name
        for node in ast.walk(ast.parse(FILES[name].read_text()))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]

    assert [each for each in named if each.endswith(VAGUE)] == []
