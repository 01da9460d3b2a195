#!/bin/sh
# A device whose INTx line is shared with one elsewhere is offered without it, and the command says so.
#: device e1000e,netdev=n0,addr=5
#: device rtl8139,netdev=n1,addr=9
. /rig/scenarios/lib.sh
BDF=0000:00:05.0

# Slots four apart share a line on q35; the other one is in use by dom0.
check "dom0 uses the other device" modprobe 8139cp
within 10 "its driver is bound" test -e /sys/bus/pci/devices/0000:00:09.0/driver
guest_config g1
check "bulkhead run" bulkhead run /root/g1.cfg --device $BDF
cp /tmp/check /tmp/run
equal "the lines are the same" "$(cat /sys/bus/pci/devices/0000:00:09.0/irq)" "$(cat /sys/bus/pci/devices/$BDF/irq)"
cat /tmp/run
check "the command says that INTx is withheld" grep -iE "INTx.*(shared|withheld|without)|shared.*INTx|without INTx" /tmp/run
check "the guest's shell answers" in_guest g1 true
equal "interrupt pin in the guest" 00 "$(in_guest g1 "setpci -s 0000:00:00.0 INTERRUPT_PIN")"
check "e1000e comes up" network_up g1
equal "MSI-X vectors all the same" 3 "$(in_guest g1 "grep -c pcifront-msi-x /proc/interrupts")"
equal "pings lost of 10" 0 "$(pings_lost g1 10)"
success
