#!/bin/sh
# Functions of one slot stay together in one slot of the guest, and each works, also while the other comes and goes.
#: suite trixie
#: device e1000e,netdev=n0,addr=8.0,multifunction=on
#: device e1000e,netdev=n1,addr=8.1
#: timeout 700
. /rig/scenarios/lib.sh
FIRST=0000:00:08.0
SECOND=0000:00:08.1

# bus FUNCTION...: these are the guest's.
bus() {
    equal "the guest's bus" "$*" "$(in_guest pair "lspci -Dn" | awk '{ print $1 }' | tr '\n' ' ' | sed 's/ $//')"
}
# works WHEN FUNCTION...: each card in the guest has its own interrupts and answers pings.
works() {
    when=$1
    shift
    for at; do
        check "$when: $at comes up, pings are answered" in_guest pair "at=$at; cd /sys/bus/pci/devices/\$at/net/*; card=\${PWD##*/}
            ip addr add 10.0.2.15/24 dev \$card 2>/dev/null; ip link set \$card up
            until [ \$(cat carrier) = 1 ]; do [ \$((n += 1)) -lt 50 ] || exit 1; usleep 200000; done
            ping -I \$card -c 10 -i 0.1 -W 2 10.0.2.2 >/tmp/pings; grep -q ' 10 packets received' /tmp/pings || exit 1
            $INTERRUPTS"
        in_mode "$when: $at" "msi-x 3" /tmp/check
    done
}

dmesg -c >/dev/null
guest_config pair
check "bulkhead run with the second function alone" bulkhead run /root/pair.cfg --device $SECOND
cp /tmp/check /tmp/run
check "the command says what that means for its reset" grep -E "$SECOND .*$FIRST.*reset" /tmp/run
bus 0000:00:00.1
check "the guest has the driver" in_guest pair modprobe e1000e
works "alone" 0000:00:00.1
check "the first function joins it" bulkhead attach pair --device $FIRST
bus 0000:00:00.0 0000:00:00.1
works "together" 0000:00:00.0 0000:00:00.1
for round in 1 2 3 4 5; do
    for at in 0000:00:00.0 0000:00:00.1; do
        check "rebind $round of $at" in_guest pair "at=$at; $REBIND"
    done
done
works "after the rebinds" 0000:00:00.0 0000:00:00.1

check "hot unplug of the first" bulkhead detach $FIRST
bus 0000:00:00.1
works "without the first" 0000:00:00.1
check "hot replug of the first" bulkhead attach pair --device $FIRST
bus 0000:00:00.0 0000:00:00.1
check "hot unplug of both" bulkhead detach $FIRST $SECOND
bus
check "hot replug of both" bulkhead attach pair --device $FIRST $SECOND
bus 0000:00:00.0 0000:00:00.1
works "after the replug" 0000:00:00.0 0000:00:00.1

equal "complaints in the guest" "" "$(guest_complaints pair)"
check "bulkhead destroy" bulkhead destroy pair
quiet $FIRST
quiet $SECOND
equal "complaints in dom0" "" "$(complaints)"
success
