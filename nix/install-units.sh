#!/usr/bin/env bash
# install-units.sh SOURCE OUT: puts the units of SOURCE/systemd below OUT/lib, with the commands of OUT/bin, and the documents
# that they name below OUT/share/doc. NixOS takes them from there (systemd.packages, systemd.tmpfiles.packages).
set -euo pipefail
source=$1
out=$2

mkdir -p "$out/lib/systemd" "$out/share/doc/jobs"
cp -r "$source/systemd/system" "$out/lib/systemd/system"
cp -r "$source/systemd/sysusers.d" "$out/lib/sysusers.d"
cp -r "$source/systemd/tmpfiles.d" "$out/lib/tmpfiles.d"
cp -r "$source/docs/." "$out/share/doc/jobs/"
chmod -R u+w "$out/lib" "$out/share/doc/jobs"

# NixOS has had systemd 254 since 23.11.
for unit in jobs-node.service jobs-worker@.service; do
  mkdir -p "$out/lib/systemd/system/$unit.d"
  cp "$source/systemd/backoff.conf" "$out/lib/systemd/system/$unit.d/20-backoff.conf"
done

find "$out/lib/systemd" -type f -exec sed -i \
  -e "s|/usr/bin/jobs-|$out/bin/jobs-|g" \
  -e "s|file:///usr/share/doc/jobs/|file://$out/share/doc/jobs/|g" {} +
if grep -rn -e '/usr/bin/job' -e '/usr/share/doc/jobs' "$out/lib/systemd"; then
  echo "install-units.sh: these lines name what is not in $out" >&2
  exit 1
fi
