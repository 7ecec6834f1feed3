#!/bin/bash
# two_hosts.sh COMMAND...: two hosts, a (10.78.0.1) and b (10.78.0.2), joined by a virtual cable, while COMMAND runs.
#
# COMMAND runs outside of both. `on a PROGRAM...` runs a program on a host; `ip -n a link set eth0 down` cuts the cable.
# Needs root, ip, unshare and nsenter; nothing is left when COMMAND ends.
set -eu
if [ "${INSIDE:-}" != 1 ]; then
  exec env INSIDE=1 unshare --fork --kill-child --pid --mount-proc --mount --net --uts -- bash "$0" "$@"
fi
mkdir -p /run/netns
mount -t tmpfs none /run/netns
hosts=$(mktemp)
printf '127.0.0.1 localhost\n10.78.0.1 a\n10.78.0.2 b\n' >"$hosts"
mount --bind "$hosts" /etc/hosts
rm -f "$hosts"
ip netns add a
ip netns add b
ip link add eth0 netns a type veth peer name eth0 netns b
for host in a b; do
  ip -n $host link set lo up
  ip -n $host link set eth0 up
done
ip -n a addr add 10.78.0.1/24 dev eth0
ip -n b addr add 10.78.0.2/24 dev eth0
on() {
  local host=$1
  shift
  nsenter --net=/run/netns/"$host" unshare --uts -- sh -c 'hostname "$0"; exec "$@"' "$host" "$@"
}
export -f on
rc=0
"$@" || rc=$?
exit $rc
