#!/bin/sh
# Seventeen functions work at once in one guest through one stub, with all pirqs that Xen has to spare, and leave nothing behind.
#: suite bookworm
#: device e1000,netdev=n0,addr=5
#: device rtl8139,netdev=n1,addr=6
#: device edu,addr=7
#: device ahci,id=ahci1,addr=8
#: device ide-hd,drive=d0,bus=ahci1.0
#: device ahci,id=ahci2,addr=9
#: device ide-hd,drive=d1,bus=ahci2.0
#: device nvme,serial=one,drive=d2,addr=a
#: device nvme,serial=two,drive=d3,addr=b
#: device qemu-xhci,id=xhci1,addr=c
#: device usb-storage,bus=xhci1.0,drive=d4
#: device e1000e,netdev=n2,addr=d.0,multifunction=on
#: device e1000e,netdev=n3,addr=d.1
#: device e1000e,netdev=n4,addr=e.0,multifunction=on
#: device e1000e,netdev=n5,addr=e.1
#: device vmxnet3,netdev=n6,addr=f
#: device virtio-net-pci,netdev=n7,addr=10,iommu_platform=on,disable-legacy=on
#: device virtio-net-pci,netdev=n8,addr=11,iommu_platform=on,disable-legacy=on
#: device virtio-net-pci,netdev=n9,addr=12,iommu_platform=on,disable-legacy=on
#: device virtio-blk-pci,drive=d5,addr=15,iommu_platform=on,disable-legacy=on
#: timeout 900
. /rig/scenarios/lib.sh

# Where it is, where it should be in the guest, its driver there, its interrupts. All pirqs are in use when virtio_blk
# is loaded, the last: it is refused MSI-X and makes do with its line, which it shares with e1000.
FUNCTIONS="\
05.0 00.0 e1000 intx 1
06.0 01.0 8139cp intx 1
07.0 02.0 - intx 1
08.0 03.0 ahci msi 1
09.0 04.0 ahci msi 1
0a.0 05.0 nvme msi-x 2
0b.0 06.0 nvme msi-x 2
0c.0 07.0 xhci_hcd msi-x 2
0d.0 08.0 e1000e msi-x 3
0d.1 08.1 e1000e msi-x 3
0e.0 09.0 e1000e msi-x 3
0e.1 09.1 e1000e msi-x 3
0f.0 0a.0 vmxnet3 msi-x 3
10.0 0b.0 virtio-pci msi-x 3
11.0 0c.0 virtio-pci msi-x 3
12.0 0d.0 virtio-pci msi-x 3
15.0 0e.0 virtio-pci intx 1"
# Some of those that have message interrupts, and a whole slot.
HALF="0a.0 0b.0 0c.0 0e.0 0e.1 0f.0 10.0"
every() { echo "$FUNCTIONS" | awk "{ print $1 }"; } # AWK-EXPRESSION
# run NAME: a guest with all functions.
run() {
    guest_config "$1"
    # shellcheck disable=SC2046 # two words each
    check "$1: bulkhead run" bulkhead run "/root/$1.cfg" $(every '"--device 0000:00:" $1')
    cp /tmp/check /tmp/run
}
end() {
    check "$1: xl destroy" xl destroy "$1"
    within 20 "$1: the attachment is cleared away" sh -c "bulkhead status --json | jq -e '.stubs == []'"
    sleep 1
}
# in_its_slot: the guest's bus is as the table has it.
in_its_slot() {
    in_guest all "lspci -Dn 2>/dev/null" | awk '{ print $1 }' >/tmp/slots
    equal "addresses in the guest" "$(every '"0000:00:" $2')" "$(cat /tmp/slots)"
}
# Shell for the guest: its disks, by name.
DISKS='cd /sys/block; disks=$(ls -d sd* nvme* vd*); cd /tmp'
# all_work WHEN: every card and every disk moves data, and each driver has the interrupts that the table has.
all_work() {
    check "$1: all disks are there" in_guest all "
        until $DISKS; [ \$(echo \$disks | wc -w) = 6 ]; do [ \$((n += 1)) -lt 50 ] || exit 1; usleep 200000; done
        for name in \$disks; do (disk=/dev/\$name; $DISK_UP) || exit 1; done"
    check "$1: all cards have a link" in_guest all "cd /sys/class/net; for card in eth*; do
            ip addr add 10.0.2.15/24 dev \$card; ip link set \$card up; done
        until [ \$(cat eth*/carrier | grep -c 1) = 10 ]; do [ \$((n += 1)) -lt 100 ] || exit 1; usleep 200000; done"
    check "$1: cards and disks move data at once" in_guest all "$DISKS; rm -f *.pings *.sums
        for card in \$(ls /sys/class/net | grep eth); do ping -I \$card -c 20 -i 0.2 -W 3 10.0.2.2 >\$card.pings & done
        for name in \$disks; do (disk=/dev/\$name; $DISK_FILL && $DISK_SUM) >\$name.sums & done
        wait"
    in_guest all "cd /tmp; grep -H received *.pings" >/tmp/pings
    cat /tmp/pings
    equal "$1: cards, and those that lost none of 20 pings" "10 10" \
        "$(grep -c . /tmp/pings) $(grep -c ' 20 packets received' /tmp/pings)"
    in_guest all "cd /tmp; for sums in *.sums; do echo \$sums \$(grep -c . \$sums) \$(sort -u \$sums | grep -c .); done" >/tmp/sums
    equal "$1: disks that read what was written" 6 "$(grep -c ' 2 1$' /tmp/sums)"

    interrupts "$1"
}
# interrupts WHEN: each function has the driver and the interrupts of the table, in the guest, where they came.
interrupts() {
    every '$3 == "-" ? "" : $2 " " $3 " " $4 " " $5 " fired"' | grep . >/tmp/table
    in_guest all "cd /sys/bus/pci/devices; for at in *; do
        [ -e \$at/driver ] && echo \"# \${at#0000:00:} \$(basename \$(readlink \$at/driver))\" && ($INTERRUPTS); done" >/rig/out/interrupts
    awk 'function tell() { if (name) print name, mode, count, sum ? "fired" : "silent" }
            /unused$/ { count++; next }
            /^#/ { tell(); name = $2 " " $3; mode = ""; count = sum = 0; next }
            { this = /-msi-x / ? "msi-x" : /-msi / ? "msi" : /-pcifront / ? "intx" : $0
              mode = mode == "" || mode == this ? this : "mixed"; count++; sum += $2 }
            END { tell() }' /rig/out/interrupts >/tmp/modes
    diff /tmp/table /tmp/modes || failure "$1: drivers and interrupts in the guest"
    status "$1"
}
# status WHEN: the same by `bulkhead status`.
status() {
    every '"0000:00:" $1, $4, $5' >/tmp/table
    bulkhead status --json >/tmp/status
    jq -r '.stubs[].devices[] | "\(.bdf) \(.mode) \(.pirqs | length)"' /tmp/status | sort >/tmp/modes
    diff /tmp/table /tmp/modes || failure "$1: interrupts by status"
    equal "$1: interrupts are those of the table; pirqs in use for messages" 32 \
        "$(jq '[.stubs[].devices[] | select(.mode != "intx") | .pirqs[]] | unique | length' /tmp/status)"
}

