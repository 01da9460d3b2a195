#!/bin/sh
# The virtual functions of a network card go to guests, come back and go again, while dom0 works with the card itself.
#: qemu 10
#: suite trixie
#: device pcie-root-port,id=root,addr=5,pref64-reserve=64M
#: device igb,netdev=n0,bus=root
#: timeout 700
. /rig/scenarios/lib.sh
CARD=0000:01:00.0
ONE=0000:01:10.0
TWO=0000:01:10.2
SYSFS=/sys/bus/pci/devices

# Shell for the guest: each card has an address of its own on the one network that they share, and answers for no other.
CARDS_UP='echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore; echo 2 >/proc/sys/net/ipv4/conf/all/arp_announce
    cd /sys/class/net; for card in eth*; do
        ip addr add 10.0.2.$((20 + ${card#eth}))/24 dev $card 2>/dev/null; ip link set $card up; done
    until [ $(cat eth*/carrier | grep -c 1) = $(echo eth* | wc -w) ]; do
        [ $((n += 1)) -lt 100 ] || exit 1; usleep 200000; done'
# pings COUNT: by every card at once; one line for each that got all answers.
pings() {
    in_guest g1 "cd /tmp; rm -f *.pings; for card in \$(ls /sys/class/net | grep eth); do
            ping -I \$card -c $1 -i 0.2 -W 3 10.0.2.2 >\$card.pings 2>&1 & done; wait
        grep -c ' $1 packets received' *.pings" | sed 's/.*\///'
}
# ids and address ranges, as whoever drives the function sees them
identity='cat vendor device class revision subsystem_vendor subsystem_device; head -n 6 resource'
bus() { in_guest g1 "lspci -n" | awk '{ print $1, $3 }' | sort | tr '\n' ' ' | sed 's/ $//'; }
lines() { # AT: the guest's interrupts of a function
    in_guest g1 "at=0000:$1; $INTERRUPTS"
}
# config_of BDF: its configuration space but for COMMAND, whose decode bits xen-pciback turns on.
config_of() { lspci -xxxs "$1" | sed 's/^\(00: .. .. .. ..\) .. ../\1/'; }

# --- dom0 makes virtual functions, and goes on pinging through the card
check "dom0 drives the card" modprobe igb
ip addr add 10.0.2.14/24 dev eth0
ip link set eth0 up
check "two virtual functions" sh -c "echo 2 >$SYSFS/$CARD/sriov_numvfs"
within 20 "dom0 pings" ping -c 1 -W 2 10.0.2.2
ping -i 0.2 -W 3 10.0.2.2 >/tmp/card.pings 2>&1 &
PINGS=$!
for bdf in $ONE $TWO; do
    equal "$bdf: vendor and device in its own configuration space" ffffffff "$(setpci -s $bdf 0.l)"
    config_of $bdf >/tmp/before.$bdf
done

guest_config g1
refused "the card itself" "$CARD has the virtual functions $ONE, $TWO.*sriov_numvfs" bulkhead run /root/g1.cfg --device $CARD
check "bulkhead run" bulkhead run /root/g1.cfg --device $ONE $TWO
cat /tmp/check
equal "the guest's bus" "00:00.0 8086:10ca 00:01.2 8086:10ca" "$(bus)"
for pair in $ONE=00:00.0 $TWO=00:01.2; do
    bdf=${pair%=*} at=${pair#*=}
    (cd $SYSFS/$bdf && eval "$identity") >/tmp/dom0
    in_guest g1 "cd $SYSFS/0000:$at; $identity" >/tmp/guest
    diff /tmp/dom0 /tmp/guest || failure "$bdf: the guest sees other ids or address ranges"
    equal "$bdf: the guest's lspci has nothing of a line" "" "$(in_guest g1 "lspci -vs $at" | grep -i irq)"
done
check "the status names the card" sh -c "bulkhead status | grep '^$CARD has to stay in dom0.*$ONE, $TWO'"
equal "of which they are, by status" "$CARD $CARD" \
    "$(bulkhead status --json | jq -r '[.stubs[0].devices[].virtual_function_of] | join(" ")')"
guest_config g2
refused "a virtual function again" "$ONE is in use by guest g1" bulkhead run /root/g2.cfg --device $ONE
refused "the card itself, now" "$CARD has the virtual functions.*$ONE is in use by guest g1" \
    bulkhead attach g1 --device $CARD

# --- their drivers
check "igbvf brings both up" in_guest g1 "modprobe igbvf; $CARDS_UP"
for at in 00:00.0 00:01.2; do
    lines $at >/tmp/lines
    in_mode "$at" "msi-x 3" /tmp/lines
done
equal "interrupts by status" "msi-x 3, msi-x 3" "$(mode_of $ONE), $(mode_of $TWO)"
pings 20 >/tmp/pings
equal "pings of 20 through both at once" "eth0.pings:1 eth1.pings:1" "$(tr '\n' ' ' </tmp/pings | sed 's/ $//')"
for round in 1 2 3 4 5; do
    check "rebind $round of both" in_guest g1 "for at in 0000:00:00.0 0000:00:01.2; do $REBIND; done; $CARDS_UP
        grep pcifront-msi-x /proc/interrupts"
    in_mode "rebind $round of both" "msi-x 6" /tmp/check
done
pings 10 >/tmp/pings
equal "pings of 10 through both after the rebinds" "eth0.pings:1 eth1.pings:1" "$(tr '\n' ' ' </tmp/pings | sed 's/ $//')"

# --- one leaves while the other pings, and comes back
card=$(in_guest g1 "ls $SYSFS/0000:00:01.2/net")
in_guest g1 "(ping -I $card -c 80 -i 0.2 -W 3 10.0.2.2 >/tmp/stays.pings 2>&1; touch /tmp/pinged) >/dev/null 2>&1 &"
check "detach of one" bulkhead detach $ONE
cat /tmp/check
equal "the guest's bus" "00:01.2 8086:10ca" "$(bus)"
quiet $ONE
check "attach of it" bulkhead attach g1 --device $ONE
equal "the guest's bus" "00:00.0 8086:10ca 00:01.2 8086:10ca" "$(bus)"
within 60 "the pings of the other have ended" in_guest g1 "test -e /tmp/pinged"
equal "pings of the other that were answered" 80 \
    "$(in_guest g1 cat /tmp/stays.pings | sed -n 's/.*transmitted, \([0-9]*\) .*received.*/\1/p')"
check "both come up" in_guest g1 "$CARDS_UP"
pings 10 >/tmp/pings
equal "cards that got all of 10 answers" 2 "$(grep -c :1 /tmp/pings)"

# --- the guest dies
check "xl destroy" xl destroy g1
within 20 "the attachment is cleared away" sh -c "bulkhead status --json | jq -e '.stubs == []'"
equal "devices in quarantine" 0 "$(bulkhead status --json | jq '.quarantined | length')"
for bdf in $ONE $TWO; do
    quiet $bdf
    check "$bdf: given back to dom0" xl pci-assignable-remove $bdf
    config_of $bdf | diff /tmp/before.$bdf - || failure "$bdf: its configuration space is not as before"
done
kill -INT $PINGS
wait $PINGS
tail -n 3 /tmp/card.pings
equal "pings of the card itself that went unanswered" 0 "$(awk '/transmitted/ { print $1 - $4 }' /tmp/card.pings)"
check "dom0 removes them" sh -c "echo 0 >$SYSFS/$CARD/sriov_numvfs && [ ! -e $SYSFS/$ONE ]"
equal "complaints in dom0" "" "$(complaints)"
success
