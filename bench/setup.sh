#!/usr/bin/env bash
# Installs what the benchmarks compare with and measure by (Debian 12). Called by the `bench` targets of make;
# does nothing that is already done. No service is started: RUNLEVEL=1 keeps nginx's from coming up.
set -euo pipefail

declare -A needed=([nftables]=nft [iptables]=iptables [iperf3]=iperf3 [wrk]=wrk [nginx-light]=nginx)
missing=()
for package in "${!needed[@]}"; do PATH="$PATH:/usr/sbin" command -v "${needed[$package]}" >/dev/null || missing+=("$package"); done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
  echo "bench set-up: packages are missing (${missing[*]}); run as root, or: apt-get install ${missing[*]}" >&2
  exit 3
fi
printf '  set-up: installing %s\n' "${missing[*]}"
apt-get -qq update >/dev/null
RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
