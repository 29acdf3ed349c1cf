# Sourced by scripts/setup: packages of another Debian suite, unpacked beside the system.
#
# A private apt (own state, cache and sources, no installed packages) fetches the packages and the
# libraries they need, down to the C library, from the mirror that the system's apt uses, and
# checks the suite's signature. The programs are then told to use these libraries.
# shellcheck shell=bash
# shellcheck disable=SC2154 # `tools` is set by scripts/setup

keyring=/usr/share/keyrings/debian-archive-keyring.gpg

debian_mirror() {
  apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' 'Label: Debian' | sort -u | head -n 1
}

# Writes the configuration of the private apt for one suite into a directory.
private_apt_config() {
  local dir=$1 suite=$2 mirror
  mirror=$(debian_mirror)
  if [[ -z $mirror ]]; then # the label is known only after an update
    apt-get -qq update
    mirror=$(debian_mirror)
  fi
  [[ -n $mirror ]] || die "apt has no Debian mirror among its sources: cannot fetch from $suite"
  mkdir -p "$dir"/{parts,preferences,state/lists/partial,cache/archives/partial}
  : > "$dir/status"
  echo "deb [signed-by=$keyring] $mirror $suite main" > "$dir/sources.list"
  {
    # Proxies and the like are kept, hooks and extra downloads are not.
    apt-config dump | grep '^Acquire::' | grep -v '^Acquire::IndexTargets' || true
    cat <<END
Dir::State "$dir/state";
Dir::State::status "$dir/status";
Dir::Cache "$dir/cache";
Dir::Etc::parts "$dir/parts";
Dir::Etc::main "$dir/parts/none";
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "$dir/parts";
Dir::Etc::preferences "$dir/parts/none";
Dir::Etc::preferencesparts "$dir/preferences";
Acquire::Languages "none";
END
  } > "$dir/apt.conf"
}

# Of all that an empty system would need, picks the packages themselves and shared libraries.
# Left out: Perl, systemd, PAM's modules, data, and LLVM (no JIT: 26 MB less).
choose_packages() {
  local wanted=" $* " package
  while read -r package; do
    if [[ $wanted == *" $package "* ]]; then echo "$package"; continue; fi
    case $package in
      *-perl | *-common | *-extra | *-bin | *-db | *-l10n) ;;
      libperl* | libllvm* | libz3-* | libpam-modules* | libsystemd-shared | libdebconfclient*) ;;
      libdb[0-9]* | libgdbm* | libproc2* | libsemanage* | libsepol* | libncursesw*) ;;
      lib* | zlib1g) echo "$package" ;;
    esac
  done
}

# Fetches packages of a suite with their libraries and unpacks them to unpacked/<name>.
unpack_from() {
  local suite=$1 name=$2 dir=$tools/unpacked/$2 apt_dir=$tools/apt/$1 packages deb
  shift 2
  say "unpacking $* of Debian $suite into $dir"
  command -v patchelf > /dev/null || die "patchelf is missing"
  private_apt_config "$apt_dir" "$suite"
  local -x APT_CONFIG=$apt_dir/apt.conf
  apt-get -qq update || die "apt cannot use the suite $suite of the system's mirror, see above"
  mapfile -t packages < <(apt-get -qq --simulate --no-install-recommends install "$@" |
    awk '/^Inst / { print $2 }' | choose_packages "$@")
  ((${#packages[@]})) || die "the suite $suite has no $*"
  rm -rf "$apt_dir/debs" "$dir"
  mkdir -p "$apt_dir/debs" "$dir"
  chmod 777 "$apt_dir/debs" # apt downloads as a user of its own
  (cd "$apt_dir/debs" && apt-get -qq download "${packages[@]}" > /dev/null)
  for deb in "$apt_dir"/debs/*.deb; do dpkg-deb -x "$deb" "$dir"; done
  # Without LLVM there is no JIT, and PostgreSQL must not try to load it.
  rm -rf "$dir"/usr/lib/postgresql/*/lib/{llvmjit.so,llvmjit_types.bc,bitcode} "$dir/usr/share/doc"
  rm -rf "$apt_dir"
  point_programs_at_libraries "$dir"
}

# Sets loader and library path of every program. The path is of the kind that libraries inherit
# from the program (DT_RPATH), so the libraries themselves stay as they are.
point_programs_at_libraries() {
  local dir=$1 loader program libraries
  loader=$(find "$dir" -path '*-linux-*/ld-linux*.so.*' | head -n 1)
  [[ -n $loader ]] || die "no program loader in $dir"
  libraries=$(dirname "$loader")
  for program in "$dir"/usr/bin/pgbackrest "$dir"/usr/lib/postgresql/*/bin/*; do
    is_elf "$program" || continue
    patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$libraries" "$program"
    require_libraries "$loader" "$libraries" "$program"
  done
  for program in "$dir"/usr/lib/postgresql/*/lib/*.so; do
    if is_elf "$program"; then require_libraries "$loader" "$libraries" "$program"; fi
  done
}

is_elf() { [[ -f $1 ]] && head -c 4 "$1" | grep -q ELF; }

require_libraries() {
  local loader=$1 libraries=$2 program=$3
  if "$loader" --library-path "$libraries" --list "$program" | grep -F 'not found' >&2; then
    die "$program lacks a library"
  fi
}

# Makes an unpacked server visible. The link comes last and is the stamp of `has`.
publish_server() {
  "$tools/unpacked/pg-$1/usr/lib/postgresql/$1/bin/postgres" --version > /dev/null
  mkdir -p "$tools/pg"
  ln -sfn "../unpacked/pg-$1/usr/lib/postgresql/$1" "$tools/pg/$1"
}

publish_program() {
  mkdir -p "$tools/bin"
  ln -sfn "../unpacked/$1/usr/bin/$1" "$tools/bin/$1"
}
