#!/bin/sh
# A guest sees its devices where they are in dom0, on three buses and behind a bridge of its own, and they come and go.
#: suite bookworm
#: device e1000e,netdev=n0,addr=5
#: device pcie-root-port,id=rp1,chassis=1,addr=6
#: device e1000e,netdev=n1,bus=rp1
#: device pci-bridge,id=bridge,chassis_nr=2,shpc=off,addr=7
#: device e1000,netdev=n2,bus=bridge,addr=4
#: device rtl8139,netdev=n3,bus=bridge,addr=2
#: timeout 900
. /rig/scenarios/lib.sh
ON_BUS_0=0000:00:05.0
PORT=0000:00:06.0
BELOW_PORT=0000:01:00.0
BRIDGE=0000:00:07.0
BEHIND=0000:02:04.0
BEHIND_TOO=0000:02:02.0
ALL="$ON_BUS_0 $BELOW_PORT $BRIDGE $BEHIND $BEHIND_TOO"

# Shell: address and ids of the functions that lspci shows, such as "0000:00:05.0 8086:10d3".
LIST="lspci -Dn | awk '{ print \$1, \$3 }' | sort"
in_dom0() { sh -c "$LIST" | grep -E "$(echo "$*" | tr ' ' '|')"; }
in_g1() { in_guest g1 "$LIST"; }
roots() {
    dir=/local/domain/$(xl domid g1-bulkhead)/backend/pci/$(xl domid g1)/0
    for n in $(seq 0 $(($(xenstore-read "$dir/root_num") - 1))); do xenstore-read "$dir/root-$n"; done | tr '\n' ' '
}
# Shell for the guest or dom0: pings through the card at $at, and gives it up again. Prints how many were answered.
PING='card=$(ls /sys/bus/pci/devices/$at/net) || exit 1
    ip addr add 10.0.2.15/24 dev $card; ip link set $card up
    until [ "$(cat /sys/class/net/$card/carrier)" = 1 ]; do [ $((n += 1)) -lt 50 ] || exit 1; usleep 200000; done
    ping -c 10 -i 0.1 -W 2 10.0.2.2 | sed -n "s/.*transmitted, \([0-9]*\) .*received.*/\1/p"
    ip link set $card down; ip addr flush dev $card'
answered() { equal "pings of 10 answered through $1" 10 "$(in_guest g1 "at=$1; $PING")"; }
# What a bridge is: its buses and windows.
bridge() { lspci -vv -s "$BRIDGE" 2>/dev/null | grep -E 'Bus: |behind bridge'; }

bridge >/tmp/bridge
cat /tmp/bridge
guest_config g1
refused "a bridge on one virtual bus" "$BRIDGE is a PCI bridge.*--slots passthrough" \
    bulkhead run /root/g1.cfg --device $BRIDGE $BEHIND $BEHIND_TOO
refused "a bridge without all that is behind it" "give $BEHIND_TOO to the guest too" \
    bulkhead run /root/g1.cfg --slots passthrough --device $BRIDGE $BEHIND
refused "a port of PCI Express" "$PORT is a PCI Express port" \
    bulkhead run /root/g1.cfg --slots passthrough --device $PORT $BELOW_PORT
refused "dom0's host bridge" "part of the mainboard, .*: it stays in dom0" \
    bulkhead run /root/g1.cfg --slots passthrough --device 0000:00:00.0

# shellcheck disable=SC2086 # several words
check "bulkhead run --slots passthrough" bulkhead run /root/g1.cfg --slots passthrough --device $ALL
cat /tmp/check
check "the drivers" in_guest g1 modprobe -a e1000e e1000 8139cp
# shellcheck disable=SC2086
equal "addresses and ids in the guest are those in dom0" "$(in_dom0 $ALL)" "$(in_g1)"
equal "what is behind the bridge in the guest" "02" "$(in_guest g1 "lspci -t" | sed -n 's/.*07\.0-\[\(..\)\].*/\1/p')"
equal "roots: the buses that no bridge of the guest leads to" "0000:00 0000:01 " "$(roots)"
equal "status" passthrough "$(bulkhead status --json | jq -r '.stubs[0].slots')"
for at in $ON_BUS_0 $BELOW_PORT $BEHIND $BEHIND_TOO; do
    answered $at
done
equal "interrupts" "$ON_BUS_0 msi-x $BELOW_PORT msi-x $BRIDGE none $BEHIND intx $BEHIND_TOO intx" \
    "$(bulkhead status --json | jq -r '[.stubs[0].devices[] | .bdf, .mode] | join(" ")')"

# --- hotplug
refused "the bridge alone" "lose sight of $BEHIND" bulkhead detach $BRIDGE
refused "the other mode" "all of them" bulkhead attach g1 --slots vpci --device $BELOW_PORT
refused "one of two that the IOMMU cannot tell apart" "$BEHIND_TOO and $BEHIND apart" bulkhead detach $BEHIND_TOO
check "detach all behind the bridge, and one on a bus of its own" bulkhead detach $BEHIND $BEHIND_TOO $BELOW_PORT
equal "what is left" "$(in_dom0 $ON_BUS_0 $BRIDGE)" "$(in_g1)"
check "attach them again" bulkhead attach g1 --device $BELOW_PORT $BEHIND_TOO $BEHIND
# shellcheck disable=SC2086
equal "all are where they were" "$(in_dom0 $ALL)" "$(in_g1)"
equal "roots: a new device is looked for on its own bus" "0000:00 0000:01 0000:02 " "$(roots)"
for at in $BELOW_PORT $BEHIND_TOO $BEHIND; do
    answered $at
done
in_guest g1 dmesg >/tmp/guest-dmesg
equal "complaints in the guest" "" \
    "$(grep -iE "can't claim|could not claim|not responding|pcifront.*(err|fail)|call trace" /tmp/guest-dmesg)"

# --- back in dom0
check "bulkhead destroy" bulkhead destroy g1
cat /tmp/check
equal "the bridge is as it was" "$(cat /tmp/bridge)" "$(bridge)"
check "dom0's driver" modprobe e1000
within 10 "it is bound behind the bridge" test -d /sys/bus/pci/devices/$BEHIND/net
equal "pings of 10 answered in dom0 through $BEHIND" 10 "$(sh -c "at=$BEHIND; $PING")"
success
