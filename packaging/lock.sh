#!/usr/bin/env bash
# Pins what an installed nfportd brings along, with the hash of every file: packaging/lock.sh (`make lock`).
# It must not install anything into the development environment. The one idea: what Debian has itself in the version
# that is needed (PyYAML, systemd-python, and libnftables' module) comes from Debian; the rest is in requirements.lock.
set -euo pipefail
cd "$(dirname "$0")/.."

/usr/bin/python3 -m venv --clear build/lock
build/lock/bin/pip install -q --disable-pip-version-check 'pip-tools>=7.5,<8'
build/lock/bin/python - >build/lock/requirements.in <<-'PYTHON'
	import tomllib
	needs = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]
	print(*(need for need in needs if not need.startswith(("PyYAML", "systemd-python"))), sep="\n")
PYTHON
{
    echo "# Made by \`make lock\` from pyproject.toml, for Python 3.11 and newer. Used by \`make install\` and \`make deb\`."
    build/lock/bin/pip-compile --quiet --upgrade --generate-hashes --strip-extras --no-header --no-annotate \
        --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --resolver=backtracking \
        --output-file=- build/lock/requirements.in
} >build/lock/requirements.lock
cp build/lock/requirements.lock packaging/
