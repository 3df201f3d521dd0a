#!/usr/bin/env bash
# Builds the Debian package for the release that this system runs: packaging/deb.sh [OUTPUT] (`make deb`); with
# --trixie for Debian 13, in a root made for that. Prints where the package is.
# It must not know what is in the package; packaging/debian does. The one idea: everything from outside is fetched first
# and held against the hashes in requirements.lock; what builds the package has no need of a network, nor of a compiler
# (-d: dpkg-buildpackage would insist on one).
set -euo pipefail
cd "$(dirname "$0")/.."

NEEDED=debhelper,dh-python,dpkg-dev,python3,python3-hatchling,python3-nftables,python3-pip,python3-systemd,python3-yaml

version() { sed -nE 's/^version = "(.*)"/\1/p' pyproject.toml; }

# The tree as a source package, with the wheels for a Python version: source DIR DEBIAN PYTHON
source_tree() {
    rm -rf --one-file-system "$1"
    mkdir -p "$1"
    cp -r nfportd etc docs systemd packaging pyproject.toml README.md CHANGELOG.md LICENSE "$1"
    find "$1" -name __pycache__ -exec rm -rf {} +
    mv "$1/packaging/debian" "$1/debian"
    cat >"$1/debian/changelog" <<-END
		nfportd ($(version)+deb$2) stable; urgency=medium

		  * What is new is in /usr/share/doc/nfportd/CHANGELOG.md.

		 -- $(sed -n 's/^Maintainer: //p' packaging/debian/control)  $(date -R -r CHANGELOG.md)
	END
    /usr/bin/python3 -m pip download -q --disable-pip-version-check --dest "$1/debian/wheels" --require-hashes \
        --no-deps --only-binary :all: --implementation cp --python-version "$3" \
        --requirement packaging/requirements.lock
}

# A root of Debian 13 with what a build needs, from the mirror that gave the one of the tests.
trixie_root() {
    local root=$1 mirror
    [[ ! -d $root ]] || return 0
    mirror=$(sed -nE 's/^deb (\[[^]]*\] )?(\S+) trixie .*/\2/p' "$(tests/trixie.sh --root)/etc/apt/sources.list" | head -1)
    rm -rf --one-file-system "$root.partial"
    unshare --mount debootstrap --variant=minbase --include="$NEEDED" trixie "$root.partial" "$mirror" >"$root.log"
    mv -T "$root.partial" "$root"
}

case ${1-} in
    --trixie)
        mkdir -p build/deb
        trixie_root build/deb/trixie
        rm -rf --one-file-system build/deb/trixie/build
        source_tree build/deb/trixie/build/nfportd 13 3.13
        unshare --mount --net chroot build/deb/trixie /usr/bin/env -i -C /build/nfportd \
            PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/build LANG=C.UTF-8 dpkg-buildpackage -b -d -us -uc >build/deb/trixie.log 2>&1 ||
            { tail -40 build/deb/trixie.log >&2; exit 1; }
        output=${2:-build/deb}
        built=build/deb/trixie/build
        ;;
    *)
        . /etc/os-release
        source_tree build/deb/source/nfportd "$VERSION_ID" "$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
        (cd build/deb/source/nfportd && env -u VIRTUAL_ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin dpkg-buildpackage -b -d -us -uc) >build/deb/build.log 2>&1 ||
            { tail -40 build/deb/build.log >&2; exit 1; }
        output=${1:-build/deb}
        built=build/deb/source
        ;;
esac
mkdir -p "$output"
for package in "$built"/nfportd_*.deb; do
    mv "$package" "$output/"
    echo "$output/$(basename "$package")"
done
