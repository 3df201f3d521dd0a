#!/usr/bin/env bash
# `make install` and `make uninstall`: packaging/install.sh install|uninstall, with DESTDIR and PREFIX as usual.
# It must not know how nfportd works. The one idea: what install puts in place is said once, in files(); uninstall takes
# exactly that away, and what the service has written, but keeps settings and drop-ins that somebody has changed.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

PREFIX=${PREFIX:-/usr/local}
DESTDIR=${DESTDIR:-}
VENV=/opt/nfportd

# Source and place of each file; those without a source are made by completions.py.
files() {
    cat <<-END
		systemd/nfportd.service $PREFIX/lib/systemd/system/nfportd.service
		systemd/nfportd.socket $PREFIX/lib/systemd/system/nfportd.socket
		systemd/nfportd.catalog $PREFIX/lib/systemd/catalog/nfportd.catalog
		systemd/nfportd.sysusers $PREFIX/lib/sysusers.d/nfportd.conf
		systemd/nfportd.tmpfiles $PREFIX/lib/tmpfiles.d/nfportd.conf
		docs/man/nfportd.8 $PREFIX/share/man/man8/nfportd.8
		docs/man/nfportd-cni.8 $PREFIX/share/man/man8/nfportd-cni.8
		docs/man/nfportctl.1 $PREFIX/share/man/man1/nfportctl.1
		docs/man/nfportd.yaml.5 $PREFIX/share/man/man5/nfportd.yaml.5
	END
    for program in nfportd nfportctl; do
        echo "- $PREFIX/share/bash-completion/completions/$program"
        echo "- $PREFIX/share/zsh/site-functions/_$program"
        echo "- $PREFIX/share/fish/vendor_completions.d/$program.fish"
    done
}
PROGRAMS="nfportd/cni.py:/opt/cni/bin/nfportd-cni"
LINKS="nfportd:$PREFIX/sbin/nfportd nfportctl:$PREFIX/bin/nfportctl"
CONFIG="nfportd.yaml:/etc/nfportd/nfportd.yaml nfportd.d/example.yaml:/etc/nfportd.d/example.yaml"

# Whether this system itself is meant, and runs systemd.
live() { [[ -z $DESTDIR && -d /run/systemd/system ]]; }

make_venv() {
    local place=$DESTDIR$VENV version
    version=$(/usr/bin/python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    # Another Python since: its modules are of no use any more.
    [[ -d $place/lib/$version ]] || /usr/bin/python3 -m venv --clear --system-site-packages "$place"
    # Only what is missing is fetched: a second run needs no network.
    pip --require-hashes --only-binary :all: --requirement packaging/requirements.lock
    pip --no-index --no-deps --no-build-isolation --force-reinstall .
    /usr/bin/python3 -m compileall -q ${DESTDIR:+-s "$DESTDIR" -p /} "$place"/lib/python*/site-packages
}

pip() {
    "$DESTDIR$VENV/bin/python" -m pip install -q --disable-pip-version-check --no-warn-script-location --no-compile "$@"
}

# A venv knows its own place.
move_venv() {
    grep -rlIF --null "$DESTDIR$VENV" "$DESTDIR$VENV"/bin "$DESTDIR$VENV/pyvenv.cfg" |
        xargs -0 sed -i "s#$DESTDIR$VENV#$VENV#g"
}

install_all() {
    local source place each
    make_venv
    while read -r source place; do
        [[ $source == - ]] || install -D -m 644 "$source" "$DESTDIR$place"
    done < <(files)
    "$DESTDIR$VENV/bin/python" packaging/completions.py "$DESTDIR$PREFIX/share" site-functions
    for each in $PROGRAMS; do install -D -m 755 "${each%:*}" "$DESTDIR${each#*:}"; done
    for each in $LINKS; do
        install -d "$DESTDIR$(dirname "${each#*:}")"
        ln -sfn "$VENV/bin/${each%:*}" "$DESTDIR${each#*:}"
    done
    for each in $CONFIG; do
        place=$DESTDIR${each#*:}
        [[ -e $place ]] || install -D -m 644 "etc/${each%:*}" "$place"
    done
    if [[ -n $DESTDIR ]]; then move_venv; else tell_the_system; fi
}

tell_the_system() {
    systemd-sysusers nfportd.conf
    systemd-tmpfiles --create nfportd.conf
    journalctl --update-catalog
    if live; then
        systemctl daemon-reload
        # What is published stays in force meanwhile.
        systemctl try-restart nfportd.service
    fi
    echo "nfportd is installed. To start it now and at each boot: systemctl enable --now nfportd.service"
}

uninstall_all() {
    local place each
    if live; then
        systemctl --quiet disable --now nfportd.service nfportd.socket 2>/dev/null || true
        # With on_stop: keep, the stop has left it.
        nft delete table inet nfportd 2>/dev/null || true
    fi
    while read -r _ place; do rm -f "$DESTDIR$place"; done < <(files)
    for each in $PROGRAMS $LINKS; do rm -f "$DESTDIR${each#*:}"; done
    rm -rf --one-file-system "$DESTDIR$VENV" "$DESTDIR/var/lib/nfportd" "$DESTDIR/run/nfportd"
    rmdir "$DESTDIR/opt/cni/bin" "$DESTDIR/opt/cni" 2>/dev/null || true
    for each in $CONFIG; do
        if cmp -s "etc/${each%:*}" "$DESTDIR${each#*:}"; then rm "$DESTDIR${each#*:}"; fi
    done
    for place in "$DESTDIR"/etc/nfportd{,.d}; do
        rmdir "$place" 2>/dev/null || [[ ! -e $place ]] || echo "kept: $place"
    done
    if [[ -z $DESTDIR ]]; then
        journalctl --update-catalog
        ! live || systemctl daemon-reload
        ! getent passwd nfportd >/dev/null || userdel nfportd
    fi
}

case ${1-} in
    install) install_all ;;
    uninstall) uninstall_all ;;
    *) sed -n '2,4s/^# //p' "$0" >&2; exit 2 ;;
esac
