#!/bin/sh
# What lspci tells a guest of every kind of device, through Bulkhead and through xen-pciback, before and after drivers took it.
#: suite trixie
#: device e1000,netdev=n0,addr=5
#: device rtl8139,netdev=n1,addr=6
#: device edu,addr=7
#: device edu,addr=8
#: device ahci,id=ahci1,addr=9
#: device nvme,serial=one,drive=d0,addr=a
#: device qemu-xhci,id=xhci1,addr=b
#: device e1000e,netdev=n2,addr=d
#: device e1000e,netdev=n3,addr=e.0,multifunction=on
#: device e1000e,netdev=n4,addr=e.1
#: device vmxnet3,netdev=n5,addr=f
#: device virtio-net-pci,netdev=n6,addr=11,iommu_platform=on,disable-legacy=on
#: timeout 700
. /rig/scenarios/lib.sh
# Where it is, where it is in the guest, its name in docs/parity.md.
FUNCTIONS="\
05.0 00.0 e1000
06.0 01.0 rtl8139
07.0 02.0 edu
08.0 03.0 edu-second
09.0 04.0 ahci
0a.0 05.0 nvme
0b.0 06.0 xhci
0d.0 07.0 e1000e
0e.0 08.0 e1000e-first
0e.1 08.1 e1000e-second
0f.0 09.0 vmxnet3
11.0 0a.0 virtio-net"
DRIVERS="e1000 8139cp ahci nvme xhci-pci e1000e vmxnet3 virtio_net virtio_pci"
every() { echo "$FUNCTIONS" | awk "{ print $1 }"; } # AWK-EXPRESSION

# list BACKEND STATE: leaves /rig/out/BACKEND/NAME.STATE, what lspci prints of each function in the guest of that name.
list() {
    in_guest "$1" "lspci -Dnvvv 2>/dev/null" >/tmp/listing
    every '"0000:00:" $2, $3' | awk -v dir="/rig/out/$1" -v state="$2" '
        FNR == NR { name[$1] = $2; next }
        /^[0-9a-f]/ { file = dir "/" name[$1] "." state }
        { print >file }' - /tmp/listing
}
# look BACKEND: lists before and after the drivers came.
look() {
    mkdir "/rig/out/$1"
    check "$1: the guest's shell answers" guest-run "$1" 150 true
    list "$1" bare
    for driver in $DRIVERS; do
        check "$1: modprobe $driver" in_guest "$1" "modprobe $driver"
    done
    # No driver is for edu.
    within 20 "$1: the other ten have theirs" in_guest "$1" "[ \$(ls -d /sys/bus/pci/devices/*/driver | wc -l) = 10 ]"
    within 20 "$1: the disk is there, so its driver has settled" in_guest "$1" "test -b /dev/nvme0n1"
    list "$1" driven
}

guest_config bulkhead
# shellcheck disable=SC2046 # two words each
check "bulkhead run" bulkhead run /root/bulkhead.cfg $(every '"--device 0000:00:" $1')
look bulkhead
check "bulkhead destroy" bulkhead destroy bulkhead

for at in $(every '$1'); do
    # Bulkhead gives a device back with INTx disabled, so that it cannot hold its line down: here both begin alike.
    setpci -s "$at" COMMAND=0:400
    check "xen-pciback takes $at" xl pci-assignable-add "0000:00:$at"
done
guest_config pciback "pci = [ $(every '"\"0000:00:" $1 "\","') ]"
check "pciback: xl create" xl create -q /root/pciback.cfg
look pciback

config-sweep compare-lspci /rig/out/pciback /rig/out/bulkhead || failure "differences that docs/parity.md does not list"
success
