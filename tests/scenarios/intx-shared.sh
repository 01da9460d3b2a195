#!/bin/sh
# An INTx line that is shared is withheld; on terms that say so it is given, and dom0 does not lose it by that.
#: suite trixie
#: device e1000e,netdev=n0,addr=5
#: device rtl8139,netdev=n1,addr=9
#: device e1000,netdev=n2,addr=d
#: timeout 700
. /rig/scenarios/lib.sh
# Slots four apart share a line on q35.
BDF=0000:00:05.0 NOISY=0000:00:09.0 DOM0=0000:00:0d.0
PCIBACK=/sys/bus/pci/drivers/pciback
dmesg -c >/dev/null
guest_config g1
# Of its own line the guest shall not lose hold, whatever becomes of dom0.
sed -i 's/console=hvc0/console=hvc0 noirqdebug/' /root/g1.cfg

# --- the usual terms: withheld
check "dom0 uses the other device" modprobe e1000
within 10 "its driver is bound" test -e /sys/bus/pci/devices/$DOM0/driver
check "bulkhead run" bulkhead run /root/g1.cfg --device $BDF
cp /tmp/check /tmp/run
gsi=$(cat /sys/bus/pci/devices/$DOM0/irq)
equal "the lines are the same" "$gsi" "$(cat /sys/bus/pci/devices/$BDF/irq)"
check "the command says that INTx is withheld, and what gives it" grep -E "INTx of $BDF is withheld.*$DOM0.*share-intx=1" /tmp/run
check "the guest's shell answers" in_guest g1 true
equal "interrupt pin in the guest" 00 "$(in_guest g1 "setpci -s 0000:00:00.0 INTERRUPT_PIN")"
check "e1000e comes up" network_up g1
equal "MSI-X vectors all the same" 3 "$(in_guest g1 "grep -c pcifront-msi-x /proc/interrupts")"
equal "pings lost of 10" 0 "$(pings_lost g1 10)"
check "bulkhead destroy" bulkhead destroy g1

# --- shared in words, while dom0 does not use the line yet
check "dom0 lets go of the line" modprobe -r e1000
check "bulkhead run, shared in words" bulkhead run /root/g1.cfg --device $BDF,msi=0,share-intx=1 --device $NOISY,share-intx=1
check "e1000e comes up" network_up g1
check "by its line" in_guest g1 "grep -E 'pirq.*eth0' /proc/interrupts"
line() { bulkhead status --json | jq -rc --arg bdf $BDF ".stubs[].devices[] | select(.bdf == \$bdf) | .line | $1"; }
equal "status tells of no sharing" null "$(line .)"
check "dom0's driver comes later" modprobe e1000
card=$(ls /sys/bus/pci/devices/$DOM0/net)
check "its link comes up" sh -c "ip addr add 10.0.2.15/24 dev $card; ip link set $card up; until [ \"\$(cat /sys/class/net/$card/carrier)\" = 1 ]; do usleep 200000; done"
equal "status tells who shares, and that nobody answers" "[\"$card\"] false" "$(line '"\(.dom0) \(.acking)"')"
check "in words too, with the next step" sh -c "bulkhead status | grep -E '$BDF: its line \(GSI $gsi\) .*NOBODY.*bulkhead irq $BDF on'"

# --- a device of the guest's that raises the line again and again: no driver takes its interrupts
registers=$(lspci -v -s $NOISY 2>/dev/null | sed -n 's/.*Memory at \([0-9a-f]*\) .*size=256.*/0x\1/p')
noise() { # MICROSECONDS
    in_guest g1 "devmem $((registers + 0x54)) 32 100; devmem $((registers + 0x48)) 32 0; devmem $((registers + 0x3c)) 16 0xffff; usleep $1; devmem $((registers + 0x3c)) 16 0"
}
heard() { awk -v line="$gsi:" '$1 == line { print $2 }' /proc/interrupts; }
of_line() { sed -n "s/^$1 //p" "/proc/irq/$gsi/spurious"; }
# Shorter than it takes to lose the line. Linux begins to count anew after a pause of 100 ms, which an emulated machine may
# make: then once more.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    before=$(heard)
    noise 300000
    heard=$(($(heard) - before)) unhandled=$(of_line unhandled)
    [ "$unhandled" -le 1000 ] || break
done
say "without an answer: dom0 heard $heard, unhandled $unhandled"
check "without an answer dom0 counts them as unwanted" [ "$unhandled" -gt 1000 ]
check "nearly all of them" [ $((unhandled * 100)) -gt $((heard * 95)) ]

# --- with an answer
check "bulkhead irq on" bulkhead irq $BDF on
check "for the noisy one as well" bulkhead irq $NOISY on
cat $PCIBACK/irq_handlers
equal "status says so" "[\"$card\"] true" "$(line '"\(.dom0) \(.acking)"')"
before=$(heard) round=0
while [ $(($(heard) - before)) -lt 110000 ] && [ $((round += 1)) -le 15 ]; do noise 5000000; done
say "with an answer: dom0 heard $(($(heard) - before)) in $round rounds, count $(of_line count), unhandled $(of_line unhandled)"
check "dom0 heard more than it takes to lose a line" [ $(($(heard) - before)) -gt 100000 ]
equal "none counts as unwanted" 0 "$(of_line unhandled)"
check "they were answered" [ "$(line .answered)" -gt 100000 ]
equal "dom0's line is not turned off" "" "$(complaints)"
check "dom0's pings are answered" ping -c 10 -i 0.2 -W 2 10.0.2.2
equal "pings lost of 10 by the guest" 0 "$(pings_lost g1 10)"

# --- switched, and put back
check "bulkhead irq off" bulkhead irq $BDF off
equal "status says so" false "$(line .acking)"
refused "for a device that no guest has" "no guest has" bulkhead irq $DOM0 on
check "bulkhead detach" bulkhead detach $NOISY
check "its handler is gone" sh -c "! grep -E '^$NOISY:on' $PCIBACK/irq_handlers"
check "bulkhead attach" bulkhead attach g1 --device $NOISY,share-intx=1
check "with a driver of dom0's on the line it is answered for from the start" grep "^$NOISY:on:acking" $PCIBACK/irq_handlers
check "bulkhead destroy" bulkhead destroy g1
check "no handler is left" sh -c "! grep ':on:' $PCIBACK/irq_handlers"
refused "nor a node" "No such|not exist|Couldn't|directory" xenstore-ls /local/domain/0/backend/pci/0/72
check "dom0's pings are answered after that" ping -c 10 -i 0.2 -W 2 10.0.2.2
equal "complaints in dom0" "" "$(complaints)"
success
