#!/bin/sh
# The same card, guest kernel and boot: what the guest sees and how long accesses take, by xen-pciback and by Bulkhead.
#: suite bookworm
#: device e1000e,netdev=n0,addr=5
#: cpus 2
#: timeout 700
. /rig/scenarios/lib.sh
needs_speed
BDF=0000:00:05.0
ROUNDS=2000
export GUEST_INITRD=/root/measure.initrd
check "initrd with the measuring program" guest-initrd $GUEST_INITRD usr/bin/config-latency=/rig/bin/config-latency

# see NAME: leaves /tmp/NAME.lspci, what the guest sees of a card that has no driver yet.
see() {
    check "$1: the guest's shell answers" in_guest "$1" true
    in_guest "$1" "lspci -vvv -xxx -s 0000:00:00.0" >"/tmp/$1.lspci" || error "lspci"
}

# look NAME: leaves /tmp/NAME.{lspci,first,second,json}.
look() {
    name=$1
    see "$name"
    check "$name: e1000e comes up" network_up "$name"
    in_guest "$name" "grep -cE 'pcifront-msi-x' /proc/interrupts" >"/tmp/$name.first"
    in_guest "$name" "cd /sys/bus/pci/drivers/e1000e && echo 0000:00:00.0 >unbind && echo 0000:00:00.0 >bind; sleep 1"
    check "$name: e1000e comes up again" network_up "$name"
    in_guest "$name" "grep -cE 'pcifront-msi-x' /proc/interrupts" >"/tmp/$name.second"
    in_guest "$name" "ip link set eth0 down"
    in_guest "$name" "config-latency 0000:00:00.0 $ROUNDS" >"/tmp/$name.json" || { cat "/tmp/$name.json"; failure "$name: config-latency"; }
}

# Before anybody has driven the card: what one guest leaves in it, the next one sees.
check "xen-pciback takes the card" xl pci-assignable-add $BDF
guest_config untouched "pci = [ \"$BDF\" ]"
check "untouched: xl create, by xen-pciback" xl create -q /root/untouched.cfg
see untouched
check "untouched: xl destroy" xl destroy untouched
check "xen-pciback lets the card go" xl pci-assignable-remove $BDF

guest_config bulkhead
check "bulkhead run" bulkhead run /root/bulkhead.cfg --device $BDF
look bulkhead
check "bulkhead destroy" bulkhead destroy bulkhead

check "xen-pciback takes the card" xl pci-assignable-add $BDF
guest_config pciback "pci = [ \"$BDF\" ]"
check "pciback: xl create" xl create -q /root/pciback.cfg
look pciback
check "pciback: xl destroy" xl destroy pciback

equal "MSI-X vectors at first, by xen-pciback and by Bulkhead" "3 3" "$(cat /tmp/pciback.first) $(cat /tmp/bulkhead.first)"
equal "MSI-X vectors after one rebind, by xen-pciback (it falls back) and by Bulkhead" "0 3" \
    "$(cat /tmp/pciback.second) $(cat /tmp/bulkhead.second)"

jq -n --slurpfile pciback /tmp/pciback.json --slurpfile bulkhead /tmp/bulkhead.json '
    { pciback: $pciback[0], bulkhead: $bulkhead[0] }' >/rig/out/latency.json || error "jq"
jq -c . /rig/out/latency.json | sed 's/^/LATENCY /'
# Listed and justified in docs/parity.md; anything else is a failure.
if ! diff /tmp/untouched.lspci /tmp/bulkhead.lspci >/tmp/lspci.diff; then
    cat /tmp/lspci.diff
    failure "lspci in the guest differs from xen-pciback's"
fi
say "lspci -vvv -xxx in the guest is the same through both"

# A read must be clearly faster than through xen-pciback.
check "a read takes less than 0.9 of xen-pciback's time" \
    jq -e '.bulkhead.read4.p50 < 0.9 * .pciback.read4.p50' /rig/out/latency.json
success
