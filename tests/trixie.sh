#!/usr/bin/env bash
# Runs the tests on Debian 13 (nft 1.1.3, Python 3.13) against this kernel: tests/trixie.sh [PYTEST ARGUMENT]...
# With --root it only makes the root, with systemd 257 in it, and prints where it is.
# Exits with pytest's status, or 75 where no Debian 13 can be had. It must not know what the tests test.
# The one idea: a root made once and mounted read-only in namespaces of its own (mount, PID, network), so that the
# end of this process, however it comes, takes everything back.
set -euo pipefail
cd "$(dirname "$0")/.."

ROOT=$(realpath -m "${TRIXIE_ROOT:-build/trixie}")
PACKAGES=netbase,python3,python3-venv,python3-nftables,python3-systemd,python3-yaml
PACKAGES+=,nftables,iproute2,conntrack,procps,curl,systemd,systemd-sysv,dbus,firewalld,iptables,ufw,strace
# debootstrap does not find that this is the logind which firewalld's polkitd asks for
PACKAGES+=,libpam-systemd
PATH=$PATH:/usr/sbin:/sbin

# The mirrors from which this system installs its own release: apt itself reads its sources, of either format.
mirrors() {
    local suite uri
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    apt-get --print-uris update | sed -nE "s#^'(.*)/dists/($suite|stable)/InRelease' .*#\1#p" |
        while read -r uri; do
            case $uri in
                http:* | https:* | file:*) echo "$uri" ;;
                mirror+file:*) grep -oE '^https?:[^[:space:]]+' "${uri#mirror+file:}" ;;
            esac
        done
}

make_root() {
    local mirror partial=$ROOT.partial
    command -v debootstrap >/dev/null ||
        { apt-get update -q && apt-get install -qy --no-install-recommends debootstrap; }
    for mirror in $(mirrors); do
        echo "Debian 13 from $mirror into $ROOT"
        rm -rf --one-file-system "$partial"
        # debootstrap mounts /proc inside; a mount namespace of its own keeps that from outliving it.
        if unshare --mount debootstrap --variant=minbase --include="$PACKAGES" trixie "$partial" "$mirror" \
            >"$ROOT.log"; then
            rm -rf "$partial"/var/cache/apt/* "$partial"/var/lib/apt/lists/*
            mkdir "$partial/src"
            echo "$PACKAGES" >"$partial/opt/packages"
            rm -rf --one-file-system "$ROOT" # one with other packages
            mv -T "$partial" "$ROOT"
            return
        fi
    done
    tail "$ROOT.log" >&2
    echo "tests/trixie.sh: no mirror in apt's sources could give Debian 13" >&2
    return 1
}

# Wheels for the inside are fetched from outside, where pip and its certificates are in order.
fetch_wheels() {
    rm -rf "$ROOT/opt/wheels"
    .venv/bin/python - >"$ROOT.requirements" <<-'PYTHON'
	import tomllib
	config = tomllib.load(open("pyproject.toml", "rb"))
	project = config["project"]
	wanted = config["build-system"]["requires"] + project["dependencies"] + project["optional-dependencies"]["test"]
	wanted.append("editables")  # what hatchling asks for when -e is used
	print(*(w for w in wanted if not w.startswith("systemd-python")), sep="\n")  # no wheel: Debian's is inside
	PYTHON
    .venv/bin/python -m pip download -q --disable-pip-version-check --dest "$ROOT/opt/wheels" \
        --requirement "$ROOT.requirements" --only-binary=:all: --implementation cp --python-version 3.13
}

# Only in the namespaces: the tree appears as /src.
mount_root() {
    mount --bind "$ROOT" "$ROOT" # `ip netns exec` wants / to be a mount point
    mount --bind -o ro . "$ROOT/src"
    mount -t proc proc "$ROOT/proc"
    mount -t sysfs sysfs "$ROOT/sys"
    mount --rbind /dev "$ROOT/dev"
    mount -t tmpfs tmpfs "$ROOT/run"
    mount -t tmpfs tmpfs "$ROOT/tmp"
    ip link set lo up
}

in_root() {
    chroot "$ROOT" /usr/bin/env -i -C /src PATH=/opt/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LANG=C.UTF-8 \
        PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis "$@"
}

# pdeathsig: `unshare --fork` itself ignores SIGTERM.
in_namespaces() {
    setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --net tests/trixie.sh "$@"
}

ready() {
    mkdir -p "$(dirname "$ROOT")"
    exec 9>"$ROOT.lock" && flock 9
    [[ $(cat "$ROOT/opt/packages" 2>/dev/null) == "$PACKAGES" ]] || make_root || exit 75
    if ! cmp -s pyproject.toml "$ROOT/opt/venv/pyproject.toml"; then
        fetch_wheels
        in_namespaces --install
    fi
}

case ${1-} in
    --install)
        mount_root
        in_root /usr/bin/python3 -m venv --clear --system-site-packages /opt/venv
        in_root pip install -q --no-index --find-links /opt/wheels -e '/src[test]'
        cp pyproject.toml "$ROOT/opt/venv/"
        ;;
    --pytest)
        mount_root
        mount -o remount,bind,ro "$ROOT"
        in_root python -m pytest -p no:cacheprovider "${@:2}"
        ;;
    --root)
        ready >&2
        echo "$ROOT"
        ;;
    *)
        ready
        in_namespaces --pytest "$@"
        ;;
esac
