#!/bin/sh
# A card without a reset, whose dead guest left it asking for its driver, does not hold down the line that dom0 uses too.
#: suite trixie
#: device rtl8139,netdev=n0,addr=6
#: device e1000,netdev=n1,addr=a
. /rig/scenarios/lib.sh
BDF=0000:00:06.0

dmesg -c >/dev/null
for end in "bulkhead destroy" "xl destroy"; do
    guest_config g1
    check "bulkhead run" bulkhead run /root/g1.cfg --device $BDF
    registers=$(lspci -v -s $BDF 2>/dev/null | sed -n 's/.*Memory at \([0-9a-f]*\) .*size=256.*/0x\1/p')
    # All interrupts on, and the timer soon.
    check "its timer asks for an interrupt" \
        in_guest g1 "devmem $((registers + 0x3c)) 16 0xffff; devmem $((registers + 0x54)) 32 100; devmem $((registers + 0x48)) 32 0"
    within 5 "it holds the line down" sh -c "lspci -vv -s $BDF 2>/dev/null | grep -E 'INTx\+'"
    check "$end" $end g1
    within 10 "the attachment is cleared away" sh -c "bulkhead status --json | jq -e '.stubs == []'"
    check "it still asks, but may not hold the line down" sh -c \
        "lspci -vv -s $BDF 2>/dev/null | tr -d '\n' | grep -E 'DisINTx\+.* INTx\+'"
done
# Slots four apart share a line on q35.
check "dom0 uses the card on the same line" modprobe e1000
equal "the line" "$(cat /sys/bus/pci/devices/$BDF/irq)" "$(cat /sys/bus/pci/devices/0000:00:0a.0/irq)"
check "its link comes up" sh -c "$NETWORK_UP"
check "dom0's pings are answered" ping -c 10 -i 0.2 -W 2 10.0.2.2
equal "complaints in dom0" "" "$(complaints)"
success
