"""All that is judged, in the order in which a person would look.

Must not read anything. The one idea: a list of checks, each of which has a name, so that the report can say what was
fine.
"""

from __future__ import annotations

from nfportd.doctor import daemon, host, rules, targets
from nfportd.doctor.facts import Facts
from nfportd.doctor.findings import Check, Finding, Report, Unseen

CHECKS: tuple[Check, ...] = (*daemon.CHECKS, *rules.CHECKS, *host.CHECKS, *targets.CHECKS)


def judge(facts: Facts) -> Report:
    """What is wrong with a host, errors first."""
    findings: list[Finding] = []
    checked: list[str] = []
    not_checked: list[tuple[str, str]] = []
    for check in CHECKS:
        said = list(check.judge(facts))
        findings += [each for each in said if isinstance(each, Finding)]
        not_checked += [(check.name, each.why) for each in said if isinstance(each, Unseen)]
        if not said:
            checked.append(check.name)
    findings.sort(key=lambda finding: finding.severity != "error")
    return Report(tuple(findings), tuple(checked), tuple(not_checked))
