#!/bin/sh
# Guest after guest is destroyed in the middle of DMA, MSI-X on: the devices are quiet each time, the next guest works, nothing leaks.
#: first
#: suite trixie
#: device e1000e,netdev=wire0,addr=5,mac=52:54:00:00:00:05
#: device nvme,serial=one,drive=d0,addr=6
#: device e1000,netdev=wire1,addr=7
#: qemu 10
#: timeout 800
. /rig/scenarios/lib.sh
CARD=0000:00:05.0
DISK=0000:00:06.0
ROUNDS=$([ "$ALL" ] && echo 5 || echo 3)

# masters: which of the devices are bus masters with MSI-X on, by dom0's own eyes.
masters() {
    for bdf in $CARD $DISK; do
        lspci -vv -s $bdf 2>/dev/null | grep -oE 'BusMaster[-+]|MSI-X: Enable[-+]' | tr -d '\n'
        printf ' '
    done
}
# faults: what the IOMMU has stopped since Xen's log was cleared.
faults() { xl dmesg | grep -ciE 'DMAR:.*(fault|request)'; }
# sent: packets that dom0's own card has sent on the wire.
sent() { cat /sys/class/net/eth0/statistics/tx_packets; }

# What the card receives goes on when its guest is no more: dom0 sends to it, from each guest's last seconds until after
# its end.
check "dom0 drives the card at the other end" modprobe e1000
within 10 "it is there" test -e /sys/class/net/eth0
ip addr add 10.0.2.2/24 dev eth0
ip link set eth0 up
within 10 "its link" grep -q 1 /sys/class/net/eth0/carrier
arp -s 10.0.2.15 52:54:00:00:00:05
flood() { ping -i 0.02 -s 1400 10.0.2.15 >/dev/null 2>&1 & }

# Shell for the guest: card and disk work, and how many message interrupts there are.
UP="modprobe -a e1000e nvme; $NETWORK_UP; disk=/dev/nvme0n1; $DISK_UP; ping -c 3 -i 0.2 10.0.2.2 >/tmp/pings || exit 1
    grep -c pcifront-msi-x /proc/interrupts"
# Shell for the guest: packets received and sectors read up to now; then two jobs read from the disk without an end.
MOVED='echo $(cat /sys/class/net/eth0/statistics/rx_packets) $(awk "{ print \$3 }" /sys/block/nvme0n1/stat)'
BUSY="for job in 1 2; do (while :; do dd if=/dev/nvme0n1 of=/dev/null bs=1M iflag=direct; done) >/dev/null 2>&1 & done
    $MOVED; sleep 1; $MOVED"
# busy ROUND: a guest has both devices, which work, and moves data with both.
busy() {
    guest_config "g$1"
    check "round $1: bulkhead run" bulkhead run "/root/g$1.cfg" --device $CARD --device $DISK
    equal "round $1: MSI-X vectors" 5 "$(in_guest "g$1" "$UP" | tail -n 1)"
    flood
    in_guest "g$1" "$BUSY" | tr '\n' ' ' >/tmp/moved
    awk '{ exit !($3 - $1 > 5 && $4 - $2 > 1000) }' /tmp/moved ||
        failure "round $1: too little DMA: packets received and sectors read, then and a second later: $(cat /tmp/moved)"
    equal "round $1: bus masters, and MSI-X, while it runs" "BusMaster+MSI-X: Enable+ BusMaster+MSI-X: Enable+ " "$(masters)"
    xl dmesg -c >/dev/null
}
# handed_back ROUND: it is quiet as dom0 has it back, and stays so though packets go on to arrive.
handed_back() {
    within 20 "round $1: the attachment is cleared away" sh -c "bulkhead status --json | jq -e '.stubs == []'"
    equal "round $1: bus masters, and MSI-X, afterwards" "BusMaster-MSI-X: Enable- BusMaster-MSI-X: Enable- " "$(masters)"
    stopped=$((stopped + $(faults)))
    xl dmesg -c >/dev/null
    before=$(sent)
    sleep 1
    check "round $1: packets still come" [ $(($(sent) - before)) -gt 5 ]
    late=$((late + $(faults)))
    kill "$(pidof ping)"
    equal "round $1: IOMMU faults after the reset" 0 "$late"
    equal "round $1: the devices answer" "8086:10d3 1b36:0010 " \
        "$(for bdf in $CARD $DISK; do lspci -n -s $bdf; done | awk '{ printf "%s ", $3 }')"
}
stopped=0 late=0
round() {
    read -r began _ </proc/uptime
    busy "$1"
    [ "$1" != 0 ] || inventory >/tmp/during
    check "round $1: xl destroy" xl destroy "g$1"
    handed_back "$1"
    read -r now _ </proc/uptime
    say "round $1 took $(awk -v a="$began" -v b="$now" 'BEGIN { print b - a }') s"
}

round 0
within 10 "only dom0 is left" sh -c "[ \$(xl list | wc -l) = 2 ]"
sleep 1
inventory >/tmp/before
cat /tmp/before
# An inventory that sees nothing while a guest runs would not see a leak either.
equal "counts that see a running guest" 4 "$(grep -cE '^(message|event|grants|xenstore).*: [1-9]' /tmp/during)"
for number in $(seq $((ROUNDS - 1))); do
    round "$number"
done
figure dma-guests-destroyed $ROUNDS guests
figure dma-faults-before-reset $stopped faults
figure dma-faults-after-reset $late faults

# A device that nobody quiets goes on, so the count sees what it is to see.
busy last
kill -STOP "$(service_pid)"
check "xl destroy, the service held up" xl destroy glast
sleep 2
say "meanwhile: $(masters)"
check "IOMMU faults of devices that are not quieted yet: $(faults)" [ "$(faults)" -gt 0 ]
kill -CONT "$(service_pid)"
handed_back last

within 10 "only dom0 is left" sh -c "[ \$(xl list | wc -l) = 2 ]"
sleep 1
inventory >/tmp/after
diff /tmp/before /tmp/after || failure "something leaks"
check "reset was done and is told" grep -iE "reset" /var/log/bulkhead/serve.log
success
