#!/bin/sh
# Errors of devices reach the guest's driver, which recovers; where there is no handler the configured fate follows.
#: suite trixie
#: qemu 10
#: device pcie-root-port,id=port1,chassis=1,slot=1,addr=5
#: device e1000e,bus=port1,id=nic,netdev=n0
#: device pcie-root-port,id=port2,chassis=2,slot=2,addr=6
#: device virtio-net-pci,bus=port2,id=vio,netdev=n1,aer=on,iommu_platform=on,disable-legacy=on
#: timeout 700
. /rig/scenarios/lib.sh
NIC=0000:01:00.0
VIO=0000:02:00.0

# inject PLACE ERROR: QEMU's device or port PLACE tells of it.
inject() { qemu-monitor pcie_aer_inject_error "$@" >/tmp/injected; grep -q '^OK' /tmp/injected || { cat /tmp/injected; error "QEMU injects no $*"; }; }
# of BDF FIELD: a field of what status tells of a device's errors.
of() { bulkhead status --json | jq -r --arg bdf "$1" ".stubs[].served.errors[] | select(.bdf == \$bdf) | .$2"; }
# errors_are BDF ERRORS RECOVERED
errors_are() { [ "$(of "$1" errors) $(of "$1" recovered)" = "$2 $3" ]; }
# The notices that pcifront in g1 was given, as numbers: 6 detected, 7 resume, 9 slot reset.
notices() { in_guest g1 "dmesg -c" | sed -n 's/.*cmd \([0-9a-f]*\) (bus.*/\1/p' | tr '\n' ' '; }
# What must not change while the driver recovers: a rebind would make a new interface.
bound() { in_guest g1 "cat /sys/class/net/eth0/ifindex; grep -c pcifront-msi-x /proc/interrupts" | tr '\n' ' '; }
interrupts() { in_guest g1 "grep eth0 /proc/interrupts" | awk '{ sum += $2 } END { print sum }'; }
# recovers WHAT ERRORS NOTICES PLACE ERROR: the error is told to g1, whose driver gets these notices and recovers.
recovers() {
    what=$1 errors=$2 expected=$3
    shift 3
    before=$(bound)
    inject "$@"
    within 30 "$what: the driver has recovered" errors_are $NIC "$errors" "$errors"
    equal "$what: notices to the guest" "$expected" "$(notices)"
    equal "$what: how it ended" "recovered by a reset" "$(of $NIC last)"
    check "$what: the link comes up again" in_guest g1 \
        "for i in \$(seq 50); do [ \"\$(cat /sys/class/net/eth0/carrier)\" = 1 ] && exit 0; usleep 200000; done; exit 1"
    count=$(interrupts)
    equal "$what: pings lost of 20 afterwards" 0 "$(pings_lost g1 20 0.1)"
    check "$what: interrupts by MSI-X go on" [ "$(interrupts)" -gt "$count" ]
    equal "$what: the same interface, as many vectors" "$before" "$(bound)"
    lspci -vv -s $NIC 2>/dev/null | grep -E 'Control:|MSI-X:' >/tmp/lspci
    check "$what: the device is as it was" sh -c "grep -q 'Mem+ BusMaster+.*DisINTx+' /tmp/lspci && grep -q 'MSI-X: Enable+' /tmp/lspci"
}

guest_config g1
check "g1: bulkhead run" bulkhead run /root/g1.cfg --device $NIC
check "g1: e1000e comes up" network_up g1
check "g1: its pcifront says what it does" in_guest g1 \
    "mount -t debugfs none /sys/kernel/debug && echo 'module xen_pcifront +p' >/sys/kernel/debug/dynamic_debug/control; dmesg -n 8; dmesg -c >/dev/null"
in_guest g1 "(ping -i 0.1 -W 2 10.0.2.2 >/tmp/pings 2>&1) >/dev/null 2>&1 &"

# QEMU's card has no bits that let errors of its own out: the port above tells, and what is below it recovers.
recovers "a non-fatal error of the port above" 1 "6 9 7 " port1 COMP_TIME
# dom0's kernel resets the bus for it.
recovers "a fatal error" 2 "6 9 7 " port1 MALF_TLP
check "the pings went on" in_guest g1 "a=\$(wc -l </tmp/pings); sleep 1; [ \$(wc -l </tmp/pings) -gt \$a ]"

# --- a driver without a handler
guest_config g2
check "g2: bulkhead run" bulkhead run /root/g2.cfg --device $VIO,aer=leave
check "g2: virtio comes up" network_up g2 "-a virtio_pci virtio_net"
inject vio RCVR
within 10 "an error that the hardware corrects is counted" sh -c "bulkhead status --json |
    jq -e '.stubs[].devices[] | select(.bdf == \"$VIO\") | .corrected_errors == 1'"
equal "and that is all" "" "$(of $VIO errors)"
inject vio COMP_TIME
within 30 "an error that nobody handles" errors_are $VIO 1 0
within 10 "is told, and the device left" sh -c ". /rig/scenarios/lib.sh; trap - EXIT
    bulkhead status | grep -F '$VIO: errors 1, recovered 0; the last: the guest'\''s driver says: no handler: it is left as it is'"
equal "g2: pings lost of 5" 0 "$(pings_lost g2 5)"
bulkhead status | grep -E '^0000:.*error'

check "g2: detach" bulkhead detach $VIO
check "g2: attach, to be detached after an error" bulkhead attach g2 --device $VIO,aer=detach
check "g2: virtio comes up" network_up g2 "-a virtio_pci virtio_net"
inject vio COMP_TIME
within 60 "the device leaves its guest" sh -c "bulkhead status --json | jq -e 'all(.stubs[].devices[]; .bdf != \"$VIO\")'"
equal "g2: its bus is empty" "" "$(in_guest g2 lspci -n)"

check "g2: attach, to be destroyed after an error" bulkhead attach g2 --device $VIO,aer=destroy
check "g2: its driver" in_guest g2 "test -e /sys/bus/pci/devices/0000:00:00.0/driver"
inject vio COMP_TIME
within 60 "the guest is destroyed" sh -c "! xl domid g2"
within 30 "and its stub" sh -c "! xl domid g2-bulkhead"
equal "g1: pings lost of 5" 0 "$(pings_lost g1 5)"
grep -E 'error' /var/log/bulkhead/serve.log
# Not by "complaints": the errors themselves are told of there.
equal "complaints in dom0" "" "$(dmesg | grep -iE 'call trace|bug:|nobody cared|DMAR.*fault')"
success
