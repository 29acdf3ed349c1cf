# Sourced by scripts/setup: what is there, and what comes from the system's own package suites.
# shellcheck shell=bash
# shellcheck disable=SC2154 # `tools` is set by scripts/setup

say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 1; }

# The system's packages that the build and the scripts need, each with a file that shows it.
system_packages() {
  cat <<'END'
gcc         /usr/bin/gcc
libc6-dev   /usr/include/stdio.h
make        /usr/bin/make
zstd        /usr/bin/zstd
patchelf    /usr/bin/patchelf
tzdata      /usr/share/zoneinfo/UTC
python3     /usr/bin/python3
libfaketime /usr/share/doc/libfaketime/copyright
END
}

missing_packages() {
  local package file
  while read -r package file; do [[ -e $file ]] || echo "$package"; done < <(system_packages)
}

has_system_server() { [[ -x /usr/lib/postgresql/$1/bin/initdb ]]; }

# Tells whether a piece is complete. Its link is made last, so the link is the stamp.
has() {
  case $1 in
    pg-*) [[ -x $tools/pg/${1#pg-}/bin/initdb ]] ;;
    pgbackrest) [[ -x $tools/bin/pgbackrest ]] ;;
  esac
}

system_is_ready() { [[ -z $(missing_packages) ]] && id -u postgres > /dev/null 2>&1; }

system_install() {
  say "installing from the system's suites: $*"
  # A machine that never ran `apt-get update` knows no packages; one that ran it long ago may
  # know files that the mirror no longer has.
  DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 apt-get -qq install -y \
    --no-install-recommends "$@" > /dev/null 2>&1 && return
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1 apt-get -qq install -y \
    --no-install-recommends "$@" > /dev/null
}

# Debian's server package makes and starts a cluster of its own unless it is told not to.
forbid_default_cluster() {
  local conf=/etc/postgresql-common/createcluster.conf
  if [[ -e $conf ]] && grep -Eq '^create_main_cluster *= *false' "$conf"; then return; fi
  say "no default cluster: create_main_cluster = false in $conf"
  mkdir -p "$(dirname "$conf")"
  echo 'create_main_cluster = false' >> "$conf"
}

prepare_system() {
  local packages
  mapfile -t packages < <(missing_packages)
  if ((${#packages[@]})); then system_install "${packages[@]}"; fi
}

# Servers refuse to run as root. Debian's server package brings this user, so this comes last.
ensure_user() {
  if ! id -u postgres > /dev/null 2>&1; then
    say "adding the user postgres"
    useradd --system --user-group --home-dir /var/lib/postgresql --shell /bin/bash postgres
  fi
}

system_offers() {
  local candidate
  candidate=$(LC_ALL=C apt-cache policy "$1" 2> /dev/null | sed -n 's/^ *Candidate: //p')
  [[ -n $candidate && $candidate != "(none)" ]]
}

# Links a server that the system holds, as `bin` below a directory of ours.
link_system_server() {
  mkdir -p "$tools/pg/$1"
  ln -sfn "/usr/lib/postgresql/$1/bin" "$tools/pg/$1/bin"
}

provide() {
  case $1 in
    pg-15) provide_server 15 bookworm ;;
    pg-17) provide_server 17 trixie ;;
    pg-18) provide_server 18 forky ;;
    pgbackrest) provide_program forky pgbackrest ;;
  esac
}

provide_program() {
  unpack_from "$1" "$2" "$2"
  publish_program "$2"
}

provide_server() {
  local major=$1 suite=$2
  # 15 is the major of Debian 12: there the package is installed. Later majors are never
  # installed, even where they could be.
  if ! has_system_server "$major" && ((major == 15)); then
    system_offers postgresql-15 || apt-get -qq update
    if system_offers postgresql-15; then
      forbid_default_cluster
      system_install postgresql-15 postgresql-client-15
    fi
  fi
  if has_system_server "$major"; then
    link_system_server "$major"
  else
    unpack_from "$suite" "pg-$major" "postgresql-$major" "postgresql-client-$major"
    publish_server "$major"
  fi
}
