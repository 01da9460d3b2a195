#!/bin/sh
# The stub fails in every way and place, and begins anew in its domain: the guest's requests get right answers, its pings go on.
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=6
. /rig/scenarios/lib.sh
BDF=0000:00:05.0
KERNEL=/rig/bulkhead-stub-inject

dmesg -c >/dev/null
guest_config g1
check "bulkhead run, with an image that fails on demand" bulkhead run /root/g1.cfg --kernel $KERNEL --device $BDF
stub=$(bulkhead status --json | jq -r '.stubs[0].name')
domid=$(xl domid "$stub")
log=$(stub_log "$stub")
orders=0
restarts=0
# order POINT:KIND [COUNT]: the stub is to fail so the next COUNT times that it comes by.
order() {
    orders=$((orders + 1)) failures=${2:-1}
    xenstore-write "/local/domain/$domid/control/bulkhead-inject" "$1:$failures:$orders"
    usleep 300000
}
# failed WHAT: the stub has failed as ordered last, and serves again.
failed() {
    restarts=$((restarts + failures))
    within 5 "$1: restart $restarts" grep -q " restart $restarts after" "$log"
    sleep 1
    within 5 "$1: served again" sh -c "[ \$(grep -c 'is served again' $log) -ge $((served += 1)) ]"
}
served=0

# The guest is still booting.
order connect:panic
check "e1000e comes up" network_up g1
failed "a panic while the guest connects"
vectors() { in_guest g1 "grep -c pcifront-msi-x /proc/interrupts"; }
equal "MSI-X vectors" 3 "$(vectors)"
config=/sys/bus/pci/devices/0000:00:00.0/config
sum() { in_guest g1 "head -c 256 $config | sha256sum"; }
before=$(sum)
in_guest g1 "ping -c 300 -i 0.1 -W 2 10.0.2.2 >/tmp/pings 2>&1 & echo started"

order hotplug:panic
check "bulkhead attach of a second device" bulkhead attach g1 --device 0000:00:06.0
failed "hotplug"
within 10 "the guest has it" in_guest g1 "test -e /sys/bus/pci/devices/0000:00:01.0"
check "bulkhead detach" bulkhead detach 0000:00:06.0

inventory >/tmp/before
cat /tmp/before

for kind in panic allocation page-fault protection-fault invalid-opcode; do
    order conf_read:$kind
    equal "configuration space as read over a failure ($kind)" "$before" "$(sum)"
    failed "conf_read, $kind"
done
write='printf "\020" | dd of='$config' bs=1 seek=12 conv=notrunc 2>/dev/null; dd if='$config' bs=1 skip=12 count=1 2>/dev/null | od -An -tx1'
for order in conf_write:panic conf_write:page-fault conf_write-done:panic; do
    in_guest g1 "printf '\010' | dd of=$config bs=1 seek=12 conv=notrunc 2>/dev/null"
    order $order
    equal "a register as written over a failure ($order)" 10 "$(in_guest g1 "$write" | tr -d ' ')"
    failed "$order"
done
# The order itself is the news.
order reconcile:page-fault
failed "news from xenstore, page-fault"

# The request that brings the stub down twice.
order conf_read:panic 2
start=$(in_guest g1 "head -c 64 $config | sha256sum")
in_guest g1 "dd if=$config bs=4 skip=24 count=1 2>/dev/null | od -An -tx1"
served=$((served + 1))
failed "the poisonous request"
check "it is refused, and its bytes are told" grep -qE "refused from now on; its bytes: [0-9a-f]{72}" "$log"
check "again it is refused at once" grep -qE "conf_read refused \(stub\)" "$log"
equal "all others are served" "$start" "$(in_guest g1 "head -c 64 $config | sha256sum")"
equal "restarts by status" $restarts "$(bulkhead status --json | jq '.stubs[0].served.counters.restarts')"

check "the pings end" in_guest g1 "while pidof ping >/dev/null; do usleep 200000; done"
in_guest g1 cat /tmp/pings | tail -n 3
equal "pings of 300 answered, ten a second" 300 "$(in_guest g1 cat /tmp/pings | sed -n 's/.* \([0-9]*\) packets received.*/\1/p;s/.*transmitted, \([0-9]*\) received.*/\1/p')"

for order in disable_msi:panic enable_msix:page-fault enable_msix-done:panic disable_msi-done:invalid-opcode; do
    order $order
    check "a rebind over a failure ($order)" in_guest g1 "cd /sys/bus/pci/drivers/e1000e && echo 0000:00:00.0 >unbind && echo 0000:00:00.0 >bind"
    failed "$order"
    check "$order: link" network_up g1
    equal "$order: MSI-X vectors" 3 "$(vectors)"
done
equal "pings lost of 20 after the rebinds" 0 "$(pings_lost g1 20 0.1)"
inventory >/tmp/after
check "nothing has leaked" diff /tmp/before /tmp/after
in_guest g1 dmesg >/tmp/guest-dmesg
equal "complaints in the guest" "" "$(grep -iE 'enable msix get err|not responding|pcifront.*(err|fail)' /tmp/guest-dmesg)"
equal "complaints in dom0" "" "$(complaints)"
sed -n 's/.*served again \([0-9]*\) us after.*/\1/p' "$log" | sort -n >/tmp/gaps
say "$restarts failures; served again after, µs: p50 $(sed -n "$((($(wc -l </tmp/gaps) + 1) / 2))p" /tmp/gaps), max $(tail -n 1 /tmp/gaps)"
check "all within pcifront's two seconds" [ "$(tail -n 1 /tmp/gaps)" -lt 2000000 ]

# Without end: that it gives up, and says so, and the guest goes on.
order reconcile:panic 1000
within 10 "a stub that fails without end gives up" sh -c "bulkhead status --json | jq -e '.stubs[0].state == \"gone\"'"
check "it says so" grep -q "failed again and again and served nobody in between; shutting down with reason crash" "$log"
equal "pings lost of 10 without it" 0 "$(pings_lost g1 10 0.1)"

# Xen cannot deliver a fault to a stack without room.
check "xl create of a stub" xl create -q /etc/bulkhead/stubdom.cfg 'name="stub"' "kernel=\"$KERNEL\""
domid=$(xl domid stub)
xl dmesg -c >/dev/null
order reconcile:stack
within 5 "a stack that overflows ends the domain" sh -c "! xl domid stub"
check "by Xen" sh -c "xl dmesg | grep -i 'domain $domid.*crash'"
success
