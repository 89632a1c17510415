# Becomes systemd as the first process of a machine of its own, see machine.py. Runs in new namespaces of mounts,
# processes, cgroups, names and IPC, in the network namespace of a node of a lab. Nothing of the host may change by it:
# the root is read-only, /run, /dev and the tree of cgroups are the machine's own, and of /proc/sys only net is writable.
#
# LAB: a folder below /run that stays as it is. AGENT: what is /run/softunicast there. PROGRAMS: what is in
# /usr/local/sbin, where systemd looks for programs.
set -eu
umount -n -l -R /sys/fs/cgroup
mount -n -t cgroup2 cgroup2 /sys/fs/cgroup
umount -n -l -R /run/netns || true # else the namespaces of other labs lived as long as this machine

mount -n -t tmpfs -o mode=755 tmpfs /mnt
mkdir -p "/mnt/${LAB#/run/}" /mnt/softunicast
mount -n --rbind "$LAB" "/mnt/${LAB#/run/}"
mount -n --bind "$AGENT" /mnt/softunicast
mount -n --move /mnt /run

mount -n -t tmpfs -o mode=755 tmpfs /mnt
for node in null zero full random urandom tty; do
  touch /mnt/$node
  mount -n --bind /dev/$node /mnt/$node
done
mkdir /mnt/pts /mnt/shm
mount -n -t devpts -o newinstance,ptmxmode=666 devpts /mnt/pts
ln -s pts/ptmx /mnt/ptmx
ln -s /proc/self/fd /mnt/fd
mount -n --move /mnt /dev

mount -n --bind "$PROGRAMS" /usr/local/sbin
mount -n -t tmpfs -o mode=755 tmpfs /var/lib
mount -n --bind /proc/sys /proc/sys
mount -n --bind /proc/sys/net /proc/sys/net
mount -n -o remount,bind,ro /proc/sys
mount -n -o remount,bind,ro /
exec env -i container=softunicast-test PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_UNIT_PATH="$UNITS" \
  SYSTEMD_GENERATOR_PATH=/nowhere SYSTEMD_ENVIRONMENT_GENERATOR_PATH=/nowhere \
  setpriv --bounding-set -sys_module,-sys_boot,-sys_time \
  /lib/systemd/systemd --system --unit=machine.target --log-target=console --show-status=no
