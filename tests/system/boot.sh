#!/usr/bin/env bash
# Boots a systemd in a container, again for each line on standard input: boot.sh LOWER SCRATCH NETNS CGROUP [SRC:DST]...
# Runs as the first process of mount and PID namespaces of its own: when it ends, everything has ended and is unmounted.
# It must not know what is tested. The one idea: the container's root is an overlay, so that a root is made once (or is
# this host's own) and never written to, and what was written stays for the next boot.
set -euo pipefail
lower=$1 scratch=$2 netns=$3 cgroup=$4
shift 4
root=$scratch/root

mount -t tmpfs -o mode=700 nfportd-test "$scratch"
mkdir "$scratch"/{upper,work,root,cgroup}
# A cgroup of its own, in version 2 also where the host mixes versions; systemd-nspawn looks at /sys/fs/cgroup only.
mount -t cgroup2 cgroup2 "$scratch/cgroup"
mkdir "$scratch/cgroup/$cgroup"
echo 0 >"$scratch/cgroup/$cgroup/cgroup.procs"
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# systemd-nspawn cleans up after itself only on a tmpfs.
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=755 nfportd-test /run/systemd/nspawn
mount -t overlay nfportd-test -o "lowerdir=$lower,upperdir=$scratch/upper,workdir=$scratch/work" "$root"

# Nothing that the lower root has enabled or remembers.
rm -rf "$root"/etc/systemd/system/*.wants "$root"/var/log/journal "$root"/etc/nfportd "$root"/etc/nfportd.d
rm -f "$root/etc/machine-id" "$root/.dockerenv"
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
for unit in getty.target console-getty.service systemd-{firstboot,resolved,networkd,timesyncd,logind}.service tmp.mount; do
    ln -sfn /dev/null "$root/etc/systemd/system/$unit"
done
: >"$root/etc/fstab"
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\n' >"$root/etc/systemd/journald.conf.d/test.conf"

# nfportd as it is installed: a venv at /opt/nfportd with its modules compiled; what it depends on is mounted there.
tree=$(dirname "$(realpath "$0")")/../..
packages=$(chroot "$root" /usr/bin/python3 -c 'import sys; print("lib/python%d.%d/site-packages" % sys.version_info[:2])')
mkdir -p "$root/opt/nfportd/bin" "$root/opt/nfportd/$packages"
printf 'home = /usr/bin\ninclude-system-site-packages = true\n' >"$root/opt/nfportd/pyvenv.cfg"
cp -r "$tree/nfportd" "$root/opt/nfportd/$packages/"
chroot "$root" /usr/bin/python3 -m compileall -q "/opt/nfportd/$packages/nfportd"
printf '/opt/nfportd/venv/%s\n' "$packages" >"$root/opt/nfportd/$packages/tree.pth"
ln -s /usr/bin/python3 "$root/opt/nfportd/bin/python"
for program in nfportd:__main__ nfportctl:cli; do
    file=$root/opt/nfportd/bin/${program%:*}
    printf '#!/opt/nfportd/bin/python\nfrom nfportd.%s import main\nmain()\n' "${program#*:}" >"$file"
    chmod 755 "$file"
done
install -m 644 "$tree"/systemd/nfportd.{service,socket} "$root/usr/lib/systemd/system/"
install -m 644 -D "$tree/systemd/nfportd.catalog" "$root/usr/lib/systemd/catalog/nfportd.catalog"
install -m 644 -D "$tree/systemd/nfportd.sysusers" "$root/usr/lib/sysusers.d/nfportd.conf"
install -m 644 -D "$tree/systemd/nfportd.tmpfiles" "$root/usr/lib/tmpfiles.d/nfportd.conf"
chroot "$root" systemd-sysusers
systemctl --quiet --root="$root" enable nfportd.service

binds=()
for bind; do binds+=("--bind-ro=$bind"); done
while read -r; do
    # /proc/sys/net is writable as on a host of its own, which nspawn assumes only with a network that it made.
    # CAP_BPF and bpf(): else IPAddressDeny= and DevicePolicy= would silently not hold.
    SYSTEMD_NSPAWN_API_VFS_WRITABLE=network systemd-nspawn --quiet --boot --directory="$root" --machine="$cgroup" --network-namespace-path="$netns" \
        --register=no --keep-unit --console=read-only --link-journal=no --resolv-conf=off --timezone=off \
        --capability=CAP_NET_ADMIN,CAP_BPF,CAP_PERFMON --system-call-filter=bpf "${binds[@]}" -- \
        systemd.show_status=0 </dev/null || true
    echo off
done
