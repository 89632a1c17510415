#!/usr/bin/env bash
# Sets up a fresh Debian 12: system packages, .venv with hash-pinned dependencies, BPF objects.
# Called by `make`; does nothing that is already done, and says what it is doing.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '  set-up: %s\n' "$*"; }

# Package -> a program or file that shows it is there.
declare -A needed=(
  [python3-venv]=/usr/share/doc/python3-venv [libbpf1]=/usr/share/doc/libbpf1 [iproute2]=/usr/share/doc/iproute2
  [curl]=/usr/share/doc/curl [iputils-ping]=/usr/share/doc/iputils-ping [bpftool]=/usr/share/doc/bpftool
  [ca-certificates]=/usr/share/doc/ca-certificates [traceroute]=/usr/share/doc/traceroute
  [iputils-tracepath]=/usr/share/doc/iputils-tracepath [nmap]=/usr/share/doc/nmap [hping3]=/usr/share/doc/hping3
  [dnsmasq-base]=/usr/share/doc/dnsmasq-base [dnsperf]=/usr/share/doc/dnsperf
  [nghttp2-server]=/usr/share/doc/nghttp2-server [openssh-client]=/usr/share/doc/openssh-client [openssl]=/usr/share/doc/openssl
  [git]=/usr/share/doc/git [wget]=/usr/share/doc/wget [bind9-dnsutils]=/usr/share/doc/bind9-dnsutils
  [certinfo]=/usr/share/doc/certinfo
  [iperf3]=/usr/share/doc/iperf3 [wireguard-go]=/usr/share/doc/wireguard-go [wireguard-tools]=/usr/share/doc/wireguard-tools
  [nftables]=/usr/share/doc/nftables [systemd]=/usr/share/doc/systemd [crun]=/usr/share/doc/crun
)
# For single tests. Where systemd runs their packages would start servers now and at every boot: not ours to do.
if [ ! -d /run/systemd/system ]; then
  for package in coturn openssh-server haproxy; do needed[$package]=/usr/share/doc/$package; done
fi
missing=()
for package in "${!needed[@]}"; do [ -e "${needed[$package]}" ] || missing+=("$package"); done
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "softunicast set-up: packages are missing (${missing[*]}); run as root, or: apt-get install ${missing[*]}" >&2
    exit 3
  fi
  say "installing ${missing[*]}"
  apt-get -qq update >/dev/null
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
fi

python=python3
"$python" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || python=/usr/bin/python3
if [ ! -x .venv/bin/python ]; then
  say "creating .venv"
  "$python" -m venv .venv
fi
if ! cmp -s requirements/dev.txt .venv/.requirements; then
  say "installing Python packages (hash-pinned)"
  .venv/bin/pip install --quiet --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/dev.txt
  cp requirements/dev.txt .venv/.requirements
fi
say "building softunicast and its BPF objects"
.venv/bin/pip install --quiet --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
