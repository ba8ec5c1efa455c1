#!/bin/sh
# Makes of a fresh Debian what the tests boot; mmdebstrap runs it with the new root's path. The disk, the kernel and its
# initial file system go into the files of a directory.
set -eu
root=$1
made=$2
here=$(dirname "$0")

echo jobs-vm > "$root/etc/hostname"
printf '127.0.0.1 localhost jobs-vm\n::1 localhost\n' > "$root/etc/hosts"
: > "$root/etc/machine-id"
# The second disk holds what a node keeps: a test can fill it, cut its power, or carry it to another machine.
cat > "$root/etc/fstab" <<TABLE
/dev/vda / ext4 errors=remount-ro 0 1
LABEL=jobs-data /var/lib/jobs ext4 defaults 0 2
TABLE
mkdir -p "$root/var/lib/jobs" "$root/usr/lib/jobs-vm" "$root/etc/systemd/journald.conf.d"
# What a run printed is read from outside, also after a machine has died.
cat > "$root/etc/systemd/journald.conf.d/tests.conf" <<CONF
[Journal]
Storage=persistent
RateLimitBurst=0
CONF
install -m 0644 "$here/agent.py" "$root/usr/lib/jobs-vm/agent.py"
install -m 0644 "$here/vm-agent.service" "$root/etc/systemd/system/"
chroot "$root" systemctl enable vm-agent.service
# Nothing that takes a machine's time without being asked.
chroot "$root" systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
  fstrim.timer systemd-networkd-wait-online.service getty@tty1.service
chroot "$root" passwd -d root
for user in alice bob mallory; do
  chroot "$root" useradd --create-home --shell /bin/bash "$user"
done
rm -rf "$root/usr/share/doc" "$root/usr/share/man" "$root/usr/share/locale" "$root/var/cache/apt" "$root/var/lib/apt/lists"
mkdir -p "$root/var/cache/apt/archives/partial" "$root/var/lib/apt/lists/partial"

cat "$root"/boot/vmlinuz-* > "$made/vmlinuz"
cat "$root"/boot/initrd.img-* > "$made/initrd.img"
# Through a mount of its own, below which there is neither /proc nor /sys of the new root.
plain=$(mktemp -d)
mount --bind "$root" "$plain"
PATH="$PATH:/usr/sbin:/sbin" mkfs.ext4 -q -F -L root -d "$plain" "$made/root.raw"
umount "$plain"
rmdir "$plain"