# After a first guest the devices are held, and all is there that Xen and dom0 keep.
run first
end first
inventory >/tmp/before
cat /tmp/before
dmesg -c >/dev/null

run all
check "the command says that there are more vectors than pirqs" grep "extra_guest_irqs=" /tmp/run
in_its_slot
for drivers in e1000 8139cp "ahci sd_mod" nvme "xhci-pci usb-storage" e1000e vmxnet3 "virtio_net virtio_pci" virtio_blk; do
    check "modprobe $drivers" in_guest all "modprobe -a $drivers; sleep 1"
done
all_work "at first"

# virtio_blk is left alone: it would take pirqs that another has just let go.
check "five rebinds of each, all at once" in_guest all "cd /sys/bus/pci/devices
    for at in *; do
        [ -e \$at/driver ] && [ \$at != 0000:00:0e.0 ] && driver=\$(readlink -f \$at/driver) && for round in 1 2 3 4 5; do
            echo \$at >\$driver/unbind && echo \$at >\$driver/bind || touch /tmp/unbound
        done &
    done
    wait; ! test -e /tmp/unbound"
# The cards are down after that, and have asked for none of their interrupts yet.
status "after the rebinds"

# shellcheck disable=SC2086 # one word each
# One word for each device.
# shellcheck disable=SC2046
set -- $(for at in $HALF; do echo "0000:00:$at"; done)
check "hot unplug of $HALF" bulkhead detach "$@"
equal "functions that are left" "$(($(every '$1' | wc -l) - $#))" "$(in_guest all "lspci -n" | wc -l)"
check "hot replug" bulkhead attach all --device "$@"
in_its_slot
all_work "after the replug"
equal "writes that dom0 refused" 0 "$(bulkhead status --json | jq '.stubs[0].served.refused | length')"

end all
for bdf in $(every '"0000:00:" $1'); do
    quiet "$bdf"
done
inventory >/tmp/after
diff /tmp/before /tmp/after || failure "something leaks"
equal "complaints in dom0" "" "$(complaints)"
success
